"""The program of a run: what one update is, over which devices, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxkit import models, training
from jaxkit.jobs import private_training
from jaxkit.jobs.config import TrainConfig


class Program(NamedTuple):
    """What `jaxkit train` runs and `jaxkit compile` compiles.

    Attributes:
        model: the language model.
        optimizer: of its parameters.
        init: from a key to parameters.
        step: one update, see `training.make_train_step`.
        state: its first argument, as shapes and shardings.
        batch: its second.
    """

    model: models.DecoderLM
    optimizer: optax.GradientTransformation
    init: Callable[[Any], Any]
    step: Any
    state: training.TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def training_program(
    config: TrainConfig,
    vocab_size: int,
    mesh: Mesh,
    plan: private_training.PrivateTraining | None = None,
) -> Program:
    """Make the program of a configuration on a mesh, whose devices need not exist."""
    size = config.batch_size if plan is None else plan.plan.sampling.padded_size
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise ValueError(
            f"batch_size must be divisible by data x fsdp = {parts} parts of the mesh, got {size}"
        )
    model = config.model(vocab_size, mesh.devices.flat[0].platform)
    optimizer = config.optimizer(vocab_size)
    init, key = models.initializer(model), jax.random.key(config.seed)
    loss = config.loss(model)
    step = training.make_train_step(
        loss,
        optimizer,
        accumulation_steps=config.accumulation_steps,
        gradient_fn=plan.gradient() if plan else None,
        shardings=training.state_shardings(init, optimizer, key, mesh),
    )
    sharding = training.batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct(
            (size, config.sequence_length + 1), jnp.int32, sharding=sharding
        ),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
    }
    if plan is not None:
        batch["mask"] = jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=sharding)
        batch["noise"] = jax.ShapeDtypeStruct((size, 2), jnp.uint32, sharding=sharding)
    state = training.abstract_state(init, optimizer, key, mesh)
    return Program(model, optimizer, init, step, state, batch)
