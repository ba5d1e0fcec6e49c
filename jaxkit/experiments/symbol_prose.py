"""Part B of the lexinvariant experiment: English characters, and reading ciphers of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import datasets, lexinvariant, models
from jaxkit.experiments import language_training

VOCAB_SIZE, LENGTH, BATCH_SIZE, WINDOWS = 27, 192, 16, 64
#: Ranges of positions that are reported.
RANGES = ((0, 1), (4, 8), (8, 16), (16, 32), (32, 64), (64, 96), (96, 128), (128, 192))


class Text(NamedTuple):
    """Letters and spaces as ids 1-26 and 0: training text, and `WINDOWS` held-out windows."""

    train: np.ndarray
    held_out: np.ndarray


class Run(NamedTuple):
    """Held-out losses ``[WINDOWS, LENGTH]`` in nats, parameters, seconds of training in all."""

    losses: np.ndarray
    params: Any
    seconds: float


def letters(text: str) -> np.ndarray:
    """Lower-case letters as 1-26; anything else, however long, as one 0."""
    kept = re.sub(r"[^a-z]+", " ", text.lower()).encode("ascii")
    ids = np.frombuffer(kept, np.uint8).astype(np.int32)
    return np.where(ids == ord(" "), 0, ids - ord("a") + 1)


def load() -> Text:
    """The embedded prose in 27 symbols."""
    split = datasets.embedded_prose()
    train, validation = (letters(part.text()) for part in (split.train, split.validation))
    batches = datasets.evaluation_batches(
        validation, sequence_length=LENGTH, batch_size=WINDOWS, max_windows=WINDOWS
    )
    return Text(train, next(iter(batches))["tokens"])


def model(width: int = 96, num_layers: int = 3) -> models.DecoderLM:
    """Four heads of a quarter of the width."""
    return language_training.small_decoder(VOCAB_SIZE, width, num_layers, 4, 4 * width, False)


def fit(
    decoder: models.DecoderLM,
    text: Text,
    num_steps: int,
    seed: int,
    p: float | Callable[[Any], Any] | None,
) -> Run:
    """Train on random windows and score the held-out ones, every symbol renamed.

    A symbol is renamed (closed) with probability `p`, a number or a schedule of the step; None
    trains the standard model.
    """
    method = "fixed" if p is None else "relabel"
    hiding: Any = {"method": method, "closed": True}
    loss = lexinvariant.next_token_loss(
        decoder, p=1.0 if p is None else p, batch_size=BATCH_SIZE, **hiding
    )
    sample = language_training.windows(jnp.asarray(text.train), BATCH_SIZE, LENGTH + 1)
    train = language_training.make_trainer(
        decoder,
        loss,
        sample,
        num_steps=num_steps,
        batch_size=BATCH_SIZE,
        learning_rate=3e-3,
    )
    run_key, draw_key = jax.random.split(jax.random.key(seed))
    started = time.perf_counter()
    params, _ = jax.block_until_ready(train(run_key))
    seconds = time.perf_counter() - started
    batch = {"tokens": jnp.asarray(text.held_out), "index": jnp.arange(len(text.held_out))}
    score = jax.jit(lambda q: lexinvariant.token_losses(decoder, q, batch, draw_key, **hiding))
    return Run(np.asarray(score(params)), params, seconds)


def perplexities(losses: np.ndarray) -> np.ndarray:
    """Perplexity over each of `RANGES`, ``[len(RANGES)]``."""
    return np.array([np.exp(losses[:, a:b].mean()) for a, b in RANGES])


class Deciphering(NamedTuple):
    """How well ciphers of held-out text are read, by window of the context ``[windows]``.

    The share of a key's entries that are right when the positions of a window vote (`precision`),
    and in the one-to-one key of largest total log-probability (`assigned`); positions read right;
    wrong symbols of each classical solver on single windows of text.
    """

    starts: np.ndarray
    precision: np.ndarray
    assigned: np.ndarray
    accuracy: np.ndarray
    solvers: dict[str, float]


def decipher(
    decoder: models.DecoderLM, params: Any, text: Text, num_steps: int, seed: int
) -> Deciphering:
    """Train a probe on a frozen model and let it, and classical solvers, read ciphers."""
    probe_key, cipher_key, names_key, climb_key = jax.random.split(jax.random.key(seed), 4)
    probe, probe_params = lexinvariant.train_probe(
        decoder,
        params,
        text.train,
        key=probe_key,
        num_steps=num_steps,
        sequence_length=LENGTH,
        batch_size=BATCH_SIZE,
    )
    plain = jnp.asarray(text.held_out[:, :-1])
    ciphers = jax.vmap(lambda k: lexinvariant.random_cipher(k, VOCAB_SIZE))(
        jax.random.split(cipher_key, WINDOWS)
    )
    hidden = jnp.take_along_axis(ciphers, plain, axis=1)
    keys = lexinvariant.sequence_keys(names_key, jnp.arange(WINDOWS))
    width = LENGTH // 3
    starts = jnp.arange(0, LENGTH - width + 1, width // 4)

    @jax.jit
    def read(params, probe_params):
        log_probs = lexinvariant.decipher_log_probs(
            decoder, params, probe, probe_params, hidden, keys
        )
        guesses = log_probs.argmax(axis=-1)

        def precision(cipher, mapping, guess, log_probs):
            def both(start):
                keys = (
                    lexinvariant.cipher_key_vote(cipher, guess, VOCAB_SIZE, start, width),
                    lexinvariant.cipher_key_assignment(cipher, log_probs, start, width),
                )
                return [lexinvariant.key_precision(key, mapping) for key in keys]

            return jax.vmap(both)(starts)

        voted, assigned = jax.vmap(precision)(hidden, ciphers, guesses, log_probs)
        return voted.mean(axis=0), assigned.mean(axis=0), guesses == plain

    precision, assigned, right = read(params, probe_params)
    accuracy = [np.asarray(right)[:, s : s + width].mean() for s in np.asarray(starts)]

    table = lexinvariant.backoff_table(text.train, VOCAB_SIZE, 2)
    few = slice(0, 8)
    solved = {
        "frequency matching": jax.vmap(
            lambda c: lexinvariant.match_frequencies(c, table[VOCAB_SIZE, VOCAB_SIZE])
        )(hidden[few]),
        "hill climbing, trigrams": jax.lax.map(
            lambda c: lexinvariant.climb_key(c, table, climb_key), hidden[few]
        ),
        "beam search, trigrams": jax.lax.map(
            lambda c: lexinvariant.beam_search_key(c, table, 64), hidden[few]
        ),
    }
    errors = {
        name: float(jnp.mean(jnp.take_along_axis(found, hidden[few], axis=1) != plain[few]))
        for name, found in solved.items()
    }
    return Deciphering(
        np.asarray(starts), np.asarray(precision), np.asarray(assigned), np.array(accuracy), errors
    )
