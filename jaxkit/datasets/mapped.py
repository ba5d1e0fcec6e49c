"""Arrays written chunk by chunk and read through the page cache, so that size is bound by disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from jaxkit.files import atomic_writer, write_atomically


def write_mapped(
    chunks: Iterable[np.ndarray],
    dtype: np.typing.DTypeLike,
    path: pathlib.Path | None = None,
    *,
    empty: bool = False,
) -> Shaped[np.ndarray, " n"]:
    """Stream chunks into one flat array on disk and map it read-only."""
    dtype = np.dtype(dtype)
    if path is None:
        with tempfile.TemporaryFile() as stream:
            length = _write(stream, chunks, dtype, empty)
            if not length:
                return np.empty(0, dtype)
            return np.memmap(stream, dtype, mode="r", shape=(length,))
    with atomic_writer(path) as stream:
        header = _write_header(stream, 0, dtype)
        length = _write(stream, chunks, dtype, empty)
        stream.seek(0)
        # NumPy pads the header for a growing first axis, so the final one fits the same space.
        if _write_header(stream, length, dtype) != header:
            raise OSError(f"the header of {path} does not fit its space")
    return read_mapped(path, dtype)


def forget_pages(array: Any) -> None:
    """Let go of the pages of a mapped array that were read: after a piece of a pass over all.

    They would count as memory of the process until something else needs it. What is not an array
    mapped for reading alone stays as it is: a private copy would lose what was written to it.
    """
    base: Any = array
    read_only = False
    while isinstance(base, np.ndarray):
        read_only |= isinstance(base, np.memmap) and base.mode == "r"
        base = base.base
    if read_only and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def pieces(array: np.ndarray, most_bytes: int = 1 << 22) -> Iterator[np.ndarray]:
    """The rows of an array some at a time; the pages of a mapped one are let go after each."""
    rows = max(1, most_bytes // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
        forget_pages(array)


def grow_mapped(
    path: pathlib.Path,
    dtype: np.typing.DTypeLike,
    chunks: Callable[[Any], Iterable[tuple[np.ndarray, Any]]],
    *,
    save_every: int = 1 << 26,
) -> Shaped[np.ndarray, " n"]:
    """Find an array on disk or write it, going on where an earlier process was interrupted.

    Processes that want the same array wait for the one that writes it.
    """
    dtype = np.dtype(dtype)
    partial, saved = path.with_suffix(".partial"), path.with_suffix(".position")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(partial) as stream:
        if path.exists():
            try:
                array = read_mapped(path, dtype)
                partial.unlink()
                return array
            except (ValueError, EOFError, OverflowError):
                pass  # damaged since it was written: write it again
        header = _write_header(stream, 0, dtype)
        position, size = _saved_position(saved, header, stream.seek(0, os.SEEK_END))
        stream.truncate(size)
        stream.seek(size)
        since = 0
        try:
            for chunk, at in chunks(position):
                since += stream.write(np.ascontiguousarray(chunk, dtype).data)
                if since >= save_every:
                    _sync(stream)
                    write_atomically(saved, json.dumps([at, stream.tell()]))
                    since = 0
            length = (stream.tell() - header) // dtype.itemsize
            stream.seek(0)
            # NumPy pads the header for a growing first axis, so the final one fits its space.
            _write_header(stream, length, dtype)
            _sync(stream)
        except Exception:
            # Not an interruption: it would fail again at the same place.
            partial.unlink()
            saved.unlink(missing_ok=True)
            raise
        saved.unlink(missing_ok=True)
        if not length:
            partial.unlink()
            return np.empty(0, dtype)
        os.replace(partial, path)
    return read_mapped(path, dtype)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file to read and write once no other process has it open so; make it if need be."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # The process that one has waited for may have renamed or removed the file.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield stream
                return


def _saved_position(saved: pathlib.Path, header: int, available: int) -> tuple[Any, int]:
    try:
        position, size = json.loads(saved.read_text("utf-8"))
        # A position without its bytes would leave a hole.
        return (position, size) if header <= size <= available else (None, header)
    except (OSError, ValueError, TypeError):
        return None, header


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def read_mapped(path: pathlib.Path, dtype: np.typing.DTypeLike) -> Shaped[np.ndarray, " n"]:
    """Map a flat `.npy` array read-only."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(
            f"{path} must hold a flat {np.dtype(dtype)} array, got {array.dtype}{array.shape}"
        )
    return array


def _write(stream: BinaryIO, chunks: Iterable[np.ndarray], dtype: np.dtype, empty: bool) -> int:
    length = 0
    for chunk in chunks:
        stream.write(np.ascontiguousarray(chunk, dtype).data)
        length += chunk.size
    if not length and not empty:
        raise ValueError("there is nothing to write: every chunk is empty")
    stream.flush()
    return length


def _write_header(stream: BinaryIO, length: int, dtype: np.dtype) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": (length,)})
    return stream.tell()
