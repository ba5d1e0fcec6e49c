"""Schedules that decay from the first update after the warm-up, with optax's argument names.

All share `(peak_value, total_steps, *, init_value, end_value, warmup_steps)`, explained in
`schedule_from_profile`: `total_steps` counts optimiser updates and includes the warm-up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import validation
from jaxkit.schedules import profile_schedules, profiles
from jaxkit.schedules.profile_schedules import Schedule


def rex_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    d: Float[ArrayLike, ""] = 0.5,
) -> Schedule:
    """REX: with r = (T - i)/(T - W), value(i) = end + (peak - end) r / ((1 - d) + d r).

    Near-best at small and large budgets alike without a parameter to tune; the first choice when
    the budget is short.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.
        d: 0 linear, 1/2 the paper's REX, 0.9 the variant most trainers ship; in [0, 1).

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.2, eq. 1.

    Example:
        >>> schedule = rex_schedule(1.0, 5)
        >>> [round(float(schedule(i)), 6) for i in range(6)]
        [1.0, 0.888889, 0.75, 0.571429, 0.333333, 0.0]
    """
    d = validation.number("d", d, minimum=0, maximum=1, open_maximum=True)

    def decay(count, decay_steps):
        return profiles.rex_of_remaining((decay_steps - count) / decay_steps, d)

    return profile_schedules.warm_up_then_decay(
        decay,
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def linear_decay_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
) -> Schedule:
    """Linear decay: value(i) = end + (peak - end) (1 - (i - W)/(T - W)).

    The worst-case optimal schedule for the last iterate; bit for bit `optax.linear_schedule`.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2310.07831 §2.

    Example:
        >>> schedule = linear_decay_schedule(1.0, 6, warmup_steps=2)
        >>> [float(schedule(i)) for i in range(7)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return profile_schedules.schedule_from_profile(
        profiles.linear_profile,
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def polynomial_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    power: Float[ArrayLike, ""] = 2.0,
) -> Schedule:
    """Polynomial decay: value(i) = end + (peak - end) (1 - z)^power, z = (i - W)/(T - W).

    Bit for bit `optax.polynomial_schedule`.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.
        power: exponent, > 0.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2310.07831 (stand-ins for refined schedules).

    Example:
        >>> float(polynomial_schedule(1.0, 4, power=2.0)(2))
        0.25
    """
    validation.number("power", power, minimum=0, open_minimum=True)
    return profile_schedules.schedule_from_profile(
        functools.partial(profiles.polynomial_profile, power=power),
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def cosine_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
) -> Schedule:
    """Cosine decay: value(i) = end + (peak - end) (1 + cos(pi z))/2, z = (i - W)/(T - W).

    Bit for bit `optax.warmup_cosine_decay_schedule`, which it wraps when the counts are known.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> round(float(cosine_schedule(1.0, 8)(2)), 6)
        0.853553
    """
    total_steps, warmup_steps = profile_schedules.check_horizon(total_steps, warmup_steps)
    profile_schedules.check_values(peak_value, init_value=init_value, end_value=end_value)
    if not (isinstance(total_steps, int) and isinstance(warmup_steps, int)):
        return profile_schedules.schedule_from_profile(
            profiles.cosine_profile,
            peak_value,
            total_steps,
            init_value=init_value,
            end_value=end_value,
            warmup_steps=warmup_steps,
        )
    floor = 0.0
    if not (isinstance(end_value, int | float) and end_value == 0):
        floor = jnp.where(jnp.asarray(peak_value) == 0, 0.0, end_value / peak_value)
    decay = optax.cosine_decay_schedule(peak_value, total_steps - warmup_steps, alpha=floor)
    if warmup_steps == 0:
        return Schedule(decay, total_steps)
    warm_up = optax.linear_schedule(init_value, peak_value, warmup_steps)
    return Schedule(optax.join_schedules([warm_up, decay], [warmup_steps]), total_steps)


def exponential_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    rate: Float[ArrayLike, ""] = -3.0,
) -> Schedule:
    """Exponential decay: value(i) = end + (peak - end) exp(rate z), z = (i - W)/(T - W).

    Bit for bit `optax.exponential_decay` with `decay_rate = exp(rate)` up to update T; it then
    holds its last value, where optax's goes on.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: asymptote, <= `peak_value`.
        warmup_steps: W < T.
        rate: exponent at the end of the budget.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> round(float(exponential_schedule(1.0, 3)(1)), 6)
        0.367879
    """
    validation.number("rate", rate)
    return profile_schedules.schedule_from_profile(
        functools.partial(profiles.exponential_profile, rate=rate),
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def step_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    boundaries: Sequence[float] = (0.5, 0.75),
    factor: Float[ArrayLike, ""] = 0.1,
) -> Schedule:
    """Step decay: multiplied by `factor` at each fraction of the budget.

    Boundary p falls at update W + ceil(p (T - W)) exactly; bit for bit
    `optax.piecewise_constant_schedule` with these updates as boundaries.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value that a multiplier of 0 stands for, <= `peak_value`.
        warmup_steps: W < T.
        boundaries: increasing fractions of the budget inside (0, 1).
        factor: multiplier at each of them, in [0, 1].

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1 ("50-75").

    Example:
        >>> schedule = step_schedule(1.0, 4)
        >>> [round(float(schedule(i)), 6) for i in range(4)]
        [1.0, 1.0, 0.1, 0.01]
    """
    validation.number("factor", factor, minimum=0, maximum=1)
    points = profiles.increasing_fractions("boundaries", boundaries)

    def decay(count, decay_steps):
        value = jnp.ones(jnp.shape(count))
        for point in points:
            reached = count >= profile_schedules.first_step_at(point, decay_steps)
            value = jnp.where(reached, value * factor, value)
        return value

    return profile_schedules.warm_up_then_decay(
        decay,
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )
