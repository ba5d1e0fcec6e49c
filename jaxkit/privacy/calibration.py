"""From a budget to the noise that keeps a run within it, by the `dp-accounting` library alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

from jaxkit import validation
from jaxkit.privacy import accounting, batches, mechanisms
from jaxkit.privacy.accounting import Accountant
from jaxkit.privacy.mechanisms import Mechanism, Neighbours

#: Logarithm of the noise that a search begins from.
_START = math.log(64.0)


def calibrate(
    make_mechanism: Callable[[float], Mechanism],
    epsilon: float,
    delta: float,
    *,
    accountant: Accountant | None = None,
) -> float:
    """The smallest noise that keeps a run within a budget.

    RDP brackets the answer first, because PLD takes long where there is far too little noise.
    """
    validation.number("epsilon", epsilon, minimum=1e-8, maximum=accounting.LARGEST_EPSILON)
    accounting.check_delta(delta)

    def excess(log_level: float, which: Accountant | None = accountant, coarse=False):
        mechanism = make_mechanism(math.exp(log_level))
        spent, _ = accounting.analysis(mechanism, delta, which, coarse=coarse)
        return math.log(max(spent, 1e-300) / epsilon) if math.isfinite(spent) else 700.0

    if make_mechanism(1.0).gaussian is not None or accountant is not None:
        low, level = _bracket(excess, epsilon, delta)
        exact = accountant != "rdp" and make_mechanism(1.0).gaussian is not None
        level = _root(excess, low, level, 1e-11 if exact else 1e-4)
    else:
        # RDP is quick, and never far below, unless it has no answer as small; what is coarse is at
        # most RDP's epsilon, so that there is always enough noise.
        first = functools.partial(excess, which="rdp")
        coarse = functools.partial(excess, coarse=True)
        first = first if first(_START) <= 0 else coarse
        level = _root(first, *_bracket(first, epsilon, delta), 5e-2)
        level = _refined(coarse, level, 3e-5)
        level = _refined(excess, level, 1e-4)
    found = math.exp(level)
    spent = accounting.epsilon_spent(make_mechanism(found), delta, accountant=accountant)
    if not spent <= epsilon:
        raise ValueError(f"no noise was found that keeps epsilon = {epsilon}, delta = {delta}")
    return found


def _refined(excess: Callable[[float], float], level: float, width: float) -> float:
    """As `_root`, near a level that is found to be enough noise, or too little."""
    spare = excess(level)
    if -2 * width <= spare <= 0:
        return level
    # Epsilon falls at least as fast as the noise rises, but for the steps of a grid.
    step, low, high = min(max(abs(spare), 10 * width), 0.35), level, level
    while spare > 0 and excess(high := high + step) > 0:
        low, step = high, 2 * step
    while spare <= 0 and excess(low := low - step) <= 0:
        high, step = low, 2 * step
    return _root(excess, low, high, width)


def _bracket(excess: Callable[[float], float], epsilon: float, delta: float) -> tuple[float, float]:
    """Logarithms of two noise levels, a factor of 2 apart, with the budget between them."""
    # From the side of more noise: accountants are slow and coarse where there is too little.
    start, step = _START, math.log(2.0)
    if excess(start) > 0:
        low, high = start, start + step
        while excess(high) > 0:
            step *= 2
            low, high = high, high + step
            if high > 100:
                raise ValueError(
                    f"epsilon must be in reach of noise at delta = {delta}, got {epsilon}: no "
                    "analysis claims as little"
                )
        return low, high
    high = start
    while excess(high - step) <= 0:
        high -= step
        if high < -20:
            raise ValueError(f"epsilon = {epsilon} needs no noise at delta = {delta}: spend less")
    return high - step, high


def _root(excess: Callable[[float], float], low: float, high: float, width: float) -> float:
    """A level whose excess is in [-width, 0], or at the end of a jump, between these two."""
    last, level = (low, excess(low)), high
    for step in itertools.count():
        value = excess(level)
        if -width <= value <= 0:
            return level
        low, high = (low, level) if value <= 0 else (level, high)
        if high - low <= width:
            return high
        # Secants, as most laws are nearly straight in logarithms; of others each fifth halves.
        run, rise = level - last[0], value - last[1]
        straight = rise and max(value, last[1]) < 100 and step % 5 < 4
        last = level, value
        level -= (value + width / 2) * run / rise if straight else 0
        level = level if low < level < high else (low + high) / 2
    raise AssertionError


def spiderboost_noise(
    anchors: batches.Sampling,
    variations: batches.Sampling,
    *,
    num_steps: int,
    phase_length: int,
    epsilon: float,
    delta: float,
    anchor_share: float,
    neighbours: Neighbours | None,
    accountant: Accountant | None,
) -> tuple[float, float]:
    r"""Noise multipliers of anchors and variations for a budget; arguments as `spiderboost`.

    For a sampling rate p < 1 the multiplier whose K sampled releases amount to the share
    :math:`\rho\mu^2` in the central limit is :math:`z = \log^{-1/2}(1 + \rho\mu^2/(K p^2))`. The
    accountant judges the result, so that the split is a choice, not an approximation.
    """
    share = validation.number(
        "anchor_share", anchor_share, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    anchor_count, variation_count = mechanisms.spiderboost_counts(num_steps, phase_length)

    def multipliers(noise: float) -> tuple[float, float]:
        if not variation_count:
            return _multiplier(anchors, 1 / noise**2, anchor_count), 1.0
        return (
            _multiplier(anchors, share / noise**2, anchor_count),
            _multiplier(variations, (1 - share) / noise**2, variation_count),
        )

    def make_mechanism(noise: float) -> Mechanism:
        return mechanisms.spiderboost_mechanism(
            anchors,
            variations,
            *multipliers(noise),
            num_steps=num_steps,
            phase_length=phase_length,
            neighbours=neighbours,
        )

    return multipliers(calibrate(make_mechanism, epsilon, delta, accountant=accountant))


def _multiplier(sampling: batches.Sampling, mu_squared: float, count: int) -> float:
    if sampling.kind == "all":
        return math.sqrt(count / mu_squared)
    return 1 / math.sqrt(math.log1p(mu_squared / (count * sampling.rate**2)))
