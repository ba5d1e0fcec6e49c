"""The text of a job as tokens; what is wrong with it is said in options of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxkit import datasets, validation
from jaxkit.jobs.config import TrainConfig
from jaxkit.jobs.options import INSIDE


def load_text(config: TrainConfig) -> datasets.TextSplit:
    """The text that a configuration names."""
    shortest = config.sequence_length + 1
    if config.text is None:
        if config.validation_fraction != TrainConfig.validation_fraction:
            raise ValueError(
                "validation_fraction needs text: the embedded prose keeps a tenth, got "
                f"{config.validation_fraction}"
            )
        return datasets.embedded_prose()
    options = dataclasses.asdict(config.corpus)
    held_out, also, dtype = (options.pop(name) for name in ("held_out", "also", "token_dtype"))
    if pathlib.Path(config.text).suffix in (".bin", ".npy"):
        return _packed(config, dtype)
    load = functools.partial(
        datasets.load_text, minimum_length=shortest, cache_dir=cache_folder(config),
        **{name: value for name, value in options.items() if value is not None},
    )  # fmt: skip
    paths = (config.text, *also) if also else config.text
    if held_out is None:
        validation.number("validation_fraction", config.validation_fraction, **INSIDE)
        return load(paths, validation_fraction=config.validation_fraction)
    return datasets.TextSplit(
        *(load(path, validation_fraction=0).train for path in (paths, held_out))
    )


def cache_folder(config: TrainConfig) -> pathlib.Path | None:
    """Where texts and tokens made of a user's files are kept for the next start."""
    return None if config.text is None else pathlib.Path(config.runs) / ".cache"


def _packed(config: TrainConfig, dtype: str) -> datasets.TextSplit:
    """Packed tokens: those of a held-out file, or the last of the one file, to validate on."""
    if config.tokenizer in ("byte", "char"):
        raise ValueError(
            f"tokenizer must be ids:VOCAB_SIZE or a tokenizers JSON file for packed tokens, got "
            f"{config.tokenizer!r}"
        )
    nothing = datasets.Corpus.from_text("", "nothing")
    vocab_size = make_tokenizer(config, nothing).vocab_size
    read = functools.partial(datasets.load_tokens, vocab_size=vocab_size, dtype=dtype)
    train = read(str(config.text))
    if config.corpus.held_out is not None:
        held_out = read(config.corpus.held_out)
    else:
        cut = round(len(train) * (1 - config.validation_fraction))
        train, held_out = train[:cut], train[cut:]
    parts = {"training": train, "validation": held_out}
    for part, tokens in parts.items():
        if len(tokens) <= config.sequence_length:
            raise ValueError(
                f"{config.text} is shorter than one context: its {part} part has {len(tokens)} "
                f"tokens, at least {config.sequence_length + 1} are needed"
            )
    return datasets.TextSplit(
        *(
            datasets.Corpus.from_tokens(tokens, f"{config.text} ({part})")
            for part, tokens in parts.items()
        )
    )


def make_tokenizer(config: TrainConfig, corpus: datasets.Corpus) -> datasets.Tokenizer:
    """The tokenizer that a configuration names, of its training text."""
    if config.tokenizer == "byte":
        return datasets.ByteTokenizer()
    if config.tokenizer == "char":
        with _remedies():
            return datasets.CharTokenizer.from_corpus(corpus, unknown=config.unknown)
    if config.tokenizer.startswith("ids:"):
        size = config.tokenizer.removeprefix("ids:")
        if not size.isdecimal() or not int(size):
            raise ValueError(f"tokenizer must be ids:VOCAB_SIZE, got {config.tokenizer!r}")
        return datasets.IdTokenizer(int(size))
    return datasets.JsonTokenizer(config.tokenizer)


def stored_tokenizer(
    stored: Mapping[str, Any], unknown: datasets.Unknown | None = None
) -> datasets.Tokenizer:
    """The tokenizer that a run stored, with another rule for unknown characters if one is given."""
    if unknown is not None:
        if stored.get("kind") != "characters":
            raise ValueError(
                "unknown must be left out with a tokenizer that is not of characters, got "
                f"{unknown!r}"
            )
        stored = {**stored, "unknown": unknown}
    return datasets.tokenizer_from_config(stored)


def encode(
    text: str | datasets.Corpus,
    tokenizer: datasets.Tokenizer,
    cache_dir: pathlib.Path | None = None,
) -> np.ndarray:
    """The tokens of a text, kept in a folder if one is given."""
    with _remedies():
        if isinstance(text, str):
            return tokenizer.encode(text)
        return datasets.tokenize(text, tokenizer, cache_dir)


def count_unknown(corpus: datasets.Corpus, tokenizer: datasets.Tokenizer) -> int:
    """How many characters of a text its tokenizer of characters skips or replaces."""
    if not isinstance(tokenizer, datasets.CharTokenizer):
        return 0
    counter = datasets.CharTokenizer(tokenizer.characters, unknown="replace")
    return sum(counter.count_replaced(counter.encode(piece)) for piece in corpus.pieces())


@contextlib.contextmanager
def _remedies() -> Iterator[None]:
    try:
        yield
    except datasets.AlphabetError as error:
        raise ValueError(
            f"{error}: --unknown skip or replace takes the text, and a run trained with "
            "--tokenizer byte knows every character"
        ) from None
