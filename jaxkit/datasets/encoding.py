"""A corpus as one long array of tokens."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt

from jaxkit.datasets import mapped
from jaxkit.datasets.text import Corpus
from jaxkit.datasets.tokenizers import ByteTokenizer, Tokenizer

_IN_MEMORY = 1 << 26


def tokenize(
    corpus: Corpus, tokenizer: Tokenizer, cache_dir: str | os.PathLike[str] | None = None
) -> UInt[np.ndarray, " tokens"]:
    """Encode a whole corpus, once.

    Bytes are the corpus itself, and so are tokens that came as such. Anything else is encoded about
    1 MiB at a time, cut after a newline where there is one, so that no token spans two pieces.

    Args:
        corpus: the text.
        tokenizer: how to encode it.
        cache_dir: folder for the encoded array, found again by corpus and tokenizer; encoding goes
            on there where it was interrupted. None keeps the array in memory, or in a temporary
            file if the text is larger than 64 MiB.

    Returns:
        The tokens, `[tokens]`, of the smallest unsigned type that holds the vocabulary.

    Raises:
        ValueError: if the tokenizer refuses the text.
        OSError: if the cache cannot be written.

    Example:
        >>> tokenize(Corpus.from_text("ab", "two letters"), ByteTokenizer()).tolist()
        [97, 98]
    """
    if corpus.tokens is not None:
        return corpus.tokens
    if isinstance(tokenizer, ByteTokenizer):
        return corpus.data
    dtype = np.min_scalar_type(max(tokenizer.vocab_size - 1, 0))
    if cache_dir is not None:
        path = pathlib.Path(cache_dir) / f"{_cache_key(corpus, tokenizer)}.npy"
        return mapped.grow_mapped(path, dtype, lambda start: _pieces(corpus, tokenizer, start or 0))
    pieces = (tokens for tokens, _ in _pieces(corpus, tokenizer))
    if len(corpus) > _IN_MEMORY:
        return mapped.write_mapped(pieces, dtype)
    return np.concatenate([np.empty(0, dtype), *pieces])


def _pieces(
    corpus: Corpus, tokenizer: Tokenizer, start: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    for end in corpus.cuts(start=start):
        try:
            yield tokenizer.encode(corpus.data[start:end].tobytes().decode("utf-8")), end
            start = end
        except ValueError as error:
            raise type(error)(f"{corpus.name}: {error}") from error


def _cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    config = tokenizer.to_config()
    if "fingerprint" in config:
        config.pop("path", None)
    identity = json.dumps([corpus.fingerprint, config], sort_keys=True)
    return f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
