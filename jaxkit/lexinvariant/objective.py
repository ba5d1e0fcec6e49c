"""The training objective: next-token cross-entropy, with a fresh table a sequence where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxkit.lexinvariant import decoder, embeddings

Batch = Mapping[str, Array]


def token_losses(
    model: decoder.DecoderLM, params: Any, batch: Batch, key: Key[Array, ""]
) -> Float[Array, "B T"]:
    """Cross-entropy of every next token, in nats.

    Args:
        model: the language model.
        params: its variables.
        batch: `"tokens"`, ids ``[B, T + 1]``, and `"index"`, the global index of each sequence,
            which fixes its random table.
        key: typed key of this step; used by lexinvariant models only.

    Returns:
        ``-log p(token[t + 1] | token[: t + 1])``, shape ``[B, T]``.

    Example:
        >>> import jax
        >>> model = decoder.DecoderLM(decoder.DecoderConfig(vocab_size=8, num_layers=1))
        >>> batch = {"tokens": jnp.zeros((2, 5), int), "index": jnp.arange(2)}
        >>> params = model.init(jax.random.key(0), batch["tokens"])
        >>> token_losses(model, params, batch, jax.random.key(1)).shape
        (2, 4)

    Source: arXiv 2305.16349 §2.3: one draw a training sequence, no gradient to the table.
    """
    config = model.config
    tokens = batch["tokens"]
    table = None
    if config.embedding == "lexinvariant":
        keys = embeddings.sequence_keys(key, batch["index"])
        table = embeddings.draw_embedding(keys, config.vocab_size, config.d_model)
    logits: Any = model.apply(params, tokens[:, :-1], table)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def next_token_loss(
    model: decoder.DecoderLM,
) -> Callable[[Any, Batch, Key[Array, ""]], Float[Array, ""]]:
    """Make the loss function `loss(params, batch, key)`: mean nats a token over the batch.

    Args:
        model: the language model.

    Returns:
        A pure function for `jax.value_and_grad`; see `token_losses` for its arguments.

    Example:
        >>> loss = next_token_loss(decoder.DecoderLM(decoder.DecoderConfig(vocab_size=8)))
    """

    def loss(params: Any, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        return jnp.mean(token_losses(model, params, batch, key))

    return loss
