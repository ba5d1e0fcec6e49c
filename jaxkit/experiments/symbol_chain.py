"""Part A of the lexinvariant experiment: a Markov language whose exact optimum is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import lexinvariant, models
from jaxkit.experiments import language_training

VOCAB_SIZE, LENGTH, BATCH_SIZE, HELD_OUT = 6, 48, 64, 256


class ChainLosses(NamedTuple):
    """Held-out loss by position in nats ``[T]``: of the chain, of the exact lexinvariant predictor.

    Models are ``[seeds, T]``, parameters of each one's first seed; `decipher` ``[T + 1]`` is the
    probability that the predictor's best guess of a symbol is right.
    """

    truth: np.ndarray
    oracle: np.ndarray
    models: dict[str, np.ndarray]
    decipher: np.ndarray
    params: dict[str, Any]


def language() -> lexinvariant.MarkovLanguage:
    """Six symbols: rows of Dirichlet(0.3) mixed with 2 % of the uniform, always the same."""
    rng = np.random.default_rng(1)
    rows = 0.98 * rng.dirichlet(np.full(VOCAB_SIZE, 0.3), VOCAB_SIZE) + 0.02 / VOCAB_SIZE
    initial = rng.dirichlet(np.full(VOCAB_SIZE, 2.0))
    return lexinvariant.MarkovLanguage(
        jnp.log(jnp.asarray(initial, jnp.float32)), jnp.log(jnp.asarray(rows, jnp.float32))
    )


def model(method: lexinvariant.Method) -> models.DecoderLM:
    """Two layers of width 32."""
    given = method == "lexinvariant"
    return language_training.small_decoder(VOCAB_SIZE, 32, 2, 2, 128, given)


def measure(steps: Mapping[lexinvariant.Method, int], num_seeds: int, seed: int) -> ChainLosses:
    """Train one model a method and seed on fresh text, and score all on the same held-out text."""
    chain = language()
    text_key, draw_key, run_key = jax.random.split(jax.random.key(seed), 3)
    text = lexinvariant.sample_markov(text_key, chain, HELD_OUT, LENGTH + 1)
    batch = {"tokens": text, "index": jnp.arange(HELD_OUT)}
    exact = jax.jit(jax.vmap(lexinvariant.bayes_lexinvariant, in_axes=(None, None, 0)))(
        *chain, text
    )
    oracle = -np.take_along_axis(np.asarray(exact.log_predictive), np.asarray(text)[..., None], 2)

    models, params = {}, {}
    for method, num_steps in steps.items():
        decoder = model(method)
        run = language_training.make_trainer(
            decoder,
            lexinvariant.next_token_loss(decoder, method=method),
            lambda key: lexinvariant.sample_markov(key, chain, BATCH_SIZE, LENGTH + 1),
            num_steps=num_steps,
            batch_size=BATCH_SIZE,
            learning_rate=5e-3,
        )

        @jax.jit
        def evaluate(params, decoder=decoder, method: lexinvariant.Method = method):
            return lexinvariant.token_losses(decoder, params, batch, draw_key, method=method)

        runs = [run(jax.random.fold_in(run_key, s))[0] for s in range(num_seeds)]
        params[method] = runs[0]
        models[method] = np.stack([np.asarray(evaluate(p)).mean(axis=0) for p in runs])
    return ChainLosses(
        truth=np.asarray(lexinvariant.markov_losses(chain, text)).mean(axis=0),
        oracle=oracle[:, 1:, 0].mean(axis=0),
        models=models,
        decipher=np.asarray(exact.decipher).max(axis=-1).mean(axis=0),
        params=params,
    )


def excess(found: ChainLosses, method: str, start: int, stop: int) -> np.ndarray:
    """Loss above that of the true chain over positions `start` to `stop`, one a seed, in nats."""
    return (found.models[method] - found.truth)[:, start:stop].mean(axis=1)


def decipher_accuracy(
    found: ChainLosses, method: lexinvariant.Method, num_steps: int, seed: int
) -> np.ndarray:
    """Share of held-out symbols that a probe on a trained model reads right, ``[T]``."""
    decoder, chain, params = model(method), language(), found.params[method]
    train_key, probe_key, text_key, names_key = jax.random.split(jax.random.key(seed), 4)
    corpus = lexinvariant.sample_markov(train_key, chain, 1, 100_000)[0]
    probe, probe_params = lexinvariant.train_probe(
        decoder,
        params,
        np.asarray(corpus),
        key=probe_key,
        num_steps=num_steps,
        sequence_length=LENGTH,
        batch_size=BATCH_SIZE,
    )
    text = lexinvariant.sample_markov(text_key, chain, HELD_OUT, LENGTH)
    keys = lexinvariant.sequence_keys(names_key, jnp.arange(HELD_OUT))
    read = jax.jit(
        lambda p, q, x: lexinvariant.decipher_log_probs(decoder, p, probe, q, x, keys).argmax(-1)
    )
    return np.asarray(read(params, probe_params, text) == text).mean(axis=0)
