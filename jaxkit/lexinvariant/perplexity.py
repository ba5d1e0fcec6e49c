"""Perplexity by position in the context, and sequence probability over several draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxkit import models, validation
from jaxkit.lexinvariant import objective


def smoothed_perplexity(losses: Float[Array, "B T"], window: int) -> Float[Array, "B T-{window}+1"]:
    r"""Perplexity of each sequence over a sliding window of positions.

    .. math:: P_{b,i} = \exp\Bigl( \frac1w \sum_{j=i}^{i+w-1} \ell_{b,j} \Bigr)

    Args:
        losses: cross-entropy of each token in nats, ``[B, T]`` (see `token_losses`).
        window: positions ``w`` averaged over, in ``[1, T]``.

    Returns:
        ``[B, T - w + 1]``; the paper plots mean and standard deviation over sequences.

    Raises:
        ValueError: if `window` is not in ``[1, T]``.

    Example:
        >>> smoothed_perplexity(jnp.log(jnp.array([[2.0, 8.0, 2.0]])), 2).round(3).tolist()
        [[4.0, 4.0]]

    Source: arXiv 2305.16349 §3.2 (with the sign its exponent lacks).
    """
    if losses.ndim != 2:
        raise ValueError(f"losses must have shape [B, T], got {losses.shape}")
    length = losses.shape[-1]
    if validation.integer("window", window, minimum=1) > length:
        raise ValueError(f"window must be at most the {length} positions, got {window}")
    sums = jax.lax.reduce_window(losses, 0.0, jax.lax.add, (1, window), (1, 1), "valid")
    return jnp.exp(sums / window)


class DrawLogProb(NamedTuple):
    """Sequence log-probabilities under several draws of the random table.

    Attributes:
        log_prob: log-mean-exp over the draws, ``[B]``: an estimate of the lexinvariant model's own
            log-probability, from below in expectation.
        draws: log-probability under each draw, ``[K, B]``.
    """

    log_prob: Float[Array, " B"]
    draws: Float[Array, "K B"]


def lexinvariant_log_prob(
    model: models.DecoderLM,
    params: Any,
    batch: objective.Batch,
    key: Key[Array, ""],
    num_draws: int = 1,
    **hiding: Any,
) -> DrawLogProb:
    r"""Log-probability of whole sequences, averaged over draws of the random table.

    .. math:: \log p(x) \approx \log \frac1K \sum_{k=1}^{K} p_{E_k}(x_{2:T} \mid x_1)

    It weighs each draw by how well it explains the sequence, so that it is never below the mean of
    the draws' log-probabilities (Jensen), which is what one draw estimates.

    Args:
        model: the language model.
        params: its variables.
        batch: `"tokens"` ``[B, T + 1]`` and `"index"` ``[B]``, as for `token_losses`.
        key: typed key; draw ``k`` uses ``fold_in(key, k)``.
        num_draws: number of draws ``K``, one after the other.
        **hiding: `method`, `p`, `per`, `closed`, `chunk_size` of `token_losses`.

    Raises:
        ValueError: if `num_draws` is not positive, or as `token_losses`.

    Example:
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=8, num_layers=1))
        >>> batch = {"tokens": jnp.zeros((2, 5), int), "index": jnp.arange(2)}
        >>> params = jax.jit(models.initializer(model))(jax.random.key(0))
        >>> estimate = jax.jit(lambda p: lexinvariant_log_prob(
        ...     model, p, batch, jax.random.key(1), 3, method="relabel"))(params)
        >>> bool((estimate.log_prob >= estimate.draws.mean(0)).all())
        True

    Source: arXiv 2305.16349 §2.3 eq. 6.
    """
    validation.integer("num_draws", num_draws, minimum=1)

    def one(draw: Array) -> Float[Array, " B"]:
        losses = objective.token_losses(
            model, params, batch, jax.random.fold_in(key, draw), **hiding
        )
        return -jnp.sum(losses, axis=-1)

    draws = jax.lax.map(one, jnp.arange(num_draws))
    return DrawLogProb(jax.nn.logsumexp(draws, axis=0) - jnp.log(num_draws), draws)
