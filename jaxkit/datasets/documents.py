"""Documents in files as people have them: plain text, JSON lines, Parquet, compressed or not."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import functools
import gzip
import json
import logging
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxkit.datasets.extras import require
from jaxkit.validation import choice

_log = logging.getLogger("jaxkit.datasets")

_CHUNK = 1 << 22
_BOM = codecs.BOM_UTF8
_LINES = (".jsonl", ".ndjson")
#: Endings that a folder is searched for by default.
ENDINGS = (
    *(ending + packed for ending in (".txt", *_LINES) for packed in ("", ".gz", ".zst")),
    ".parquet",
)

#: Where a stream of documents stands: file, units read of it, whether the text ends a line.
Position = Sequence[int]


@dataclasses.dataclass(frozen=True)
class DocumentOptions:
    """How files are read as documents; the fields are the arguments of `load_text`."""

    field: str = "text"
    where: tuple[str, ...] = ()
    separator: str | None = None
    newlines: Literal["lf", "keep"] = "lf"
    broken: Literal["error", "skip"] = "error"

    def __post_init__(self):
        choice("newlines", self.newlines, ["lf", "keep"])
        choice("broken", self.broken, ["error", "skip"])
        for condition in self.where:
            if not condition.partition("=")[0] or "=" not in condition:
                raise ValueError(f"where must be field=value, got {condition!r}")


def is_plain(file: pathlib.Path) -> bool:
    """Whether the file's bytes are its text."""
    return not file.name.lower().endswith((*_LINES, ".gz", ".zst", ".parquet"))


def documents(
    files: Sequence[pathlib.Path], options: DocumentOptions, start: Position = (0, 0, True)
) -> Iterator[tuple[np.ndarray, Position]]:
    """Join the documents of files, from a position on."""
    first, skipped, ended = start
    left_out = 0
    begun = first + skipped > 0
    for number in range(first, len(files)):
        plain = _is_text(files[number])
        if plain and options.broken == "skip" and not _readable(files[number]):
            left_out += 1
            continue
        units = _text(files[number], options) if plain else _rows(files[number], options)
        for count, unit in enumerate(units):
            if unit is None:
                left_out += not (number == first and count < skipped)
            if (number == first and count < skipped) or not unit:
                continue
            between = b""
            # The chunks of a plain file are one document.
            if begun and not (plain and count):
                blank = options.separator
                if blank is None:
                    blank = ("" if ended else "\n") + "\n" * (not plain)
                between = blank.encode()
            begun, ended = True, unit.endswith(b"\n")
            yield np.frombuffer(between + unit, np.uint8), (number, count + 1, ended)
    if left_out:
        _log.info("left out %d documents that cannot be read", left_out)


def _is_text(file: pathlib.Path) -> bool:
    name = file.name.lower()
    return not any(ending in name[name.find(".") :] for ending in (*_LINES, ".parquet"))


def _readable(file: pathlib.Path) -> bool:
    try:
        collections.deque(checked(file), maxlen=0)
    except ValueError:
        return False
    return True


def _text(file: pathlib.Path, options: DocumentOptions) -> Iterator[bytes]:
    held = b""
    for chunk in checked(file):
        chunk = held + chunk
        held = b"\r" if options.newlines == "lf" and chunk.endswith(b"\r") else b""
        chunk = chunk[: len(chunk) - len(held)]
        yield chunk.replace(b"\r\n", b"\n") if options.newlines == "lf" else chunk
    yield held


def _rows(file: pathlib.Path, options: DocumentOptions) -> Iterator[bytes | None]:
    """The text of each row; None for one that cannot be read, nothing for one filtered out."""
    for line, row in _objects(file):
        try:
            if isinstance(row, Exception):
                raise row
            if all(
                str(_get(row, name)) == value
                for name, _, value in (condition.partition("=") for condition in options.where)
            ):
                text = _get(row, options.field)
                if not isinstance(text, str):
                    raise ValueError(
                        f"field {options.field!r} must be a string, got "
                        f"{'no such field' if text is None else type(text).__name__} "
                        f"among {sorted(row)[:8] if isinstance(row, dict) else row!r:.40}"
                    )
                if options.newlines == "lf":
                    text = text.replace("\r\n", "\n")
                yield text.encode()
            else:
                yield b""
        except ValueError as error:  # that of half a surrogate pair is one, too
            if options.broken == "error":
                raise ValueError(f"{file}:{line}: {error}") from None
            yield None


def _get(row: Any, name: str) -> Any:
    """Field `a.b` of an object: its own, or b of its a."""
    if not isinstance(row, dict):
        return None
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    return _get(row.get(head), rest) if dot else None


def _objects(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    if file.name.lower().endswith(".parquet"):
        yield from enumerate(_parquet_rows(file), 1)
        return
    for line, text in enumerate(_lines(file), 1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as error:
                yield line, ValueError(f"not a JSON object: {error}")


def _parquet_rows(file: pathlib.Path) -> Iterator[Any]:
    errors = require("pyarrow", "parquet").ArrowException, ValueError, OSError, MemoryError
    try:
        parquet = require("pyarrow.parquet", "parquet").ParquetFile(file)
        for batch in parquet.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except errors as error:
        raise ValueError(f"{file} is not a whole Parquet file ({error})") from None


def _lines(file: pathlib.Path) -> Iterator[bytes]:
    carried: list[bytes] = []
    for chunk in _unpacked(file):
        *whole, rest = chunk.split(b"\n")
        if whole:
            yield b"".join([*carried, whole[0]])
            yield from whole[1:]
            carried = []
        carried.append(rest)
    yield b"".join(carried)


def checked(file: pathlib.Path) -> Iterator[bytes]:
    """Chunks of a text file, unpacked and without byte-order mark, that are UTF-8 without NUL."""
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in _unpacked(file):
        if (zero := chunk.find(b"\0")) >= 0:
            raise ValueError(f"{file} is binary: NUL byte at offset {start + zero}")
        _decode(decoder, chunk, start, file)
        start += len(chunk)
        yield chunk
    _decode(decoder, b"", start, file)


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, start: int, file: pathlib.Path
) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        offset, value = start - pending + error.start, error.object[error.start]
        raise ValueError(
            f"{file} is not UTF-8: {error.reason} at byte {offset} (0x{value:02x})"
        ) from None


def _unpacked(file: pathlib.Path) -> Iterator[bytes]:
    name = file.name.lower()
    opened = gzip.open if name.endswith(".gz") else open
    chunks = _unzstd(file) if name.endswith(".zst") else _chunks(file, opened)
    try:
        for number, chunk in enumerate(chunks):
            yield chunk if number else chunk.removeprefix(_BOM)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is truncated or damaged gzip: {error}") from None


def _chunks(file: pathlib.Path, opened: Any = open, size: int = _CHUNK) -> Iterator[bytes]:
    with opened(file, "rb") as stream:
        yield from iter(functools.partial(stream.read, size), b"")


def _unzstd(file: pathlib.Path) -> Iterator[bytes]:
    zstandard = require("zstandard", "datasets")
    unpack = zstandard.ZstdDecompressor().decompressobj()
    used = False
    try:
        # Zstandard unpacks all of a chunk at once, and text may shrink a thousandfold.
        for chunk in _chunks(file, size=1 << 15):
            while chunk:
                # Several frames may follow each other.
                if unpack.eof:
                    unpack = zstandard.ZstdDecompressor().decompressobj()
                if found := unpack.decompress(chunk):
                    yield found
                used, chunk = True, unpack.unused_data if unpack.eof else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"{file} is damaged zstd: {error}") from None
    # The package itself is silent about a stream that ends early.
    if used and not unpack.eof:
        raise ValueError(f"{file} is truncated zstd: its last frame has no end")
