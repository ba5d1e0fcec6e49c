"""Any number of rows in batches of one size, so that one compilation serves them all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float


def pad_rows(rows: Float[np.ndarray, "n ..."], size: int) -> Float[np.ndarray, "size ..."]:
    """Float32 rows, with zeros after them up to `size`.

    Example:
        >>> pad_rows(np.ones((2, 1)), 3).tolist()
        [[1.0], [1.0], [0.0]]
    """
    missing = size - len(rows)
    return np.pad(np.asarray(rows, np.float32), [(0, missing)] + [(0, 0)] * (rows.ndim - 1))


def padded_batches(
    rows: Float[np.ndarray, "n ..."], size: int
) -> Iterator[tuple[Float[np.ndarray, "size ..."], int]]:
    """Batches of `size` rows in order, each with the number of its rows that are real.

    Example:
        >>> [count for _, count in padded_batches(np.ones((5, 1)), 2)]
        [2, 2, 1]
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield pad_rows(part, size), len(part)
