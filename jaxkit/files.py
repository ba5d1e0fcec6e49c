"""Files that a reader never sees half-written, and lines that an error message can name."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> pathlib.Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: where to write; missing folders are made.
        content: text (written as UTF-8) or bytes.

    Returns:
        The path.

    Raises:
        OSError: if the disk refuses (the old file is then untouched).

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(pathlib.Path(folder) / "a.txt", "one").read_text()
        'one'
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_writer(path) as stream:
        stream.write(data)
    return pathlib.Path(path)


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write in pieces; it takes its place when the block ends without an error.

    Args:
        path: where to write; missing folders are made.

    Yields:
        A binary stream, to write, seek and read.

    Raises:
        OSError: if the disk refuses (the old file is then untouched).

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "a.bin"
        ...     with atomic_writer(path) as stream:
        ...         _ = stream.write(b"one")
        ...         path.exists()
        ...     path.read_bytes()
        False
        b'one'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of one JSON object a line; blank lines are skipped.

    Args:
        path: the file.

    Yields:
        The number of a line, from 1, and its object.

    Raises:
        ValueError: if a line holds anything else, naming file and line.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_atomically(pathlib.Path(folder) / "a.jsonl", '{"step": 1}')
        ...     list(json_lines(path))
        [(1, {'step': 1})]
    """
    with open(path, encoding="utf-8") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{line}: not a JSON object: {error.msg}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: not a JSON object: {text.strip()[:40]!r}")
            yield line, row
