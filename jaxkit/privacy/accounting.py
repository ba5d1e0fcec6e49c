"""From noise to epsilon and back, by the `dp-accounting` library alone."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from jaxkit import validation
from jaxkit.privacy import batches, mechanisms
from jaxkit.privacy.mechanisms import Mechanism, Neighbours

Accountant = Literal["pld", "rdp"]
#: Part of delta kept for batches that overflow.
_RESERVE = 0.01


class SpiderBoostNoise(NamedTuple):
    """Calibrated noise of Private SpiderBoost.

    Attributes:
        anchor: z1, over the bound on a gradient.
        variation: z2, over the bound on a gradient difference.
        mechanism: what the run with this noise releases.
    """

    anchor: float
    variation: float
    mechanism: Mechanism


def epsilon_spent(
    mechanism: Mechanism, delta: float, *, accountant: Accountant | None = None
) -> float:
    """Epsilon of the (epsilon, delta)-differential privacy of a run.

    Args:
        mechanism: what the run releases.
        delta: in (0, 1).
        accountant: `"pld"` (tight; exact where the run is a Gaussian mechanism) or `"rdp"`; by
            default the tightest that has a valid analysis of the mechanism.

    Returns:
        Epsilon >= 0.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if a number is not allowed, the accountant has no valid analysis of the
            mechanism, or overflowing batches could cost more than 1 % of delta.

    Example:
        >>> mechanism = mechanisms.dp_sgd_mechanism(batches.full_batches(1000), 10.0, 100)
        >>> round(epsilon_spent(mechanism, 1e-5), 3)
        4.377
    """
    _check_delta(delta)
    which = accountant_used(mechanism, accountant)
    if which == "pld" and mechanism.gaussian is not None:
        library = mechanisms.dp_accounting()
        return float(library.get_epsilon_gaussian(1 / mechanism.gaussian, delta))
    epsilon = _epsilon(mechanism, delta, which)
    _check_lost(mechanism, epsilon, delta)
    return epsilon


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
    _check_delta(delta)
    example = make_mechanism(1.0)
    which = accountant_used(example, accountant)
    if which == "pld" and example.gaussian is not None:
        return _solve_gaussian(make_mechanism, epsilon, delta)
    level = _solve(make_mechanism, epsilon, delta, "rdp", _bracket(make_mechanism, epsilon, delta))
    if which == "pld":
        low = 0.7 * level
        while _epsilon(make_mechanism(low), delta, "pld") <= epsilon:
            low *= 0.7
        level = _solve(make_mechanism, epsilon, delta, "pld", (low, 1.02 * level))
    _check_lost(make_mechanism(level), epsilon, delta)
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
    warn_large_delta(delta, sampling.num_examples)
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
    warn_large_delta(delta, anchor.num_examples)
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
    _check_delta(delta)
    return float(mechanisms.dp_accounting().get_sigma_gaussian(epsilon, delta))


def gaussian_delta(mu: float, epsilon: float) -> float:
    r"""Delta of a mu-Gaussian-DP run.

    .. math:: \delta = \Phi(\mu/2-\epsilon/\mu) - e^\epsilon\,\Phi(-\mu/2-\epsilon/\mu)

    Args:
        mu: > 0.
        epsilon: >= 0.

    Returns:
        The smallest delta for which the run is (epsilon, delta)-private.

    Raises:
        ValueError: if a number is not allowed.

    Source: Dong, Roth and Su 2019, Corollary 2.13.

    Example:
        >>> f"{gaussian_delta(1.0, 1.0):.4f}"
        '0.1269'
    """
    from scipy.special import log_ndtr

    validation.number("mu", mu, minimum=0, open_minimum=True)
    validation.number("epsilon", epsilon, minimum=0)
    first = math.exp(log_ndtr(mu / 2 - epsilon / mu))
    return first - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))


def warn_large_delta(delta: float, num_examples: int) -> None:
    """Warn if delta is so large that publishing one whole example would be allowed.

    Example:
        >>> warn_large_delta(1e-6, 1000)
    """
    _check_delta(delta)
    if delta >= 1 / num_examples:
        warnings.warn(
            f"delta = {delta:g} is not below 1/n = {1 / num_examples:g}: it allows publishing a "
            "whole example",
            UserWarning,
            stacklevel=3,
        )


def _check_delta(delta: float) -> None:
    validation.number("delta", delta, minimum=0, maximum=1, open_minimum=True, open_maximum=True)


def accountant_used(mechanism: Mechanism, wanted: Accountant | None = None) -> Accountant:
    """The accountant that `epsilon_spent` uses for a mechanism, or an error if it must not be used.

    Example:
        >>> accountant_used(mechanisms.dp_ftrl_mechanism(1.0, 10))
        'rdp'
    """
    if wanted is not None:
        validation.choice("accountant", wanted, ("pld", "rdp"))
    pld = mechanism.gaussian is not None or mechanism.neighbours == "add_or_remove"
    if wanted == "pld" and not pld:
        raise ValueError(
            f"accountant must be 'rdp' for {mechanism.description} with neighbours "
            f"{mechanism.neighbours!r}, got 'pld': it has no valid analysis of that"
        )
    return wanted or ("pld" if pld else "rdp")


def _fresh_accountant(which: Accountant, neighbours: Neighbours) -> Callable[[], Any]:
    library = mechanisms.dp_accounting()
    relation = {
        "add_or_remove": library.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": library.NeighboringRelation.REPLACE_ONE,
        "zero_out": library.NeighboringRelation.REPLACE_SPECIAL,
    }[neighbours]
    if which == "rdp":
        return lambda: library.rdp.RdpAccountant(neighboring_relation=relation)
    # PLD doubles the sensitivity of a Gaussian event under REPLACE_ONE where RDP does not.
    assert neighbours == "add_or_remove"
    return lambda: library.pld.PLDAccountant(relation)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Silence the note that an order of RDP did not converge: leaving one out is valid."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _epsilon(mechanism: Mechanism, delta: float, which: Accountant) -> float:
    target = delta * (1 - _RESERVE) if mechanism.lost else delta
    fresh = _fresh_accountant(which, mechanism.neighbours)
    with _without_notes():
        return float(fresh().compose(mechanism.event).get_epsilon(target))


def _bracket(make_mechanism, epsilon, delta) -> tuple[float, float]:
    """Noise levels, a factor of 2 apart, with the budget between them by RDP."""
    # From the side of more noise: RDP is slow and coarse where there is too little.
    high = 64.0
    for _ in range(60):
        if _epsilon(make_mechanism(high), delta, "rdp") <= epsilon:
            break
        high *= 2
    else:
        raise ValueError(f"epsilon must be within reach of noise at delta = {delta}, got {epsilon}")
    while _epsilon(make_mechanism(high / 2), delta, "rdp") <= epsilon:
        high /= 2
    return high / 2, high


def _solve(make_mechanism, epsilon, delta, which, bracket) -> float:
    """Search a bracket by the library's calibration, at the delta that overflow leaves."""
    library = mechanisms.dp_accounting()
    example = make_mechanism(bracket[1])
    with _without_notes():
        level = library.calibrate_dp_mechanism(
            _fresh_accountant(which, example.neighbours),
            lambda level: make_mechanism(level).event,
            epsilon,
            delta * (1 - _RESERVE) if example.lost else delta,
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


def _check_lost(mechanism: Mechanism, epsilon: float, delta: float) -> None:
    # Truncating the batches that overflow is that close to never having to.
    cost = (1 + math.exp(min(epsilon, 700.0))) * mechanism.lost
    if cost > _RESERVE * delta:
        raise ValueError(
            f"padded_size must be larger: batches that overflow may cost {cost:.1e} of delta = "
            f"{delta:g} at epsilon = {epsilon:.2f}; use poisson_sampling with that epsilon"
        )


def _multiplier(sampling: batches.Sampling, mu_squared: float, count: int) -> float:
    if sampling.kind == "all":
        return math.sqrt(count / mu_squared)
    return 1 / math.sqrt(math.log1p(mu_squared / (count * sampling.rate**2)))
