"""Text of any size: checked once as a stream, then mapped instead of read."""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from jaxkit.datasets.mapped import write_mapped
from jaxkit.validation import integer, number

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as bytes.

    Attributes:
        data: valid UTF-8, `[bytes]`; mapped where it comes from files.
        name: where it comes from, for messages.
        fingerprint: size and SHA-256 of the content: equal if and only if the text is.

    Example:
        >>> corpus = Corpus.from_text("héllo", "greeting")
        >>> len(corpus), corpus.text()
        (6, 'héllo')
    """

    data: UInt8[np.ndarray, " bytes"]
    name: str
    fingerprint: str

    @classmethod
    def from_text(cls, text: str, name: str) -> Corpus:
        """Hold a text in memory.

        Args:
            text: the text.
            name: what to call it.

        Returns:
            The corpus.
        """
        content = text.encode("utf-8")
        fingerprint = f"{len(content)}-{hashlib.sha256(content).hexdigest()}"
        return cls(np.frombuffer(content, np.uint8), name, fingerprint)

    def __len__(self) -> int:
        """Return the length in bytes."""
        return len(self.data)

    def pieces(self, size: int = 1 << 20) -> Iterator[str]:
        """Decode the text piece by piece, each ending after a newline where there is one.

        Args:
            size: bytes decoded at a time.

        Yields:
            Strings whose concatenation is the text.
        """
        decoder, carried = codecs.getincrementaldecoder("utf-8")(), ""
        for start in range(0, len(self), size):
            carried += decoder.decode(self.data[start : start + size].tobytes())
            cut = carried.rfind("\n") + 1 or len(carried)
            piece, carried = carried[:cut], carried[cut:]
            yield piece
        if carried:
            yield carried

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
    path: str | os.PathLike[str], *, validation_fraction: float = 0.1, minimum_length: int = 1
) -> TextSplit:
    """Map a UTF-8 file, or every `.txt` file below a folder, without reading it into memory.

    The files of a folder are joined in the order of their relative paths, with a newline where a
    file does not end in one, into a temporary file. The last `validation_fraction` of the bytes,
    from the next whole character on, is the validation text.

    Args:
        path: the file or folder.
        validation_fraction: share of the bytes kept for validation, in [0, 1); 0 keeps none.
        minimum_length: bytes that each part needs; one context plus its last target.

    Returns:
        The two texts.

    Raises:
        ValueError: if the path is missing, holds no text, is binary (NUL bytes), is not UTF-8 (the
            message gives the byte offset) or is shorter than `minimum_length`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "a.txt"
        ...     _ = file.write_text("0123456789")
        ...     load_text(file).validation.text()
        '9'
    """
    number("validation_fraction", validation_fraction, minimum=0, maximum=1, open_maximum=True)
    minimum_length = integer("minimum_length", minimum_length, minimum=1)
    path = pathlib.Path(path)
    files = _text_files(path)
    digest = hashlib.sha256()
    size = sum(file.stat().st_size for file in files)
    if not size:
        raise ValueError(f"{path} is empty: a text is needed")
    if len(files) == 1:
        for chunk in _checked(files[0]):
            digest.update(chunk)
        data = np.memmap(files[0], np.uint8, mode="r")
    else:
        data = write_mapped(_joined(files, digest), np.uint8)
    cut = _character_start(data, round(len(data) * (1 - validation_fraction)))
    whole = f"{len(data)}-{digest.hexdigest()}"
    parts = {"training": (0, cut), "validation": (cut, len(data))}
    for part, (start, stop) in parts.items():
        if stop - start < minimum_length and not (part == "validation" and not validation_fraction):
            raise ValueError(
                f"{path} is shorter than one context: its {part} part has {stop - start} of "
                f"{len(data)} bytes, at least {minimum_length} are needed"
            )
    train, validation = (
        Corpus(data[start:stop], f"{path} ({part})", f"{whole}[{start}:{stop}]")
        for part, (start, stop) in parts.items()
    )
    return TextSplit(train, validation)


def _text_files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        files = sorted(
            (file for file in path.rglob("*.txt") if file.is_file()),
            key=lambda file: file.relative_to(path).as_posix(),
        )
        if not files:
            raise ValueError(f"{path} has no text: a folder must contain .txt files")
        return files
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f": did you mean {str(path.with_name(close[0]))!r}?" if close else ""
        raise ValueError(f"{path} does not exist{hint}")
    if not path.is_file():
        raise ValueError(f"{path} must be a regular file or a folder")
    return [path]


def _checked(path: pathlib.Path) -> Iterator[bytes]:
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            if (zero := chunk.find(b"\0")) >= 0:
                raise ValueError(f"{path} is binary: NUL byte at offset {start + zero}")
            _decode(decoder, chunk, start, path)
            start += len(chunk)
            yield chunk
        _decode(decoder, b"", start, path)


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, start: int, path: pathlib.Path
) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        offset, value = start - pending + error.start, error.object[error.start]
        raise ValueError(
            f"{path} is not UTF-8: {error.reason} at byte {offset} (0x{value:02x})"
        ) from None


def _joined(files: Sequence[pathlib.Path], digest: hashlib._Hash) -> Iterator[np.ndarray]:
    ended = True
    for file in files:
        between = b"" if ended else b"\n"
        for chunk in _checked(file):
            chunk, between = between + chunk, b""
            ended = chunk.endswith(b"\n")
            digest.update(chunk)
            yield np.frombuffer(chunk, np.uint8)


def _character_start(data: np.ndarray, cut: int) -> int:
    while cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut += 1
    return cut
