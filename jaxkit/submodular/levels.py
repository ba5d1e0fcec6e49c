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
        """The x with `x + x^2 / 2 = eps`: run with it, the proof's loss is exactly `eps`."""
        return math.sqrt(1 + 2 * self.eps) - 1

    @property
    def num_buckets(self) -> int:
        """Buckets of gains in `[tau, 2k tau]`, each `1 + inner_eps` wide."""
        return math.floor(math.log(2 * self.k) / math.log1p(self.inner_eps)) + 2


def grid_exponents(lowest: float, highest: float, eps: float) -> np.ndarray:
    r"""List the j, ascending, with $\text{lowest} \le (1 + \epsilon)^j \le \text{highest}$.

    Source: Badanidiyuru et al., KDD 2014, §5.
    """
    for name, value in (("lowest", lowest), ("highest", highest), ("eps", eps)):
        validation.number(name, value, minimum=0, open_minimum=True)
    base = math.log1p(eps)
    first = math.ceil(math.log(lowest) / base - 1e-9)
    last = math.floor(math.log(highest) / base + 1e-9)
    return np.arange(first, last + 1)


def guess_of(exponents: np.ndarray, eps: float) -> np.ndarray:
    """Compute the guesses `(1 + eps)^j`, rounded once to float32 so that host and device agree."""
    return np.exp(np.asarray(exponents, np.float64) * math.log1p(eps)).astype(np.float32)


def belongs(guesses: Any, singleton: Any, k: int) -> Any:
    r"""Whether $f(e) \le v \le 2k f(e)$, in float32; an item worth 0 belongs to none."""
    return (singleton <= guesses) & (guesses <= np.float32(2 * k) * singleton)


def exponents_for(singletons: np.ndarray, k: int, eps: float) -> np.ndarray:
    """List the exponents of all guesses that some item `[b]` belongs to, ascending."""
    worth = singletons[singletons > 0]
    if worth.size == 0:
        return np.arange(0)
    lowest, highest = float(worth.min()) * 0.99, float(worth.max()) * 2.02 * k
    exponents = grid_exponents(lowest, highest, eps)
    held = belongs(guess_of(exponents, eps)[:, None], worth, k)
    return exponents[held.any(1)]


class Levels(NamedTuple):
    """The levels of one guess; level i stands at index i, index 0 of per-level arrays is unused.

    `order` are sampled items in the order of their levels, -1 where unused, `level` where each was
    sampled, `alive` which have not been deleted since; `size` counts live items of each reservoir,
    `built` those when its level was last built, `drawn` its sample.
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
        """No levels."""
        items, levels = jnp.zeros(k, jnp.int32), jnp.zeros(k + 2, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        return cls(items - 1, items, jnp.zeros(k, bool), levels, levels, levels, zero, zero)


def _threshold(settings: LevelSettings, guess: Any) -> Any:
    return guess / np.float32(2 * settings.k)


def empty_prefixes(function: set_functions.SetFunction, k: int) -> Any:
    """States of I_0 .. I_k, all empty: a state with a leading axis `[k + 1]`."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k + 1, *leaf.shape)), function.init())


def truncate(levels: Levels, first: ArrayLike) -> Levels:
    """Forget the samples and sizes of the levels from `first` on."""
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
    """Levels as far as `build` got.

    `state`, `active`, `gains` are of the last prefix and the next reservoir; `depth` is 0 for
    padding; `flawed` is a candidate left out because a gain of it was no number, -1 for none.
    """

    levels: Levels
    prefixes: Any
    depth: Int[Array, " p"]
    num_queries: Int[Array, ""]
    state: Any
    active: Bool[Array, " p"]
    gains: Float[Array, " p"]
    count: Int[Array, ""]
    flawed: Int[Array, ""]


def build(
    function: set_functions.SetFunction,
    settings: LevelSettings,
    levels: Levels,
    prefixes: Any,
    first: Int[Array, ""],
    candidates: Int[Array, " p"],
    present: Bool[Array, " p"],
    guess: Float[Array, ""],
    key: jax.Array,
    exponent: Int[Array, ""],
) -> Built:
    """Build the levels from `first` on anew, out of the items in their reservoir, `candidates [p]`.

    Levels and prefix states below `first` stay. `present` marks the candidates that are no padding;
    each draw takes the next number of the copy of `guess`, `(1 + eps)^exponent`.
    """
    k, tau = settings.k, _threshold(settings, guess)
    key = jax.random.fold_in(key, exponent.astype(jnp.int32) + (1 << 20))
    levels = truncate(levels, first)
    state = jax.tree.map(lambda leaf: leaf[first - 1], prefixes)

    def judged(state, among, flawed):
        """Gains over a prefix, who of `among` reaches tau, and whose gain is no number."""
        gains = function.gains(state, candidates)
        wrong = among & set_functions.impossible(gains)
        flawed = jnp.where(wrong.any(), candidates[jnp.argmax(wrong)], flawed)
        return gains, among & ~wrong & (gains >= tau), flawed

    def unfinished(g: Built):
        return jnp.any(g.active) & (g.count < k)

    def next_level(g: Built) -> Built:
        i = g.levels.num_levels + 1
        bucket, floor = samples.fullest_bucket(settings, g.gains, g.active, tau)
        room = jnp.minimum(k - g.count, jnp.sum(bucket, dtype=jnp.int32))
        sample = samples.draw_sample(
            function, settings, g.state, candidates, bucket, floor, room, key, g.levels.num_draws
        )
        slots = jnp.arange(k)
        new = (slots >= g.count) & (slots < g.count + sample.size)
        ids = candidates[sample.places][slots - g.count]
        size = jnp.sum(g.active, dtype=jnp.int32)
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
        gains, active, flawed = judged(sample.state, left, g.flawed)
        return Built(
            grown,
            jax.tree.map(lambda bank, leaf: bank.at[i].set(leaf), g.prefixes, sample.state),
            jnp.where(g.active, i, g.depth),
            g.num_queries + sample.num_queries + jnp.sum(left, dtype=jnp.int32),
            sample.state,
            active,
            gains,
            g.count + sample.size,
            flawed,
        )

    # What fails the threshold here fails by rounding only; it stays in the reservoir above.
    depth = jnp.where(present, jnp.asarray(first, jnp.int32) - 1, 0)
    gains, active, flawed = judged(state, present, jnp.full((), -1, candidates.dtype))
    count, asked = (jnp.sum(x, dtype=jnp.int32) for x in (levels.level > 0, present))
    begin = Built(levels, prefixes, depth, asked, state, active, gains, count, flawed)
    return jax.lax.while_loop(unfinished, next_level, begin)


def limits(levels: Levels) -> Int[Any, "*c"]:
    """The deepest level of each copy that may take an item: T + 1, or T once k are sampled."""
    room = (levels.level > 0).sum(-1) < levels.level.shape[-1]
    return (levels.num_levels + room).astype(levels.num_levels.dtype)


@functools.partial(pytrees.jit, static_argnames="settings")
def search(function, settings, prefixes, copies, limits, guesses, elements):
    """The deepest level that takes each item, all `[p]`, in a copy of its own, and the queries.

    By binary search, at most `ceil(log2(limit))` queries: gains over I_0, I_1, ... only fall, and
    level 1 is known to take the item. `prefixes` are the states of I_0 .. I_k, `[c, k + 1]`.
    """

    def one(copy, limit, guess, element):
        def searching(carry):
            low, high, _ = carry
            return low < high

        def halve(carry):
            low, high, asked = carry
            middle = (low + high + 1) // 2
            prefix = jax.tree.map(lambda leaf: leaf[copy, middle - 1], prefixes)
            gain = function.gains(prefix, element)
            passes = (gain >= _threshold(settings, guess)) & (gain < jnp.inf)
            low, high = jnp.where(passes, middle, low), jnp.where(passes, high, middle - 1)
            return low, high, asked + 1

        start = (jnp.ones_like(limit), limit, jnp.zeros_like(limit))
        low, _, asked = jax.lax.while_loop(searching, halve, start)
        return low, asked

    return jax.vmap(one)(copies, limits, guesses, elements)


def _numpy_of(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def _within(levels: Levels, depth: Any) -> Any:
    """How many of the items with depths `[*c, b]` each reservoir holds, `[*c, k + 2]`."""
    index = _numpy_of(levels.size).arange(levels.size.shape[-1])
    inside = (index >= 1) & (index <= depth[..., None])
    return inside.sum(-2).astype(levels.size.dtype)


def entered(levels: Levels, depth: Int[Any, "*c b"]) -> Levels:
    """Count new items in their reservoirs; NumPy or JAX, one copy or several."""
    return levels._replace(size=levels.size + _within(levels, depth))


def left(levels: Levels, depth: Int[Any, "*c b"], elements: Int[Any, " b"]) -> Levels:
    """Count items out of their reservoirs and mark them dead where they were sampled."""
    dead = (levels.order[..., None] == elements).any(-1)
    size = levels.size - _within(levels, depth)
    return levels._replace(size=size, alive=levels.alive & ~dead)


def first_due(settings: LevelSettings, levels: Levels) -> Int[Any, "*c"]:
    """The first level of each copy, `[*c]`, that must be rebuilt, or 0; NumPy or JAX.

    A level is due if it is new, if its reservoir has grown by the factor `growth`, or if more than
    the share `inner_eps` of its sample is dead.
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
    """F of the live samples of several guesses, `[c]`."""

    def value(order, alive):
        return function.value(set_functions.add_all(function, function.init(), order, alive))

    return jax.vmap(value)(order, alive)
