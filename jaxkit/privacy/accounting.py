"""From the noise of a run to epsilon, by the `dp-accounting` library alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxkit import validation
from jaxkit.privacy import mechanisms
from jaxkit.privacy.mechanisms import Mechanism

Accountant = Literal["pld", "rdp"]
#: Part of delta kept for batches that overflow.
_RESERVE = 0.01
#: exp(epsilon) is hardly a number beyond, and nothing is protected.
LARGEST_EPSILON = 700.0
#: PLD has no float64 tails below this delta; its grid fills the memory above this epsilon.
_SMALLEST_PLD_DELTA, _LARGEST_PLD_EPSILON = 0.9e-12, 30.0
#: Grids of PLD, each an upper bound: finer ones, to the library's own, where those still differ.
_PLD_GRIDS = (3e-3, 1e-3, 3e-4, 1e-4)
#: Runs that lose less, as mu of the central limit, have grids finer in proportion, to a limit.
_USUAL_LOSS, _FINEST_GRIDS = 0.01, 1e-6


def epsilon_spent(
    mechanism: Mechanism, delta: float, *, accountant: Accountant | None = None
) -> float:
    """Epsilon of the (epsilon, delta)-differential privacy of a run.

    Args:
        mechanism: what the run releases.
        delta: in [1e-300, 1).
        accountant: `"pld"` (tight; exact where the run is a Gaussian mechanism) or `"rdp"`; by
            default the smaller of those that have a valid analysis of the mechanism.

    Returns:
        Epsilon >= 0; infinity beyond 700, where nothing is protected.

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
    epsilon, _ = analysis(mechanism, delta, accountant)
    check_lost(mechanism, epsilon, delta)
    return epsilon


def analysis(
    mechanism: Mechanism, delta: float, wanted: Accountant | None = None, *, coarse: bool = False
) -> tuple[float, str]:
    """Epsilon and the analysis that it comes from, without looking what overflow costs.

    What is `coarse` takes a tenth of the time, and is not below.
    """
    check_delta(delta)
    if wanted is not None:
        validation.choice("accountant", wanted, ("pld", "rdp"))
    library = mechanisms.dp_accounting()
    if mechanism.gaussian is not None and wanted != "rdp":
        with _without_notes():
            return _sure(
                float(library.get_epsilon_gaussian(1 / mechanism.gaussian, delta))
            ), "exact"
    if wanted == "pld" and mechanism.neighbours != "add_or_remove":
        raise ValueError(
            f"accountant must be 'rdp' for {mechanism.description} with neighbours "
            f"{mechanism.neighbours!r}, got 'pld': it has no valid analysis of that"
        )
    left = delta * (1 - _RESERVE) if mechanism.lost else delta
    epsilon, words = (math.inf, "") if wanted == "pld" else (_rdp(mechanism, left), "RDP")
    if mechanism.neighbours == "add_or_remove" and wanted != "rdp":
        # Where float64 has no tails, or the grid would fill the memory or be too coarse, RDP alone.
        grids = _grids(mechanism, coarse)
        within = left >= _SMALLEST_PLD_DELTA and epsilon <= _LARGEST_PLD_EPSILON
        if wanted == "pld" or (within and grids):
            pld = _pld(mechanism, left, grids or _grids(mechanism, coarse, math.inf)[-1:])
            epsilon, words = (pld, "PLD") if pld <= epsilon else (epsilon, words)
        else:
            words = "RDP, because PLD has no answer at such numbers"
    return _sure(epsilon), words


def _sure(epsilon: float) -> float:
    return epsilon if epsilon <= LARGEST_EPSILON else math.inf


@functools.lru_cache(64)
def _rdp(mechanism: Mechanism, delta: float) -> float:
    library = mechanisms.dp_accounting()
    relation = {
        "add_or_remove": library.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": library.NeighboringRelation.REPLACE_ONE,
        "zero_out": library.NeighboringRelation.REPLACE_SPECIAL,
    }[mechanism.neighbours]
    accountant = library.rdp.RdpAccountant(neighboring_relation=relation)
    with _without_notes():
        accountant.compose(mechanism.event)
        # A step's divergence is the logarithm of a number near 1, whose last digits are lost, and
        # epsilon goes as its root. The library takes what is below 0 for 0.
        lost = 1e-14 * mechanism.num_releases / (accountant.orders - 1)
        rdp = np.maximum(accountant.rdp, 0) + lost
        epsilon, _ = library.rdp.compute_epsilon(accountant.orders, rdp, delta)
    return float(epsilon) if epsilon >= 0 else math.inf  # NaN, too, is no answer


def _grids(mechanism: Mechanism, coarse: bool, most: float = 0.05) -> list[float]:
    """Grids whose error, which grows with the releases and the square of the grid, is not most."""
    fine = min(1.0, max(mechanism.usual_loss / _USUAL_LOSS, _FINEST_GRIDS))
    grids = (fine * grid for grid in (_PLD_GRIDS[1:2] if coarse else _PLD_GRIDS))
    return [grid for grid in grids if mechanism.num_releases * grid**2 <= most]


def _pld(mechanism: Mechanism, delta: float, grids: list[float]) -> float:
    epsilon = math.inf
    for grid in grids:
        before, epsilon = epsilon, _pld_on(grid, mechanism, delta)
        # The error falls with the square of the grid: of a step of 3, an eighth is still to come.
        if abs(before - epsilon) <= 8e-5 * epsilon:
            break
    return epsilon


@functools.lru_cache(64)
def _pld_on(grid: float, mechanism: Mechanism, delta: float) -> float:
    with _without_notes():
        accountant = mechanisms.dp_accounting().pld.PLDAccountant(
            value_discretization_interval=grid
        )
        epsilon = float(accountant.compose(mechanism.event).get_epsilon(delta))
    return epsilon if epsilon >= 0 else math.inf


def warn_large_delta(delta: float, num_examples: int) -> None:
    """Warn if delta is so large that publishing one whole example would be allowed."""
    check_delta(delta)
    if delta >= 1 / num_examples:
        warnings.warn(
            f"delta = {delta:g} is not below 1/n = {1 / num_examples:g}: it allows publishing a "
            "whole example",
            UserWarning,
            stacklevel=3,
        )


def check_delta(delta: float) -> None:
    """Raise unless delta is in [1e-300, 1)."""
    validation.number("delta", delta, minimum=1e-300, maximum=1, open_maximum=True)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Silence the note that an order of RDP did not converge: leaving one out is valid."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logger.setLevel(level)


def check_lost(mechanism: Mechanism, epsilon: float, delta: float) -> None:
    """Raise if batches that overflow could cost more than their part of delta."""
    # Truncating the batches that overflow is that close to never having to.
    cost = (1 + math.exp(min(epsilon, 700.0))) * mechanism.lost
    if cost > _RESERVE * delta:
        raise ValueError(
            f"padded_size must be larger: batches that overflow may cost {cost:.1e} of delta = "
            f"{delta:g} at epsilon = {epsilon:.2f}; use poisson_sampling with that epsilon"
        )
