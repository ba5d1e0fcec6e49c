"""The training loop of the lexinvariant experiments: one compiled scan over steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxkit import models


def make_trainer(
    model: models.DecoderLM,
    loss: Callable[..., Array],
    sample: Callable[[Array], Array],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Callable[[Array], tuple[Any, Array]]:
    """Compile a whole run: Adam, warm-up and cosine, fresh batches from `sample(key)`.

    Args:
        model: the model to train.
        loss: `loss(params, batch, key)` with a batch of `"tokens"` and `"index"`.
        sample: from a typed key to the tokens of one batch, ``[B, ...]``.
        num_steps: updates.
        batch_size: sequences a batch.
        learning_rate: peak learning rate.

    Returns:
        `run(key) -> (params, losses [num_steps])`, compiled once for all seeds.
    """
    warmup = max(1, num_steps // 25)
    rates = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, num_steps, 0.02 * learning_rate
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates, b2=0.99))
    init = models.initializer(model)

    @jax.jit
    def run(key: Array) -> tuple[Any, Array]:
        init_key, data_key, names_key = jax.random.split(key, 3)
        params = nn.meta.unbox(init(init_key))

        def update(carry: Any, step: Array) -> tuple[Any, Array]:
            params, opt_state = carry
            batch = {
                "tokens": sample(jax.random.fold_in(data_key, step)),
                "index": step * batch_size + jnp.arange(batch_size),
            }
            value, gradient = jax.value_and_grad(loss)(
                params, batch, jax.random.fold_in(names_key, step)
            )
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, _), losses = jax.lax.scan(
            update, (params, optimizer.init(params)), jnp.arange(num_steps)
        )
        return params, losses

    return run


def windows(text: Array, batch_size: int, length: int) -> Callable[[Array], Array]:
    """Make a sampler of random windows of `length` tokens of a text."""

    def sample(key: Array) -> Array:
        starts = jax.random.randint(key, (batch_size,), 0, text.shape[0] - length + 1)
        return text[starts[:, None] + jnp.arange(length)]

    return sample
