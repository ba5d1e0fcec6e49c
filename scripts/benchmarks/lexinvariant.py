"""What lexinvariance costs: speed beside the standard model, memory at large vocabularies.

Three losses of one decoder (standard, random rows, renamed ids) train in turns in one process. The
memory is what the compiled step reports. `lm.py` holds the standard model against PyTorch, and
`pods.py` compiles larger ones for pods.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from jaxkit import lexinvariant, models
from jaxkit.experiments.evidence import Table

ROUNDS, STEPS = 12, 5
SMALL = models.DecoderConfig(128, recency_heads=True, unroll_layers=True)
BATCH, LENGTH = 12, 64
METHODS: dict[str, lexinvariant.Method] = {
    "standard": "fixed",
    "random rows": "lexinvariant",
    "renamed ids": "relabel",
}


def model(config: models.DecoderConfig, method: lexinvariant.Method):
    embedding = "given" if method == "lexinvariant" else "fixed"
    return models.DecoderLM(dataclasses.replace(config, embedding=embedding))


def speed() -> Table:
    """Tokens a second of each loss, one turn after the other."""
    optimizer = optax.adam(1e-3)
    tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, (BATCH, LENGTH + 1))
    batch = {"tokens": jnp.asarray(tokens), "index": jnp.arange(BATCH)}

    def side(method: lexinvariant.Method):
        decoder = model(SMALL, method)
        loss = lexinvariant.next_token_loss(decoder, method=method)
        params = nn.meta.unbox(jax.jit(models.initializer(decoder))(jax.random.key(0)))
        state: list[Any] = [params, optimizer.init(params)]

        @jax.jit
        def step(params, opt_state, key):
            value, gradient = jax.value_and_grad(loss)(params, batch, key)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        def advance() -> None:
            value = jnp.zeros(())
            for number in range(STEPS):
                state[0], state[1], value = step(*state, jax.random.key(number))
            value.block_until_ready()

        return advance

    sides = {name: side(method) for name, method in METHODS.items()}
    seconds = {name: times / STEPS for name, times in timing.interleaved(sides, ROUNDS).items()}
    rows = []
    for name, times in seconds.items():
        ratio = seconds["standard"] / times
        rows.append(
            (
                name,
                f"{BATCH * LENGTH / np.median(times):,.0f}",
                f"{np.median(ratio):.2f}x",
                f"{np.quantile(ratio, 0.25):.2f} to {np.quantile(ratio, 0.75):.2f}",
            )
        )
    title = f"Training step, V = {SMALL.vocab_size}, {BATCH} x {LENGTH} tokens, 4 layers x 128"
    return Table(title, ("model", "tokens/s", "beside the standard", "quartiles"), rows)


def memory() -> Table:
    """Temporary memory of a compiled step at V = 32,000, with and without pieces."""
    vocab_size, batch, length = 32_000, 8, 128
    config = dataclasses.replace(
        SMALL, vocab_size=vocab_size, num_layers=1, d_model=128, unroll_layers=False
    )
    rows = []
    for name, method in METHODS.items():
        for chunk_size in (None, 1000):
            decoder = model(config, method)
            loss = lexinvariant.next_token_loss(decoder, method=method, chunk_size=chunk_size)
            boxed = jax.eval_shape(models.initializer(decoder), jax.random.key(0))
            abstract = nn.meta.unbox(boxed)
            data = {
                "tokens": jax.ShapeDtypeStruct((batch, length + 1), jnp.int32),
                "index": jax.ShapeDtypeStruct((batch,), jnp.int32),
            }
            step = jax.jit(jax.value_and_grad(loss)).lower(abstract, data, jax.random.key(0))
            analysis: Any = step.compile().memory_analysis()
            rows.append(
                (
                    name,
                    "whole" if chunk_size is None else f"pieces of {chunk_size}",
                    f"{analysis.temp_size_in_bytes / 2**20:,.0f} MiB",
                )
            )
    tables = 4 * batch * vocab_size * config.d_model / 2**20
    title = (
        f"Peak temporary memory, V = {vocab_size}, {batch} x {length} tokens "
        f"([B, V, D] is {tables:.0f} MiB)"
    )
    return Table(title, ("model", "readout", "temporary memory"), rows)


def run() -> list[Table]:
    """Measure."""
    return [speed(), memory()]
