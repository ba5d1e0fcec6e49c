"""Sampling text: one prefill, then one `decode_step` a token, all in one `scan`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation
from jaxkit.models import decoder


def generate(
    model: decoder.DecoderLM,
    params: Any,
    prompt: Int[Array, "B T"],
    num_tokens: int,
    key: Key[Array, ""],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    embedding: decoder.AnyTable | None = None,
) -> Int[Array, "B N"]:
    """Continue a prompt by sampling token after token.

    Args:
        model: the language model.
        params: its variables.
        prompt: token ids ``[B, T]``, at least one a sequence.
        num_tokens: number ``N`` of tokens to add.
        key: typed key.
        temperature: divides the logits; 0 takes the most probable token. May be traced.
        embedding: token table, needed by models with `embedding="given"`; the same for every token.

    Returns:
        The new token ids ``[B, N]``.

    Raises:
        ValueError: if `num_tokens` is not positive, the prompt is empty, or the temperature is
            negative.

    Example:
        >>> model = decoder.DecoderLM(decoder.DecoderConfig(vocab_size=8, num_layers=1))
        >>> prompt = jnp.array([[1, 2]])
        >>> params = jax.eval_shape(decoder.initializer(model), jax.random.key(0))
        >>> jax.eval_shape(lambda p: generate(model, p, prompt, 3, jax.random.key(1)), params).shape
        (1, 3)
    """
    validation.integer("num_tokens", num_tokens, minimum=1)
    validation.number("temperature", temperature, minimum=0)
    batch_size, length = prompt.shape
    if length == 0:
        raise ValueError("prompt must hold at least one token, got none")

    def sample(key: Key[Array, ""], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
        warm = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, warm, jnp.argmax(logits, axis=-1)).astype(prompt.dtype)

    def step(carry, key):
        cache, logits = carry
        token = sample(key, logits)
        logits, cache = decode(cache, token[:, None])
        return (cache, logits[:, -1]), token

    def decode(cache: decoder.KeyValueCache, tokens: Array) -> tuple[Array, decoder.KeyValueCache]:
        return model.apply(params, cache, tokens, embedding, method="decode_step")  # type: ignore

    cache = decoder.empty_cache(model.config, batch_size, length + num_tokens)
    logits, cache = decode(cache, prompt)
    _, tokens = jax.lax.scan(step, (cache, logits[:, -1]), jax.random.split(key, num_tokens))
    return tokens.T
