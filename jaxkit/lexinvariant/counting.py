"""Counting inside the context: the baseline that any trained lexinvariant model must beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import models, validation


def adaptive_ngram_losses(
    tokens: Int[Array, "B T"], vocab_size: int, order: int
) -> Float[Array, "B T-1"]:
    r"""Cross-entropy of an n-gram model that knows only the context so far.

    Interpolated Witten-Bell counts, from the uniform distribution up to contexts of `order`
    symbols: with ``n`` counts and ``u`` the number of different continuations of context ``c``,

    .. math:: q_o(v \mid c) = \frac{n(c, v) + u(c)\, q_{o-1}(v)}{n(c) + u(c)}, \qquad q_{-1} = 1/V

    where a context not seen yet leaves the shorter one. It needs no training and is exactly
    lexinvariant. All positions are computed at once, from ``[T, T]`` comparisons.

    Args:
        tokens: ids ``[B, T]`` in ``[0, V)``.
        vocab_size: number of symbols ``V``.
        order: longest context in symbols; 0 counts single symbols.

    Returns:
        ``-log q(token[t + 1] | token[: t + 1])`` in nats, ``[B, T - 1]``.

    Raises:
        ValueError: if `order` is negative, `vocab_size` not positive, or a concrete id or the shape
            is wrong.

    Example:
        >>> losses = adaptive_ngram_losses(jnp.array([[3, 0, 3]]), 8, 0)
        >>> [round(float(nats), 4) for nats in losses[0]]
        [2.7726, 1.1632]

    Source: Witten and Bell 1991 (method C); a baseline of ours, not of arXiv 2305.16349.
    """
    validation.integer("vocab_size", vocab_size, minimum=1)
    validation.integer("order", order, minimum=0)
    if jnp.ndim(tokens) != 2:
        raise ValueError(f"tokens must have shape [B, T], got {jnp.shape(tokens)}")
    models.validate_tokens(tokens, vocab_size)

    def losses(x: Int[Array, " T"]) -> Float[Array, " T-1"]:
        length = x.shape[0]
        same = x[:, None] == x
        match = jnp.tril(jnp.ones((length, length), bool), -1)
        q = jnp.full(length, 1.0 / vocab_size)
        for context in range(order + 1):
            if context:
                before = jnp.pad(same, ((context, 0), (context, 0)))[:length, :length]
                match = match & before
            count = match.sum(axis=1)
            hits = (match & same).sum(axis=1)
            # A position whose symbol never followed its context before is one new continuation.
            distinct = match.astype(jnp.float32) @ (hits == 0).astype(jnp.float32)
            q = jnp.where(count > 0, (hits + distinct * q) / jnp.maximum(count + distinct, 1), q)
        return -jnp.log(q[1:])

    return jax.vmap(losses)(tokens)
