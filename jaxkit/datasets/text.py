"""Text of any size: checked once as a stream, then mapped instead of read."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt, UInt8

from jaxkit.datasets import documents, mapped
from jaxkit.validation import integer, number

_log = logging.getLogger("jaxkit.datasets")

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as bytes.

    Attributes:
        data: valid UTF-8, `[bytes]`; mapped where it comes from files.
        name: where it comes from, for messages.
        fingerprint: size and SHA-256 of the content: equal if and only if the text is.
        tokens: the tokens, where the text came as these alone (`load_tokens`) and `data` is empty.

    Example:
        >>> corpus = Corpus.from_text("héllo", "greeting")
        >>> len(corpus), corpus.text()
        (6, 'héllo')
    """

    data: UInt8[np.ndarray, " bytes"]
    name: str
    fingerprint: str
    tokens: UInt[np.ndarray, " tokens"] | None = None

    @classmethod
    def from_tokens(cls, tokens: UInt[np.ndarray, " tokens"], name: str) -> Corpus:
        """Hold tokens that another program made, see `load_tokens`, under a name for messages."""
        digest = _digest(tokens)
        return cls(np.empty(0, np.uint8), name, f"{len(tokens)}-{digest}", tokens)

    @classmethod
    def from_text(cls, text: str, name: str) -> Corpus:
        """Hold a text in memory, under a name for messages."""
        content = text.encode("utf-8")
        fingerprint = f"{len(content)}-{hashlib.sha256(content).hexdigest()}"
        return cls(np.frombuffer(content, np.uint8), name, fingerprint)

    def __len__(self) -> int:
        """Return the length in bytes."""
        return len(self.data)

    def pieces(self, size: int = 1 << 20, start: int = 0) -> Iterator[str]:
        """Decode the text piece by piece, each ending after a newline where there is one.

        Args:
            size: bytes decoded at a time.
            start: where an earlier piece ended, bytes; the pieces that follow are the same.

        Yields:
            Strings whose concatenation is the text from `start` on.
        """
        for cut in self.cuts(size, start):
            yield self.data[start:cut].tobytes().decode("utf-8")
            start = cut

    def cuts(self, size: int = 1 << 20, start: int = 0) -> Iterator[int]:
        """Where the pieces after `start` end, bytes."""
        # On a fixed grid, so that the cuts do not depend on where one starts.
        for cell in range(0, len(self), size):
            stop = min(cell + size, len(self))
            lines = np.flatnonzero(self.data[cell:stop] == 0x0A)
            cut = cell + int(lines[-1]) + 1 if len(lines) else _character_start(self.data, stop)
            if cut > start:
                yield cut
                start = cut
            if cell % _CHUNK == 0:
                mapped.forget_pages(self.data)
        if start < len(self):
            yield len(self)

    def text(self) -> str:
        """Decode the whole text at once; it must fit in memory."""
        return self.data.tobytes().decode("utf-8")


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit:
    """A text to train on and one to validate on.

    Attributes:
        train: the training text.
        validation: the validation text; empty if none was asked for.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "a.txt"
        ...     _ = file.write_text("0123456789")
        ...     split = load_text(file, validation_fraction=0.2)
        >>> split.train.text(), split.validation.text()
        ('01234567', '89')
    """

    train: Corpus
    validation: Corpus


def load_text(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    validation_fraction: float = 0.1,
    minimum_length: int = 1,
    field: str = "text",
    where: Sequence[str] = (),
    suffixes: Sequence[str] = documents.ENDINGS,
    separator: str | None = None,
    newlines: Literal["lf", "keep"] = "lf",
    broken: Literal["error", "skip"] = "error",
    cache_dir: str | os.PathLike[str] | None = None,
) -> TextSplit:
    r"""Map text of any size without reading it into memory.

    A plain UTF-8 file is mapped as it is. Several files, compressed ones (`.gz`, `.zst`), JSON
    lines (`.jsonl`, `.ndjson`) and Parquet are written once as one text, to the cache or to a
    temporary file. Byte-order marks are left out. The last `validation_fraction` of the bytes, from
    the next whole character on, is the validation text.

    Args:
        path: a file, a folder, a pattern such as `"pile/*.jsonl.zst"`, or several of them, whose
            files are joined in the order of their paths.
        validation_fraction: share of the bytes kept for validation, in [0, 1); 0 keeps none.
        minimum_length: bytes that each part needs; one context plus its last target.
        field: where JSON lines and Parquet hold the text; `"a.b"` is field b of field a.
        where: conditions `"field=value"` on their rows, all of which must hold.
        suffixes: endings of the files that count in a folder.
        separator: what stands between documents; None puts a newline after a file that does not end
            in one, and a blank line between rows.
        newlines: `"lf"` reads the line ends of Windows as newlines, `"keep"` as they are.
        broken: `"error"` stops at a file or row that cannot be read, `"skip"` logs how many.
        cache_dir: folder for the text that is written, found again by contents and options; writing
            continues where it was interrupted.

    Raises:
        ImportError: for `.zst` without the `datasets` extra, for Parquet without `parquet`.
        ValueError: if the path is missing, holds no text, is binary (NUL bytes), is not UTF-8 (the
            message gives the byte offset) or is shorter than `minimum_length`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "a.jsonl"
        ...     _ = file.write_text('{"text": "one"}\n{"text": "two"}\n')
        ...     load_text(file, validation_fraction=0).train.text()
        'one\n\ntwo'
    """
    number("validation_fraction", validation_fraction, minimum=0, maximum=1, open_maximum=True)
    minimum_length = integer("minimum_length", minimum_length, minimum=1)
    options = documents.DocumentOptions(field, tuple(where), separator, newlines, broken)
    files, name = _text_files(path, suffixes)
    data, digest = _as_one(files, options, cache_dir)
    if not len(data):
        raise ValueError(f"{name} is empty: a text is needed")
    cut = _character_start(data, round(len(data) * (1 - validation_fraction)))
    whole = f"{len(data)}-{digest}"
    parts = {"training": (0, cut), "validation": (cut, len(data))}
    for part, (start, stop) in parts.items():
        if stop - start < minimum_length and not (part == "validation" and not validation_fraction):
            raise ValueError(
                f"{name} is shorter than one context: its {part} part has {stop - start} of "
                f"{len(data)} bytes, at least {minimum_length} are needed"
            )
    train, validation = (
        Corpus(data[start:stop], f"{name} ({part})", f"{whole}[{start}:{stop}]")
        for part, (start, stop) in parts.items()
    )
    return TextSplit(train, validation)


def _as_one(
    files: Sequence[pathlib.Path],
    options: documents.DocumentOptions,
    cache_dir: str | os.PathLike[str] | None,
) -> tuple[np.ndarray, str]:
    """The documents of all files as one array of bytes, and the SHA-256 of that."""
    if len(files) == 1 and documents.is_plain(files[0]):
        found, size, windows, ended = hashlib.sha256(), 0, False, b""
        for chunk in documents.checked(files[0]):
            found.update(chunk)
            size += len(chunk)
            windows |= b"\r\n" in ended + chunk
            ended = chunk[-1:]
        if not size:
            return np.empty(0, np.uint8), found.hexdigest()
        if not windows or options.newlines == "keep":
            data = np.memmap(files[0], np.uint8, mode="r")
            return data[len(data) - size :], found.hexdigest()
        _log.info("%s has the line ends of Windows: they are read as newlines", files[0])
    if cache_dir is None:
        chunks = (chunk for chunk, _ in documents.documents(files, options))
        data = mapped.write_mapped(chunks, np.uint8, empty=True)
    else:
        identity = [[_file_digest(file), file.name] for file in files]
        key = json.dumps([identity, dataclasses.astuple(options)])
        path = pathlib.Path(cache_dir) / f"text-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        data = mapped.grow_mapped(
            path, np.uint8, lambda at: documents.documents(files, options, at or (0, 0, True))
        )
    return data, _digest(data)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    for piece in mapped.pieces(array):
        digest.update(piece.tobytes())
    return digest.hexdigest()


def _file_digest(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _text_files(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], suffixes: Sequence[str]
) -> tuple[list[pathlib.Path], str]:
    """The files that a path, a folder, a pattern or several of them name, and what to call them."""
    if not isinstance(path, str | os.PathLike):
        found = [_text_files(each, suffixes) for each in path]
        if not found:
            raise ValueError("path must name at least one text, got none")
        return [file for files, _ in found for file in files], ", ".join(n for _, n in found)
    name, path = str(path), pathlib.Path(path)
    if path.is_dir():
        inside = sorted(
            (p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")),
            key=lambda p: p.relative_to(path).as_posix(),
        )
        files = [p for p in inside if p.name.lower().endswith(tuple(suffixes))]
        if not files:
            raise ValueError(
                f"{path} has no text: a folder must contain files ending in {', '.join(suffixes)}"
            )
        if len(files) < len(inside):
            _log.info("%s: %d files read, %d of other endings left out", path, len(files),
                      len(inside) - len(files))  # fmt: skip
        return files, name
    if not path.exists():
        if glob.has_magic(name):
            files = sorted(
                p for p in map(pathlib.Path, glob.glob(name, recursive=True)) if p.is_file()
            )
            if not files:
                raise ValueError(f"{name} matches no file")
            return files, name
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f": did you mean {str(path.with_name(close[0]))!r}?" if close else ""
        raise ValueError(f"{path} does not exist{hint}")
    if not path.is_file():
        raise ValueError(f"{path} must be a regular file or a folder")
    return [path], name


def _character_start(data: np.ndarray, cut: int) -> int:
    while cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut += 1
    return cut
