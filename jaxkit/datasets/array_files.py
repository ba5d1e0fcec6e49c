"""Arrays read from files: IDX, NPZ and CSV; what is wrong with a file is said by place."""

from __future__ import annotations

import csv
import gzip
import math
import os
import pathlib
import zipfile
import zlib

import numpy as np
from jaxtyping import Float32, Shaped

_LARGEST = float(np.finfo(np.float32).max)
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Shaped[np.ndarray, "*shape"]:
    """Read an IDX file, the format of MNIST, compressed by gzip or not."""
    content = _existing(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is truncated or damaged gzip: {error}") from error
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not magic[3]:
        raise ValueError(
            f"{path} is not an IDX file: it starts with 0x{magic.hex()}, allowed is 0x0000, a type "
            "(08, 09, 0b, 0c, 0d or 0e) and the number of dimensions"
        )
    dtype, start = np.dtype(_IDX_TYPES[magic[2]]), 4 + 4 * magic[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated inside its header of {start} bytes")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        raise ValueError(
            f"{path} is {problem}: shape {shape} needs {expected} bytes, got {len(content)}"
        )
    if len(shape) > 32:
        raise ValueError(f"{path} must have 32 dimensions at most, got {len(shape)}")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of an NPZ file."""
    if not zipfile.is_zipfile(_existing(path)):
        raise ValueError(f"{path} is truncated or not an NPZ file")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except Exception as error:  # a size in it may be any number
                raise ValueError(f"{path}: array {name!r} cannot be read: {error}") from error
    return arrays


def read_csv(
    path: str | os.PathLike[str],
) -> tuple[Float32[np.ndarray, "examples features"], list[str] | None]:
    """Read numeric features, and labels from a column called `label` if there is one."""
    features, labels = [], []
    with open(_existing(path), encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        try:
            columns = next(reader, None)
            if columns is None:
                raise ValueError(f"{path} is empty: a first line must name the columns")
            where = columns.index("label") if "label" in columns else None
            names = [name for i, name in enumerate(columns) if i != where]
            for cells in reader:
                if not cells:
                    continue
                place = f"{path} line {reader.line_num}"
                if len(cells) != len(columns):
                    raise ValueError(f"{place}: {len(columns)} columns expected, got {len(cells)}")
                if where is not None:
                    labels.append(cells.pop(where).strip())
                    if not labels[-1]:
                        raise ValueError(f"{place}: the label is empty")
                features.append(_numbers(cells, names, place))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} after line {reader.line_num}: {error}") from error
    if not features or not names:
        raise ValueError(f"{path} has no data: {len(features)} lines of {len(names)} features")
    return np.stack(features), labels if where is not None else None


def _numbers(cells: list[str], names: list[str], place: str) -> np.ndarray:
    try:
        row = np.array([float(cell) for cell in cells])
    except ValueError:
        row = np.full(len(cells), math.nan)
    # Compared in float64, where a number too large for float32 is still itself.
    if not np.all(np.abs(row) <= _LARGEST):
        for cell, name in zip(cells, names, strict=True):
            try:
                good = abs(float(cell)) <= _LARGEST
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"{place}: column {name!r} must be a finite number, got {cell!r}")
    return row.astype(np.float32)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    return path
