"""The small real data sets that scikit-learn carries."""

from __future__ import annotations

import numpy as np

from jaxkit.datasets.extras import require
from jaxkit.datasets.splits import ArraySplit, split_arrays, standardise
from jaxkit.validation import choice

_TABLES = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def load_table(name: str, *, test_fraction: float = 0.2, seed: int = 0) -> ArraySplit:
    """Load a bundled table, standardised on its training part.

    Args:
        name: `"iris"` (150 examples, 4 features, 3 classes), `"wine"` (178, 13, 3),
            `"breast_cancer"` (569, 30, 2), `"digits"` (1797, 64, 10), or for regression
            `"diabetes"` (442, 10, float32 targets in the units of the source).
        test_fraction: share of the examples to test on, in (0, 1).
        seed: seed of the split, >= 0.

    Returns:
        Inputs float32 `[examples, features]`, labels int32 `[examples]`.

    Raises:
        ImportError: without the `datasets` extra.
        ValueError: if the name is unknown.

    Example:
        >>> load_table("iris").train_inputs.shape
        (120, 4)
    """
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
