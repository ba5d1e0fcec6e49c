"""What lexinvariance costs: speed beside the standard model, memory at large vocabularies.

Three losses of one decoder (standard, random rows, renamed ids) train in turns in one process. The
memory is what the compiled step reports; the cost of the 151M model on up to 256 devices is
worked out without allocating anything. `lm.py` holds the standard model against PyTorch.
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
from jax.sharding import AbstractMesh

from jaxkit import lexinvariant, models
from jaxkit.experiments.evidence import Table

ROUNDS, STEPS = 12, 5
SMALL = models.DecoderConfig(128, recency_heads=True, unroll_layers=True)
BATCH, LENGTH = 12, 64
PAPER = models.DecoderConfig(
    128,
    d_model=1024,
    num_layers=12,
    num_heads=8,
    head_dim=128,
    d_ff=4096,
    embedding="given",
    dtype="bfloat16",
    remat=True,
)
METHODS: dict[str, lexinvariant.Method] = {
    "standard": "fixed",
    "random rows": "lexinvariant",
    "renamed ids": "relabel",
}
MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (4, 8, 2), (32, 8, 1), (16, 8, 2))


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


def devices() -> Table:
    """Memory and operations of one device for the 151M model, from shapes alone."""
    rows = []
    for sizes in MESHES:
        mesh = AbstractMesh(sizes, ("data", "fsdp", "tensor"))
        cost = models.step_cost(PAPER, optax.adam(1e-3), mesh, 512, 512)
        state = cost.parameter_bytes + cost.optimizer_bytes + cost.gradient_bytes
        rows.append(
            (
                " x ".join(map(str, sizes)),
                cost.num_devices,
                f"{state / 2**20:,.0f} MiB",
                f"{cost.table_bytes / 2**20:,.1f} MiB",
                f"{cost.residual_bytes / 2**20:,.0f} MiB",
                f"{cost.logits_bytes / 2**20:,.1f} MiB",
                " + ".join(
                    f"{size / 2**20:,.0f}"
                    for size in (
                        cost.data_exchange_bytes,
                        cost.fsdp_exchange_bytes,
                        cost.tensor_exchange_bytes,
                    )
                )
                + " MiB",
                f"{cost.flops / 1e12:,.2f}",
            )
        )
    count = sum(models.parameter_counts(PAPER))
    return Table(
        f"One device, {count / 1e6:.0f}M parameters, 512 x 512 tokens, Adam, bfloat16, remat",
        (
            "data x fsdp x tensor",
            "devices",
            "parameters, Adam, gradient",
            "random tables",
            "kept layer inputs",
            "logits",
            "received a step: data + fsdp + tensor",
            "TFLOP a step",
        ),
        rows,
    )


def run() -> list[Table]:
    """Measure."""
    return [speed(), memory(), devices()]
