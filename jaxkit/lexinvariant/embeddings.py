"""Random token tables: one a sequence, a pure function of the sequence's key."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation

KINDS = ("gaussian", "orthogonal", "rademacher")


def sequence_keys(key: Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
    """Derive one key a sequence from its global index.

    Args:
        key: a typed key, the same for the whole batch (usually one a step).
        index: global index of each sequence, so that a sequence draws the same table whatever the
            batch layout, the number of devices or the point of resumption.

    Returns:
        Keys of shape ``[B]``.

    Raises:
        TypeError: if `index` is not an integer array.

    Example:
        >>> keys = sequence_keys(jax.random.key(0), jnp.array([5, 6]))
        >>> bool(keys[1] == sequence_keys(jax.random.key(0), jnp.array([6]))[0])
        True
    """
    if not jnp.issubdtype(jnp.asarray(index).dtype, jnp.integer):
        raise TypeError(f"index must be integers, got dtype {jnp.asarray(index).dtype}")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))


def draw_embedding(
    keys: Key[Array, " B"],
    vocab_size: int,
    features: int,
    kind: Literal["gaussian", "orthogonal", "rademacher"] = "gaussian",
    dtype: jnp.dtype | str = "float32",
) -> Float[Array, "B V D"]:
    r"""Draw a fresh token table for every sequence.

    Rows have mean zero and :math:`\mathbb{E}|E_v|^2 = D`: `"gaussian"` rows are
    :math:`N(0, I_D)` (the paper's), `"rademacher"` entries are :math:`\pm 1`, `"orthogonal"` rows
    are a random orthonormal set times :math:`\sqrt{D}`, which needs ``V <= D``.

    Args:
        keys: one typed key a sequence, shape ``[B]`` (see `sequence_keys`).
        vocab_size: number of rows ``V``.
        features: width ``D``.
        kind: the law of the rows.
        dtype: type of the result; the draw itself is float32, so that two types differ by rounding
            alone.

    Returns:
        Tables ``[B, V, D]``.

    Raises:
        TypeError: if `keys` are not typed keys of rank 1.
        ValueError: if `kind` is unknown, a size is not positive, or ``V > D`` for `"orthogonal"`.

    Example:
        >>> draw_embedding(jax.random.split(jax.random.key(0), 2), 6, 16).shape
        (2, 6, 16)

    Source: arXiv 2305.16349 §2.3 (Gaussian); Rademacher as in arXiv 2410.17161.
    """
    validation.integer("vocab_size", vocab_size, minimum=1)
    validation.integer("features", features, minimum=1)
    validation.choice("kind", kind, KINDS)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise TypeError(
            "keys must be typed keys of shape [B], one a sequence (see sequence_keys), got "
            f"dtype {keys.dtype} and shape {keys.shape}"
        )
    if kind == "orthogonal" and vocab_size > features:
        raise ValueError(
            f"kind='orthogonal' needs vocab_size <= features, got {vocab_size} > {features}: "
            "use kind='gaussian'"
        )

    def draw(key: Key[Array, ""]) -> Array:
        if kind == "rademacher":
            return jax.random.rademacher(key, (vocab_size, features), jnp.float32)
        if kind == "orthogonal":
            return jax.random.orthogonal(key, features)[:vocab_size] * features**0.5
        return jax.random.normal(key, (vocab_size, features), jnp.float32)

    return jax.vmap(draw)(keys).astype(dtype)
