"""Substitution ciphers: keys, voting on a key, and how much of it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import validation


def random_cipher(
    key: Key[Array, ""],
    vocab_size: int,
    plain: Sequence[int] | Int[Array, " n"] | np.ndarray | None = None,
    images: Sequence[int] | Int[Array, " m"] | np.ndarray | None = None,
) -> Int[Array, " V"]:
    """Draw a substitution: each symbol of `plain` gets its own random symbol of `images`.

    Args:
        key: typed key.
        vocab_size: number of ids ``V``.
        plain: ids to encipher, ``[n]``; None for all.
        images: ids to encipher into, ``[m >= n]``; None for `plain`, which makes a permutation.

    Returns:
        ``[V]``: the cipher id of each plain id; ids not in `plain` stay as they are, so that they
        may collide with images outside `plain`, as in the paper's test.

    Raises:
        ValueError: if ids repeat or are out of range, or there are fewer images than symbols.

    Example:
        >>> cipher = random_cipher(jax.random.key(0), 5, [1, 2, 3])
        >>> int(cipher[0]), int(cipher[4]), sorted(cipher[1:4].tolist())
        (0, 4, [1, 2, 3])

    Source: arXiv 2305.16349 §3.3.
    """
    validation.integer("vocab_size", vocab_size, minimum=1)
    plain = np.arange(vocab_size) if plain is None else np.asarray(plain)
    images = plain if images is None else np.asarray(images)
    for name, ids in (("plain", plain), ("images", images)):
        if len(np.unique(ids)) < len(ids) or ((ids < 0) | (ids >= vocab_size)).any():
            raise ValueError(f"{name} must be different ids in [0, {vocab_size}), got {ids}")
    if len(images) < len(plain):
        raise ValueError(f"images must be at least the {len(plain)} symbols, got {len(images)}")
    chosen = jax.random.permutation(key, jnp.asarray(images))[: len(plain)]
    return jnp.arange(vocab_size).at[jnp.asarray(plain)].set(chosen)


def cipher_key_vote(
    cipher: Int[Array, " T"],
    deciphered: Int[Array, " T"],
    vocab_size: int,
    start: int | Int[Array, ""] = 0,
    size: int | Int[Array, ""] | None = None,
) -> Int[Array, " V"]:
    """Recover a key by majority: what each cipher symbol was most often deciphered as.

    Args:
        cipher: cipher ids ``[T]``.
        deciphered: the plain id guessed at each position, ``[T]``.
        vocab_size: number of ids ``V``.
        start: first position that votes; may be traced.
        size: number of positions that vote; None for all from `start` on; may be traced.

    Returns:
        ``[V]``: the plain id of each cipher id, -1 where the window does not have it. Ties go to
        the smaller plain id.

    Raises:
        ValueError: if `start` is negative, `size` not positive, or lengths differ.

    Example:
        >>> cipher_key_vote(jnp.array([1, 1, 1, 0]), jnp.array([2, 2, 0, 1]), 3).tolist()
        [1, 2, -1]

    Source: arXiv 2305.16349 §3.3.
    """
    if deciphered.shape != cipher.shape:
        raise ValueError(f"deciphered must have shape {cipher.shape}, got {deciphered.shape}")
    voting = _window(cipher.shape[0], start, size).astype(jnp.int32)
    votes = jnp.zeros((vocab_size, vocab_size), jnp.int32).at[cipher, deciphered].add(voting)
    return jnp.where(votes.sum(axis=1) > 0, jnp.argmax(votes, axis=1), -1)


def key_precision(
    found: Int[Array, " V"], cipher: Int[Array, " V"], plain: Int[Array, " n"] | None = None
) -> Float[Array, ""]:
    """Share of the entries of a recovered key that are right.

    Args:
        found: plain id of each cipher id, -1 for entries not voted on, ``[V]``.
        cipher: the true cipher, from plain id to cipher id, ``[V]``.
        plain: plain ids whose entries count; None for all.

    Returns:
        Right entries divided by entries voted on; NaN if there are none.

    Raises:
        ValueError: if the two keys differ in length.

    Example:
        >>> float(key_precision(jnp.array([1, 0, -1]), jnp.array([1, 2, 0])))
        0.5

    Source: arXiv 2305.16349 §3.3.
    """
    if found.shape != cipher.shape:
        raise ValueError(f"found must have shape {cipher.shape} like cipher, got {found.shape}")
    plain = jnp.arange(cipher.shape[0]) if plain is None else plain
    entries = found[cipher[plain]]
    voted = entries >= 0
    return jnp.sum(voted & (entries == plain)) / jnp.sum(voted)


def cipher_key_assignment(
    cipher: Int[Array, " T"],
    log_probs: Float[Array, "T V"],
    start: int | Int[Array, ""] = 0,
    size: int | Int[Array, ""] | None = None,
) -> Int[Array, " V"]:
    r"""Recover the one-to-one key with the largest total log-probability: an extension.

    .. math:: \arg\max_\sigma \sum_t \log P_t(\sigma(c_t)), \quad \sigma \text{ injective}

    A frequent plain symbol wins the vote for many cipher symbols; here it can be given only once.

    Args:
        cipher: cipher ids ``[T]``.
        log_probs: over plain ids at each position, finite, ``[T, V]`` (see `decipher_log_probs`).
        start: first position used; may be traced.
        size: number of positions used; None for all from `start` on; may be traced.

    Returns:
        ``[V]``: the plain id of each cipher id, -1 where the window does not have it.

    Raises:
        ValueError: if `start` is negative or `size` not positive.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.4, 0.6], [0.1, 0.9]]))
        >>> cipher_key_assignment(jnp.array([0, 1]), log_probs).tolist()
        [0, 1]
    """
    return assigned_key(*evidence(cipher, log_probs, start, size))


def evidence(
    cipher: Int[Array, " T"],
    log_probs: Float[Array, "T V"],
    start: int | Int[Array, ""] = 0,
    size: int | Int[Array, ""] | None = None,
) -> tuple[Float[Array, "V V"], Bool[Array, " V"]]:
    """Total log-probability of each plain id for each cipher id, and which of those occur."""
    voting = _window(cipher.shape[0], start, size)
    vocab_size = log_probs.shape[1]
    used = jnp.where(voting[:, None], log_probs, 0.0)
    totals = jnp.zeros((vocab_size, vocab_size)).at[cipher].add(used)
    return totals, jnp.zeros(vocab_size, bool).at[cipher].max(voting)


def assigned_key(totals: Float[Array, "V V"], seen: Bool[Array, " V"]) -> Int[Array, " V"]:
    """The one-to-one key of largest total, -1 for cipher ids not `seen`."""
    # Rows of ids not seen are zero: they take what is left and cost nothing.
    ids, plain = optax.assignment.hungarian_algorithm(-totals)
    return jnp.where(seen, jnp.zeros_like(plain).at[ids].set(plain), -1)


def _window(length: int, start: Any, size: Any) -> Bool[Array, " T"]:
    for name, value, minimum in (("start", start, 0), ("size", size, 1)):
        if value is not None and not validation.is_traced(value):
            validation.integer(name, value, minimum=minimum)
    position = jnp.arange(length)
    stop = length if size is None else start + size
    return (position >= start) & (position < stop)
