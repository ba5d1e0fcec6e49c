"""Arrays to learn from and arrays to test on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped

from jaxkit.validation import integer, number


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """Inputs and labels, split.

    Attributes:
        train_inputs: `[train, ...]` float32.
        train_labels: `[train]`; int32 classes, or float32 targets of a regression; None if the
            data have none.
        test_inputs: `[test, ...]` float32.
        test_labels: `[test]`, likewise.
        label_names: name of each class where the data give names, else empty.

    Raises:
        ValueError: if numbers of inputs and labels differ.

    Example:
        >>> labels = np.array([0, 1, 1], np.int32)
        >>> split = ArraySplit(np.eye(3), labels, np.eye(3)[:1], labels[:1], ("cat", "dog"))
        >>> split.train_inputs.shape, split.label_names[split.train_labels[1]]
        ((3, 3), 'dog')
    """

    train_inputs: Shaped[np.ndarray, "train ..."]
    train_labels: Shaped[np.ndarray, " train"] | None
    test_inputs: Shaped[np.ndarray, "test ..."]
    test_labels: Shaped[np.ndarray, " test"] | None
    label_names: tuple[str, ...] = ()

    def __post_init__(self):
        for part in ("train", "test"):
            inputs, labels = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_labels")
            if labels is not None and len(inputs) != len(labels):
                raise ValueError(
                    f"{part}_labels must be as many as the inputs, got {len(labels)} labels for "
                    f"{len(inputs)} inputs"
                )


def split_arrays(
    inputs: Shaped[np.ndarray, "examples ..."],
    labels: Shaped[np.ndarray, " examples"] | None,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    label_names: tuple[str, ...] = (),
) -> ArraySplit:
    """Split arrays by a permutation drawn from the seed."""
    number(
        "test_fraction", test_fraction, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    integer("seed", seed, minimum=0)
    if len(inputs) < 2:
        raise ValueError(f"inputs must be at least 2 examples to split, got {len(inputs)}")
    if labels is not None and len(labels) != len(inputs):
        raise ValueError(f"labels must be {len(inputs)} like the inputs, got {len(labels)}")
    tests = min(max(round(len(inputs) * test_fraction), 1), len(inputs) - 1)
    order = np.random.default_rng(seed).permutation(len(inputs))
    # Sorted, so that each part keeps the order of the source.
    test, train = np.sort(order[:tests]), np.sort(order[tests:])
    return ArraySplit(
        inputs[train],
        None if labels is None else labels[train],
        inputs[test],
        None if labels is None else labels[test],
        label_names,
    )


def stratified_rows(
    groups: Int[np.ndarray, " examples"],
    test_fraction: float,
    seed: int,
    name: Callable[[int], str],
    lone: Literal["error", "train"] = "error",
) -> Bool[np.ndarray, " examples"]:
    """Draw test examples group by group, so that every group is on both sides."""
    number(
        "test_fraction", test_fraction, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    found, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    if lone == "error" and counts.size and counts.min() < 2:
        raise ValueError(
            f"class {name(int(found[counts.argmin()]))} has 1 example, and needs at least 2 to be "
            "trained and tested on"
        )
    test = np.zeros(len(groups), bool)
    for start, count in zip(starts, counts, strict=True):
        test[order[start : start + min(max(round(count * test_fraction), 1), count - 1)]] = True
    return test


def standardise(split: ArraySplit) -> ArraySplit:
    """Shift and scale each feature to mean 0 and standard deviation 1 on the training part.

    A feature that is constant in training is only shifted.
    """
    inputs = split.train_inputs.astype(np.float64)
    mean, deviation = inputs.mean(0), inputs.std(0)
    deviation = np.where(inputs.max(0) > inputs.min(0), deviation, 1.0)
    return dataclasses.replace(
        split,
        train_inputs=((inputs - mean) / deviation).astype(np.float32),
        test_inputs=((split.test_inputs - mean) / deviation).astype(np.float32),
    )
