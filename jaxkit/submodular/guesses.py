"""The grid of guesses of the optimum, and which of them an item belongs to."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxkit import validation


def grid_exponents(lowest: float, highest: float, eps: float) -> np.ndarray:
    r"""List the j with $\text{lowest} \le (1 + \epsilon)^j \le \text{highest}$.

    Args:
        lowest: smallest guess, positive.
        highest: largest guess.
        eps: ratio of neighbours minus 1, positive.

    Returns:
        Exponents in ascending order, int64 `[j]`; none if `highest < lowest`.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is not positive and finite.

    Source: Badanidiyuru et al., KDD 2014, §5.

    Example:
        >>> grid_exponents(1.0, 6.0, 0.2).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    for name, value in (("lowest", lowest), ("highest", highest), ("eps", eps)):
        validation.number(name, value, minimum=0, open_minimum=True)
    base = math.log1p(eps)
    first = math.ceil(math.log(lowest) / base - 1e-9)
    last = math.floor(math.log(highest) / base + 1e-9)
    return np.arange(first, last + 1)


def guess_of(exponents: np.ndarray, eps: float) -> np.ndarray:
    """Compute the guesses `(1 + eps)^j`, rounded once to float32 so that host and device agree.

    Example:
        >>> guess_of(np.array([0, 1]), 0.5).tolist()
        [1.0, 1.5]
    """
    return np.exp(np.asarray(exponents, np.float64) * math.log1p(eps)).astype(np.float32)


class Membership(NamedTuple):
    """The guesses an item belongs to.

    Attributes:
        exponents: j of each, `[c]`.
        guesses: `(1 + eps)^j`, float32 `[c]`.
    """

    exponents: np.ndarray
    guesses: np.ndarray


def guesses_for(singleton: np.float32, k: int, eps: float) -> Membership:
    r"""List the guesses v with $f(e) \le v \le 2k f(e)$, compared in float32.

    Args:
        singleton: `f(e)`, float32, >= 0; an item worth 0 belongs to none.
        k: size of the solution.
        eps: ratio of neighbours minus 1.

    Returns:
        About `log(2k) / log(1 + eps) + 1` guesses.

    Example:
        >>> guesses_for(np.float32(1.0), 20, 0.2).exponents.size
        21
    """
    highest = np.float32(2 * k) * np.float32(singleton)
    if not singleton > 0:
        return Membership(np.arange(0), np.zeros(0, np.float32))
    exponents = grid_exponents(float(singleton) * 0.99, float(highest) * 1.01, eps)
    guesses = guess_of(exponents, eps)
    inside = (singleton <= guesses) & (guesses <= highest)
    return Membership(exponents[inside], guesses[inside])
