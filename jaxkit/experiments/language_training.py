"""Training on windows of text as the experiments share it: one compiled scan over updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxkit import models


def windows(text: Array, batch_size: int, length: int) -> Callable[[Array], Array]:
    """Make a sampler of random windows of `length` tokens of a text."""

    def sample(key: Array) -> Array:
        starts = jax.random.randint(key, (batch_size,), 0, text.shape[0] - length + 1)
        return text[starts[:, None] + jnp.arange(length)]

    return sample


def spread_windows(text: Array, count: int, length: int) -> Array:
    """Cut windows of `length` tokens at equal distances, ``[count, length]``."""
    starts = jnp.linspace(0, text.shape[0] - length, count).astype(jnp.int32)
    return text[starts[:, None] + jnp.arange(length)]


def descend(
    optimizer: optax.GradientTransformation, loss: Callable[..., Array], params: Any, inputs: Any
) -> tuple[Any, Array]:
    """Update parameters by `loss(params, input)` for each of the inputs; also the losses."""

    def update(carry: Any, given: Any) -> tuple[Any, Array]:
        params, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(params, given)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, _), losses = jax.lax.scan(update, (params, optimizer.init(params)), inputs)
    return params, losses


def make_trainer(
    model: models.DecoderLM,
    loss: Callable[..., Array],
    sample: Callable[[Array], Array],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Callable[[Array], tuple[Any, Array]]:
    """Compile a whole run: Adam, warm-up and cosine, batches ``[B, ...]`` from `sample(key)`.

    The loss is `loss(params, batch, key)` with a batch of `"tokens"` and `"index"`; what comes
    back, `run(key) -> (params, losses [num_steps])`, is compiled once for all seeds.
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

        def step_loss(params: Any, step: Array) -> Array:
            batch = {
                "tokens": sample(jax.random.fold_in(data_key, step)),
                "index": step * batch_size + jnp.arange(batch_size),
            }
            return loss(params, batch, jax.random.fold_in(names_key, step))

        params = nn.meta.unbox(init(init_key))
        return descend(optimizer, step_loss, params, jnp.arange(num_steps))

    return run


def small_decoder(
    vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, given: bool
) -> models.DecoderLM:
    """A small decoder with recency heads; `given`: its embeddings come with each text."""
    config = models.DecoderConfig(
        vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        head_dim=d_model // num_heads, d_ff=d_ff, embedding="given" if given else "fixed",
        recency_heads=True, unroll_layers=True,
    )  # fmt: skip
    return models.DecoderLM(config)
