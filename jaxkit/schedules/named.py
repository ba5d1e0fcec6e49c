"""The schedules people ask for by name, with optax's argument names.

All share `(peak_value, total_steps, *, init_value, end_value, warmup_steps)`, explained in
`schedule_from_profile`: `total_steps` counts optimiser updates and includes the warm-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

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


def delayed_linear_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    delay: Float[ArrayLike, ""] = 0.5,
) -> Schedule:
    """Delayed linear decay: at the peak for a fraction `delay`, then linear to the end.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.
        delay: fraction of the updates after the warm-up spent at the peak, in [0, 1).

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.2.

    Example:
        >>> schedule = delayed_linear_schedule(1.0, 4)
        >>> [float(schedule(i)) for i in range(5)]
        [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    return profile_schedules.schedule_from_profile(
        profiles.delayed_profile(profiles.linear_profile, delay),
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def wsd_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    cooldown: Float[ArrayLike, ""] = 0.2,
    shape: str = "linear",
) -> Schedule:
    """Warm-up, stable, decay: at the peak until the last fraction `cooldown`, then down to the end.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of the warm-up.
        end_value: value from update T on, <= `peak_value`.
        warmup_steps: W < T.
        cooldown: fraction of the T - W updates that cools down, in (0, 1].
        shape: `"linear"`, `"sqrt"` (1 - sqrt) or `"cosine"`.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range or `shape` unknown.

    Source: arXiv 2405.18392 §3.

    Example:
        >>> schedule = wsd_schedule(1.0, 8, cooldown=0.5)
        >>> [float(schedule(i)) for i in (0, 4, 6, 8)]
        [1.0, 1.0, 0.5, 0.0]
    """
    validation.number("cooldown", cooldown, minimum=0, maximum=1, open_minimum=True)
    validation.choice("shape", shape, profiles.COOLDOWN_SHAPES)
    return profile_schedules.schedule_from_profile(
        functools.partial(profiles.wsd_profile, cooldown=cooldown, shape=shape),
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def onecycle_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
    min_ratio: Float[ArrayLike, ""] = 0.1,
) -> Schedule:
    """OneCycle as the REX paper defines it: up from peak/10 and back, in two equal halves.

    Meant to run beside `onecycle_momentum_schedule`. Not `optax.linear_onecycle_schedule`, which
    has other fractions and a third phase.

    Args:
        peak_value: largest value, >= 0.
        total_steps: T, updates in all, warm-up W included.
        init_value: first value of a warm-up before the cycle, usually none.
        end_value: value that a multiplier of 0 stands for, <= `peak_value`.
        warmup_steps: W < T.
        min_ratio: smallest over largest multiplier, in [0, 1].

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> schedule = onecycle_schedule(1.0, 4)
        >>> [round(float(schedule(i)), 6) for i in range(4)]
        [0.1, 0.55, 1.0, 0.55]
    """
    validation.number("min_ratio", min_ratio, minimum=0, maximum=1)
    return profile_schedules.schedule_from_profile(
        functools.partial(profiles.onecycle_profile, min_ratio=min_ratio),
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


def onecycle_momentum_schedule(
    total_steps: Int[ArrayLike, ""],
    b_min: Float[ArrayLike, ""] = 0.85,
    b_max: Float[ArrayLike, ""] = 0.95,
) -> Schedule:
    """OneCycle's momentum: down from `b_max` to `b_min` at half time and back.

    Use it through `optax.inject_hyperparams`, as the momentum of SGD or the `b1` of Adam.

    Args:
        total_steps: T, updates in all.
        b_min: smallest momentum, in [0, 1).
        b_max: largest momentum, in [`b_min`, 1).

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> import optax
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(
        ...     learning_rate=onecycle_schedule(0.1, 8), momentum=onecycle_momentum_schedule(8)
        ... )
        >>> [round(float(onecycle_momentum_schedule(8)(i)), 6) for i in (0, 2, 4)]
        [0.95, 0.9, 0.85]
    """
    low = validation.number("b_min", b_min, minimum=0, maximum=1, open_maximum=True)
    high = validation.number("b_max", b_max, minimum=0, maximum=1, open_maximum=True)
    if not (validation.is_traced(low) or validation.is_traced(high)) and low > high:
        raise ValueError(f"b_min must be <= b_max = {b_max!r}, got {b_min!r}")
    total_steps, _ = profile_schedules.check_horizon(total_steps, 0)

    def value_at(step):
        rise = profiles.onecycle_profile(jnp.minimum(step, total_steps) / total_steps, 0.0)
        return high - (high - low) * rise

    return Schedule(value_at, total_steps)


def constant_schedule(
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Int[ArrayLike, ""] = 0,
) -> Schedule:
    """No schedule: `peak_value` after the warm-up, for baselines.

    Args:
        peak_value: the value, >= 0.
        total_steps: updates in all; only recorded.
        init_value: first value of the warm-up.
        end_value: not reached; here so that every schedule takes the same arguments.
        warmup_steps: updates of the warm-up.

    Returns:
        The schedule, int step (any shape) to float32.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1 ("none").

    Example:
        >>> float(constant_schedule(0.5, 10)(9))
        0.5
    """
    return profile_schedules.schedule_from_profile(
        jnp.ones_like,
        peak_value,
        total_steps,
        init_value=init_value,
        end_value=end_value,
        warmup_steps=warmup_steps,
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "rex": rex_schedule,
    "linear": linear_decay_schedule,
    "cosine": cosine_schedule,
    "wsd": wsd_schedule,
    "onecycle": onecycle_schedule,
    "step": step_schedule,
    "exponential": exponential_schedule,
    "polynomial": polynomial_schedule,
    "delayed": delayed_linear_schedule,
    "constant": constant_schedule,
}


def schedule_by_name(
    name: str,
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    **options: Any,
) -> Schedule:
    """Make a schedule from its name, as a command line or a configuration gives it.

    Args:
        name: one of `SCHEDULES`.
        peak_value: largest value, >= 0.
        total_steps: updates in all, warm-up included.
        **options: the other arguments of that factory.

    Returns:
        The schedule.

    Raises:
        TypeError: if the factory has no such option.
        ValueError: if there is no such schedule, naming those that exist, or a value is out of
            range.

    Example:
        >>> float(schedule_by_name("linear", 1.0, 4)(1))
        0.75
    """
    factory = SCHEDULES[validation.choice("schedule", name, SCHEDULES)]
    return factory(peak_value, total_steps, **options)
