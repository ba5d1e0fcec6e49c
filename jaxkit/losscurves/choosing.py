"""Which schedule a law would choose: closed forms, families, constrained optima and rankings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from jaxkit import schedules, validation
from jaxkit.losscurves import curves, fitting, forms, multi_power, precision


class ZeroTail(NamedTuple):
    """The best number of last steps at rate 0, the same before rounding, and the loss, nats."""

    steps: int
    real_steps: float
    loss: float


def optimal_zero_tail(
    law: fitting.Law,
    total_steps: int,
    *,
    peak_value: float | None = None,
    prior_sum: float = 0.0,
) -> ZeroTail:
    r"""Solve in closed form for the best schedule of all, by the annealing law: bang-bang.

    The final loss is convex in the rates, with gradient
    $-\alpha A S_1^{-\alpha-1} + C \lambda^{T-i}$, so the optimum holds the peak and then drops to 0
    for the last k steps, where $C \lambda^k = \alpha A (S_w + \eta (T-k))^{-\alpha-1}$.

    Args:
        law: of the form `Annealing`, with a decay > 0.
        total_steps: T, counted steps.
        peak_value: the peak rate; that of the fitted curves if None.
        prior_sum: sum of the rates before these steps, such as a warm-up's.

    Raises:
        TypeError: if the law has another form.
        ValueError: if a number is out of range, or the peak is not known.

    Warns:
        UserWarning: always. The optimum exploits that the law lets the loss fall at rate 0, where
            training stands still. Use `optimal_decay_length` or `optimal_schedule` to train.

    Source: convexity argument from arXiv 2408.11029 eq. (1).

    Example:
        >>> known = dict(floor=2.628, scale=0.4297, annealing=0.4108, exponent=0.5498)
        >>> law = fitting.law(forms.Annealing(0.999), peak_value=2e-4, **known)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     optimal_zero_tail(law, 20000).steps
        2494
    """
    total = validation.integer("total_steps", total_steps, minimum=1)
    validation.instance("law", law, fitting.Law, "a Law, as fit and law make it")
    if not isinstance(law.form, forms.Annealing):
        raise TypeError(f"law must be of Annealing, got {law.form}")
    decay, peak, constants = law.form.decay, law.peak_value(peak_value), law.constants
    validation.number("decay", decay, minimum=0, open_minimum=True)
    validation.number("prior_sum", prior_sum, minimum=0)
    warnings.warn(
        "the free optimum ends in steps of rate 0, where the annealing law goes on falling "
        "although training cannot change: use optimal_decay_length or optimal_schedule to train",
        stacklevel=2,
    )

    def gain(k: float) -> float:
        """Logarithm of the gradient's two terms: positive where a longer tail lowers the loss."""
        forward = prior_sum + peak * (total - k)
        if forward <= 0:
            return -math.inf
        return (
            math.log(constants.annealing) + k * math.log(decay)
            + (constants.exponent + 1) * math.log(forward)
            - math.log(constants.exponent * constants.scale)
        )  # fmt: skip

    longest = total - 1e-9 if prior_sum == 0 else float(total)
    if constants.annealing == 0 or gain(0.0) <= 0:
        real = 0.0
    elif gain(longest) >= 0:
        real = longest
    else:
        root: Any = scipy.optimize.brentq(gain, 0.0, longest)
        real = float(root)

    def loss(k: int) -> float:
        rates = np.full(total, peak)
        rates[total - k :] = 0.0
        return _final_loss(law, rates, peak, prior_sum)

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
        shape: the shape.
    """

    steps: int
    fraction: float
    loss: float
    lengths: np.ndarray
    losses: np.ndarray
    shape: str


def optimal_decay_length(
    law: fitting.Law,
    total_steps: int,
    *,
    peak_value: float | None = None,
    shape: str = "linear",
    end_value: float = 0.0,
    prior_sum: float = 0.0,
) -> DecayLength:
    """Find over how many last steps to decay, for one shape of decay.

    A grid of 1 % of the run, then every length between the neighbours of its best (by ternary
    search), each evaluated exactly in float64. The schedule is then
    `schedule_from_profile("wsd", peak, total_steps, cooldown=fraction, shape=shape)`.

    Args:
        law: of a form with annealing, `Annealing` or `MultiPower`; fitted or published.
        total_steps: counted steps, at the peak from the first on.
        peak_value: the peak rate; that of the fitted curves if None.
        shape: of the cool-down, as for the profile `wsd`.
        end_value: rate at the last step; > 0 for `MultiPower` and for the exponential shape.
        prior_sum: sum of the rates before these steps, such as a warm-up's.

    Raises:
        TypeError: if the law knows no annealing.
        ValueError: if a number is out of range, the shape unknown, or the peak not known.

    Source: arXiv 2408.11029 §4 (best annealing ratio).

    Example:
        >>> known = dict(floor=2.628, scale=0.4297, annealing=0.4108, exponent=0.5498)
        >>> law = fitting.law(forms.Annealing(0.999), peak_value=2e-4, **known)
        >>> round(optimal_decay_length(law, 20000).fraction, 2)
        0.24
    """
    total = validation.integer("total_steps", total_steps, minimum=1)
    validation.instance("law", law, fitting.Law, "a Law, as fit and law make it")
    if not isinstance(law.form, forms.Annealing | multi_power.MultiPower):
        raise TypeError(f"law must be of Annealing or MultiPower, got {law.form}")
    peak = law.peak_value(peak_value)
    validation.number("end_value", end_value, minimum=0, maximum=peak)
    validation.number("prior_sum", prior_sum, minimum=0)

    def loss(steps: int) -> float:
        fall = cooldown_rates(steps, peak, shape=shape, end_value=end_value)[1:]
        if isinstance(law.form, forms.Annealing):
            return _final_loss(law, fall, peak, prior_sum + peak * (total - steps))
        rates = np.concatenate([np.full(total + 1 - steps, peak), fall])
        return float(final_losses(law, rates[None], prior_sum=prior_sum)[0])

    lengths = np.unique(
        np.append(np.arange(max(total // 100, 1), total, max(total // 100, 1)), total)
    )
    losses = np.array([loss(int(n)) for n in lengths])
    best = int(np.argmin(losses))
    low = int(lengths[max(best - 1, 0)]) if best else 1
    high = int(lengths[min(best + 1, len(lengths) - 1)])
    steps = _integer_minimum(loss, low, high)
    return DecayLength(steps, steps / total, loss(steps), lengths, losses, shape)


def cooldown_rates(
    steps: int, peak_value: float, *, shape: str, end_value: float
) -> Float[np.ndarray, " steps_and_1"]:
    """Fall from the peak to the last rate, in float64: the cool-down of the profile `wsd`."""
    end = end_value
    if shape == "exponential":
        validation.number("end_value", end_value, minimum=0, open_minimum=True)
        profile = schedules.profile_by_name(
            "wsd", cooldown=1.0, shape=shape, ratio=end_value / peak_value
        )
        end = 0.0
    else:
        profile = schedules.profile_by_name("wsd", cooldown=1.0, shape=shape)
    done: Any = np.arange(steps + 1) / steps
    return end + (peak_value - end) * np.asarray(profile.value(done, done[::-1]))


def chosen_schedule(
    law: fitting.Law,
    total_steps: int,
    *,
    peak_value: float | None = None,
    warmup_steps: float = 0,
) -> schedules.Schedule:
    """Make the schedule that the law chooses among cool-downs: shape and length, ready to train.

    Args:
        law: of the form `Annealing`, fitted or published.
        total_steps: updates in all, warm-up included.
        peak_value: the peak rate; that of the fitted curves if None.
        warmup_steps: updates of a linear warm-up from 0.

    Raises:
        TypeError: if the law has another form.
        ValueError: as `optimal_decay_length`.

    Example:
        >>> known = dict(floor=2.628, scale=0.4297, annealing=0.4108, exponent=0.5498)
        >>> law = fitting.law(forms.Annealing(0.999), peak_value=2e-4, **known)
        >>> schedule = chosen_schedule(law, 20000)
        >>> round(float(schedule(14000)), 6), round(float(schedule(19000)), 6)
        (0.0002, 1.9e-05)
    """
    if not isinstance(law.form, forms.Annealing):
        raise TypeError(f"law must be of Annealing, got {law.form}")
    peak = law.peak_value(peak_value)
    total_steps = validation.integer("total_steps", total_steps, minimum=1)
    counted = max(1, total_steps - math.ceil(warmup_steps))
    prior = peak * warmup_steps * (1.0 if law.warmup == "peak" else 0.5)
    found = [
        optimal_decay_length(law, counted, peak_value=peak, shape=shape, prior_sum=prior)
        for shape in ("linear", "sqrt", "cosine", "sqrtcube")
    ]
    best = min(found, key=lambda one: one.loss)
    return schedules.schedule_from_profile(
        "wsd", peak, total_steps, warmup_steps=warmup_steps, cooldown=best.fraction,
        shape=best.shape,
    )  # fmt: skip


class RankedSchedule(NamedTuple):
    """One candidate: its name, final loss predicted, and excess over the best."""

    name: str
    loss: float
    excess: float


def rank_schedules(
    law: fitting.Law,
    candidates: Mapping[str, Any],
    *,
    total_steps: int | None = None,
    warmup_steps: float | None = None,
    model_size: float | None = None,
    prior_sum: float = 0.0,
) -> list[RankedSchedule]:
    """Sort candidate schedules by the final loss a law predicts.

    Args:
        law: any, fitted or published.
        candidates: by name, learning rates of any length, optax schedules or curves.
        total_steps: as for `predict`.
        warmup_steps: as for `predict`.
        model_size: as for `predict`.
        prior_sum: as for `predict`.

    Raises:
        ValueError: if there is no candidate, or as `predict`.

    Example:
        >>> known = dict(floor=2.0, scale=1.0, annealing=1.0, exponent=0.5)
        >>> law = fitting.law(forms.Annealing(0.99), **known)
        >>> rank_schedules(law, schedules.standard_schedules(1e-3, 2000, cooldown=0.3))[0].name
        'wsd_cosine'
    """
    validation.instance("candidates", candidates, Mapping, "a mapping from names to schedules")
    if not candidates:
        raise ValueError("candidates must hold at least one schedule, got none")
    tables = {
        name: curves.rates_of(curves.if_curve(value, name, warmup_steps), total_steps)
        for name, value in candidates.items()
    }
    losses: dict[str, float] = {}
    for length in {np.shape(rates)[-1] for rates in tables.values()}:
        names = [name for name, rates in tables.items() if np.shape(rates)[-1] == length]
        stacked = np.stack([np.asarray(tables[name], np.float64) for name in names])
        found = final_losses(
            law, stacked, warmup_steps=warmup_steps, model_size=model_size, prior_sum=prior_sum
        )
        losses |= dict(zip(names, found.tolist(), strict=True))
    best = min(losses.values())
    order = sorted(losses, key=losses.__getitem__)
    return [RankedSchedule(name, losses[name], losses[name] - best) for name in order]


def final_losses(
    law: fitting.Law, learning_rates: Float[np.ndarray, "batch steps"], **options: Any
) -> Float[np.ndarray, " batch"]:
    """Final losses of schedules of one length, float64; options and warnings as `predict`."""
    with precision.float64_on_cpu():
        last = np.array([learning_rates.shape[-1] - 1])
        return np.asarray(fitting.predict(law, learning_rates, steps=last, **options))[:, 0]


def _final_loss(law: fitting.Law, rates: np.ndarray, peak: float, before: float) -> float:
    """Final loss of the annealing law after `rates`, float64, of sum `before` until then."""
    form: Any = law.form
    decay = form.decay
    annealing = np.sum(decay ** np.arange(len(rates) - 1.0, -1.0, -1.0) * (peak - rates))
    floor, scale, drop, exponent = law.constants
    return float(floor + scale * (before + rates.sum()) ** -exponent - drop * annealing)


def _integer_minimum(function: Callable[[int], float], low: int, high: int) -> int:
    """Find the minimum of a unimodal function of an integer by ternary search."""
    while high - low > 2:
        third = (high - low) // 3
        if function(low + third) <= function(high - third):
            high -= third
        else:
            low += third
    return min(range(low, high + 1), key=function)
