"""The grid of guesses of the optimum, and which of them an item belongs to."""

from __future__ import annotations

import math
from typing import Any

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


def belongs(guesses: Any, singleton: Any, k: int) -> Any:
    r"""Whether $f(e) \le v \le 2k f(e)$, compared in float32: NumPy or JAX, and broadcast.

    Args:
        guesses: v, float32.
        singleton: f(e), float32, >= 0; an item worth 0 belongs to none.
        k: size of the solution.

    Returns:
        The flags.

    Example:
        >>> belongs(guess_of(np.arange(6), 1.0), np.float32(2), 2).tolist()
        [False, True, True, True, False, False]
    """
    return (singleton <= guesses) & (guesses <= np.float32(2 * k) * singleton)


def exponents_for(singletons: np.ndarray, k: int, eps: float) -> np.ndarray:
    """List the exponents of all guesses that some item belongs to, ascending.

    Args:
        singletons: f of each item, float32 `[b]`.
        k: size of the solution.
        eps: ratio of neighbours minus 1.

    Returns:
        About `log(2k) / log(1 + eps) + 1` exponents an item of its own scale.

    Example:
        >>> exponents_for(np.ones(3, np.float32), 20, 0.2).size
        21
    """
    worth = singletons[singletons > 0]
    if worth.size == 0:
        return np.arange(0)
    lowest, highest = float(worth.min()) * 0.99, float(worth.max()) * 2.02 * k
    exponents = grid_exponents(lowest, highest, eps)
    held = belongs(guess_of(exponents, eps)[:, None], worth, k)
    return exponents[held.any(1)]
