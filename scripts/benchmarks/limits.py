"""How far from the machine's limits five programs run that a peer comes near to, or was asked to.

Operations and bytes are counted in the compiled programs (`training.program_cost`), for lazy greedy
from its queries; the machine's limits are measured beside them: a product of matrices and a copy of
more than caches hold. Bytes beyond the latter's rate come from caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from benchmarks import federated as rounds
from benchmarks import lm, privacy, submodular, subrl

from jaxkit import federated, jobs, lexinvariant, models, training
from jaxkit import privacy as private
from jaxkit import submodular as selections
from jaxkit.experiments.evidence import Table
from jaxkit.subrl import gp_weights

ROUNDS = 25


class Work(NamedTuple):
    """A call, and what it computes and moves."""

    call: Callable[[], object]
    flops: float
    num_bytes: float


def run() -> list[Table]:
    """Measure on one thread."""
    training.keep_freed_memory()
    works = {
        "product of two 1,024 x 1,024 matrices": matrix_product(),
        "copy of 256 MiB": copy(),
        "training step of the language model, 16 x 128 tokens": language_model(),
        "clipped sum of the Transformer, 32 x 64 tokens": clipped_sum(),
        "FedSpeed round": fedspeed_round(),
        "lazy greedy, n = 10,000, k = 100": lazy_greedy(),
        f"SubPO, {subrl.EPOCHS} epochs of 500 x 39 steps": subpo(),
    }
    # Each by itself: in turns, the copy would leave the small ones cold caches.
    seconds = {
        name: float(np.median(timing.interleaved({name: work.call}, ROUNDS)[name]))
        for name, work in works.items()
    }
    product, copied, *_ = works
    most_flops = works[product].flops / seconds[product]
    most_bytes = works[copied].num_bytes / seconds[copied]
    rows = [
        (
            name,
            f"{seconds[name] * 1e3:.2f}",
            f"{work.flops / seconds[name] / 1e9:.1f}",
            f"{work.flops / seconds[name] / most_flops:.0%}",
            f"{work.num_bytes / seconds[name] / 1e9:.1f}",
            f"{work.num_bytes / seconds[name] / most_bytes:.0%}",
        )
        for name, work in works.items()
    ]
    return [
        Table(
            "Operations and bytes of programs, one thread, float32",
            ("program", "ms", "GFLOP/s", "of a product's", "GB/s", "of a copy's"),
            rows,
        )
    ]


def _work(compiled: Any, *arguments: Any) -> Work:
    cost = training.program_cost(compiled, training.make_mesh())
    return Work(lambda: compiled(*arguments), cost.flops, cost.memory_bytes)


def matrix_product() -> Work:
    """Of a size whose operands stay in cache."""
    a = jnp.ones((1024, 1024))
    return _work(jax.jit(jnp.matmul).lower(a, a).compile(), a, a)


def copy() -> Work:
    """Of more than any cache holds, read and written."""
    x = jnp.ones(2**26)
    negative = jax.jit(jnp.negative)
    return Work(lambda: negative(x), 0.0, 2.0 * x.nbytes)


def language_model() -> Work:
    """Gradient and update of the main job's model."""
    config = jobs.TrainConfig()
    batches, vocab_size = lm.token_stream(config)
    model, optimizer = config.model(vocab_size), config.optimizer(vocab_size)
    loss, key = lexinvariant.next_token_loss(model), jax.random.key(0)
    params = nn.unbox(models.initializer(model)(key))

    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch, key), state, params)
        return optax.apply_updates(params, updates), state

    arguments = params, optimizer.init(params), next(batches)
    return _work(jax.jit(step).lower(*arguments).compile(), *arguments)


def clipped_sum() -> Work:
    """By the default method."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (32, 65)))
    batch, model = (tokens[:, :-1], tokens[:, 1:]), privacy.Transformer()
    params = model.init(jax.random.key(0), batch[0])["params"]

    def loss(params, batch, key):
        return jnp.mean(
            privacy.token_losses(lambda x: model.apply({"params": params}, x), batch, key)
        )

    gradient = private.clipped_grad_sum(loss, 1.0)
    compiled = jax.jit(lambda p, b: gradient(p, b).total).lower(params, batch).compile()
    return _work(compiled, params, batch)


def fedspeed_round() -> Work:
    """The small workload, as `federated` times it."""
    inputs, labels = rounds.examples(rounds.CLIENTS)
    client = federated.local_sgd(
        rounds.LEARNING_RATE, weight_decay=rounds.DECAY, clip_norm=rounds.CLIP
    )
    method = federated.fedspeed(client, prox_coef=rounds.PROX, rho=rounds.RHO)
    params = rounds.mlp_params(64, rounds.HIDDEN)
    compiled, call, state = rounds.compiled_round(
        method, params, inputs, labels, rounds.COHORT, rounds.COHORT
    )
    cost = training.program_cost(compiled, training.make_mesh())
    held = [state]

    def again():
        held[0] = call(held[0])[0]
        return held[0]

    return Work(again, cost.flops, cost.memory_bytes)


def lazy_greedy() -> Work:
    """Of a given matrix: each query reads a column and what is covered, and adds the gains."""
    n, k = 10_000, 100
    function = selections.facility_location(selections.similarity_matrix(submodular.clustered(n)))
    queries = int(selections.lazy_greedy(function, k).num_queries)
    call = lambda: selections.lazy_greedy(function, k).indices  # noqa: E731
    return Work(call, 3 * queries * n, 4 * queries * n)


def subpo() -> Work:
    """The epochs that `subrl` times, in one program."""
    made = subrl.make_training(np.asarray(gp_weights(jax.random.key(0))))
    key = jax.random.key(0)
    return _work(jax.jit(made.run).lower(key).compile(), key)
