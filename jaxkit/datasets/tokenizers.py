"""Tokenizers: text to integers and back."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt

from jaxkit.datasets.extras import require
from jaxkit.datasets.packed import IdTokenizer
from jaxkit.datasets.text import Corpus
from jaxkit.validation import choice

#: What a `CharTokenizer` does with a character outside its alphabet.
Unknown = Literal["error", "skip", "replace"]

_CODE_POINTS = 0x110000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers.

    Example:
        >>> tokenizer: Tokenizer = CharTokenizer("ab")
        >>> tokenizer.decode(tokenizer.encode("abba"))
        'abba'
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids; each id is in `[0, vocab_size)`."""
        ...

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Turn text into ids of the smallest unsigned type that holds the vocabulary."""
        ...

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """Turn ids into text."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Describe the tokenizer in JSON types, for `tokenizer_from_config`."""
        ...


class ByteTokenizer:
    r"""One token per UTF-8 byte: 256 ids, nothing is unknown.

    Bytes that are not UTF-8, which a model may generate, decode to U+FFFD.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("é").tolist(), tokenizer.decode(np.array([195, 169]))
        ([195, 169], 'é')
    """

    vocab_size = 256

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Return the UTF-8 bytes of `text`, `[bytes]` uint8."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """Return the text of `ids`, `[bytes]`; ValueError if one is not in [0, 256)."""
        return _checked_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_config(self) -> dict[str, Any]:
        """Return `{"kind": "bytes"}`."""
        return {"kind": "bytes"}


class AlphabetError(ValueError):
    """A text has characters that a `CharTokenizer` with `unknown="error"` does not take.

    Example:
        >>> try:
        ...     CharTokenizer("ab").encode("abc")
        ... except AlphabetError as error:
        ...     print(error)
        character 'c' at position 2 is not one of the 2 of the vocabulary (1 such in all)
    """


class CharTokenizer:
    """One token per character of a small alphabet; id 0 is any other character.

    Args:
        characters: the alphabet, at most 255 different characters; ids 1, 2, ... in code point
            order.
        unknown: what `encode` does with a character outside the alphabet: `"error"` raises,
            `"skip"` leaves it out, `"replace"` gives id 0, which decodes to U+FFFD and
            `count_replaced` counts.

    Raises:
        ValueError: if the alphabet is empty or too large, repeats a character, or `unknown` is
            none of the three.

    Example:
        >>> tokenizer = CharTokenizer("abc", unknown="replace")
        >>> ids = tokenizer.encode("cab?")
        >>> ids.tolist(), tokenizer.count_replaced(ids)
        ([3, 1, 2, 0], 1)
    """

    unknown_id = 0

    def __init__(self, characters: str, *, unknown: Unknown = "error"):
        choice("unknown", unknown, get_args(Unknown))
        if not 0 < len(characters) <= 255 or len(set(characters)) < len(characters):
            raise ValueError(
                "characters must be 1 to 255 different ones, got "
                f"{len(characters)} of which {len(set(characters))} differ"
            )
        self.characters, self.unknown = "".join(sorted(characters)), unknown
        self._points = np.append(np.uint32(ord(_REPLACEMENT)), _code_points(self.characters))
        self._ids = np.zeros(_CODE_POINTS, np.uint8)
        self._ids[self._points[1:]] = np.arange(1, len(self._points))

    @classmethod
    def from_corpus(cls, corpus: Corpus, *, unknown: Unknown = "error") -> CharTokenizer:
        """Take the alphabet of a training text.

        Args:
            corpus: the text; read as a stream.
            unknown: as above; with `"skip"` and `"replace"` the 255 most frequent characters are
                kept.

        Raises:
            AlphabetError: under `"error"`, if the text has more than 255 different characters.
            ValueError: if it is empty.

        Example:
            >>> CharTokenizer.from_corpus(Corpus.from_text("banana", "fruit")).characters
            'abn'
        """
        counts = np.zeros(_CODE_POINTS, np.int64)
        for piece in corpus.pieces():
            counts += np.bincount(_code_points(piece), minlength=_CODE_POINTS)
        found = np.flatnonzero(counts)
        if len(found) > 255 and unknown == "error":
            raise AlphabetError(
                f"{corpus.name} has {len(found)} different characters, a character vocabulary "
                "holds 255"
            )
        kept = found[np.argsort(-counts[found], kind="stable")][:255]
        return cls("".join(map(chr, kept)), unknown=unknown)

    @property
    def vocab_size(self) -> int:
        """Size of the alphabet plus one for the unknown character."""
        return len(self._points)

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Return the ids of `text`, `[characters]` uint8.

        Raises:
            AlphabetError: under `"error"`, if a character is outside the alphabet.
        """
        ids = self._ids[_code_points(text)]
        if self.unknown == "skip":
            return ids[ids != self.unknown_id]
        if self.unknown == "error" and not ids.all():
            position = int(np.argmin(ids))
            raise AlphabetError(
                f"character {text[position]!r} at position {position} is not one of the "
                f"{len(self.characters)} of the vocabulary ({self.count_replaced(ids)} such in all)"
            )
        return ids

    def count_replaced(self, ids: Integer[np.ndarray, " tokens"]) -> int:
        """Return how many of `ids` stand for a character outside the alphabet."""
        return int(np.count_nonzero(ids == self.unknown_id))

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """Return the text of `ids`, `[characters]`; ValueError if one is out of range."""
        return (
            self._points[_checked_ids(ids, self.vocab_size)]
            .astype("<u4")
            .tobytes()
            .decode("utf-32-le", "surrogatepass")
        )

    def to_config(self) -> dict[str, Any]:
        """Return the alphabet and the handling of unknown characters."""
        return {"kind": "characters", "characters": self.characters, "unknown": self.unknown}


class JsonTokenizer:
    """Any tokenizer saved as one JSON file by the `tokenizers` package.

    Special tokens are not added, and truncation and padding set in the file are switched off: a
    corpus is one stream. Whether `decode(encode(x)) == x` depends on the file's normalizer.

    Args:
        path: the JSON file.
        fingerprint: SHA-256 the file must have; None accepts any.

    Raises:
        ImportError: without the `datasets` extra.
        ValueError: if the file is missing, is no tokenizer or has another fingerprint.

    Example:
        >>> import tempfile, tokenizers
        >>> words = tokenizers.models.WordLevel({"so": 0, "it": 1, "goes": 2}, unk_token="so")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokenizers.Tokenizer(words).save(f"{folder}/words.json")
        ...     JsonTokenizer(f"{folder}/words.json").encode("goes").tolist()
        [2]
    """

    def __init__(self, path: str | os.PathLike[str], *, fingerprint: str | None = None):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise ValueError(f"tokenizer file {self.path} does not exist or is not a file")
        content = self.path.read_bytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        if fingerprint not in (None, self.fingerprint):
            raise ValueError(
                f"tokenizer file {self.path} has changed: its SHA-256 was {fingerprint}, now "
                f"{self.fingerprint}"
            )
        package = require("tokenizers", "datasets")
        try:
            self._tokenizer = package.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{self.path} is not a tokenizer JSON file: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        # Ids may have gaps, so the count of entries does not bound them.
        self.vocab_size = max(ids, default=-1) + 1

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Return the ids of `text`, `[tokens]`, uint8, uint16 or uint32 by vocabulary.

        Raises:
            ValueError: if the file has no token for a part of it.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{self.path} cannot encode the text: {error}") from error
        return np.array(ids, np.min_scalar_type(self.vocab_size - 1))

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """Return the text of `ids`, special tokens included; ValueError if out of range."""
        ids = _checked_ids(ids, self.vocab_size)
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def to_config(self) -> dict[str, Any]:
        """Return the path and SHA-256 of the file."""
        path = str(self.path.resolve())
        return {"kind": "json", "path": path, "fingerprint": self.fingerprint}


def tokenizer_from_config(config: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from its `to_config`.

    Args:
        config: the dictionary; its `kind` is `"bytes"`, `"characters"` or `"json"`.

    Raises:
        ValueError: if the kind is unknown or the other entries do not fit it.

    Example:
        >>> tokenizer_from_config(CharTokenizer("ab").to_config()).vocab_size
        3
    """
    entries: dict[str, tuple[Any, dict[str, type]]] = {
        "bytes": (ByteTokenizer, {}),
        "characters": (CharTokenizer, {"characters": str, "unknown": str}),
        "ids": (IdTokenizer, {"vocab_size": int}),
        "json": (JsonTokenizer, {"path": str, "fingerprint": str}),
    }
    kind = config.get("kind")
    make, types = entries[choice("kind", kind if isinstance(kind, str) else repr(kind), entries)]
    options = {name: value for name, value in config.items() if name != "kind"}
    faulty = options.keys() ^ types.keys()
    faulty |= {name for name, kind in types.items() if type(options.get(name)) is not kind}
    if faulty:
        expected = ", ".join(f"{name}: {kind.__name__}" for name, kind in types.items())
        raise ValueError(
            f"a tokenizer of kind {kind!r} must hold {expected or 'nothing else'}, "
            f"at fault: {sorted(faulty)}"
        )
    return make(**options)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 1:
        raise TypeError(f"ids must be a flat integer array, got {ids.dtype}{ids.shape}")
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"ids must be in [0, {vocab_size}), got {ids[first]} at position {first}")
    return ids
