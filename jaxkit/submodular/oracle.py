"""The batched oracle calls of the host-driven dynamic maximiser, each compiled for few shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkit import pytrees
from jaxkit.submodular import cardinality, levels, restriction


def copy_key(key: jax.Array, exponent: Int[Array, ""]) -> jax.Array:
    """Derive the PRNG key of the copy of guess `(1 + eps)^exponent`.

    Example:
        >>> copy_key(jax.random.key(0), jnp.array(-3)).shape
        ()
    """
    return jax.random.fold_in(key, exponent.astype(jnp.int32) + (1 << 20))


@pytrees.jit
def singletons(function, elements):
    """F of single items `[b]`."""
    return function.gains(function.init(), elements)


@pytrees.jit
def deepest(function, prefixes, copies, limits, taus, elements):
    """Search the deepest level for items `[p]`, each in a copy of its own."""

    def one(copy, limit, tau, element):
        def prefix(i):
            return jax.tree.map(lambda leaf: leaf[copy, i], prefixes)

        return levels.deepest(function, prefix, limit, tau, element)

    return jax.vmap(one)(copies, limits, taus, elements)


@functools.partial(pytrees.jit, static_argnames="settings", donate_argnames="prefixes")
def build(function, settings, old, prefixes, copy, first, candidates, count, tau, key, exponent):
    """Build the levels of one copy; its prefix states in the bank are replaced in place."""
    mine = jax.tree.map(lambda leaf: leaf[copy], prefixes)
    present = jnp.arange(candidates.shape[0]) < count
    built = levels.build(
        function, settings, old, mine, first, candidates, present, tau, copy_key(key, exponent)
    )
    prefixes = jax.tree.map(lambda all_, one: all_.at[copy].set(one), prefixes, built.prefixes)
    return built.levels, prefixes, built.depth, built.num_queries


@functools.partial(pytrees.jit, static_argnames="k")
def polish(function, k, items, mask):
    """Run lazy greedy on a few items."""
    return cardinality.lazy_greedy(restriction.Restriction(function, items), k, mask=mask, batch=16)


def padded(ids: np.ndarray, smallest: int, largest: int) -> np.ndarray:
    """Repeat the first id up to a power of two (or `largest`): few shapes, few compilations."""
    length = max(smallest, 1 << max(int(ids.size) - 1, 0).bit_length())
    length = max(min(length, largest), int(ids.size))
    return np.concatenate([ids, np.full(length - ids.size, ids[0], ids.dtype)])
