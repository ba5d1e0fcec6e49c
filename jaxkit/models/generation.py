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
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
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
        top_k: draw among the k most probable tokens only, and those equal to the last of them.
        top_p: draw among the fewest most probable tokens that have this probability together, after
            `temperature` and `top_k` (nucleus sampling). May be traced.
        embedding: token table, needed by models with `embedding="given"`; the same for every token.

    Returns:
        The new token ids ``[B, N]``.

    Raises:
        ValueError: if `num_tokens` or `top_k` is not positive, the prompt is empty, the temperature
            is negative, or `top_p` is not in (0, 1].

    Example:
        >>> model = decoder.DecoderLM(decoder.DecoderConfig(vocab_size=8, num_layers=1))
        >>> prompt = jnp.array([[1, 2]])
        >>> params = jax.eval_shape(decoder.initializer(model), jax.random.key(0))
        >>> jax.eval_shape(lambda p: generate(model, p, prompt, 3, jax.random.key(1)), params).shape
        (1, 3)
    """
    validation.integer("num_tokens", num_tokens, minimum=1)
    validation.number("temperature", temperature, minimum=0)
    if top_k is not None:
        validation.integer("top_k", top_k, minimum=1)
    if top_p is not None:
        validation.number("top_p", top_p, minimum=0, maximum=1, open_minimum=True)
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise ValueError(
            f"prompt must be ids [B, T], at least one token each, got shape {prompt.shape}"
        )
    batch_size, length = prompt.shape

    def sample(key: Key[Array, ""], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
        tempered = likeliest(logits / jnp.maximum(temperature, 1e-6), top_k, top_p)
        warm = jax.random.categorical(key, tempered)
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


def likeliest(
    logits: Float[Array, "B V"], top_k: int | None, top_p: float | Float[Array, ""] | None
) -> Float[Array, "B V"]:
    """Logits of the tokens that may be drawn, minus infinity elsewhere; see `generate`."""
    if top_k is not None and top_k < logits.shape[-1]:
        last = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < last, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (before < top_p) | (jnp.asarray(top_p) >= 1)  # sums of 1 are rounded
        last = jnp.min(ordered, axis=-1, where=kept, initial=jnp.inf, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return logits
