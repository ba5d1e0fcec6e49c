"""Part C of the lexinvariant experiment: reasoning about symbols never seen in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkit import lexinvariant, models
from jaxkit.experiments import language_training, symbol_questions

#: Ids of arrow and line end, of the symbols seen in training, and of those only met in tests.
ARROW, SEPARATOR = (0,), (1,)
SEEN, UNSEEN = range(2, 18), range(18, 34)
#: Questions to each table in training; the tests ask one.
VOCAB_SIZE, BATCH_SIZE, TESTS, QUERIES = 34, 16, 1000, 5
TASKS = {"LookUp": symbol_questions.lookup_task, "Permutation": symbol_questions.permutation_task}
Accuracies = dict[lexinvariant.Method, dict[str, dict[str, float]]]
METHODS: tuple[lexinvariant.Method, ...] = ("fixed", "relabel", "lexinvariant")


def draw(
    name: str, key: jax.Array, symbols: range, count: int, **options: int
) -> symbol_questions.Task:
    """Draw a batch of tasks."""
    make: Any = TASKS[name]
    return jax.vmap(lambda k: make(k, symbols, arrow=ARROW, separator=SEPARATOR, **options))(
        jax.random.split(key, count)
    )


def model(method: lexinvariant.Method) -> models.DecoderLM:
    """Three layers of width 64."""
    given = method == "lexinvariant"
    return language_training.small_decoder(VOCAB_SIZE, 64, 3, 4, 128, given)


def measure(steps: Mapping[lexinvariant.Method, int], seed: int) -> Accuracies:
    """Train each method on both tasks with half of the symbols, and test it on both halves."""

    def mixed(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As many tasks of each kind; line ends behind the shorter ones."""
        keys = jax.random.split(key)
        lookup = draw("LookUp", keys[0], SEEN, BATCH_SIZE, num_queries=QUERIES)
        permutation = draw("Permutation", keys[1], SEEN, BATCH_SIZE)
        gap = lookup.tokens.shape[1] - permutation.tokens.shape[1]
        filled = jnp.pad(permutation.tokens, ((0, 0), (0, gap)), constant_values=SEPARATOR[0])
        mask = jnp.pad(permutation.mask, ((0, 0), (0, gap)))
        return jnp.concatenate([lookup.tokens, filled]), jnp.concatenate([lookup.mask, mask])

    # What is an answer depends on the layout alone.
    answers = mixed(jax.random.key(0))[1][:, 1:]
    run_key, test_key = jax.random.split(jax.random.key(seed))
    accuracies: Accuracies = {}
    for method, num_steps in steps.items():
        decoder = model(method)

        def loss(params, batch, key, decoder=decoder, method: lexinvariant.Method = method):
            losses = lexinvariant.token_losses(decoder, params, batch, key, method=method)
            # Answers alone are too few to learn copying from; the whole text alone hides them.
            return jnp.mean(losses) + jnp.mean(losses, where=answers)

        train = language_training.make_trainer(
            decoder,
            loss,
            lambda key: mixed(key)[0],
            num_steps=num_steps,
            batch_size=2 * BATCH_SIZE,
            learning_rate=5e-3,
        )
        params, _ = train(run_key)

        @jax.jit
        def accuracy(params, tasks, decoder=decoder, method: lexinvariant.Method = method):
            return symbol_questions.task_accuracy(decoder, params, tasks, test_key, method=method)

        accuracies[method] = {
            name: {
                half: float(accuracy(params, draw(name, test_key, symbols, TESTS)))
                for half, symbols in (("seen", SEEN), ("unseen", UNSEEN))
            }
            for name in TASKS
        }
    return accuracies
