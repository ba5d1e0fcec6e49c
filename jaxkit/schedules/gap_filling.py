"""Series with holes: steps that were skipped or overflowed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float


def fill_gaps(
    values: Float[Array, "*batch n"], known: Bool[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Replace unknown entries by linear interpolation between their known neighbours.

    Before the first known entry and after the last, the nearest known value is held.

    Args:
        values: series along the last axis.
        known: which entries to trust.

    Returns:
        The series without holes; all NaN where nothing is known.

    Example:
        >>> values = jnp.array([1.0, jnp.inf, 3.0, jnp.nan])
        >>> fill_gaps(values, jnp.isfinite(values)).tolist()
        [1.0, 2.0, 3.0, 3.0]
    """
    return _fill_gaps(values, known)


@jax.jit
def _fill_gaps(
    values: Float[Array, "*batch n"], known: Bool[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
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
    share = (index - before) / jnp.maximum(after - before, 1)
    filled = jnp.where(known, values, low + (high - low) * share)
    return jnp.where(known.any(axis=-1, keepdims=True), filled, jnp.nan)
