"""From the noise of a run to epsilon, by the `dp-accounting` library alone."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from jaxkit import validation
from jaxkit.privacy import mechanisms
from jaxkit.privacy.mechanisms import Mechanism, Neighbours

Accountant = Literal["pld", "rdp"]
#: Part of delta kept for batches that overflow.
_RESERVE = 0.01


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
        >>> from jaxkit.privacy import batches
        >>> mechanism = mechanisms.dp_sgd_mechanism(batches.full_batches(1000), 10.0, 100)
        >>> round(epsilon_spent(mechanism, 1e-5), 3)
        4.377
    """
    check_delta(delta)
    which = accountant_used(mechanism, accountant)
    if which == "pld" and mechanism.gaussian is not None:
        library = mechanisms.dp_accounting()
        return float(library.get_epsilon_gaussian(1 / mechanism.gaussian, delta))
    epsilon = composed_epsilon(mechanism, delta, which)
    check_lost(mechanism, epsilon, delta)
    return epsilon


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
    check_delta(delta)
    if delta >= 1 / num_examples:
        warnings.warn(
            f"delta = {delta:g} is not below 1/n = {1 / num_examples:g}: it allows publishing a "
            "whole example",
            UserWarning,
            stacklevel=3,
        )


def check_delta(delta: float) -> None:
    """Raise unless delta is in (0, 1).

    Example:
        >>> check_delta(1e-6)
    """
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


def fresh_accountant(which: Accountant, neighbours: Neighbours) -> Callable[[], Any]:
    """What makes an accountant of the library for a neighbouring relation.

    Example:
        >>> type(fresh_accountant("rdp", "add_or_remove")()).__name__
        'RdpAccountant'
    """
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
def without_notes() -> Iterator[None]:
    """Silence the note that an order of RDP did not converge: leaving one out is valid.

    Example:
        >>> with without_notes():
        ...     logging.getLogger("absl").isEnabledFor(logging.WARNING)
        False
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def composed_delta(mechanism: Mechanism, delta: float) -> float:
    """What of delta is left for the composition, when batches that overflow have their part.

    Example:
        >>> composed_delta(mechanisms.one_pass_mechanism(1.0), 1e-6)
        1e-06
    """
    return delta * (1 - _RESERVE) if mechanism.lost else delta


def composed_epsilon(mechanism: Mechanism, delta: float, which: Accountant) -> float:
    """Epsilon by one accountant, without looking whether it is valid or what overflow costs.

    Example:
        >>> round(composed_epsilon(mechanisms.dp_ftrl_mechanism(1.0, 4), 1e-6, "rdp"), 1)
        9.8
    """
    fresh = fresh_accountant(which, mechanism.neighbours)
    with without_notes():
        composed = fresh().compose(mechanism.event)
        return float(composed.get_epsilon(composed_delta(mechanism, delta)))


def check_lost(mechanism: Mechanism, epsilon: float, delta: float) -> None:
    """Raise if batches that overflow could cost more than their part of delta.

    Example:
        >>> check_lost(mechanisms.one_pass_mechanism(1.0), 1.0, 1e-6)
    """
    # Truncating the batches that overflow is that close to never having to.
    cost = (1 + math.exp(min(epsilon, 700.0))) * mechanism.lost
    if cost > _RESERVE * delta:
        raise ValueError(
            f"padded_size must be larger: batches that overflow may cost {cost:.1e} of delta = "
            f"{delta:g} at epsilon = {epsilon:.2f}; use poisson_sampling with that epsilon"
        )
