"""The text of a job as tokens; what is wrong with it is said in options of the command line."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxkit import datasets
from jaxkit.jobs.config import TrainConfig


def load_text(config: TrainConfig) -> datasets.TextSplit:
    """The text that a configuration names."""
    shortest = config.sequence_length + 1
    if config.text is None:
        return datasets.embedded_prose()
    return datasets.load_text(
        pathlib.Path(config.text),
        validation_fraction=config.validation_fraction,
        minimum_length=shortest,
    )


def make_tokenizer(config: TrainConfig, corpus: datasets.Corpus) -> datasets.Tokenizer:
    """The tokenizer that a configuration names, of its training text."""
    if config.tokenizer == "byte":
        return datasets.ByteTokenizer()
    if config.tokenizer == "char":
        with _remedies():
            return datasets.CharTokenizer.from_corpus(corpus, unknown=config.unknown)
    return datasets.JsonTokenizer(config.tokenizer)


def stored_tokenizer(
    stored: Mapping[str, Any], unknown: datasets.Unknown | None = None
) -> datasets.Tokenizer:
    """The tokenizer that a run stored, with another rule for unknown characters if one is given.

    Args:
        stored: from `to_config`.
        unknown: the rule; None for the run's own.

    Raises:
        ValueError: if it is damaged, or a rule is given and it is no tokenizer of characters.
    """
    if unknown is not None:
        if stored.get("kind") != "characters":
            raise ValueError(
                "unknown must be left out with a tokenizer that is not of characters, got "
                f"{unknown!r}"
            )
        stored = {**stored, "unknown": unknown}
    return datasets.tokenizer_from_config(stored)


def encode(text: str | datasets.Corpus, tokenizer: datasets.Tokenizer) -> np.ndarray:
    """The tokens of a text.

    Raises:
        ValueError: if the tokenizer refuses it, naming the options that help.
    """
    with _remedies():
        if isinstance(text, str):
            return tokenizer.encode(text)
        return datasets.tokenize(text, tokenizer)


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
