"""Series with holes: steps that were skipped or overflowed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float


@jax.jit
def fill_gaps(
    values: Float[Array, "*batch n"], known: Bool[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Replace unknown entries by linear interpolation between their known neighbours.

    Before the first known entry and after the last, the nearest known value is held; all NaN where
    nothing is known.
    """
    return lax.cond(known.all(), lambda: values, lambda: _interpolate(values, known))


def _interpolate(
    values: Float[Array, "*batch n"], known: Bool[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    n = values.shape[-1]
    index = jnp.broadcast_to(jnp.arange(n), values.shape)
    before = lax.cummax(jnp.where(known, index, -1), axis=values.ndim - 1)
    after = lax.cummin(jnp.where(known, index, n), axis=values.ndim - 1, reverse=True)
    before, after = jnp.where(before < 0, after, before), jnp.where(after >= n, before, after)
    low = jnp.take_along_axis(values, jnp.clip(before, 0, n - 1), axis=-1)
    high = jnp.take_along_axis(values, jnp.clip(after, 0, n - 1), axis=-1)
    share = ((index - before) / jnp.maximum(after - before, 1)).astype(values.dtype)
    filled = jnp.where(known, values, low + (high - low) * share)
    return jnp.where(known.any(axis=-1, keepdims=True), filled, jnp.nan)
