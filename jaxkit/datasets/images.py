"""The user's own images and features: IDX, NPZ or CSV."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jaxkit.datasets.array_files import read_csv, read_idx, read_npz
from jaxkit.datasets.splits import ArraySplit, split_arrays

# Names that published NPZ files use: (train inputs, train labels, test inputs, test labels).
_SPLIT_NAMES = (
    ("train_inputs", "train_labels", "test_inputs", "test_labels"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
_WHOLE_NAMES = (("inputs", "labels"), ("images", "labels"), ("x", "y"))


def load_images(
    path: str | os.PathLike[str],
    *,
    labels_path: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ArraySplit:
    """Load images or features with their labels.

    - A folder with MNIST's file names (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
      `t10k-...`, each with or without `.gz`): the published split, or a drawn one if only one
      pair is there.
    - An IDX file: its labels lie in `labels_path`, or beside it under the name with `images`
      replaced by `labels` and `idx3` by `idx1`.
    - An NPZ file: arrays `train_inputs`, `train_labels`, `test_inputs`, `test_labels` (or
      `train_images`, ...; or `x_train`, `y_train`, ...), or to be split `inputs`, `labels` (or
      `images`, `labels`; or `x`, `y`). Labels may be left out.
    - A CSV file with a line of column names and an optional column `label`, of integers or of
      names, which are numbered in alphabetical order.

    Bytes are divided by 255; other numbers stay as they are, see `standardise`. Arrays
    `[examples, height, width]` get a channel axis.

    Args:
        path: the file or folder.
        labels_path: the label file of an IDX image file.
        test_fraction: share of the examples to test on where the data are not split yet.
        seed: seed of that split, >= 0.

    Returns:
        Inputs float32 `[examples, height, width, channels]` or `[examples, features]`; labels
        int32 `[examples]` or None.

    Raises:
        ValueError: if a file is missing, damaged, of an unknown kind, or holds non-finite numbers,
            labels that are no integers, or unequal numbers of inputs and labels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", x=np.zeros((10, 4, 4), np.uint8), y=np.arange(10))
        ...     load_images(f"{folder}/a.npz").train_inputs.shape
        (8, 4, 4, 1)
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".npz":
        pairs = _npz_pairs(path)
    elif path.suffix == ".csv":
        features, written = read_csv(path)
        labels, label_names = _number_labels(written)
        return split_arrays(
            features, labels, test_fraction=test_fraction, seed=seed, label_names=label_names
        )
    elif path.is_dir():
        pairs = [
            (images, _labels_beside(images))
            for part in ("train", "t10k")
            if (images := _find_idx(path, part)) is not None
        ]
        if not pairs:
            raise ValueError(
                f"{path} has no images: a folder must hold train-images-idx3-ubyte or "
                "t10k-images-idx3-ubyte, with or without .gz"
            )
        pairs = [(read_idx(images), read_idx(labels), str(images)) for images, labels in pairs]
    else:
        labels = _labels_beside(path) if labels_path is None else labels_path
        pairs = [(read_idx(path), read_idx(labels), str(path))]
    parts = [_checked_pair(*pair) for pair in pairs]
    if len(parts) == 2:
        return ArraySplit(*parts[0], *parts[1])
    return split_arrays(*parts[0], test_fraction=test_fraction, seed=seed)


def _npz_pairs(path: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray | None, str]]:
    arrays = read_npz(path)
    for train_x, train_y, test_x, test_y in _SPLIT_NAMES:
        if train_x in arrays and test_x in arrays:
            return [
                (arrays[train_x], arrays.get(train_y), f"{path} ({train_x})"),
                (arrays[test_x], arrays.get(test_y), f"{path} ({test_x})"),
            ]
    for x, y in _WHOLE_NAMES:
        if x in arrays:
            return [(arrays[x], arrays.get(y), f"{path} ({x})")]
    raise ValueError(
        f"{path} must hold arrays named like {_SPLIT_NAMES[0]} or {_WHOLE_NAMES[0]}, got "
        f"{sorted(arrays)}"
    )


def _find_idx(folder: pathlib.Path, part: str) -> pathlib.Path | None:
    names = (f"{part}-images{dot}idx3-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _labels_beside(images: pathlib.Path) -> pathlib.Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    labels = images.with_name(name)
    if name == images.name or not labels.is_file():
        raise ValueError(
            f"{images} needs a label file: name it with labels_path"
            + (f", or put it at {labels}" if name != images.name else "")
        )
    return labels


def _checked_pair(
    inputs: np.ndarray, labels: np.ndarray | None, place: str
) -> tuple[np.ndarray, np.ndarray | None]:
    if inputs.ndim < 2 or 0 in inputs.shape or inputs.dtype.kind not in "buif":
        raise ValueError(
            f"{place} must be numbers [examples, ...], got {inputs.dtype}{list(inputs.shape)}"
        )
    # Compared as they are: a cast would turn what float32 cannot hold into infinities.
    if inputs.dtype.kind == "f" and not np.all(np.abs(inputs) <= np.finfo(np.float32).max):
        raise ValueError(f"{place} has numbers that are not finite float32")
    scale = 255 if inputs.dtype == np.uint8 else 1
    inputs = (inputs / np.float32(scale)).astype(np.float32)
    inputs = inputs[..., None] if inputs.ndim == 3 else inputs
    if labels is None:
        return inputs, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != inputs.shape[:1]:
        raise ValueError(f"{place} has {len(inputs)} inputs, but labels of shape {labels.shape}")
    if labels.dtype.kind not in "ui":
        raise ValueError(f"{place} must have integer labels, got {labels.dtype}")
    if not np.array_equal(labels.astype(np.int32), labels):
        raise ValueError(f"{place} has labels beyond int32: {labels.min()} to {labels.max()}")
    return inputs, labels.astype(np.int32)


def _number_labels(written: list[str] | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if written is None:
        return None, ()
    try:
        return np.array([int(label) for label in written], np.int32), ()
    except (ValueError, OverflowError):
        names, numbers = np.unique(written, return_inverse=True)
        return numbers.astype(np.int32), tuple(map(str, names))
