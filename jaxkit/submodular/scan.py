"""The dynamic maximiser as one jitted scan over a whole stream, for streams on the device.

It takes the same decisions, draws and queries as `DynamicMaximiser`, whose module says what is
from the paper. A rebuild costs the capacity n here, not the size of a reservoir: on a CPU the
host-driven `DynamicMaximiser` is faster.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkit import pytrees, validation
from jaxkit.submodular import levels, set_functions
from jaxkit.submodular.levels import Levels, LevelSettings
from jaxkit.submodular.operands import FlagList, ItemList
from jaxkit.submodular.selection import QueryCount


class ScanState(NamedTuple):
    """State of the scan: a fixed grid of c guesses over n items.

    Attributes:
        exponents, guesses, depth, levels, prefixes, live, key: as `DynamicMaximiser.state`.
        num_queries: queries of all updates; read-outs are not counted.
        overflow: whether the guarantee is lost: an item's value alone was outside the range given
            at the start, or a gain was NaN or infinite and its item left out.
        num_ignored: operations that were illegal (insert present, delete absent, no such item, a
            value that is not finite) and changed nothing.
    """

    exponents: Int[Array, " c"]
    guesses: Float[Array, " c"]
    depth: Int[Array, "c n"]
    levels: Levels
    prefixes: Any
    live: Bool[Array, " n"]
    key: Any
    num_queries: QueryCount
    overflow: Bool[Array, ""]
    num_ignored: Int[Array, ""]


class ScanTrace(NamedTuple):
    """F of the best copy's live items after each operation, those items, and its queries."""

    values: Float[Array, " s"]
    indices: Int[Array, "s k"]
    num_queries: Int[Array, " s"]


def dynamic_start(
    function: set_functions.SetFunction,
    settings: LevelSettings,
    value_range: Sequence[float | np.floating],
    key: jax.Array,
) -> ScanState:
    """Make the state of no live items.

    Args:
        function: a monotone submodular function.
        settings: the maximiser's settings.
        value_range: smallest and largest F of a single item that will come; the grid of guesses
            reaches from the first to `2k` times the second. Items worth 0 are always legal.
        key: typed PRNG key.

    Raises:
        TypeError: if the range is not of numbers.
        ValueError: if the range is not two positive numbers in ascending order.

    Example:
        >>> from jaxkit.submodular import modular
        >>> state = dynamic_start(modular(jnp.ones(3)), LevelSettings(1), (1, 1), jax.random.key(0))
        >>> int(state.num_queries), state.exponents.tolist()
        (0, [0, 1, 2, 3, 4])
    """
    set_functions.check(function)
    low, high = value_range
    low = float(validation.number("value_range", low, minimum=0, open_minimum=True))
    high = float(validation.number("value_range", high, minimum=low))
    eps = settings.inner_eps
    exponents = levels.grid_exponents(low, 2 * settings.k * high, eps)
    count = exponents.size

    def stacked(tree):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)

    return ScanState(
        jnp.asarray(exponents, jnp.int32),
        jnp.asarray(levels.guess_of(exponents, eps)),
        jnp.zeros((count, function.num_items), jnp.int32),
        stacked(Levels.empty(settings.k)),
        stacked(levels.empty_prefixes(function, settings.k)),
        jnp.zeros(function.num_items, bool),
        # A copy: the state may be donated, the caller's key is not.
        jax.random.clone(key),
        QueryCount.zero(),
        jnp.zeros((), bool),
        jnp.zeros((), jnp.int32),
    )


def dynamic_scan(
    function: set_functions.SetFunction,
    settings: LevelSettings,
    state: ScanState,
    inserts: FlagList,
    elements: ItemList,
) -> tuple[ScanState, ScanTrace]:
    """Run a stream of insertions and deletions.

    Args:
        function: the set function that the state was made for.
        settings: the settings that the state was made for, static.
        state: where to start.
        inserts: whether each operation is an insertion (else a deletion), `[s]`.
        elements: its item, `[s]`.

    Returns:
        The state after the stream, and the value, items and queries after each operation. Look at
        `state.overflow` and `state.num_ignored`.

    Raises:
        TypeError: if the operations are not boolean and integer.
        ValueError: if their shapes differ.

    Source: as `DynamicMaximiser`.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f, settings = modular(jnp.array([1.0, 2.0])), LevelSettings(1)
        >>> state = dynamic_start(f, settings, (1, 2), jax.random.key(0))
        >>> inserts, elements = jnp.array([True, True, False]), jnp.array([0, 1, 1])
        >>> dynamic_scan(f, settings, state, inserts, elements)[1].values.tolist()
        [1.0, 2.0, 1.0]
    """
    inserts, elements = jnp.asarray(inserts), jnp.asarray(elements)
    if inserts.dtype != bool or not jnp.issubdtype(elements.dtype, jnp.integer):
        raise TypeError(
            "inserts must be boolean and elements integer, got dtypes "
            f"{inserts.dtype} and {elements.dtype}"
        )
    if inserts.ndim != 1 or inserts.shape != elements.shape:
        raise ValueError(
            "inserts and elements must have one same axis, got shapes "
            f"{inserts.shape} and {elements.shape}"
        )
    return _dynamic_scan(function, settings, state, inserts, elements.astype(jnp.int32))


@functools.partial(pytrees.jit, static_argnames="settings")
def _dynamic_scan(function, settings, state, inserts, elements):
    def step(state, operation):
        return _update(function, settings, state, *operation)

    return jax.lax.scan(step, state, (inserts, elements))


class _Copy(NamedTuple):
    exponent: Int[Array, ""]
    guess: Float[Array, ""]
    depth: Int[Array, " n"]
    levels: Levels
    prefixes: Any
    first: Int[Array, ""]


def _update(function, settings: LevelSettings, state: ScanState, insert, element):
    n = function.num_items
    legal = (element >= 0) & (element < n)
    element = jnp.clip(element, 0, n - 1)
    legal &= state.live[element] != insert
    singleton = function.gains(function.init(), element)
    legal &= ~(insert & set_functions.impossible(singleton))
    member = legal & insert & levels.belongs(state.guesses, singleton, settings.k)
    ratio, highest = 1 + settings.inner_eps, np.float32(2 * settings.k) * singleton
    covered = (state.guesses[0] < singleton * ratio) & (highest < state.guesses[-1] * ratio)
    overflow = legal & insert & (singleton > 0) & ~covered

    held = state.depth[:, element]
    depth, asked = _search(function, settings, state, member, element)
    gone = legal & ~insert
    lv = levels.entered(state.levels, depth[:, None])
    lv = levels.left(lv, jnp.where(gone, held, 0)[:, None], jnp.where(gone, element, -2)[None])
    depths = state.depth.at[:, element].set(jnp.where(legal, depth, held))

    def one_copy(_, copy: _Copy):
        rebuild = functools.partial(_rebuild, function, settings, state.key)
        return None, jax.lax.cond(copy.first > 0, rebuild, lambda copy: (copy, 0, False), copy)

    due = levels.first_due(settings, lv)
    copies = _Copy(state.exponents, state.guesses, depths, lv, state.prefixes, due)
    _, (copies, more, flawed) = jax.lax.scan(one_copy, None, copies)
    num_queries = jnp.sum(asked) + jnp.sum(more) + (legal & insert)
    live = state.live.at[element].set(jnp.where(legal, insert, state.live[element]))
    values = levels.values_of(function, settings, copies.levels.order, copies.levels.alive)
    best = jnp.argmax(values)
    after = state._replace(
        depth=copies.depth,
        levels=copies.levels,
        prefixes=copies.prefixes,
        live=live,
        num_queries=state.num_queries.plus(num_queries),
        overflow=state.overflow | overflow | jnp.any(flawed),
        num_ignored=state.num_ignored + ~legal,
    )
    items = jnp.where(copies.levels.alive[best], copies.levels.order[best], -1)
    return after, ScanTrace(values[best], items, num_queries.astype(jnp.int32))


def _search(function, settings, state: ScanState, member, element):
    """Depth of an item in each copy that it belongs to (else 0), and the queries, `[c]`."""
    copies = jnp.arange(member.shape[0])
    limits = jnp.where(member, levels.limits(state.levels), 1)
    elements = jnp.broadcast_to(element, member.shape)
    depth, asked = levels.search(
        function, settings, state.prefixes, copies, limits, state.guesses, elements
    )
    return jnp.where(member, depth, 0), asked


def _rebuild(function, settings, key, copy: _Copy):
    present = copy.depth >= copy.first
    built = levels.build(
        function,
        settings,
        copy.levels,
        copy.prefixes,
        copy.first,
        jnp.arange(function.num_items, dtype=jnp.int32),
        present,
        copy.guess,
        key,
        copy.exponent,
    )
    depth = jnp.where(present, built.depth, copy.depth)
    new = copy._replace(depth=depth, levels=built.levels, prefixes=built.prefixes)
    return new, built.num_queries.astype(jnp.int32), built.flawed >= 0
