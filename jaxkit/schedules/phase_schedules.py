"""Schedules in phases: flat then down, up then down, or flat throughout.

All share `(peak_value, total_steps, *, init_value, end_value, warmup_steps)`, explained in
`schedule_from_profile`: `total_steps` counts optimiser updates and includes the warm-up.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import validation
from jaxkit.schedules import profile_schedules, profiles
from jaxkit.schedules.profile_schedules import Schedule


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
