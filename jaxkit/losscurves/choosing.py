"""Which schedule a law would choose: closed forms, families, constrained optima and rankings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation
from jaxkit.losscurves import areas, fitting, laws, shapes


class ZeroTail(NamedTuple):
    """The free optimum of the annealing law: hold the peak, then rate 0.

    Attributes:
        steps: best number of last steps at rate 0.
        real_steps: the same before rounding.
        loss: final loss predicted, nats.

    Example:
        >>> law = laws.AnnealingLaw(2.628, 0.4297, 0.4108, 0.5498)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     tail = optimal_zero_tail(law, 20000, 2e-4, decay=0.999)
        >>> tail.steps, abs(tail.steps - tail.real_steps) < 1
        (2494, True)
    """

    steps: int
    real_steps: float
    loss: float


def optimal_zero_tail(
    law: laws.AnnealingLaw,
    total_steps: int,
    peak_value: float,
    *,
    decay: float,
    prior_sum: float = 0.0,
) -> ZeroTail:
    r"""Solve in closed form for the best schedule of all, by the annealing law: bang-bang.

    The final loss is convex in the rates, with gradient
    $-\alpha A S_1^{-\alpha-1} + C \lambda^{T-i}$, so the optimum holds the peak and then drops to 0
    for the last k steps, where $C \lambda^k = \alpha A (S_w + \eta (T-k))^{-\alpha-1}$.

    Args:
        law: its constants.
        total_steps: T, counted steps.
        peak_value: the peak rate that the law was fitted at.
        decay: lambda of the law.
        prior_sum: sum of the rates of a warm-up before these steps.

    Returns:
        The optimum.

    Raises:
        ValueError: if a number is out of range.

    Warns:
        UserWarning: always. The optimum exploits that the law lets the loss fall at rate 0, where
            training stands still. Use `optimal_decay_length` or `optimize_schedule` to train.

    Source: convexity argument from arXiv 2408.11029 eq. (1).

    Example:
        >>> law = laws.AnnealingLaw(2.628, 0.4297, 0.4108, 0.5498)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     optimal_zero_tail(law, 20000, 2e-4, decay=0.999).steps
        2494
    """
    total = validation.integer("total_steps", total_steps, minimum=1)
    _check_law(law, peak_value, decay, prior_sum)
    warnings.warn(
        "the free optimum ends in steps of rate 0, where the annealing law goes on falling "
        "although training cannot change: use optimal_decay_length or optimize_schedule to train",
        stacklevel=2,
    )

    def gain(k: float) -> float:
        """Logarithm of the gradient's two terms: positive where a longer tail lowers the loss."""
        forward = prior_sum + peak_value * (total - k)
        if forward <= 0:
            return -math.inf
        return (
            math.log(law.annealing) + k * math.log(decay) + (law.exponent + 1) * math.log(forward)
            - math.log(law.exponent * law.scale)
        )  # fmt: skip

    longest = total - 1e-9 if prior_sum == 0 else float(total)
    if law.annealing == 0 or gain(0.0) <= 0:
        real = 0.0
    elif gain(longest) >= 0:
        real = longest
    else:
        root: Any = scipy.optimize.brentq(gain, 0.0, longest)
        real = float(root)

    def loss(k: int) -> float:
        rates = np.full(total, float(peak_value))
        rates[total - k :] = 0.0
        return _final_loss(law, rates, peak_value, decay, prior_sum)

    near = [k for k in (math.floor(real), math.ceil(real)) if k < total or prior_sum > 0]
    steps = min(near, key=loss)
    return ZeroTail(steps, real, loss(steps))


class DecayLength(NamedTuple):
    """The best length of a decay within one shape.

    Attributes:
        steps: best number of decay steps.
        fraction: the same as a share of the run.
        loss: final loss predicted there, nats.
        lengths: the grid looked at, `[n]`, steps.
        losses: final losses predicted on it, `[n]`, nats.

    Example:
        >>> law = laws.AnnealingLaw(2.628, 0.4297, 0.4108, 0.5498)
        >>> best = optimal_decay_length(law, 20000, 2e-4, decay=0.999)
        >>> bool(best.loss <= best.losses.min()), best.fraction == best.steps / 20000
        (True, True)
    """

    steps: int
    fraction: float
    loss: float
    lengths: np.ndarray
    losses: np.ndarray


def optimal_decay_length(
    law: laws.AnnealingLaw,
    total_steps: int,
    peak_value: float,
    *,
    decay: float,
    shape: str = "linear",
    end_value: float = 0.0,
    prior_sum: float = 0.0,
) -> DecayLength:
    """Find over how many last steps to decay, for one shape of decay, by the annealing law.

    A grid of 1 % of the run, then every length between the neighbours of its best (by ternary
    search), each evaluated exactly in O(length) and float64.

    Args:
        law: its constants.
        total_steps: counted steps.
        peak_value: the peak rate that the law was fitted at.
        decay: lambda of the law.
        shape: as for `shapes.hold_then_decay`.
        end_value: rate at the last step.
        prior_sum: sum of the rates of a warm-up before these steps.

    Returns:
        The best length and the grid around it.

    Raises:
        ValueError: if a number is out of range or the shape is unknown.

    Source: arXiv 2408.11029 §4 (best annealing ratio).

    Example:
        >>> law = laws.AnnealingLaw(2.628, 0.4297, 0.4108, 0.5498)
        >>> round(optimal_decay_length(law, 20000, 2e-4, decay=0.999).fraction, 2)
        0.24
    """
    total = validation.integer("total_steps", total_steps, minimum=1)
    _check_law(law, peak_value, decay, prior_sum)

    def loss(steps: int) -> float:
        rates = shapes.hold_then_decay(steps, peak_value, steps, shape=shape, end_value=end_value)
        before = prior_sum + peak_value * (total - steps)
        return _final_loss(law, rates[1:], peak_value, decay, before)

    lengths = np.unique(
        np.append(np.arange(max(total // 100, 1), total, max(total // 100, 1)), total)
    )
    losses = np.array([loss(int(n)) for n in lengths])
    best = int(np.argmin(losses))
    low = int(lengths[max(best - 1, 0)]) if best else 1
    high = int(lengths[min(best + 1, len(lengths) - 1)])
    steps = _integer_minimum(loss, low, high)
    return DecayLength(steps, steps / total, loss(steps), lengths, losses)


class RankedSchedule(NamedTuple):
    """One candidate: its name, final loss predicted in nats, and excess over the best.

    Example:
        >>> rows = [RankedSchedule("wsd", 2.5, 0.0), RankedSchedule("cosine", 2.75, 0.25)]
        >>> [row.name for row in rows if row.excess < 0.1]  # as good as the best
        ['wsd']
    """

    name: str
    loss: float
    excess: float


def rank_schedules(
    fitted: fitting.LawFit,
    candidates: Mapping[str, Float[ArrayLike, " steps"]],
    *,
    warmup_steps: int | None = None,
    model_size: float | None = None,
) -> list[RankedSchedule]:
    """Sort candidate schedules by the final loss a fit predicts.

    Args:
        fitted: the fit; any law.
        candidates: schedules by name, of any lengths.
        warmup_steps: as for `predict`.
        model_size: as for `predict`.

    Returns:
        The candidates, best first.

    Raises:
        ValueError: if there is no candidate, or as `predict`.

    Example:
        >>> from jaxkit.losscurves import curves, forms
        >>> at = np.arange(100, 2001, 100)
        >>> def run(rates):
        ...     s2 = forms.host_annealing(rates, 0.99)[at]
        ...     return curves.loss_curve(rates, at, 2 + np.cumsum(rates)[at] ** -0.5 - s2)
        >>> schedules = shapes.standard_schedules(2000, 1e-3, end_value=1e-5)
        >>> fitted = fitting.fit(
        ...     forms.Annealing(0.99), [run(schedules["constant"]), run(schedules["cosine"])]
        ... )
        >>> rank_schedules(fitted, schedules)[0].name
        'wsd_cosine'
    """
    if not candidates:
        raise ValueError("candidates must hold at least one schedule, got none")
    losses: dict[str, float] = {}
    for length in {np.shape(rates)[-1] for rates in candidates.values()}:
        names = [name for name, rates in candidates.items() if np.shape(rates)[-1] == length]
        found = fitting.predict(
            fitted,
            np.stack([np.asarray(candidates[name], np.float64) for name in names]),
            steps=np.array([length - 1]),
            warmup_steps=warmup_steps,
            model_size=model_size,
        )
        losses |= dict(zip(names, np.asarray(found, np.float64)[:, 0].tolist(), strict=True))
    best = min(losses.values())
    order = sorted(losses, key=losses.__getitem__)
    return [RankedSchedule(name, losses[name], losses[name] - best) for name in order]


def tabulated_schedule(learning_rates: Float[ArrayLike, " steps"]) -> optax.Schedule:
    """Make an `optax.Schedule` of one rate a step.

    Args:
        learning_rates: rate at count 0, 1, ..., `[steps]`; the last one is held after the end.

    Returns:
        The schedule; `rates_of` undoes it.

    Raises:
        ValueError: if a rate is negative or not finite.

    Example:
        >>> schedule = tabulated_schedule(np.array([0.1, 0.05, 0.0]))
        >>> float(schedule(1)), float(schedule(7))
        (0.05000000074505806, 0.0)
    """
    table = jnp.asarray(areas.check_schedule("learning_rates", learning_rates))
    if table.ndim != 1:
        raise ValueError(f"learning_rates must have shape [steps], got {table.shape}")

    def schedule(count: Any) -> jax.Array:
        return table[jnp.clip(count, 0, table.shape[0] - 1)]

    return schedule


def _check_law(law: laws.AnnealingLaw, peak_value: Any, decay: Any, prior_sum: Any) -> None:
    validation.number("peak_value", peak_value, minimum=0, open_minimum=True)
    validation.number("decay", decay, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    validation.number("prior_sum", prior_sum, minimum=0)
    for name, value in law._asdict().items():
        validation.number(f"law.{name}", value, minimum=0)


def _final_loss(
    law: laws.AnnealingLaw, rates: np.ndarray, peak: float, decay: float, before: float
) -> float:
    """Final loss after `rates`, float64, at the peak and of sum `before` until then."""
    annealing = np.sum(decay ** np.arange(len(rates) - 1.0, -1.0, -1.0) * (peak - rates))
    forward = before + rates.sum()
    return float(law.floor + law.scale * forward**-law.exponent - law.annealing * annealing)


def _integer_minimum(function: Callable[[int], float], low: int, high: int) -> int:
    """Find the minimum of a unimodal function of an integer by ternary search."""
    while high - low > 2:
        third = (high - low) // 3
        if function(low + third) <= function(high - third):
            high -= third
        else:
            low += third
    return min(range(low, high + 1), key=function)
