"""The schedules by the names that a command line or a configuration gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import validation
from jaxkit.schedules import decay_schedules, phase_schedules
from jaxkit.schedules.profile_schedules import Schedule

#: Constructors of schedules by name.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "rex": decay_schedules.rex_schedule,
    "linear": decay_schedules.linear_decay_schedule,
    "cosine": decay_schedules.cosine_schedule,
    "wsd": phase_schedules.wsd_schedule,
    "onecycle": phase_schedules.onecycle_schedule,
    "step": decay_schedules.step_schedule,
    "exponential": decay_schedules.exponential_schedule,
    "polynomial": decay_schedules.polynomial_schedule,
    "delayed": phase_schedules.delayed_linear_schedule,
    "constant": phase_schedules.constant_schedule,
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
