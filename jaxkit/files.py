"""Files that a reader never sees half-written."""

from __future__ import annotations

import os
import pathlib
import tempfile


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
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    return path
