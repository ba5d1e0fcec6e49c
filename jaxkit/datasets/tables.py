"""Tables of features: the small real ones that scikit-learn carries, and the user's own."""

from __future__ import annotations

import math
import os

import numpy as np

from jaxkit.datasets.array_files import read_csv
from jaxkit.datasets.extras import require
from jaxkit.datasets.splits import ArraySplit, split_arrays, standardise
from jaxkit.validation import choice

_TABLES = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def load_table(
    name: str | os.PathLike[str], *, test_fraction: float = 0.2, seed: int = 0
) -> ArraySplit:
    """Load a table, standardised on its training part.

    Args:
        name: `"iris"` (150 examples, 4 features, 3 classes), `"wine"` (178, 13, 3),
            `"breast_cancer"` (569, 30, 2), `"digits"` (1797, 64, 10), or for regression
            `"diabetes"` (442, 10, float32 targets in the units of the source); or the path of a
            `.csv` file, whose column `label` holds integers or names, numbered in alphabetical
            order.
        test_fraction: share of the examples to test on, in (0, 1).
        seed: seed of the split, >= 0.

    Returns:
        Inputs float32 `[examples, features]`, labels int32 `[examples]`.

    Raises:
        ImportError: without the `datasets` extra.
        ValueError: if the name is unknown, or the file is missing or damaged.

    Example:
        >>> load_table("iris").train_inputs.shape
        (120, 4)
    """
    name = os.fspath(name)
    if name.lower().endswith(".csv"):
        features, written = read_csv(name)
        labels, names = _number_labels(written)
        return standardise(
            split_arrays(
                features, labels, test_fraction=test_fraction, seed=seed, label_names=names
            )
        )
    choice("name", name, _TABLES)
    bunch = getattr(require("sklearn.datasets", "datasets"), f"load_{name}")()
    regression = name == "diabetes"
    return standardise(
        split_arrays(
            bunch.data.astype(np.float32),
            bunch.target.astype(np.float32 if regression else np.int32),
            test_fraction=test_fraction,
            seed=seed,
            label_names=() if regression else tuple(map(str, bunch.target_names)),
        )
    )


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> ArraySplit:
    """Load 1797 handwritten digits of 8 x 8 pixels.

    Args:
        test_fraction: share of the examples to test on, in (0, 1).
        seed: seed of the split, >= 0.

    Returns:
        Inputs float32 `[examples, 8, 8, 1]` in [0, 1], labels int32 `[examples]`.

    Raises:
        ImportError: without the `datasets` extra.

    Example:
        >>> load_digits().test_inputs.shape
        (359, 8, 8, 1)
    """
    bunch = require("sklearn.datasets", "datasets").load_digits()
    return split_arrays(
        (bunch.images[..., None] / 16).astype(np.float32),
        bunch.target.astype(np.int32),
        test_fraction=test_fraction,
        seed=seed,
        label_names=tuple(map(str, bunch.target_names)),
    )


def _number_labels(written: list[str] | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if written is None:
        return None, ()
    try:
        return np.array([int(label) for label in written], np.int32), ()
    except (ValueError, OverflowError) as error:
        if isinstance(error, ValueError) and _are_numbers(written):  # targets, or 1.0 for 1
            raise ValueError(
                f"column 'label' must hold integers or names, got numbers such as {written[0]!r}"
            ) from None
        names, numbers = np.unique(written, return_inverse=True)
        return numbers.astype(np.int32), tuple(map(str, names))


def _are_numbers(written: list[str]) -> bool:
    try:
        return all(math.isfinite(float(label)) for label in written)
    except ValueError:
        return False
