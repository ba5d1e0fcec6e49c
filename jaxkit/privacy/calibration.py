"""From a budget to the noise that keeps a run within it, by the `dp-accounting` library alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxkit import validation
from jaxkit.privacy import accounting, batches, mechanisms
from jaxkit.privacy.accounting import Accountant
from jaxkit.privacy.mechanisms import Mechanism, Neighbours


class SpiderBoostNoise(NamedTuple):
    """Calibrated noise of Private SpiderBoost.

    Attributes:
        anchor: z1, over the bound on a gradient.
        variation: z2, over the bound on a gradient difference.
        mechanism: what the run with this noise releases.

    Example:
        >>> everyone = batches.full_batches(1000)
        >>> noise = calibrate_spiderboost(
        ...     everyone, everyone, num_steps=10, phase_length=5, epsilon=1.0, delta=1e-6
        ... )
        >>> noise.anchor < noise.variation, noise.mechanism.neighbours
        (True, 'add_or_remove')
    """

    anchor: float
    variation: float
    mechanism: Mechanism


def calibrate(
    make_mechanism: Callable[[float], Mechanism],
    epsilon: float,
    delta: float,
    *,
    accountant: Accountant | None = None,
) -> float:
    """The smallest noise that keeps a run within a budget.

    RDP brackets the answer first; PLD then searches only between 0.7 and 1.02 times it, because
    far smaller noise can take the PLD accountant minutes.

    Args:
        make_mechanism: from a noise level (any number that more noise increases) to the mechanism.
        epsilon: > 0.
        delta: in (0, 1).
        accountant: as in `epsilon_spent`.

    Returns:
        The noise level, within 1e-4 of its value above the smallest allowed.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if a number is not allowed or no noise level reaches the budget.

    Example:
        >>> everyone = batches.full_batches(1000)
        >>> z = calibrate(lambda z: mechanisms.dp_sgd_mechanism(everyone, z, 100), 1.0, 1e-5)
        >>> round(z, 1)
        37.3
    """
    validation.number("epsilon", epsilon, minimum=0, open_minimum=True)
    accounting.check_delta(delta)
    example = make_mechanism(1.0)
    which = accounting.accountant_used(example, accountant)
    if which == "pld" and example.gaussian is not None:
        return _solve_gaussian(make_mechanism, epsilon, delta)
    level = _solve(make_mechanism, epsilon, delta, "rdp", _bracket(make_mechanism, epsilon, delta))
    if which == "pld":
        low = 0.7 * level
        while accounting.composed_epsilon(make_mechanism(low), delta, "pld") <= epsilon:
            low *= 0.7
        level = _solve(make_mechanism, epsilon, delta, "pld", (low, 1.02 * level))
    accounting.check_lost(make_mechanism(level), epsilon, delta)
    return level


def calibrate_dp_sgd(
    sampling: batches.Sampling,
    num_steps: int,
    *,
    epsilon: float,
    delta: float,
    neighbours: Neighbours | None = None,
    accountant: Accountant | None = None,
) -> float:
    """Noise multiplier of DP-SGD (or Adam) for a budget.

    Args:
        sampling: how batches are drawn.
        num_steps: number of updates.
        epsilon: > 0.
        delta: in (0, 1); at or above 1/n it warns.
        neighbours: relation claimed; by default that of the sampling.
        accountant: as in `epsilon_spent`.

    Returns:
        z.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if a number is not allowed or no event is valid.

    Example:
        >>> z = calibrate_dp_sgd(batches.full_batches(510_663), 500, epsilon=1.0, delta=1e-6)
        >>> round(z, 1)
        94.5
    """
    accounting.warn_large_delta(delta, sampling.num_examples)
    return calibrate(
        lambda z: mechanisms.dp_sgd_mechanism(sampling, z, num_steps, neighbours=neighbours),
        epsilon,
        delta,
        accountant=accountant,
    )


def calibrate_spiderboost(
    anchor: batches.Sampling,
    variation: batches.Sampling,
    *,
    num_steps: int,
    phase_length: int,
    epsilon: float,
    delta: float,
    anchor_share: float = 0.5,
    neighbours: Neighbours | None = None,
    accountant: Accountant | None = None,
) -> SpiderBoostNoise:
    r"""Noise multipliers of Private SpiderBoost for a budget.

    With a total :math:`\mu`, anchors get the share :math:`\rho\mu^2` and variations the rest:

    .. math::
        z_1 = \sqrt{K_1/\rho}/\mu, \qquad z_2 = \sqrt{K_2/(1-\rho)}/\mu

    for full batches; for a sampling rate p < 1 the multiplier whose K sampled releases amount to
    the same in the central limit, :math:`z = \log^{-1/2}(1 + \rho\mu^2/(K p^2))`. The one number
    :math:`\mu` is then calibrated by the accountant, so that the split is a choice, not an
    approximation of the guarantee. One common z for both would starve the anchors.

    Args:
        anchor: how the batches of anchors are drawn.
        variation: how those of variations are drawn.
        num_steps: T.
        phase_length: q in 1..T.
        epsilon: > 0.
        delta: in (0, 1); at or above 1/n it warns.
        anchor_share: rho in (0, 1).
        neighbours: relation claimed; by default that of the samplings.
        accountant: as in `epsilon_spent`.

    Returns:
        The two multipliers and the mechanism.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if a number is not allowed or no event is valid.

    Source: arXiv 2206.00846 Theorem 4.1 gives both groups noise of the same order (rho = 1/2).

    Example:
        >>> everyone = batches.full_batches(510_663)
        >>> noise = calibrate_spiderboost(
        ...     everyone, everyone, num_steps=3000, phase_length=300, epsilon=1.0, delta=1e-6
        ... )
        >>> round(noise.anchor, 2), round(noise.variation, 1)
        (18.89, 326.7)
    """
    share = validation.number(
        "anchor_share", anchor_share, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    accounting.warn_large_delta(delta, anchor.num_examples)
    anchors, variations = mechanisms.spiderboost_counts(num_steps, phase_length)

    def multipliers(noise: float) -> tuple[float, float]:
        if not variations:
            return _multiplier(anchor, 1 / noise**2, anchors), 1.0
        return (
            _multiplier(anchor, share / noise**2, anchors),
            _multiplier(variation, (1 - share) / noise**2, variations),
        )

    def make_mechanism(noise: float) -> Mechanism:
        return mechanisms.spiderboost_mechanism(
            anchor,
            variation,
            *multipliers(noise),
            num_steps=num_steps,
            phase_length=phase_length,
            neighbours=neighbours,
        )

    noise = calibrate(make_mechanism, epsilon, delta, accountant=accountant)
    return SpiderBoostNoise(*multipliers(noise), make_mechanism(noise))


def calibrate_one_pass(epsilon: float, delta: float) -> float:
    """Noise multiplier of a run in which every example enters one release.

    The exact Gaussian mechanism, valid for every epsilon; multiply by the replace-one sensitivity.

    Args:
        epsilon: > 0.
        delta: in (0, 1).

    Returns:
        z.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if a number is not allowed.

    Example:
        >>> round(calibrate_one_pass(1.0, 1e-5), 4)
        3.7306
    """
    validation.number("epsilon", epsilon, minimum=0, open_minimum=True)
    accounting.check_delta(delta)
    return float(mechanisms.dp_accounting().get_sigma_gaussian(epsilon, delta))


def _bracket(make_mechanism, epsilon, delta) -> tuple[float, float]:
    """Noise levels, a factor of 2 apart, with the budget between them by RDP."""
    # From the side of more noise: RDP is slow and coarse where there is too little.
    high = 64.0
    for _ in range(60):
        if accounting.composed_epsilon(make_mechanism(high), delta, "rdp") <= epsilon:
            break
        high *= 2
    else:
        raise ValueError(f"epsilon must be within reach of noise at delta = {delta}, got {epsilon}")
    while accounting.composed_epsilon(make_mechanism(high / 2), delta, "rdp") <= epsilon:
        high /= 2
    return high / 2, high


def _solve(make_mechanism, epsilon, delta, which, bracket) -> float:
    """Search a bracket by the library's calibration, at the delta that overflow leaves."""
    library = mechanisms.dp_accounting()
    example = make_mechanism(bracket[1])
    with accounting.without_notes():
        level = library.calibrate_dp_mechanism(
            accounting.fresh_accountant(which, example.neighbours),
            lambda level: make_mechanism(level).event,
            epsilon,
            accounting.composed_delta(example, delta),
            library.ExplicitBracketInterval(*bracket),
            tol=1e-5 * bracket[1],
        )
    return float(level)


def _solve_gaussian(make_mechanism, epsilon, delta) -> float:
    from scipy import optimize

    wanted = 1 / mechanisms.dp_accounting().get_sigma_gaussian(epsilon, delta)

    def excess(log_level: float) -> float:
        return math.log(make_mechanism(math.exp(log_level)).gaussian / wanted)

    root: Any = optimize.brentq(excess, -50.0, 50.0, xtol=1e-12)
    return math.exp(root) * (1 + 1e-11)  # rounded to the side of more noise


def _multiplier(sampling: batches.Sampling, mu_squared: float, count: int) -> float:
    if sampling.kind == "all":
        return math.sqrt(count / mu_squared)
    return 1 / math.sqrt(math.log1p(mu_squared / (count * sampling.rate**2)))
