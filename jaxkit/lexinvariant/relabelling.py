"""Renaming the tokens of each sequence: lexinvariance with one shared table."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxkit import models, validation
from jaxkit.lexinvariant import embeddings


def permute_tokens(
    keys: Key[Array, " B"],
    tokens: Int[Array, "B T"],
    vocab_size: int,
    p: float | Float[Array, ""] | Float[Array, " B"] = 1.0,
    per: Literal["type", "position"] = "type",
    closed: bool = False,
) -> tuple[Int[Array, "B T"], Int[Array, "B V"]]:
    r"""Rename token ids by one random permutation :math:`\pi_b` a sequence.

    .. math:: x_t \to \pi_b(x_t) \text{ with probability } p, \text{ else } x_t

    With ``p = 1`` a model with any learned table is exactly lexinvariant in expectation, and no
    ``[B, V, D]`` table exists: the readout stays one ordinary matrix product.

    Args:
        keys: one typed key a sequence, shape ``[B]``.
        tokens: ids ``[B, T]``, inputs and targets together, so that both are renamed alike.
        vocab_size: number of ids ``V``.
        p: probability of renaming, in [0, 1]; a scalar or one a sequence; may be traced.
        per: whether the coin is tossed for each `"type"` (id) or each `"position"`.
        closed: rename the chosen types among themselves, so that the mapping stays one-to-one;
            otherwise a renamed type may collide with one that kept its name (``0 < p < 1``).

    Returns:
        The new ids ``[B, T]`` and the mapping ``[B, V]`` from old id to new; with
        `per="position"`, the mapping of the positions that were renamed.

    Raises:
        TypeError: if keys are not typed keys, or tokens not integers.
        ValueError: if `p` is outside [0, 1], `per` is unknown, keys and tokens differ in length,
            a concrete id is out of range, or `closed` is asked for positions.

    Example:
        >>> keys, tokens = jax.random.split(jax.random.key(0), 1), jnp.array([[0, 1, 0, 2]])
        >>> renamed, mapping = permute_tokens(keys, tokens, 3)
        >>> jnp.take_along_axis(jnp.argsort(mapping), renamed, axis=1).tolist()
        [[0, 1, 0, 2]]

    Source: arXiv 2305.16349 §3.6 and appendix G; `closed` is an extension.
    """
    validation.integer("vocab_size", vocab_size, minimum=1)
    validation.number("p", p, minimum=0, maximum=1)
    validation.choice("per", per, ("type", "position"))
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    if not validation.is_traced(tokens):
        models.validate_tokens(tokens, vocab_size)
    embeddings.check_keys(keys, tokens.shape[0])
    if closed and per == "position":
        raise ValueError("closed=True needs per='type': positions of one type may differ")

    def rename(key: Key[Array, ""], x: Int[Array, " T"], q: Float[Array, ""]):
        order_key, coin_key = jax.random.split(key)
        rank = jax.random.uniform(order_key, (vocab_size,))
        ids = jnp.arange(vocab_size, dtype=x.dtype)
        if per == "position":
            mapping = jnp.argsort(rank).astype(x.dtype)
            renamed = jax.random.uniform(coin_key, x.shape) < q
            return jnp.where(renamed, mapping[x], x), mapping
        chosen = jax.random.uniform(coin_key, (vocab_size,)) < q
        if closed:
            # Both orders list the chosen ids first and the others, unchanged, behind them.
            slots = jnp.argsort(~chosen, stable=True)
            shuffled = jnp.argsort(jnp.where(chosen, rank, jnp.inf), stable=True)
            mapping = ids.at[slots].set(shuffled.astype(x.dtype))
        else:
            mapping = jnp.where(chosen, jnp.argsort(rank).astype(x.dtype), ids)
        return mapping[x], mapping

    chance = jnp.broadcast_to(jnp.asarray(p, jnp.float32), keys.shape)
    return jax.vmap(rename)(keys, tokens, chance)


def relabelling_schedule(total_steps: int, fraction: float = 0.6) -> optax.Schedule:
    r"""Anneal the probability of renaming from 0 to 1: an extension, not of the paper.

    .. math:: p(t) = \min\bigl(1,\ t / (\text{fraction} \cdot T)\bigr)

    A small model trained with ``p = 1`` from the start stays at the statistics of single symbols;
    one that first learns the language and loses the names little by little learns to infer them.

    Args:
        total_steps: T, steps of the run.
        fraction: part of the run after which every type is renamed, in (0, 1].

    Raises:
        ValueError: if `total_steps` is not positive or `fraction` outside (0, 1].

    Example:
        >>> p = relabelling_schedule(100)
        >>> [round(float(p(step)), 2) for step in (0, 30, 60, 100)]
        [0.0, 0.5, 1.0, 1.0]
    """
    validation.integer("total_steps", total_steps, minimum=1)
    validation.number("fraction", fraction, minimum=0, maximum=1, open_minimum=True)
    return optax.linear_schedule(0.0, 1.0, max(1, round(fraction * total_steps)))
