"""Classical solvers of substitution ciphers, to compare with reading them in context."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from jaxkit import validation


def backoff_table(
    tokens: Integer[np.ndarray, " tokens"], vocab_size: int, order: int
) -> Float[Array, " ..."]:
    r"""Static n-gram model of plain text, with an entry for every length of known context.

    .. math:: q_o(v \mid c) = \frac{n(c, v) + u(c)\, q_{o-1}(v)}{n(c) + u(c)}

    Args:
        tokens: training text as ids in ``[0, V)``.
        vocab_size: number of symbols ``V``.
        order: longest context in symbols, at least 1.

    Returns:
        Log-probabilities ``[V + 1, ..., V + 1, V]`` with `order` context axes, the farthest
        symbol first; index ``V`` stands for a symbol that is not known, and everything farther
        than it is not known either.

    Raises:
        ValueError: if `order` is not positive, a token is out of range, or the table would have
            more than 2^26 entries.

    Example:
        >>> table = backoff_table(np.array([0, 1, 0, 1, 0]), 2, 1)
        >>> table.shape, bool(table[0, 1] > table[2, 1])
        ((3, 2), True)
    """
    validation.integer("order", order, minimum=1)
    tokens = np.asarray(tokens).astype(np.int64)
    if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"tokens must be a non-empty array of ids in [0, {vocab_size})")
    if (vocab_size + 1) ** order * vocab_size > 2**26:
        raise ValueError(
            f"order must be smaller: {order} symbols of context over {vocab_size} ids need "
            f"{(vocab_size + 1) ** order * vocab_size} entries, more than 2^26"
        )
    table = np.zeros((vocab_size + 1,) * order + (vocab_size,))
    q = np.full(vocab_size, 1.0 / vocab_size)
    for context in range(order + 1):
        code = np.zeros(len(tokens) - context, np.int64)
        for offset in range(context + 1):
            code = code * vocab_size + tokens[offset : len(tokens) - context + offset]
        count = np.bincount(code, minlength=vocab_size ** (context + 1))
        count = count.reshape((vocab_size,) * (context + 1))
        total, distinct = count.sum(-1, keepdims=True), (count > 0).sum(-1, keepdims=True)
        mixed = (count + distinct * q) / np.maximum(total + distinct, 1)
        # q[None] repeats the shorter context's distribution for each symbol before it.
        q = np.where(total > 0, mixed, q)
        known = (vocab_size,) * (order - context) + (slice(0, vocab_size),) * context
        table[known] = np.log(q)
        q = np.broadcast_to(q, (vocab_size, *q.shape))
    return jnp.asarray(table, jnp.float32)


def key_score(
    key: Int[Array, " V"], cipher: Int[Array, " T"], table: Float[Array, " ..."]
) -> Float[Array, ""]:
    """Log-probability of a ciphertext deciphered with a key, complete or not.

    A position whose symbol the key does not know scores 0; one whose context is partly unknown is
    scored by the shorter context.
    """
    vocab_size, order = table.shape[-1], table.ndim - 1
    plain = key[cipher]
    known, index = plain >= 0, []
    context_known = jnp.ones(plain.shape, bool)
    for back in range(1, order + 1):
        before = jnp.pad(plain, (back, 0), constant_values=-1)[: plain.shape[0]]
        context_known = context_known & (before >= 0)
        index.append(jnp.where(context_known, before, vocab_size))
    scores = table[(*reversed(index), jnp.maximum(plain, 0))]
    return jnp.sum(jnp.where(known, scores, 0.0))


def match_frequencies(cipher: Int[Array, " T"], unigram: Float[Array, " V"]) -> Int[Array, " V"]:
    """Pair the symbols of a ciphertext and of the language by rank of frequency.

    Args:
        cipher: ciphertext ``[T]``.
        unigram: how frequent each plain symbol is, ``[V]``, in any unit.

    Returns:
        The key: plain id of each cipher id, ``[V]``, a permutation. Ties go to the smaller id.

    Example:
        >>> match_frequencies(jnp.array([2, 2, 0]), jnp.array([0.1, 0.6, 0.3])).tolist()
        [2, 0, 1]
    """
    _require_ids(cipher, unigram.shape[0])
    counts = jnp.zeros(unigram.shape[0]).at[cipher].add(1.0)
    by_count, by_frequency = (jnp.argsort(-x, stable=True) for x in (counts, unigram))
    return jnp.zeros(unigram.shape[0], by_count.dtype).at[by_count].set(by_frequency)


def _require_ids(cipher: Int[Array, " T"], vocab_size: int) -> None:
    """Refuse a concrete ciphertext with other ids, which would be dropped."""
    if validation.is_traced(cipher):
        return
    ids = np.asarray(cipher)
    if ids.size == 0 or ids.min() < 0 or ids.max() >= vocab_size:
        found = f"{ids.min()} to {ids.max()}" if ids.size else "none"
        raise ValueError(f"cipher must be ids in [0, {vocab_size}), at least one, got {found}")


def climb_key(
    cipher: Int[Array, " T"],
    table: Float[Array, " ..."],
    key: Key[Array, ""],
    *,
    num_restarts: int = 8,
    num_steps: int = 10_000,
    temperature: float | Float[Array, ""] = 20.0,
) -> Int[Array, " V"]:
    """Improve random keys by swapping two entries, and keep the best.

    A swap is taken if it raises the score, or by chance if it lowers it little (simulated
    annealing, the temperature falling linearly to 0). All restarts run at once.

    Args:
        cipher: ciphertext ``[T]``.
        table: from `backoff_table`.
        key: typed key.
        num_restarts: keys to start from: the one by frequency, and random ones.
        num_steps: swaps proposed to each.
        temperature: at the start, in nats of the whole text; 0 climbs only. May be traced.

    Returns:
        The key with the best score: plain id of each cipher id, ``[V]``, a permutation.

    Raises:
        ValueError: if a number or a concrete id is out of range.

    Example:
        >>> table = backoff_table(np.array([0, 1, 1, 0, 1, 1, 0, 1]), 2, 1)
        >>> climb = jax.jit(lambda c: climb_key(c, table, jax.random.key(0), num_steps=20))
        >>> climb(jnp.array([0, 0, 1, 0, 0])).tolist()
        [1, 0]
    """
    validation.integer("num_restarts", num_restarts, minimum=1)
    validation.integer("num_steps", num_steps, minimum=1)
    validation.number("temperature", temperature, minimum=0)
    vocab_size = table.shape[-1]
    start_key, walk_key = jax.random.split(key)
    unknown = (vocab_size,) * (table.ndim - 1)
    by_frequency = match_frequencies(cipher, table[unknown])
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, vocab_size))(
        jax.random.split(start_key, num_restarts)
    )
    starts = shuffled.at[0].set(by_frequency).astype(jnp.int32)
    present = jnp.zeros(vocab_size).at[cipher].set(1.0)

    def climb(found: Int[Array, " V"], key: Key[Array, ""]):
        def propose(carry, inputs):
            found, score, best, best_score = carry
            key, heat = inputs
            one_key, other_key, coin_key = jax.random.split(key, 3)
            # At least one of the two symbols occurs, or the swap would change nothing.
            one = jax.random.categorical(one_key, jnp.log(present))
            other = jax.random.randint(other_key, (), 0, vocab_size)
            swapped = found.at[one].set(found[other]).at[other].set(found[one])
            new_score = key_score(swapped, cipher, table)
            taken = new_score - score > heat * jnp.log(jax.random.uniform(coin_key))
            found = jnp.where(taken, swapped, found)
            score = jnp.where(taken, new_score, score)
            better = score > best_score
            best = jnp.where(better, found, best)
            return (found, score, best, jnp.maximum(score, best_score)), None

        score = key_score(found, cipher, table)
        heat = temperature * jnp.linspace(1.0, 0.0, num_steps)
        (_, _, best, best_score), _ = jax.lax.scan(
            propose, (found, score, found, score), (jax.random.split(key, num_steps), heat)
        )
        return best, best_score

    best, scores = jax.vmap(climb)(starts, jax.random.split(walk_key, num_restarts))
    return best[jnp.argmax(scores)]


def beam_search_key(
    cipher: Int[Array, " T"], table: Float[Array, " ..."], beam_width: int = 256
) -> Int[Array, " V"]:
    """Build a key symbol by symbol, most frequent first, keeping the best partial keys.

    Args:
        cipher: ciphertext ``[T]``.
        table: from `backoff_table`.
        beam_width: partial keys kept.

    Returns:
        The best key found: plain id of each cipher id, ``[V]``, a permutation; symbols that do not
        occur get the plain ids left over, in no meaningful order.

    Raises:
        ValueError: if `beam_width` is not positive.

    Example:
        >>> table = backoff_table(np.array([0, 1, 1, 0, 1, 1, 0, 1]), 2, 1)
        >>> beam_search_key(jnp.array([0, 0, 1, 0, 0]), table, beam_width=2).tolist()
        [1, 0]

    Source: Nuhn, Schamper and Ney 2013, with all candidates of a step scored by `key_score`.
    """
    validation.integer("beam_width", beam_width, minimum=1)
    vocab_size = table.shape[-1]
    _require_ids(cipher, vocab_size)
    counts = jnp.zeros(vocab_size).at[cipher].add(1.0)
    order = jnp.argsort(-counts, stable=True)
    ids = jnp.arange(vocab_size)

    def extend(carry: tuple[Array, Array], symbol: Int[Array, ""]):
        keys, scores = carry

        def candidates(key: Int[Array, " V"], alive: Array) -> tuple[Array, Array]:
            taken = jnp.zeros(vocab_size + 1, bool).at[key].set(True)[:vocab_size]
            extended = jax.vmap(lambda plain: key.at[symbol].set(plain))(ids)
            value = jax.vmap(lambda k: key_score(k, cipher, table))(extended)
            return extended, jnp.where(taken | ~alive, -jnp.inf, value)

        extended, values = jax.vmap(candidates)(keys, scores > -jnp.inf)
        best, where = jax.lax.top_k(values.reshape(-1), beam_width)
        return (extended.reshape(-1, vocab_size)[where], best), None

    # One empty key to start from; the rest of the beam is dead until extensions fill it.
    keys = jnp.full((beam_width, vocab_size), -1)
    alive = jnp.where(jnp.arange(beam_width) == 0, 0.0, -jnp.inf)
    (keys, _), _ = jax.lax.scan(extend, (keys, alive), order)
    return keys[0]
