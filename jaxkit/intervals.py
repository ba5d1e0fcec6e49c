"""Confidence of a mean over few seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy


def mean_interval(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95 % interval of the mean over the first axis, by Student's t.

    Args:
        values: `[seeds, ...]`, at least two seeds.

    Returns:
        Lower and upper ends, `[...]`.

    Example:
        >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(float(high), 3)
        4.484
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"values must hold at least 2 seeds, got {len(values)}")
    half = (
        scipy.special.stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(len(values))
    )
    mean = values.mean(0)
    return np.asarray(mean - half), np.asarray(mean + half)
