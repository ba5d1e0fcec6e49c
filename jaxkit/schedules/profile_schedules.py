"""A schedule is a profile times a sampling rate, after a warm-up."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from jaxkit import validation
from jaxkit.schedules import profiles

#: Largest horizon: update counts are int32.
MAX_STEPS = 2**31 - 1

#: (updates since the end of the warm-up, updates of the decay) to a multiplier.
Decay = Callable[[Array, Any], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """An `optax.Schedule` that knows its horizon.

    Attributes:
        value_at: non-negative int32 step (any shape) to value.
        total_steps: number of updates it spans, warm-up included; it stays at its last value after.

    Example:
        >>> schedule = Schedule(lambda step: 0.1 * step, total_steps=3)
        >>> round(float(schedule(2)), 6), schedule.total_steps
        (0.2, 3)
    """

    value_at: Callable[[Array], Any]
    total_steps: Any

    def __call__(self, step: Real[ArrayLike, "*steps"]) -> Float[Array, "*values"]:
        """Return the value at update `step` (the first is 0; a negative one counts as 0)."""
        value = self.value_at(jnp.maximum(jnp.asarray(step), 0))
        return jnp.asarray(value, jnp.float32)


def schedule_from_profile(
    profile: profiles.Profile,
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    sample_every: int = 1,
    sample_points: Sequence[float] | None = None,
) -> Schedule:
    """Read a profile at a sampling rate, after a linear warm-up.

    With W = `warmup_steps`, T = `total_steps` and z_k the last sampling point not after
    (i - W)/(T - W), z = 0 always being one:

        value(i) = init + (peak - init) i/W           for i < W
                   end + (peak - end) profile(z_k)    for W <= i < T
                   end + (peak - end) profile(1)      for i >= T

    Every number may be traced; only the profile and the sampling are static.

    Args:
        profile: function of progress, see `jaxkit.schedules.profiles`.
        peak_value: value at the end of the warm-up, >= 0.
        total_steps: number of optimiser updates T, **warm-up included**; not epochs, and not
            micro-batches when gradients are accumulated.
        init_value: value of the first update of the warm-up, >= 0; unused without one.
        end_value: value that a profile of 0 stands for, in [0, `peak_value`].
        warmup_steps: W, in [0, T).
        sample_every: updates between two readings of the profile; 1 reads it at every update.
        sample_points: progress values in (0, 1) at which the profile is read, such as
            `(0.5, 0.75)`, instead of `sample_every`.

    Returns:
        The schedule: int step or array of steps to float32 of the same shape.

    Raises:
        TypeError: if a count is not an integer or a value not a real number.
        ValueError: if an argument is out of its range, or both samplings are given.

    Source: arXiv 2107.04197 §3 (profile and sampling rate).

    Example:
        >>> from jaxkit.schedules import profiles
        >>> schedule = schedule_from_profile(profiles.linear_profile, 1.0, 8, sample_every=4)
        >>> [float(schedule(i)) for i in (0, 3, 4, 8)]
        [1.0, 1.0, 0.5, 0.0]
    """
    if not callable(profile):
        raise TypeError(f"profile must be a function of progress, got {profile!r}")
    sample_every = validation.integer("sample_every", sample_every, minimum=1)
    points = None
    if sample_points is not None:
        points = profiles.increasing_fractions("sample_points", sample_points)
        if sample_every != 1:
            raise ValueError(
                f"sample_points and sample_every exclude each other, got {sample_points!r} "
                f"and {sample_every}"
            )

    def decay(count, decay_steps):
        if points is None:
            z = count // sample_every * sample_every / decay_steps
        else:
            z = progress_at_points(count, decay_steps, points)
        return profile(jnp.where(count < decay_steps, z, 1.0))

    return warm_up_then_decay(
        decay,
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def warm_up_then_decay(
    decay: Decay,
    peak_value: Any,
    total_steps: Any,
    *,
    init_value: Any,
    end_value: Any,
    warmup_steps: Any,
) -> Schedule:
    """Warm up linearly, then scale a decay given by update counts.

    The arithmetic is that of `optax.linear_schedule` and `optax.polynomial_schedule`, so that the
    curves which optax has come out with optax's bits.

    Args:
        decay: (updates since the warm-up, clipped to [0, n]; n) to a multiplier.
        peak_value: as in `schedule_from_profile`, and so are the others.
        total_steps: number of updates, warm-up included.
        init_value: value of the first update of the warm-up.
        end_value: value that a multiplier of 0 stands for.
        warmup_steps: updates of the warm-up.

    Returns:
        The schedule.

    Raises:
        TypeError: if a count is not an integer or a value not a real number.
        ValueError: if an argument is out of its range.

    Example:
        >>> def decay(count, decay_steps):
        ...     return 1 - count / decay_steps
        >>> numbers = dict(init_value=0.0, end_value=0.0, warmup_steps=2)
        >>> schedule = warm_up_then_decay(decay, 1.0, 6, **numbers)
        >>> [float(schedule(i)) for i in range(7)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    total_steps, warmup_steps = check_horizon(total_steps, warmup_steps)
    check_values(peak_value, init_value=init_value, end_value=end_value)
    decay_steps = total_steps - warmup_steps

    def value_at(step):
        count = jnp.clip(step - warmup_steps, 0, decay_steps)
        decayed = (peak_value - end_value) * decay(count, decay_steps) + end_value
        if isinstance(warmup_steps, int) and warmup_steps == 0:
            return decayed
        warmed = jnp.minimum(step, warmup_steps) / jnp.maximum(warmup_steps, 1)
        warming = (init_value - peak_value) * profiles.linear_profile(warmed) + peak_value
        return jnp.where(step < warmup_steps, warming, decayed)

    return Schedule(value_at, total_steps)


def progress_at_points(
    count: Real[Array, "*steps"], decay_steps: Any, points: tuple[float, ...]
) -> Float[Array, "*steps"]:
    """Find the last of the sampling points (0 first) that `count` updates have reached.

    A point p is reached at update ceil(p n), found in exact integers: comparing p with a float32
    count / n would move it by one update whenever p n is whole.

    Args:
        count: updates since the warm-up.
        decay_steps: n, the updates of the decay; may be traced.
        points: increasing points inside (0, 1).

    Returns:
        The point reached, of the shape of `count`.

    Raises:
        ValueError: if `decay_steps` is traced and a point has a denominator above 10,000.

    Example:
        >>> progress_at_points(jnp.arange(4), 4, (0.5, 0.75)).tolist()
        [0.0, 0.0, 0.5, 0.75]
    """
    z = jnp.zeros(jnp.shape(count))
    for point in points:
        z = jnp.where(count >= first_step_at(point, decay_steps), point, z)
    return z


def first_step_at(point: float, decay_steps: Any) -> Any:
    """Return ceil(p n) without rounding: the first update whose progress i/n is at least p.

    Args:
        point: p in (0, 1), taken as the decimal (or simple fraction) that it prints as.
        decay_steps: n; an int or a traced integer.

    Returns:
        The update, a Python int for a Python int.

    Raises:
        ValueError: if `decay_steps` is traced and p has a denominator above 10,000.

    Example:
        >>> first_step_at(0.07, 100), first_step_at(1 / 3, 30_000)
        (7, 10000)
    """
    exact = fractions.Fraction(repr(float(point)))
    simple = exact.limit_denominator(10_000)
    if abs(simple - exact) < fractions.Fraction(1, 10**15):
        exact = simple
    elif not isinstance(decay_steps, int):
        raise ValueError(
            f"sample_points must be fractions with a denominator <= 10,000 when total_steps is "
            f"traced, got {point!r}"
        )
    a, b = exact.numerator, exact.denominator
    return decay_steps // b * a - (-(decay_steps % b) * a) // b


def check_horizon(total_steps: Any, warmup_steps: Any) -> tuple[Any, Any]:
    """Check the counts of a schedule, as far as they are known.

    Args:
        total_steps: number of updates, in [1, 2^31).
        warmup_steps: updates of the warm-up, in [0, `total_steps`).

    Returns:
        Both as Python ints, or unchanged where traced.

    Raises:
        TypeError: if one is not an integer.
        ValueError: if one is out of range.

    Example:
        >>> check_horizon(10, 2)
        (10, 2)
    """
    if not validation.is_traced(total_steps):
        total_steps = validation.integer("total_steps", total_steps, minimum=1)
        if total_steps > MAX_STEPS:
            raise ValueError(f"total_steps must be an integer <= {MAX_STEPS}, got {total_steps}")
    if not validation.is_traced(warmup_steps):
        warmup_steps = validation.integer("warmup_steps", warmup_steps, minimum=0)
        if isinstance(total_steps, int) and warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be < total_steps = {total_steps}, got {warmup_steps}"
            )
    return total_steps, warmup_steps


def check_values(peak_value: Any, *, init_value: Any, end_value: Any) -> None:
    """Check the values of a schedule, as far as they are known.

    Args:
        peak_value: >= 0.
        init_value: >= 0.
        end_value: in [0, `peak_value`].

    Raises:
        TypeError: if one is not a real number.
        ValueError: if one is out of range.

    Example:
        >>> check_values(1.0, init_value=0.0, end_value=0.1)
    """
    validation.number("peak_value", peak_value, minimum=0)
    validation.number("init_value", init_value, minimum=0)
    validation.number("end_value", end_value, minimum=0)
    if validation.is_traced(peak_value) or validation.is_traced(end_value):
        return
    if np.any(np.asarray(end_value) > np.asarray(peak_value)):
        raise ValueError(f"end_value must be <= peak_value = {peak_value!r}, got {end_value!r}")
