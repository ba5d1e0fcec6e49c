"""Checks for arguments: each error names the argument, the value received and what is allowed.

Of traced numbers (under `jit` or `vmap`) the type is checked; their value cannot be.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax import core


def is_traced(value: Any) -> bool:
    """Whether `value` is abstract, so that its number is unknown until the program runs.

    Example:
        >>> is_traced(1.0)
        False
    """
    return isinstance(value, core.Tracer)


def integer(name: str, value: Any, *, minimum: int | None = None) -> int:
    """Return `value` as a Python int, or raise.

    Args:
        name: name of the argument, for the message.
        value: an int, a NumPy integer or a concrete integer array of rank 0; bool is refused.
        minimum: smallest value allowed.

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is smaller than `minimum`.

    Example:
        >>> integer("num_steps", 3, minimum=1)
        3
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {number}")
    return number


def seed(name: str, value: Any) -> int:
    """Return `value` if it is a seed that JAX tells from every other, or raise.

    `jax.random.key` keeps 32 bits: 2^32 would draw what 0 draws.

    Example:
        >>> seed("seed", 2**32)
        Traceback (most recent call last):
        ValueError: seed must be an integer in [0, 4294967296), got 4294967296
    """
    number = integer(name, value)
    if not 0 <= number < 2**32:
        raise ValueError(f"{name} must be an integer in [0, {2**32}), got {number}")
    return number


def number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> Any:
    """Return `value` unchanged if it is a finite real number (or array of them) within bounds.

    Args:
        name: name of the argument, for the message.
        value: a real number or array; a traced one passes unchecked.
        minimum: lower bound.
        maximum: upper bound.
        open_minimum: whether the lower bound itself is refused.
        open_maximum: whether the upper bound itself is refused.

    Raises:
        TypeError: if `value` is not a real number.
        ValueError: if any of it is not finite or out of bounds.

    Example:
        >>> number("decay", 0.5, minimum=0, maximum=1, open_maximum=True)
        0.5
    """
    if is_traced(value):
        return value
    if type(value) is int and abs(value) >= 2**63:  # of which NumPy makes an object
        array = np.asarray(math.inf if abs(value) >= 2**1023 else float(value))
    else:
        array = np.asarray(value)
    if array.dtype == bool or not (
        array.dtype.kind in "iuf" or array.dtype.name.startswith(("bfloat", "float8"))
    ):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    array = array.astype(np.float64)
    above = (array > minimum) if open_minimum else (array >= minimum)
    below = (array < maximum) if open_maximum else (array <= maximum)
    wrong = ~(np.isfinite(array) & above & below)
    if wrong.any():
        left = "(" if open_minimum or minimum == -math.inf else "["
        right = ")" if open_maximum or maximum == math.inf else "]"
        place = np.argwhere(wrong)[0].tolist()
        got = f"{array[tuple(place)]:g} at {place}" if array.size > 8 else repr(value)
        raise ValueError(
            f"{name} must be finite and in {left}{minimum:g}, {maximum:g}{right}, got {got}"
        )
    return value


def instance(name: str, value: Any, kind: Any, what: str) -> None:
    """Raise unless `value` is of this class or runtime protocol, or one of a tuple of them.

    Example:
        >>> instance("schedules", [1.0], dict, "a mapping from names to schedules")
        Traceback (most recent call last):
        TypeError: schedules must be a mapping from names to schedules, got list
    """
    if isinstance(value, type):
        raise TypeError(f"{name} must be {what}, got the class {value.__name__} itself")
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def array(name: str, value: Any) -> Any:
    """Return `value` as an array, a JAX array as it is, or raise where its rows differ in length.

    Example:
        >>> array("rows", [[1, 2], [3]])
        Traceback (most recent call last):
        ValueError: rows must be an array, got rows of different lengths
    """
    try:
        return value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be an array, got rows of different lengths") from None


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the `allowed` names, or raise with the closest of them.

    Example:
        >>> choice("shape", "liner", ["linear", "cosine"])
        Traceback (most recent call last):
        ValueError: shape must be one of 'linear', 'cosine', got 'liner': did you mean 'linear'?
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    lower = {one.lower(): one for one in allowed}
    close = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f": did you mean {lower[close[0]]!r}?" if close else ""
    names = ", ".join(repr(a) for a in allowed)
    raise ValueError(f"{name} must be one of {names}, got {value!r}{hint}")
