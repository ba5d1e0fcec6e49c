"""The phases of a task as compiled programs.

A program runs any number of steps up to a fixed size, and every choice that changes between tasks
(slots, classes, rates) is an argument: a stream compiles each once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxkit.continual import forward_pass
from jaxkit.continual.expandable_state import SEMAConfig, add_adapter
from jaxkit.continual.phases import (
    Augment,
    classification_step,
    description_step,
)
from jaxkit.continual.step_batches import StepBatches


class Programs(NamedTuple):
    """The compiled programs of a stream.

    All take `backbone`, the variables of the model, as an argument, so that streams with other
    weights share them.

    Attributes:
        train_images: `(backbone, learning, trainable, classes, batches, key)` to learning and
            losses `[S]`: classification from images.
        train_images_above: the same where the adapters below block `expand_from` are frozen: no
            gradient passes through those blocks.
        train_tokens: the same from tokens at block `expand_from`.
        train_head: the same from features; only the head can change.
        describe: `(learning, slots, batches)` to learning and losses `[S]`: descriptors, from
            pooled features `[S, B, E, d]`.
        describe_images: `(backbone, learning, slots, batches, key)`, the same from images.
        prefix: `(backbone, sema, images)` to tokens at block `expand_from`.
        observe: `(backbone, sema, tokens)` to `Forward`.
        score: `(backbone, sema, tokens, num_valid)` to scores `[E]`.
        predict: `(backbone, sema, images, key)` to features, logits and weights.
        add: `(key, sema, block)` to the state with one more adapter.
    """

    train_images: Any
    train_images_above: Any
    train_tokens: Any
    train_head: Any
    describe: Any
    describe_images: Any
    prefix: Any
    observe: Any
    score: Any
    predict: Any
    add: Any


@functools.lru_cache(maxsize=16)
def sema_programs(
    config: SEMAConfig, optimizer: optax.GradientTransformation, augment: Augment | None = None
) -> Programs:
    """The programs of a configuration, made once and compiled at their first call.

    Args:
        config: shapes and modes.
        optimizer: before the learning rate; the same object gives the same programs.
        augment: for training from images.

    Returns:
        The programs.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, sgd
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> rule = sgd()
        >>> sema_programs(config, rule) is sema_programs(config, rule)
        True
    """

    def train(source: str) -> Any:
        def program(backbone, learning, trainable, classes, batches, key):
            def step(learning, batch):
                return classification_step(
                    config, optimizer, source, augment,
                    backbone, learning, trainable, classes, batch, key,
                )  # fmt: skip

            return run_steps(step, learning, batches)

        return jax.jit(program)

    def describe(learning, slots, batches):
        return run_steps(
            lambda learning, batch: description_step(
                optimizer, learning, slots, batch.inputs, batch
            ),
            learning,
            batches,
        )

    def describe_images(backbone, learning, slots, batches, key):
        def step(learning, batch):
            step_key, images = jax.random.fold_in(key, batch.step), batch.inputs
            if augment is not None:
                images = augment(jax.random.fold_in(step_key, 0), images)
            pooled = forward_pass.adapted_forward(
                config, backbone, learning.sema, images, key=jax.random.fold_in(step_key, 1)
            ).pooled
            return description_step(optimizer, learning, slots, pooled, batch)

        return run_steps(step, learning, batches)

    def score(backbone, sema, tokens, num_valid, key):
        seen = forward_pass.adapted_forward(
            config, backbone, sema, tokens, from_tokens=True, key=key
        )
        return forward_pass.expansion_scores(config, sema, seen.pooled, num_valid)

    def predict(backbone, sema, images, key):
        seen = forward_pass.adapted_forward(config, backbone, sema, images, key=key)
        logits = forward_pass.class_logits(sema.params.head, seen.features)
        return seen.features, logits, seen.weights

    return Programs(
        train("images"),
        train("images_above"),
        train("tokens"),
        train("features"),
        jax.jit(describe),
        jax.jit(describe_images),
        jax.jit(functools.partial(forward_pass.frozen_prefix, config)),
        jax.jit(functools.partial(forward_pass.adapted_forward, config, from_tokens=True)),
        jax.jit(score),
        jax.jit(predict),
        jax.jit(lambda key, sema, block: add_adapter(key, config, sema, block)),
    )


def run_steps(
    step: Callable[[Any, StepBatches], tuple[Any, Array]], learning: Any, batches: StepBatches
) -> tuple[Any, Float[Array, " S"]]:
    """Advance by `num_steps` steps; losses of steps not run are 0.

    Args:
        step: from what is learnt and one step's batch to what is learnt and the loss.
        learning: any pytree.
        batches: the steps.

    Returns:
        What is learnt after them, and their losses.
    """
    per_step = batches._replace(num_steps=batches.step)

    def body(index: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        learning, losses = carry
        learning, loss = step(learning, jax.tree.map(lambda leaf: leaf[index], per_step))
        return learning, losses.at[index].set(loss)

    losses = jnp.zeros(batches.learning_rate.shape, batches.learning_rate.dtype)
    return lax.fori_loop(0, batches.num_steps, body, (learning, losses))
