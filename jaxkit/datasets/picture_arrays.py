"""Pictures as published arrays: CIFAR's batches, STL-10, IDX and NPZ.

What reads a layout returns its parts, training and test or one that is not split yet, and the
names of the classes if they lie beside.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxkit.datasets.array_files import read_idx, read_npz

#: Uint8 `[n, H, W, C]` and int32 `[n]`.
Examples = tuple[np.ndarray, np.ndarray]
Layout = tuple[list[Examples], tuple[str, ...]]

# Names that published NPZ files use: (train inputs, train labels, test inputs, test labels).
_SPLIT_NAMES = (
    ("train_inputs", "train_labels", "test_inputs", "test_labels"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
_WHOLE_NAMES = (("inputs", "labels"), ("images", "labels"), ("x", "y"))

_IDX_NAME = re.compile(r"(.*?)(train|t10k|test)-images[-.]idx3-ubyte(?:\.gz)?")

# NumPy's own ways to rebuild an array, under the names of its versions; nothing else is called.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


#: Where CIFAR's files lie, by number of classes and ending: files of names, their key.
_CIFAR_NAMES = {
    (10, ".bin"): ("batches.meta.txt", None),
    (100, ".bin"): ("fine_label_names.txt", None),
    (10, ""): ("batches.meta", b"label_names"),
    (100, ""): ("meta", b"fine_label_names"),
}


def fits_cifar(place: pathlib.Path, classes: int, end: str) -> bool:
    """Whether CIFAR-10 or CIFAR-100 lies there, in files of that ending."""
    train, test = ("data_batch_1", "test_batch") if classes == 10 else ("train", "test")
    files = [place / f"{name}{end}" for name in (train, test)]
    # Names as common as train.bin say little: records must fit too.
    sized = (
        classes == 10 or not end or all(f.is_file() and f.stat().st_size % 3074 == 0 for f in files)
    )
    return sized and all(file.is_file() for file in files)


def read_cifar(place: pathlib.Path, classes: int, end: str) -> Layout:
    """Read CIFAR-10 or CIFAR-100, binary (`.bin`) or as Python's batches (no ending)."""
    parts = [[place / f"train{end}"], [place / f"test{end}"]]
    if classes == 10:
        parts = [_numbered_batches(place, end), [place / f"test_batch{end}"]]
    name, key = _CIFAR_NAMES[classes, end]
    if end:
        label_bytes = 1 if classes == 10 else 2
        read = [_read_binary(files, label_bytes, classes) for files in parts]
        return read, _name_lines(place / name, classes)
    label_key = b"labels" if classes == 10 else b"fine_labels"
    read = [_read_pickled(files, label_key, classes) for files in parts]
    return read, _pickled_names(place / name, key, classes)


def _numbered_batches(place: pathlib.Path, end: str) -> list[pathlib.Path]:
    """CIFAR-10's training batches, of which none may be missing in between."""
    files, number = [], 1
    while (place / f"data_batch_{number}{end}").is_file():
        files.append(place / f"data_batch_{number}{end}")
        number += 1
    rest = [p for p in place.glob(f"data_batch_*{end}") if p not in files]
    rest = [p for p in rest if end or not p.suffix]
    if not files or rest:
        raise ValueError(f"{place}/data_batch_{number}{end} is missing")
    return files


def _read_binary(files: Iterable[pathlib.Path], label_bytes: int, classes: int) -> Examples:
    """Read CIFAR records: labels, of which the last counts, then 32 x 32 red, green and blue."""
    parts = []
    for file in files:
        content = np.fromfile(file, np.uint8)
        size = label_bytes + 3072
        if not len(content) or len(content) % size:
            raise ValueError(
                f"{file} must hold records of {size} bytes, got {len(content)} bytes: it is cut "
                "or no CIFAR file"
            )
        parts.append(content.reshape(-1, size))
        _check_labels(parts[-1][:, label_bytes - 1], classes, file)
    records = np.concatenate(parts)
    labels = records[:, label_bytes - 1].astype(np.int32)
    return _channels_last(records[:, label_bytes:], (3, 32, 32)), labels


def _read_pickled(files: Iterable[pathlib.Path], label_key: bytes, classes: int) -> Examples:
    """Read CIFAR's pickled dictionaries without executing what they hold."""
    images, labels = [], []
    for file in files:
        found = read_plain_pickle(file)
        if not isinstance(found, dict) or not {b"data", label_key} <= found.keys():
            keys = list(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{file} must be a dict with data and {label_key!r}, got {keys!r}")
        data, numbers = found[b"data"], np.asarray(found[label_key])
        shape, dtype = np.shape(data), getattr(data, "dtype", None)
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3072 or numbers.dtype.kind != "i":
            raise ValueError(
                f"{file} must hold uint8 [n, 3072] and integers, got {dtype}{list(shape)} and "
                f"{numbers.dtype}"
            )
        if numbers.shape != shape[:1]:
            raise ValueError(f"{file} has {shape[0]} pictures, but labels {list(numbers.shape)}")
        _check_labels(numbers, classes, file)
        images.append(data)
        labels.append(numbers.astype(np.int32))
    return _channels_last(np.concatenate(images), (3, 32, 32)), np.concatenate(labels)


def read_plain_pickle(path: pathlib.Path) -> Any:
    """Read a pickle of plain values and NumPy arrays; anything else in it is refused."""
    try:
        with open(path, "rb") as stream:
            return _PlainUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} cannot be read as a plain pickle: {error}") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_stl10(folder: pathlib.Path) -> Layout:
    """Map STL-10's pictures, stored column by column, and read its labels 1 to 10 as 0 to 9."""
    parts = []
    for part in ("train", "test"):
        path = folder / f"{part}_X.bin"
        labels = np.fromfile(folder / f"{part}_y.bin", np.uint8)
        if not 0 < path.stat().st_size == len(labels) * 27648:
            raise ValueError(
                f"{path} must hold pictures, 27648 bytes for each of {len(labels)} labels, got "
                f"{path.stat().st_size}"
            )
        images = np.memmap(path, np.uint8, mode="r")
        numbers = labels.astype(np.int32) - 1
        _check_labels(numbers, 10, folder / f"{part}_y.bin")
        parts.append((images.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), numbers))
    return parts, _name_lines(folder / "class_names.txt", 10)


def fits_idx(place: pathlib.Path) -> bool:
    """Whether that is an IDX file of pictures, or a folder of such."""
    return "idx3" in place.name if place.is_file() else bool(_idx_groups(place))


def read_idx_files(place: pathlib.Path, labels: str | os.PathLike[str] | None) -> Layout:
    """Read an IDX file, or the training and test files of a folder."""
    if place.is_file():
        return [_read_idx_pair(place, None if labels is None else pathlib.Path(labels))], ()
    groups = _idx_groups(place)
    if len(groups) != 1:
        raise ValueError(
            f"{place} must hold the IDX files of one data set, got those of "
            f"{sorted(groups)}: name a file instead"
        )
    (files,) = groups.values()
    found = [files[part] for part in ("train", "test") if part in files]
    return [_read_idx_pair(file, None) for file in found], ()


def _idx_groups(folder: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    """Find IDX picture files: `{prefix: {"train" or "test": file}}`; EMNIST's have prefixes."""
    groups: dict[str, dict[str, pathlib.Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := _IDX_NAME.fullmatch(file.name):
            part = "train" if match[2] == "train" else "test"
            groups.setdefault(match[1], {})[part] = file
    return groups


def _read_idx_pair(images: pathlib.Path, labels: pathlib.Path | None) -> Examples:
    """Read an IDX file of pictures and the labels beside it.

    EMNIST's pictures are stored transposed, and its letters are numbered from 1.
    """
    beside = images.name.replace("images", "labels").replace("idx3", "idx1")
    labels = labels or images.with_name(beside)
    if labels == images or not labels.is_file():
        raise ValueError(f"{images} needs a label file: name it, or put it at {labels}")
    found, numbers = checked_examples(read_idx(images), read_idx(labels), str(images))
    if "emnist" in images.name:
        found = np.ascontiguousarray(found.swapaxes(1, 2))
        numbers = numbers - ("letters" in images.name)
    return found, numbers


def read_npz_pictures(path: pathlib.Path) -> Layout:
    """Read training and test pictures of an NPZ file, or one part that is not split yet."""
    arrays = read_npz(path)
    for names in _SPLIT_NAMES:
        if names[0] in arrays and names[2] in arrays:
            pairs = [names[:2], names[2:]]
            break
    else:
        pairs = [names for names in _WHOLE_NAMES if names[0] in arrays][:1]
    if not pairs:
        raise ValueError(
            f"{path} must hold arrays named like {_SPLIT_NAMES[0]} or {_WHOLE_NAMES[0]}, got "
            f"{sorted(arrays)}"
        )
    return [checked_examples(arrays[x], arrays.get(y), f"{path} ({x})") for x, y in pairs], ()


def checked_examples(images: np.ndarray, labels: np.ndarray | None, place: str) -> Examples:
    """Return pictures as bytes `[n, H, W, C]` and labels as int32, or say what is wrong."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3):
        hint = " (channels come last)" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise ValueError(
            f"{place} must be pictures [n, H, W] or [n, H, W, 1 or 3], got "
            f"{list(images.shape)}{hint}"
        )
    if images.dtype == np.uint16:
        images = ((images.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif images.dtype.kind == "f":
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"{place} must be bytes or numbers in [0, 1], got others")
        images = np.rint(images * 255).astype(np.uint8)
    elif images.dtype != np.uint8:
        raise ValueError(f"{place} must be uint8, uint16 or floats in [0, 1], got {images.dtype}")
    if labels is None:
        raise ValueError(f"{place} has no labels beside it")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{place} has {len(images)} pictures, but labels {list(labels.shape)}")
    if labels.dtype.kind not in "ui":
        raise ValueError(f"{place} must have integer labels, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(f"{place} must have labels >= 0 of int32, got {labels.min()} to "
                         f"{labels.max()}")  # fmt: skip
    return images, labels.astype(np.int32)


def _channels_last(rows: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, *shape).transpose(0, 2, 3, 1))


def _check_labels(labels: np.ndarray, classes: int, file: pathlib.Path) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"{file} must have labels of {classes} classes, got {labels.min()} to {labels.max()}"
        )


def _name_lines(file: pathlib.Path, classes: int) -> tuple[str, ...]:
    names = file.read_text("utf-8").split() if file.is_file() else []
    return tuple(names) if len(names) == classes else ()


def _pickled_names(file: pathlib.Path, key: bytes, classes: int) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    found = read_plain_pickle(file)
    names = found.get(key, ()) if isinstance(found, dict) else ()
    texts = [x.decode() if isinstance(x, bytes) else str(x) for x in names]
    return tuple(texts) if len(texts) == classes else ()
