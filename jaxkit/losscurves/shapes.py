"""Learning rates of the usual schedules, one value a step, to put questions to a law.

Each function returns `total_steps + 1` NumPy float64 rates; element 0 is the rate before the first
counted step. Put a warm-up in front with `with_warmup`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation

#: How a decay runs from 1 at x = 0 to 0 at x = 1; `"exponential"` is geometric instead, and needs a
#: positive final rate.
DECAY_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: 1 - x,
    "sqrt": lambda x: 1 - np.sqrt(x),
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
    "sqrtcube": lambda x: (1 - x) ** 1.5,
}

Rates = Float[np.ndarray, " steps"]


def constant_rates(total_steps: int, peak_value: float) -> Rates:
    """Hold the peak rate.

    Example:
        >>> constant_rates(2, 0.1)
        array([0.1, 0.1, 0.1])
    """
    return np.full(_total(total_steps) + 1, _peak(peak_value))


def cosine_rates(total_steps: int, peak_value: float, *, end_value: float = 0.0) -> Rates:
    """Fall from the peak to the final rate along half a cosine, over all steps.

    Example:
        >>> cosine_rates(2, 1.0)
        array([1. , 0.5, 0. ])
    """
    return hold_then_decay(
        total_steps, peak_value, total_steps, shape="cosine", end_value=end_value
    )


def hold_then_decay(
    total_steps: int,
    peak_value: float,
    decay_steps: int,
    *,
    shape: str = "linear",
    end_value: float = 0.0,
) -> Rates:
    """Hold the peak, then decay over the last steps (warm-up-stable-decay without the warm-up).

    Args:
        total_steps: last step.
        peak_value: rate held.
        decay_steps: number of last steps over which it falls, from 0 to `total_steps`.
        shape: `"linear"`, `"sqrt"` (1 - sqrt x), `"cosine"`, `"sqrtcube"` ((1 - x)^1.5) or
            `"exponential"`.
        end_value: rate at the last step.

    Returns:
        The rates, `[total_steps + 1]`.

    Raises:
        ValueError: if a number is out of range or the shape is unknown.
        TypeError: if a count is not an integer.

    Source: arXiv 2408.11029 §4; arXiv 2503.12811 (`sqrtcube`).

    Example:
        >>> hold_then_decay(4, 1.0, 2)
        array([1. , 1. , 1. , 0.5, 0. ])
    """
    total, peak = _total(total_steps), _peak(peak_value)
    decay_steps = validation.integer("decay_steps", decay_steps, minimum=0)
    if decay_steps > total:
        raise ValueError(f"decay_steps must be at most the {total} steps, got {decay_steps}")
    validation.choice("shape", shape, [*DECAY_SHAPES, "exponential"])
    validation.number("end_value", end_value, minimum=0, maximum=peak)
    rates = np.full(total + 1, peak)
    if decay_steps == 0:
        return rates
    x = np.arange(decay_steps + 1) / decay_steps
    if shape == "exponential":
        validation.number("end_value", end_value, minimum=0, open_minimum=True)
        rates[total - decay_steps :] = peak ** (1 - x) * end_value**x
    else:
        rates[total - decay_steps :] = end_value + (peak - end_value) * DECAY_SHAPES[shape](x)
    # Cosines and square roots end a rounding error away from the final rate.
    rates[-1] = end_value
    return rates


def piecewise_rates(
    total_steps: int, peak_value: float, changes: Sequence[tuple[float, float]]
) -> Rates:
    """Hold constant rates, changing at given fractions of the run: multi-step or two-stage.

    Args:
        total_steps: last step.
        peak_value: rate at the start.
        changes: pairs (fraction of the run, multiple of the peak from there on), in order.

    Returns:
        The rates, `[total_steps + 1]`.

    Raises:
        ValueError: if a fraction is outside [0, 1] or does not increase, or a multiple is negative.

    Example:
        >>> piecewise_rates(10, 1.0, [(0.8, 0.3), (0.9, 0.1)])[7:]
        array([1. , 0.3, 0.1, 0.1])
    """
    rates, last = constant_rates(total_steps, peak_value), -1.0
    for fraction, multiple in changes:
        validation.number("changes", fraction, minimum=0, maximum=1)
        validation.number("changes", multiple, minimum=0)
        if fraction <= last:
            raise ValueError(f"changes must come at increasing fractions, got {changes!r}")
        rates[round(fraction * (len(rates) - 1)) :] = peak_value * multiple
        last = fraction
    return rates


def cyclic_rates(
    total_steps: int, peak_value: float, num_cycles: int, *, end_value: float = 0.0
) -> Rates:
    """Repeat the cosine fall, jumping back to the peak after each.

    Example:
        >>> cyclic_rates(4, 1.0, 2)
        array([1. , 0.5, 1. , 0.5, 0. ])
    """
    total = _total(total_steps)
    num_cycles = validation.integer("num_cycles", num_cycles, minimum=1)
    validation.number("end_value", end_value, minimum=0, maximum=peak_value)
    x = np.arange(total + 1) * num_cycles / max(total, 1) % 1.0
    rates = end_value + (peak_value - end_value) * DECAY_SHAPES["cosine"](x)
    rates[-1] = end_value
    return rates


def rewarmed_rates(
    total_steps: int,
    peak_value: float,
    *,
    restart: float = 0.5,
    warmup_steps: int = 100,
    second_peak: float | None = None,
) -> Rates:
    """Decay linearly to 0 at `restart`, warm up again, and decay a second time.

    Args:
        total_steps: last step.
        peak_value: rate at the start.
        restart: fraction of the run at which the first decay ends, in (0, 1).
        warmup_steps: steps of the second warm-up.
        second_peak: rate it reaches; `peak_value` if None.

    Returns:
        The rates, `[total_steps + 1]`.

    Raises:
        ValueError: if the second decay would have no step left.

    Example:
        >>> rewarmed_rates(8, 1.0, warmup_steps=2)
        array([1.  , 0.75, 0.5 , 0.25, 0.  , 0.5 , 1.  , 0.5 , 0.  ])
    """
    total, peak = _total(total_steps), _peak(peak_value)
    validation.number("restart", restart, minimum=0, maximum=1, open_minimum=True)
    again = peak if second_peak is None else _peak(second_peak)
    turn = round(restart * total)
    warmup_steps = validation.integer("warmup_steps", warmup_steps, minimum=1)
    if turn < 1 or turn + warmup_steps >= total:
        raise ValueError(
            f"restart and warmup_steps must leave steps for a second decay of {total} steps, "
            f"got {restart!r} and {warmup_steps}"
        )
    corners = [0, turn, turn + warmup_steps, total]
    return np.interp(np.arange(total + 1), corners, [peak, 0.0, again, 0.0])


def with_warmup(
    learning_rates: Float[ArrayLike, " steps"], warmup_steps: int, *, init_value: float = 0.0
) -> Float[np.ndarray, " warmup_and_steps"]:
    """Put a linear warm-up in front of a schedule.

    Args:
        learning_rates: the schedule, `[steps]`.
        warmup_steps: steps of the warm-up, after which the schedule starts.
        init_value: rate at index 0.

    Returns:
        The rates, `[warmup_steps + steps]`; index `warmup_steps` is the first of the schedule.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if `warmup_steps` is not an integer.

    Example:
        >>> with_warmup(np.ones(2), 2)
        array([0. , 0.5, 1. , 1. ])
    """
    rates = np.asarray(learning_rates, np.float64)
    warmup_steps = validation.integer("warmup_steps", warmup_steps, minimum=0)
    validation.number("init_value", init_value, minimum=0)
    rise = np.linspace(init_value, rates[0], warmup_steps, endpoint=False)
    return np.concatenate([rise, rates])


def standard_schedules(
    total_steps: int, peak_value: float, *, decay_fraction: float = 0.2, end_value: float = 0.0
) -> dict[str, Rates]:
    """Tabulate the schedules that people choose between, by name.

    Args:
        total_steps: last step.
        peak_value: largest rate.
        decay_fraction: share of the run over which the `wsd_*` schedules decay, in [0, 1].
        end_value: rate at the end of those that decay (the exponential one is left out at 0).

    Returns:
        `constant`, `cosine`, `linear`, `wsd_linear`, `wsd_sqrt`, `wsd_cosine`, `wsd_sqrtcube`,
        `wsd_exponential`, `multi_step` (to 1/sqrt(10) at 80 %, 1/10 at 90 %) and `two_stage`
        (to 1/10 at 50 %).

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> list(standard_schedules(100, 1e-3))[:3]
        ['constant', 'cosine', 'linear']
    """
    validation.number("decay_fraction", decay_fraction, minimum=0, maximum=1)
    decay_steps = round(decay_fraction * _total(total_steps))
    shapes = [*DECAY_SHAPES, *(["exponential"] if end_value > 0 else [])]

    def fall(shape: str, steps: int) -> Rates:
        return hold_then_decay(total_steps, peak_value, steps, shape=shape, end_value=end_value)

    return {
        "constant": constant_rates(total_steps, peak_value),
        "cosine": cosine_rates(total_steps, peak_value, end_value=end_value),
        "linear": fall("linear", total_steps),
        **{f"wsd_{shape}": fall(shape, decay_steps) for shape in shapes},
        "multi_step": piecewise_rates(total_steps, peak_value, [(0.8, 0.1**0.5), (0.9, 0.1)]),
        "two_stage": piecewise_rates(total_steps, peak_value, [(0.5, 0.1)]),
    }


def _total(total_steps: int) -> int:
    return validation.integer("total_steps", total_steps, minimum=1)


def _peak(peak_value: float) -> float:
    return float(validation.number("peak_value", peak_value, minimum=0, open_minimum=True))
