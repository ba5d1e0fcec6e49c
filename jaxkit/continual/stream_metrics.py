"""What a stream's accuracy matrix says: averages, forgetting, transfer."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Entries with j < i are not read.
Matrix = Float[np.ndarray, "T T"]


def _checked(accuracy: np.ndarray) -> np.ndarray:
    accuracy = np.asarray(accuracy, np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or not len(accuracy):
        raise ValueError(f"accuracy must be a square matrix, got shape {accuracy.shape}")
    upper = accuracy[np.triu_indices(len(accuracy))]
    if not np.all((upper >= 0) & (upper <= 1)):
        raise ValueError("accuracy[i, j] must be in [0, 1] for j >= i, got others")
    return accuracy


def average_accuracy(accuracy: Matrix) -> float:
    r"""$A_T = \frac1T \sum_i a_{i,T}$: mean over tasks after the last.

    Args:
        accuracy: `accuracy[i, j]` on task i after training task j, as a fraction.

    Raises:
        ValueError: if it is no square matrix of fractions.

    Source: arXiv 2403.18886 appendix B.3.

    Example:
        >>> average_accuracy(np.array([[1.0, 0.5], [0.0, 0.7]]))
        0.6
    """
    return float(_checked(accuracy)[:, -1].mean())


def stage_accuracies(accuracy: Matrix) -> Float[np.ndarray, " T"]:
    r"""$A_t = \frac1t \sum_{i \le t} a_{i,t}$ for every t.

    Example:
        >>> stage_accuracies(np.array([[1.0, 0.5], [0.0, 0.7]])).tolist()
        [1.0, 0.6]
    """
    accuracy = _checked(accuracy)
    return np.array([accuracy[: t + 1, t].mean() for t in range(len(accuracy))])


def average_incremental_accuracy(accuracy: Matrix) -> float:
    r"""$\bar A = \frac1T \sum_t A_t$: mean of the stages.

    Source: arXiv 2403.18886 appendix B.3.

    Example:
        >>> average_incremental_accuracy(np.array([[1.0, 0.5], [0.0, 0.7]]))
        0.8
    """
    return float(stage_accuracies(accuracy).mean())


def forgetting(accuracy: Matrix) -> float:
    r"""$F_T = \frac1{T-1} \sum_{i < T} (\max_{i \le j < T} a_{i,j} - a_{i,T})$; 0 for one task.

    Source: arXiv 2403.18886 appendix B.3.

    Example:
        >>> forgetting(np.array([[1.0, 0.5], [0.0, 0.7]]))
        0.5
    """
    accuracy = _checked(accuracy)
    last = len(accuracy) - 1
    lost = [accuracy[i, i:last].max() - accuracy[i, last] for i in range(last)]
    return float(np.mean(lost)) if lost else 0.0


def backward_transfer(accuracy: Matrix) -> float:
    r"""$B_T = \frac1{T-1} \sum_{i < T} (a_{i,T} - a_{i,i})$; 0 for one task.

    Source: Lopez-Paz and Ranzato, arXiv 1706.08840 eq. (3).

    Example:
        >>> backward_transfer(np.array([[1.0, 0.5], [0.0, 0.7]]))
        -0.5
    """
    accuracy = _checked(accuracy)
    last = len(accuracy) - 1
    return float(np.mean([accuracy[i, last] - accuracy[i, i] for i in range(last)] or [0.0]))


def pooled_accuracies(
    accuracy: Matrix, num_tests: Int[np.ndarray, " T"]
) -> Float[np.ndarray, " T"]:
    r"""Accuracy over all test samples of all tasks so far: $\sum_i n_i a_{i,t} / \sum_i n_i$.

    The official program reports this; with test sets of unequal sizes it differs from
    `stage_accuracies`.

    Args:
        accuracy: `accuracy[i, j]` on task i after training task j, as a fraction.
        num_tests: test samples of each task.

    Raises:
        ValueError: if lengths differ, or a task has no test sample.

    Example:
        >>> pooled_accuracies(np.array([[1.0, 0.5], [0.0, 0.8]]), np.array([100, 200])).tolist()
        [1.0, 0.7]
    """
    accuracy, sizes = _checked(accuracy), np.asarray(num_tests)
    if sizes.shape != accuracy.shape[:1] or np.any(sizes < 1):
        raise ValueError(f"num_tests must be {len(accuracy)} positive numbers, got {num_tests!r}")
    pooled = [
        np.average(accuracy[: t + 1, t], weights=sizes[: t + 1]) for t in range(len(accuracy))
    ]
    return np.array(pooled)
