"""One pass over a stream that only grows, in bounded memory: sieve-streaming and its successor."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import pytrees, validation
from jaxkit.submodular import operands, selection, set_functions
from jaxkit.submodular.operands import FlagList, Item, ItemList
from jaxkit.submodular.selection import QueryCount, Selection


class SieveState(NamedTuple):
    """State of a sieve: g sets, each for one guess; guess j stands at place `j mod g`.

    `best_single` is the largest F of one item so far, D, `peak_stored` the most items that all sets
    ever held together, with multiplicity; `flawed` an item that was left out because a gain of it
    was NaN or infinite, -1 for none.
    """

    exponents: Int[Array, " g"]
    sets: Int[Array, "g k"]
    gains: Float[Array, "g k"]
    sizes: Int[Array, " g"]
    states: Any
    best_single: Float[Array, ""]
    best_value: Float[Array, ""]
    num_queries: QueryCount
    peak_stored: Int[Array, ""]
    flawed: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Sieve:
    """A streaming maximiser; make it with `sieve_streaming` or `sieve_streaming_pp`.

    Its methods are pure functions; the set function is an argument, so that they compile once for
    all functions of one kind and shape. `lower_bound` says whether guesses that the best value so
    far rules out are dropped (++).
    """

    k: int
    eps: float
    lower_bound: bool

    @property
    def num_sets(self) -> int:
        """Sets kept at a time, g."""
        span = 2 * self.k * (1 + self.eps if self.lower_bound else 1)
        return math.floor(math.log(span) / math.log1p(self.eps) + 1e-6) + 2

    def init(self, function: set_functions.SetFunction) -> SieveState:
        """State before the first item."""
        set_functions.check(function)
        g, empty = self.num_sets, function.init()
        return SieveState(
            jnp.full(g, _UNUSED, jnp.int32),
            jnp.full((g, self.k), -1, jnp.int32),
            jnp.zeros((g, self.k)),
            jnp.zeros(g, jnp.int32),
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (g, *leaf.shape)), empty),
            jnp.zeros(()),
            jnp.zeros(()),
            QueryCount.zero(),
            jnp.zeros((), jnp.int32),
            jnp.full((), -1, jnp.int32),
        )

    def update(
        self, function: set_functions.SetFunction, state: SieveState, element: Item
    ) -> SieveState:
        """Offer one item to every set that it could serve; it may be traced, and new to the sieve.

        Costs 1 query for F of the item alone, and 1 for each set that is not full and whose guess
        is in range once the item has been seen: empty sets, and those it brings up, too.
        """
        return self.run(function, state, jnp.asarray(element, jnp.int32)[None])

    def run(
        self,
        function: set_functions.SetFunction,
        state: SieveState,
        elements: ItemList,
        valid: FlagList | None = None,
    ) -> SieveState:
        """Offer items `[s]` in order, those that are `valid` (all by default), in one scan.

        Raises:
            ValueError: if a concrete item that is to be offered is out of range, or a gain is NaN
                or infinite (under `jit` the item is left out, and the value of a solution is NaN).
        """
        elements = operands.item_list("elements", elements)
        valid = jnp.ones(elements.shape, bool) if valid is None else jnp.asarray(valid)
        if not validation.is_traced(elements) and not validation.is_traced(valid):
            operands.indices("elements", elements[valid], function.num_items)
        return selection.trusted(function, _run(function, state, elements, valid, self))

    def solution(self, function: set_functions.SetFunction, state: SieveState) -> Selection:
        """Read the best set, without a query: at least `1/2 - eps` of the best of items offered."""
        return _solution(function, state, self)


_UNUSED = -(1 << 30)


def _update(function, state: SieveState, element, valid, sieve: Sieve) -> SieveState:
    base, k, g = math.log1p(sieve.eps), sieve.k, sieve.num_sets
    single = jnp.where(valid, function.gains(function.init(), element), 0)
    wrong = set_functions.impossible(single)
    valid, single = valid & ~wrong, jnp.where(wrong, 0, single)
    highest = jnp.maximum(state.best_single, single)
    # Guesses of OPT lie in [D, 2kD]; the successor sieves by thresholds in [LB / 2k(1+eps), D].
    if sieve.lower_bound:
        bound = jnp.maximum(state.best_value, highest)
        lowest, largest = bound / (2 * k * (1 + sieve.eps)), highest
    else:
        lowest, largest = highest, 2 * k * highest
    safe = jnp.where(highest > 0, lowest, 1.0)
    first = jnp.ceil(jnp.log(safe) / base - 1e-5).astype(jnp.int32)
    last = jnp.floor(jnp.log(jnp.where(highest > 0, largest, 1.0)) / base + 1e-5).astype(jnp.int32)
    place = jnp.arange(g, dtype=jnp.int32)
    exponents = first + jnp.mod(place - first, g)
    used = (exponents <= last) & (highest > 0)
    fresh = (exponents != state.exponents) | ~used

    def reset(leaf, empty):
        shape = (g,) + (1,) * (leaf.ndim - 1)
        return jnp.where(fresh.reshape(shape), empty, leaf)

    states = jax.tree.map(reset, state.states, function.init())
    sets, kept_gains = reset(state.sets, -1), reset(state.gains, 0)
    sizes = jnp.where(fresh, 0, state.sizes)

    gains = jax.vmap(function.gains, (0, None))(states, element)
    values = jax.vmap(function.value)(states)
    guess = jnp.exp(base * exponents)
    room = k - sizes
    needed = guess if sieve.lower_bound else (guess / 2 - values) / jnp.maximum(room, 1)
    asked = used & (room > 0) & valid
    wrong |= jnp.any(asked & set_functions.impossible(gains))
    keep = asked & (gains >= needed) & ~wrong
    slot = keep[:, None] & (jnp.arange(k) == sizes[:, None])
    added = jax.vmap(function.add, (0, None))(states, element)

    def choose(new, old):
        return jnp.where(keep.reshape((g,) + (1,) * (old.ndim - 1)), new, old)

    states = jax.tree.map(choose, added, states)
    sizes = sizes + keep
    best_value = jnp.maximum(state.best_value, (values + jnp.where(keep, gains, 0)).max())
    return SieveState(
        jnp.where(used, exponents, _UNUSED),
        jnp.where(slot, element, sets),
        jnp.where(slot, gains[:, None], kept_gains),
        sizes,
        states,
        highest,
        best_value,
        state.num_queries.plus(valid + jnp.sum(asked)),
        jnp.maximum(state.peak_stored, jnp.sum(sizes, dtype=jnp.int32)),
        jnp.where(wrong, element, state.flawed),
    )


@functools.partial(pytrees.jit, static_argnames="sieve")
def _run(function, state, elements, valid, sieve):
    def step(state, offered):
        element, valid = offered
        return _update(function, state, element, valid, sieve), None

    return jax.lax.scan(step, state, (elements, valid))[0]


@functools.partial(pytrees.jit, static_argnames="sieve")
def _solution(function, state, sieve):
    values = jnp.where(state.sizes > 0, jax.vmap(function.value)(state.states), 0)
    best = jnp.argmax(values)
    indices = state.sets[best]
    return Selection(
        indices,
        state.gains[best],
        indices >= 0,
        jnp.where(state.flawed >= 0, jnp.nan, values[best]),
        state.num_queries,
        selection.guarantee(function, 0.5 - sieve.eps),
        state.flawed,
    )


def _sieve(k: int, eps: float, lower_bound: bool) -> Sieve:
    validation.integer("k", k, minimum=1)
    validation.number("eps", eps, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    return Sieve(int(k), float(eps), lower_bound)


def sieve_streaming(k: int, *, eps: float = 0.2) -> Sieve:
    r"""Make sieve-streaming: one pass, at most $k \log_{1+\epsilon}(2k)$ items in memory.

    For each guess $v = (1 + \epsilon)^j \in [D, 2kD]$, D the best single item so far, an item is
    kept if $F(e | S_v) \ge (v / 2 - F(S_v)) / (k - |S_v|)$.

    Args:
        k: size of the solution at most, static.
        eps: loss, in (0, 1), static: it sets the number of guesses.

    Returns:
        A `Sieve`: `init`, `update` or `run`, `solution`; at least `1/2 - eps` of the best for a
        monotone function and any order of the stream.

    Raises:
        TypeError: if k is not an integer.
        ValueError: if k is not positive or `eps` not in (0, 1).

    Source: Badanidiyuru et al., KDD 2014, Algorithm 3.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f, sieve = modular(jnp.array([1.0, 3.0, 2.0])), sieve_streaming(2)
        >>> state = sieve.run(f, sieve.init(f), jnp.arange(3))
        >>> float(sieve.solution(f, state).value)
        5.0
    """
    return _sieve(k, eps, False)


def sieve_streaming_pp(k: int, *, eps: float = 0.2) -> Sieve:
    r"""Make sieve-streaming++: O(k / eps) items in memory.

    Thresholds are $(1 + \epsilon)^j \in [\max(LB, D) / (2k(1 + \epsilon)), D]$ with LB the best
    value and D the best single item so far; an item is kept if its gain reaches the threshold.

    Arguments, errors and guarantee are those of `sieve_streaming`; memory falls as the value grows.

    Source: Kazemi et al., ICML 2019, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f, sieve = modular(jnp.array([1.0, 3.0, 2.0])), sieve_streaming_pp(2)
        >>> state = sieve.update(f, sieve.init(f), 1)
        >>> sieve.solution(f, state).indices.tolist()
        [1, -1]
    """
    return _sieve(k, eps, True)
