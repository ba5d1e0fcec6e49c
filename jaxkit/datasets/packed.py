"""Tokens that another program has packed into a file."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from jaxtyping import Integer, UInt

from jaxkit.datasets import mapped
from jaxkit.validation import choice, integer


def load_tokens(
    path: str | os.PathLike[str], *, vocab_size: int, dtype: str = "uint16"
) -> UInt[np.ndarray, " tokens"]:
    """Map a file of packed tokens: `.npy`, or raw numbers as nanoGPT and Megatron write them.

    Args:
        path: the file.
        vocab_size: ids must be below it; the whole file is looked through.
        dtype: of raw numbers, `"uint8"`, `"uint16"` or `"uint32"`; a `.npy` file says its own.

    Raises:
        ValueError: if the file is missing or no flat array of unsigned integers, its size is no
            whole number of tokens, or an id is too large; the message names its place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.array([3, 1, 2], np.uint16).tofile(f"{folder}/train.bin")
        ...     load_tokens(f"{folder}/train.bin", vocab_size=4).tolist()
        [3, 1, 2]
    """
    integer("vocab_size", vocab_size, minimum=1)
    choice("dtype", dtype, ["uint8", "uint16", "uint32"])
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    if path.suffix == ".npy":
        try:
            with np.errstate(over="ignore"):  # of a shape that no file holds, refused below
                tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a number in it may be any
            raise ValueError(f"{path} cannot be read as an array: {error}") from None
    else:
        size, width = path.stat().st_size, np.dtype(dtype).itemsize
        if not size or size % width:
            raise ValueError(f"{path} must hold {dtype} of {width} bytes each, got {size} bytes")
        tokens = np.memmap(path, f"<u{width}", mode="r")
    if tokens.ndim != 1 or tokens.dtype.kind != "u":
        raise ValueError(
            f"{path} must hold a flat array of unsigned integers, got "
            f"{tokens.dtype}{list(tokens.shape)}"
        )
    start = 0
    for piece in mapped.pieces(tokens):
        if piece.max() >= vocab_size:
            at = start + int(np.argmax(piece >= vocab_size))
            raise ValueError(
                f"{path} must hold ids below vocab_size={vocab_size}, got {tokens[at]} at token "
                f"{at}: is its type {dtype}?"
            )
        start += len(piece)
    return tokens


class IdTokenizer:
    """Ids as text and back: what a run on packed tokens reads and writes.

    Args:
        vocab_size: number of ids.

    Example:
        >>> tokenizer = IdTokenizer(50257)
        >>> tokenizer.decode(tokenizer.encode("11 7 50256"))
        '11 7 50256'
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = integer("vocab_size", vocab_size, minimum=1)

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Return the ids that a text lists; ValueError if a word is none."""
        words = text.split()
        bad = [w for w in words if not w.isdecimal() or not int(w) < self.vocab_size]
        if bad:
            raise ValueError(f"text must be ids below {self.vocab_size}, got {bad[0]!r}")
        return np.array([int(w) for w in words], np.min_scalar_type(self.vocab_size - 1))

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """Return the ids, separated by blanks."""
        return " ".join(map(str, np.asarray(ids).tolist()))

    def to_config(self) -> dict:
        """Return the size of the vocabulary."""
        return {"kind": "ids", "vocab_size": self.vocab_size}
