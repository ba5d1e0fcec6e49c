"""Arrays written chunk by chunk and read through the page cache, so that size is bound by disk."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from jaxkit.files import atomic_writer


def write_mapped(
    chunks: Iterable[np.ndarray], dtype: np.typing.DTypeLike, path: pathlib.Path | None = None
) -> Shaped[np.ndarray, " n"]:
    """Stream chunks into one flat array on disk and map it read-only.

    Args:
        chunks: flat arrays, concatenated in order; one at a time is held in memory.
        dtype: type of the elements.
        path: the `.npy` file to write atomically; None writes an unnamed temporary file (under
            `TMPDIR`) that disappears with the array.

    Returns:
        The mapped array, `[n]`.

    Raises:
        ValueError: if there is nothing to write.
        OSError: if the disk refuses, for example for lack of space; no part is left behind.

    Example:
        >>> write_mapped([np.arange(2), np.arange(3)], np.uint16).tolist()
        [0, 1, 0, 1, 2]
    """
    dtype = np.dtype(dtype)
    if path is None:
        with tempfile.TemporaryFile() as stream:
            length = _write(stream, chunks, dtype)
            return np.memmap(stream, dtype, mode="r", shape=(length,))
    with atomic_writer(path) as stream:
        header = _write_header(stream, 0, dtype)
        length = _write(stream, chunks, dtype)
        stream.seek(0)
        # NumPy pads the header for a growing first axis, so the final one fits the same space.
        if _write_header(stream, length, dtype) != header:
            raise OSError(f"the header of {path} does not fit its space")
    return read_mapped(path, dtype)


def read_mapped(path: pathlib.Path, dtype: np.typing.DTypeLike) -> Shaped[np.ndarray, " n"]:
    """Map a flat `.npy` array read-only.

    Args:
        path: the file.
        dtype: the type of element it must hold.

    Returns:
        The mapped array, `[n]`.

    Raises:
        ValueError: if the file holds something else, or less than its header says.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "a.npy"
        ...     _ = write_mapped([np.arange(3)], np.uint8, path)
        ...     read_mapped(path, np.uint8).tolist()
        [0, 1, 2]
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(
            f"{path} must hold a flat {np.dtype(dtype)} array, got {array.dtype}{array.shape}"
        )
    return array


def _write(stream: BinaryIO, chunks: Iterable[np.ndarray], dtype: np.dtype) -> int:
    length = 0
    for chunk in chunks:
        stream.write(np.ascontiguousarray(chunk, dtype).data)
        length += chunk.size
    if not length:
        raise ValueError("there is nothing to write: every chunk is empty")
    stream.flush()
    return length


def _write_header(stream: BinaryIO, length: int, dtype: np.dtype) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": (length,)})
    return stream.tell()
