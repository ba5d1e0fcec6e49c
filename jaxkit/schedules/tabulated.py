"""A schedule given by a table of values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxkit import validation
from jaxkit.schedules import profile_schedules
from jaxkit.schedules.profile_schedules import Schedule


def schedule_from_values(
    values: Float[Array | np.ndarray, " n"], total_steps: Any, peak_value: Any = 1.0
) -> Schedule:
    """Interpolate a table over a run: update i of N reads it at position i (n - 1)/N.

        value(i) = peak * interp(i (n - 1)/N)   for i < N,   0 from N on.

    The last entry belongs to time N, after the last update, so that no update is spent on the 0
    that refined schedules end with. A table with one entry an update and one more, n = N + 1, is
    read without interpolation.

    Args:
        values: multipliers evenly spaced over the run, n >= 2, finite and >= 0.
        total_steps: N, number of updates; may be traced.
        peak_value: scale of the table, >= 0; may be traced.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if a value is negative or not finite, there are fewer than 2, or a number is
            out of range.

    Source: arXiv 2310.07831 §3 (the refined schedule of a run of another length).

    Example:
        >>> schedule = schedule_from_values(jnp.array([1.0, 0.5, 0.0]), 4, 0.1)
        >>> [round(float(schedule(i)), 6) for i in range(5)]
        [0.1, 0.075, 0.05, 0.025, 0.0]
    """
    if not validation.is_traced(values):
        values = np.asarray(values)
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(f"values must be one series of at least 2, got shape {values.shape}")
    validation.number("values", values, minimum=0)
    validation.number("peak_value", peak_value, minimum=0)
    total_steps, _ = profile_schedules.check_horizon(total_steps, 0)
    table = jnp.asarray(values, jnp.float32)
    last = table.shape[0] - 1

    def value_at(step):
        # Of a whole number of entries an update, exactly; otherwise in float32.
        if isinstance(total_steps, int) and last % total_steps == 0:
            position = jnp.minimum(step, total_steps) * jnp.float32(last // total_steps)
        else:
            position = jnp.minimum(step, total_steps) / total_steps * last
        below = jnp.clip(position.astype(jnp.int32), 0, last - 1)
        share = position - below
        value = table[below] * (1 - share) + table[below + 1] * share
        return peak_value * jnp.where(step < total_steps, value, 0.0)

    return Schedule(value_at, total_steps)
