"""Where a token stands: T5 relative biases, ALiBi slopes and rotary embeddings."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def t5_bucket(
    distance: Int[Array, " ..."] | np.ndarray, num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, " ..."]:
    r"""Bucket of a causal distance, as in T5: exact for short distances, logarithmic beyond.

    With :math:`h` = ``num_buckets // 2`` and :math:`n` the distance from query to key,

    .. math:: b(n) = n \text{ if } n < h, \text{ else }
        \min\bigl(2h - 1,\ h + \lfloor h \log(n / h) / \log(M / h) \rfloor\bigr).

    `distance` is the query's position minus the key's, negative ones count as 0; `M` is
    `max_distance`. Source: Raffel et al. 2020 (T5), the causal case; arXiv 2305.16349 §3.1.
    """
    exact = num_buckets // 2
    distance = jnp.maximum(jnp.asarray(distance), 0)
    # The boundaries are integers: comparing with them is exact where a float32 log would not be.
    growth = (max_distance / exact) ** (np.arange(1, num_buckets - exact) / (num_buckets - exact))
    boundaries = jnp.asarray(np.ceil(exact * growth - 1e-9), jnp.int32)
    beyond = exact + jnp.sum(distance[..., None] >= boundaries, axis=-1)
    return jnp.where(distance < exact, distance, beyond).astype(jnp.int32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slope of each head in ALiBi: the geometric sequence ``2^(-8 i / H)``, ``i = 1 .. H``.

    The bias at distance ``n`` is ``-slope * n``. Source: Press et al. 2022 (ALiBi) §3; for ``H``
    not a power of two the same formula is used.
    """
    return (2.0 ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)).astype(np.float32)


def rotate(
    x: Float[Array, "B T H K"], positions: Int[Array, " T"], base: float = 10_000.0
) -> Float[Array, "B T H K"]:
    r"""Rotary position embedding: turn the feature pair ``(k, k + K/2)`` by an angle.

    .. math:: \theta_{t,k} = t \cdot \text{base}^{-2k/K}, \quad k = 0 .. K/2 - 1

    Source: Su et al. 2021 (RoFormer) eq. 34, in the half-split layout.
    """
    half = x.shape[-1] // 2
    frequency = jnp.exp(-math.log(base) / half * jnp.arange(half, dtype=jnp.float32))
    angle = positions.astype(jnp.float32)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
