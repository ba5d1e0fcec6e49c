"""Files that a reader never sees half-written, and stored JSON whose faults are named by place.

What a run stored may have been edited, cut or written by another program, so it is read as input:
every fault is a `ValueError` that names the file, the line and the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import os
import pathlib
import re
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal, TypeVar

T = TypeVar("T")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> pathlib.Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: where to write; missing folders are made.
        content: text (written as UTF-8) or bytes.

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


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: UTF-8; a byte-order mark is passed over.
        where: file and line, for messages.

    Raises:
        ValueError: if the text is anything else, names a field twice or is nested too deeply.

    Example:
        >>> json_object('{"step": 1}', "a.jsonl:1")
        {'step': 1}
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        found = json.loads(decoded, object_pairs_hook=_without_repeats)
        if "\\ud" in decoded.lower():  # half of a surrogate pair cannot be printed or stored
            json.dumps(found, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(f"{where}: not a JSON object: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: not a JSON object: nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: not a JSON object: {decoded.strip()[:40]!r}")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Read a file of one JSON object a line.

    Blank lines are passed over, and so is a last line that was cut short.

    Args:
        path: the file.

    Yields:
        The number of a line, from 1, and its object.

    Raises:
        ValueError: if a line holds anything else, naming file and line.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_atomically(pathlib.Path(folder) / "a.jsonl", '{"step": 1}\n{"st')
        ...     list(json_lines(path))
        [(1, {'step': 1})]
    """
    with open(path, "rb") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json_object(text, f"{path}:{line}")
            except ValueError:
                if text.endswith(b"\n") or not text.lstrip().startswith(b"{"):
                    raise
                return
            yield line, row


def read_record(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Read a dataclass that was stored as one JSON object.

    Args:
        path: the file.
        kind: the dataclass; its annotations say what the fields may hold.

    Raises:
        ValueError: if a field is unknown, missing, of another type or refused by the dataclass.
        OSError: if the file cannot be read.

    Example:
        >>> @dataclasses.dataclass
        ... class Size:
        ...     width: int
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_atomically(pathlib.Path(folder) / "size.json", '{"width": 3}')
        ...     read_record(path, Size)
        Size(width=3)
    """
    content = pathlib.Path(path).read_bytes()
    found = json_object(content, str(path))
    try:
        return typed(found, kind)
    except FieldError as error:
        line = _line_of(content.decode("utf-8-sig"), error.fields)
        raise ValueError(f"{path}:{line}: {error}") from None


class FieldError(ValueError):
    """A stored value does not fit its type.

    Args:
        fields: names from the outermost to the one at fault.
        problem: what is wrong with it.

    Example:
        >>> print(FieldError(("privacy", "delta"), "must be a number, got null"))
        privacy.delta must be a number, got null
    """

    def __init__(self, fields: tuple[str, ...], problem: str):
        super().__init__(f"{'.'.join(fields)} {problem}".strip())
        self.fields = fields


def typed(value: Any, kind: Any, fields: tuple[str, ...] = ()) -> Any:
    """Check a value that came from JSON against an annotation, and build its dataclasses.

    A whole number may be written `1.0`; nothing else is converted.

    Args:
        value: what `json` gave.
        kind: a dataclass, `int`, `float`, `bool`, `str`, `dict[str, ...]`, `list[...]`,
            `tuple[..., ...]` of any length, `Literal[...]`, a union of these, or `Any`.
        fields: names that lead to the value.

    Raises:
        FieldError: if it does not fit.

    Example:
        >>> typed(1.0, int), typed([0.5], list[float]), typed(None, int | None)
        (1, [0.5], None)
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _typed_record(value, kind, fields)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(FieldError):
                return typed(value, option, fields)
    elif origin is Literal:
        # 1 == True, so the types are compared too.
        if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            return value
    elif origin is list and isinstance(value, list):
        return [typed(v, arguments[0], (*fields, str(i))) for i, v in enumerate(value)]
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(typed(v, arguments[0], (*fields, str(i))) for i, v in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {name: typed(v, arguments[1], (*fields, name)) for name, v in value.items()}
    elif kind in (str, bool, types.NoneType) and isinstance(value, kind):
        return value
    elif kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if kind is float:
                return float(value)
            if math.isfinite(value) and value == int(value):
                return int(value)
    raise FieldError(fields, f"must be {_described(kind)}, got {_shown(value)}")


def _typed_record(value: Any, kind: Any, fields: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        raise FieldError(fields, f"must be an object, got {_shown(value)}")
    annotations = _annotations(kind)
    for name in value:
        if name not in annotations:
            close = difflib.get_close_matches(name, annotations, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise FieldError((*fields, name), f"is no field of a {kind.__name__}{hint}")
    for name in annotations:
        if name not in value:
            raise FieldError((*fields, name), "is missing")
    held = {name: typed(value[name], hint, (*fields, name)) for name, hint in annotations.items()}
    try:
        return kind(**held)
    except ValueError as error:  # what the dataclass itself refuses begins with a field's name
        name, _, problem = str(error).partition(" ")
        raise FieldError((*fields, *name.split(".")), problem) from None


@functools.cache
def _annotations(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _described(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
             types.NoneType: "null", list: "a list", tuple: "a list",
             dict: "an object"}  # fmt: skip
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if dataclasses.is_dataclass(kind):
        return "an object"
    return names[origin or kind]


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return _described(type(value))
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _line_of(text: str, fields: tuple[str, ...]) -> int:
    position = 0
    for name in fields:
        found = re.compile(re.escape(json.dumps(name)) + r"\s*:").search(text, position)
        position = position if found is None else found.start()
    return 1 + text.count("\n", 0, position)
