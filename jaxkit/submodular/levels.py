"""One guess of the optimum: its levels of reservoirs and samples, built and searched on the device.

Notation of this file: v is the guess, tau = v / (2k) the threshold. Level i has a reservoir R_i of
live items whose gain over I_{i-1} is at least tau, a sample S_i of its fullest bucket of gains, and
I_i = I_{i-1} + S_i, which keeps members that were deleted since. R_1, R_2, ... are nested, so one
number an item, its depth, holds them all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkit import pytrees, validation
from jaxkit.submodular import samples, set_functions

#: How the size of a sample is decided.
MODES = ("verified", "montecarlo", "single")


@dataclasses.dataclass(frozen=True)
class LevelSettings:
    """What is fixed for the life of a dynamic maximiser.

    Attributes:
        k: largest size of the solution.
        eps: loss asked for: the solution keeps `1/2 - eps` of the optimum.
        mode: `"verified"` (samples are accepted by their value), `"montecarlo"` (their size is
            estimated from trial gains) or `"single"` (one item a level).
        growth: a level is rebuilt once its reservoir is this many times what it was built from.
        num_trials: trials for one size in mode `"montecarlo"`.

    Raises:
        TypeError: if an integer is none.
        ValueError: if a number is out of range or the mode unknown.

    Example:
        >>> round(LevelSettings(k=10, eps=0.2).inner_eps, 4)
        0.1832
    """

    k: int
    eps: float = 0.2
    mode: str = "verified"
    growth: float = 1.5
    num_trials: int = 16

    def __post_init__(self):
        validation.integer("k", self.k, minimum=1)
        validation.number(
            "eps", self.eps, minimum=0, maximum=1, open_minimum=True, open_maximum=True
        )
        validation.choice("mode", self.mode, MODES)
        validation.number("growth", self.growth, minimum=1, open_minimum=True)
        validation.integer("num_trials", self.num_trials, minimum=1)

    @property
    def inner_eps(self) -> float:
        """The x with `x + x^2 / 2 = eps`: run with it, the proof's loss is exactly `eps`.

        Example:
            >>> x = LevelSettings(k=2, eps=0.4).inner_eps
            >>> round(x + x**2 / 2, 6)
            0.4
        """
        return math.sqrt(1 + 2 * self.eps) - 1

    @property
    def num_buckets(self) -> int:
        """Buckets of gains in `[tau, 2k tau]`, each `1 + inner_eps` wide.

        Example:
            >>> LevelSettings(k=10, eps=0.2).num_buckets
            19
        """
        return math.floor(math.log(2 * self.k) / math.log1p(self.inner_eps)) + 2


class Levels(NamedTuple):
    """The levels of one guess; level i stands at index i, index 0 of per-level arrays is unused.

    Attributes:
        order: sampled items in the order of their levels, -1 where unused, `[k]`.
        level: level at which each was sampled, 0 where unused, `[k]`.
        alive: which of them have not been deleted since, `[k]`.
        size: live items in each reservoir, `[k + 2]`.
        built: size of each reservoir when its level was last built, `[k + 2]`.
        drawn: size of each sample, `[k + 2]`.
        num_levels: T, a scalar.
        num_draws: random draws made so far, a scalar.
    """

    order: Int[Any, "*c k"]
    level: Int[Any, "*c k"]
    alive: Bool[Any, "*c k"]
    size: Int[Any, "*c levels"]
    built: Int[Any, "*c levels"]
    drawn: Int[Any, "*c levels"]
    num_levels: Int[Any, "*c"]
    num_draws: Int[Any, "*c"]

    @classmethod
    def empty(cls, k: int) -> Levels:
        """No levels.

        Example:
            >>> int(Levels.empty(3).num_levels)
            0
        """
        items, levels = jnp.zeros(k, jnp.int32), jnp.zeros(k + 2, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        return cls(items - 1, items, jnp.zeros(k, bool), levels, levels, levels, zero, zero)


def empty_prefixes(function: set_functions.SetFunction, k: int) -> Any:
    """States of I_0 .. I_k, all empty: a state with a leading axis `[k + 1]`.

    Example:
        >>> from jaxkit.submodular import modular
        >>> empty_prefixes(modular(jnp.ones(2)), 3).chosen.shape
        (4, 2)
    """
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k + 1, *leaf.shape)), function.init())


def truncate(levels: Levels, first: ArrayLike) -> Levels:
    """Forget the samples and sizes of the levels from `first` on.

    Example:
        >>> levels = Levels.empty(2)._replace(level=jnp.array([1, 2]), num_levels=jnp.array(2))
        >>> int(truncate(levels, 2).num_levels)
        1
    """
    kept_items = (levels.level > 0) & (levels.level < first)
    kept_levels = jnp.arange(levels.size.shape[-1]) < first
    return Levels(
        jnp.where(kept_items, levels.order, -1),
        jnp.where(kept_items, levels.level, 0),
        kept_items & levels.alive,
        jnp.where(kept_levels, levels.size, 0),
        jnp.where(kept_levels, levels.built, 0),
        jnp.where(kept_levels, levels.drawn, 0),
        jnp.minimum(levels.num_levels, jnp.asarray(first, jnp.int32) - 1),
        levels.num_draws,
    )


class Built(NamedTuple):
    """Result of `build`.

    Attributes:
        levels: the new levels.
        prefixes: states of I_0 .. I_k.
        depth: deepest reservoir of each candidate, `[p]`, 0 for padding.
        num_queries: queries spent.
    """

    levels: Levels
    prefixes: Any
    depth: Int[Array, " p"]
    num_queries: Int[Array, ""]


class _Growing(NamedTuple):
    levels: Levels
    prefixes: Any
    state: Any
    active: Bool[Array, " p"]
    gains: Float[Array, " p"]
    depth: Int[Array, " p"]
    count: Int[Array, ""]
    num_queries: Int[Array, ""]


def build(
    function: set_functions.SetFunction,
    settings: LevelSettings,
    levels: Levels,
    prefixes: Any,
    first: Int[Array, ""],
    candidates: Int[Array, " p"],
    present: Bool[Array, " p"],
    tau: Float[Array, ""],
    key: jax.Array,
) -> Built:
    """Build the levels from `first` on anew, out of the items in their reservoir.

    Args:
        function: the set function.
        settings: the maximiser's settings, static.
        levels: the levels; those below `first` stay.
        prefixes: states of I_0 .. I_k; those below `first` are used and stay.
        first: the first level to build.
        candidates: R_first, `[p]`, padded to any length.
        present: which candidates are no padding, `[p]`.
        tau: threshold of the guess.
        key: typed PRNG key of the guess; each draw takes the next number of it.

    Returns:
        The levels, their prefix states, the depth of each candidate and the queries spent.

    Source: reconstructed; see `jaxkit.submodular.dynamic`.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f, settings = modular(jnp.ones(4)), LevelSettings(k=2, mode="single")
        >>> built = build(f, settings, Levels.empty(2), empty_prefixes(f, 2), jnp.array(1),
        ...     jnp.arange(4), jnp.ones(4, bool), jnp.array(0.5), jax.random.key(0))
        >>> built.levels.size.tolist(), int(built.num_queries)
        ([0, 4, 3, 0], 9)
    """
    k = settings.k
    levels = truncate(levels, first)
    state = jax.tree.map(lambda leaf: leaf[first - 1], prefixes)
    gains = function.gains(state, candidates)

    def unfinished(g: _Growing):
        return jnp.any(g.active) & (g.count < k)

    def next_level(g: _Growing) -> _Growing:
        i = g.levels.num_levels + 1
        bucket, floor = samples.fullest_bucket(settings, g.gains, g.active, tau)
        room = jnp.minimum(k - g.count, jnp.sum(bucket))
        sample = samples.DRAW[settings.mode](
            function, settings, g.state, candidates, bucket, floor, room, key, g.levels.num_draws
        )
        slots = jnp.arange(k)
        new = (slots >= g.count) & (slots < g.count + sample.size)
        ids = candidates[sample.places][slots - g.count]
        size = jnp.sum(g.active)
        grown = Levels(
            jnp.where(new, ids, g.levels.order),
            jnp.where(new, i, g.levels.level),
            new | g.levels.alive,
            g.levels.size.at[i].set(size),
            g.levels.built.at[i].set(size),
            g.levels.drawn.at[i].set(sample.size),
            i,
            sample.num_draws,
        )
        taken = jnp.zeros_like(g.active).at[sample.places].max(slots < sample.size)
        left = g.active & ~taken
        gains = function.gains(sample.state, candidates)
        return _Growing(
            grown,
            jax.tree.map(lambda bank, leaf: bank.at[i].set(leaf), g.prefixes, sample.state),
            sample.state,
            left & (gains >= tau),
            gains,
            jnp.where(g.active, i, g.depth),
            g.count + sample.size,
            g.num_queries + sample.num_queries + jnp.sum(left),
        )

    count = jnp.sum(levels.level > 0)
    queries = jnp.sum(present)
    # What fails the threshold here fails by rounding only; it stays in the reservoir above.
    depth = jnp.where(present, jnp.asarray(first, jnp.int32) - 1, 0)
    active = present & (gains >= tau)
    start = _Growing(levels, prefixes, state, active, gains, depth, count, queries)
    end = jax.lax.while_loop(unfinished, next_level, start)
    return Built(end.levels, end.prefixes, end.depth, end.num_queries)


class Depth(NamedTuple):
    """Result of `deepest`: a level, and the queries spent to find it."""

    depth: Int[Array, ""]
    num_queries: Int[Array, ""]


def deepest(
    function: set_functions.SetFunction,
    prefix: Any,
    limit: Int[Array, ""],
    tau: Float[Array, ""],
    element: Int[Array, ""],
) -> Depth:
    """Find the deepest level whose reservoir takes an item, by binary search.

    Gains over I_0, I_1, ... only fall, and level 1 is known to take the item.

    Args:
        function: the set function.
        prefix: `i -> state of I_i`.
        limit: the deepest level that may take it: T + 1, or T once k items are sampled.
        tau: threshold of the guess.
        element: the item.

    Returns:
        The level, and at most `ceil(log2(limit))` queries.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.ones(2))
        >>> deepest(f, lambda i: f.init(), jnp.array(4), jnp.array(0.5), jnp.array(1))[0].tolist()
        4
    """

    def searching(carry):
        low, high, _ = carry
        return low < high

    def halve(carry):
        low, high, asked = carry
        middle = (low + high + 1) // 2
        passes = function.gains(prefix(middle - 1), element) >= tau
        low, high = jnp.where(passes, middle, low), jnp.where(passes, high, middle - 1)
        return low, high, asked + 1

    start = (jnp.ones_like(limit), limit, jnp.zeros_like(limit))
    low, _, asked = jax.lax.while_loop(searching, halve, start)
    return Depth(low, asked)


def _numpy_of(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def _within(levels: Levels, depth: Any) -> Any:
    """How many of the items with depths `[*c, b]` each reservoir holds, `[*c, k + 2]`."""
    index = _numpy_of(levels.size).arange(levels.size.shape[-1])
    inside = (index >= 1) & (index <= depth[..., None])
    return inside.sum(-2).astype(levels.size.dtype)


def entered(levels: Levels, depth: Int[Any, "*c b"]) -> Levels:
    """Count new items in their reservoirs; NumPy or JAX, one copy or several.

    Example:
        >>> entered(Levels.empty(2), jnp.array([1, 2])).size.tolist()
        [0, 2, 1, 0]
    """
    return levels._replace(size=levels.size + _within(levels, depth))


def left(levels: Levels, depth: Int[Any, "*c b"], elements: Int[Any, " b"]) -> Levels:
    """Count items out of their reservoirs and mark them dead where they were sampled.

    Example:
        >>> levels = Levels.empty(1)._replace(order=jnp.array([4]), alive=jnp.array([True]))
        >>> left(levels, jnp.array([0]), jnp.array([4])).alive.tolist()
        [False]
    """
    dead = (levels.order[..., None] == elements).any(-1)
    size = levels.size - _within(levels, depth)
    return levels._replace(size=size, alive=levels.alive & ~dead)


def first_due(settings: LevelSettings, levels: Levels) -> Int[Any, "*c"]:
    """The first level that must be rebuilt, or 0; the rule of insertions and of deletions.

    A level is due if it is new, if its reservoir has grown by the factor `growth`, or if more than
    the share `inner_eps` of its sample is dead.

    Args:
        settings: the maximiser's settings.
        levels: the levels, after `entered` or `left`; NumPy or JAX.

    Returns:
        The level of each copy, `[*c]`.

    Example:
        >>> settings = LevelSettings(k=2)
        >>> int(first_due(settings, entered(Levels.empty(2), jnp.array([1]))))
        1
    """
    xp = _numpy_of(levels.size)
    index = xp.arange(settings.k + 2)
    new = index == levels.num_levels[..., None] + 1
    grown = levels.size >= settings.growth * levels.built
    dead = ((levels.level[..., None, :] == index[:, None]) & ~levels.alive[..., None, :]).sum(-1)
    decayed = dead > settings.inner_eps * levels.drawn
    due = (index >= 1) & ((levels.size > 0) & (new | grown) | decayed)
    return xp.where(due.any(-1), due.argmax(-1), 0).astype(levels.size.dtype)


@functools.partial(pytrees.jit, static_argnames="settings")
def values_of(function, settings: LevelSettings, order, alive):
    """F of the live samples of several guesses, `[c]`.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f, settings = modular(jnp.ones(4)), LevelSettings(k=2)
        >>> values_of(f, settings, jnp.array([[1, 3]]), jnp.array([[True, False]])).tolist()
        [1.0]
    """

    def value(order, alive):
        return function.value(set_functions.add_all(function, function.init(), order, alive))

    return jax.vmap(value)(order, alive)
