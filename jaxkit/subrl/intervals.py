"""Confidence of a mean over few seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

# Student's 97.5 % quantiles for 1 .. 10 degrees of freedom; from there on an expansion is exact
# to three digits.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def mean_interval(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95 % interval of the mean over the first axis, by Student's t.

    Args:
        values: `[seeds, ...]`, at least two seeds.

    Returns:
        Lower and upper ends, `[...]`.

    Raises:
        ValueError: if there are fewer than two seeds.

    Example:
        >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(float(high), 3)
        4.484
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"values must hold at least 2 seeds, got {len(values)}")
    freedom = len(values) - 1
    if freedom <= len(_QUANTILES):
        t = _QUANTILES[freedom - 1]
    else:
        z = 1.959964
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    half = t * values.std(0, ddof=1) / np.sqrt(len(values))
    mean = values.mean(0)
    return np.asarray(mean - half), np.asarray(mean + half)
