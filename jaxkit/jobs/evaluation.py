"""How well a model predicts a text: nats a token, by position in the context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, Key

from jaxkit import datasets, lexinvariant, models, training
from jaxkit.datasets import mapped
from jaxkit.jobs import texts
from jaxkit.jobs.runs import Run


class Evaluation(NamedTuple):
    """The loss of a model on a text.

    Attributes:
        loss: mean nats a token.
        by_position: mean nats at each position of the context, ``[T]``.
        tokens: tokens predicted.
    """

    loss: float
    by_position: Float[np.ndarray, " T"]
    tokens: int


def make_evaluator(
    model: models.DecoderLM, mesh: Mesh, key: Key[Array, ""], method: lexinvariant.Method
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], Evaluation]:
    """Compile the evaluation once: `evaluate(params, evaluation_batches) -> Evaluation`."""
    everywhere = training.replicated(mesh)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def sums(params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        losses = lexinvariant.token_losses(model, params, batch, key, method=method)
        mask = batch["mask"]
        return jnp.sum(jnp.where(mask, losses, 0.0), axis=0), jnp.sum(mask, axis=0)

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> Evaluation:
        total, count = np.zeros(()), np.zeros(())
        for batch in batches:
            losses, counted = sums(params, training.place_batch(batch, mesh))
            total = total + np.asarray(losses, np.float64)
            count = count + np.asarray(counted, np.float64)
        return Evaluation(
            float(total.sum() / count.sum()), total / np.maximum(count, 1), int(count.sum())
        )

    return evaluate


def bigram_loss(
    train: Integer[np.ndarray, " n"], validation: Integer[np.ndarray, " m"], vocab_size: int
) -> float:
    r"""Nats a token of the bigram model of a training text on a validation text.

    .. math:: q(v | c) = \frac{n(c, v) + u(c)\, q(v)}{n(c) + u(c)}

    with :math:`u(c)` the number of different successors of `c` (Witten-Bell smoothing), down to
    the uniform distribution.
    """
    single = _counts(train, vocab_size, 1)[0].astype(np.float64)
    unigram = (single + np.count_nonzero(single) / vocab_size) / (
        single.sum() + np.count_nonzero(single)
    )
    pairs = _counts(train, vocab_size, 2).astype(np.float64)
    different = np.count_nonzero(pairs, axis=1)[:, None]
    smoothed = (pairs + different * unigram) / np.maximum(
        pairs.sum(axis=1, keepdims=True) + different, 1
    )
    bigram = np.where(different > 0, smoothed, unigram)
    told = _counts(validation, vocab_size, 2)
    return float(-np.sum(told * np.log(np.where(told > 0, bigram, 1))) / told.sum())


def _counts(tokens: np.ndarray, vocab_size: int, length: int) -> np.ndarray:
    """How often each token, or pair of tokens, is there; a mapped text is read in pieces."""
    counts, piece = np.zeros(vocab_size**length, np.int64), 1 << 22
    for start in range(0, len(tokens) - length + 1, piece):
        rows = np.asarray(tokens[start : start + piece + length - 1], np.int64)
        if length == 2:
            rows = rows[:-1] * vocab_size + rows[1:]
        counts += np.bincount(rows, minlength=len(counts))
        mapped.forget_pages(tokens)
    return counts.reshape(-1, vocab_size)


def evaluate_run(run: Run, corpus: datasets.Corpus) -> Evaluation:
    """Score a text with a trained run.

    Args:
        run: from `open_run`.
        corpus: the text.

    Returns:
        Its loss; of a run that knows no names, under names or tables drawn for each context.

    Raises:
        ValueError: if the text is shorter than one context, or the tokenizer refuses it.

    Example:
        >>> from jaxkit.jobs import runs
        >>> config, tokenizer = runs.TrainConfig(num_layers=1), datasets.CharTokenizer("ab")
        >>> model = config.model(tokenizer.vocab_size)
        >>> params = jax.eval_shape(models.initializer(model), jax.random.key(0))
        >>> params = jax.tree.map(jnp.zeros_like, params)  # all equally likely
        >>> run = Run(config, tokenizer, model, params, 0, runs.RunFiles.of("runs", "new"))
        >>> round(evaluate_run(run, datasets.Corpus.from_text("abba" * 40, "text")).loss, 4)  # ln 3
        1.0986
    """
    config, mesh = run.config, training.make_mesh("data=-1")
    size = mesh.shape["data"] * max(1, config.batch_size // mesh.shape["data"])
    index, count = training.local_rows(mesh, size)
    batches = datasets.evaluation_batches(
        texts.encode(corpus, run.tokenizer),
        sequence_length=config.sequence_length,
        batch_size=size,
        process_index=index,
        process_count=count,
    )
    evaluate = make_evaluator(run.model, mesh, jax.random.key(config.seed), config.reading)
    return evaluate(run.params, batches)
