"""Greedy maximisation under a limit on the number of items, and its cheaper relatives."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkit import pytrees, validation
from jaxkit.submodular import selection, set_functions
from jaxkit.submodular.operands import ItemList, Mask, take
from jaxkit.submodular.selection import GREEDY_RATIO, Choice, Guarantee, QueryCount, Selection


def greedy(
    function: set_functions.SetFunction,
    k: int,
    *,
    mask: Mask | None = None,
    initial: ItemList | None = None,
    min_gain: ArrayLike | None = None,
) -> Selection:
    r"""Add k times the item of largest gain, $\arg\max_e F(S + e) - F(S)$; the lowest on ties.

    Args:
        function: the set function.
        k: number of items, static; with fewer available, all are taken and the rest is not valid.
        mask: which items may be added, `[n]`; sweep it with `vmap`.
        initial: items in the set from the start, `[s]`; they do not count towards k.
        min_gain: gains below it are not added. By default 0 for a function not known to be
            monotone, no limit else.

    Returns:
        A `Selection` of size k, at least `1 - 1/e` of the best for a monotone function, with
        `sum_{i<k} (n - i)` queries.

    Raises:
        TypeError: if k is not an integer, a mask or item of the wrong kind, or the shapes and types
            of the function's methods do not fit together.
        ValueError: if k is not positive, a mask or item does not fit the function, or a gain is NaN
            or infinite, or negative of a function that says it is monotone (under `jit`, where
            nothing can be raised, the value is NaN and the item not taken).

    Source: Nemhauser, Wolsey and Fisher, 1978.

    Example:
        >>> from jaxkit.submodular import modular
        >>> result = greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2)
        >>> result.indices.tolist(), float(result.value), int(result.num_queries)
        ([1, 2], 5.0, 5)
    """
    validation.integer("k", k, minimum=1)
    started = selection.start(function, mask, initial, min_gain)
    return selection.trusted(function, _greedy(function, int(k), started))


@functools.partial(pytrees.jit, static_argnames="k")
def _greedy(function, k, start):
    def choose(step, state, available, memory):
        gains = jnp.where(available, function.gains(state), -jnp.inf)
        best, gain, take = start.best(gains)
        return Choice(best, gain, take, ~take, jnp.sum(available), memory)

    proved = selection.guarantee(function, GREEDY_RATIO)
    return selection.maximise(function, start, k, choose, (), proved)


def lazy_greedy(
    function: set_functions.SetFunction,
    k: int,
    *,
    mask: Mask | None = None,
    initial: ItemList | None = None,
    min_gain: ArrayLike | None = None,
    batch: int = 32,
) -> Selection:
    """Do as `greedy` with fewer queries: gains only fall, so old gains are upper bounds.

    Each step asks again for the `batch` largest bounds (static) that could still win, until the
    best new gain is above every old bound. Bounds are compared with a margin of a few units of
    float32 rounding, so that the result is that of `greedy`, ties included, if the function is
    submodular.
    Other arguments are those of `greedy`, and errors too.

    Source: Minoux, 1978.

    Example:
        >>> from jaxkit.submodular import modular
        >>> lazy_greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2).indices.tolist()
        [1, 2]
    """
    validation.integer("k", k, minimum=1)
    validation.integer("batch", batch, minimum=1)
    started = selection.start(function, mask, initial, min_gain)
    found = _lazy_greedy(function, int(k), started, min(int(batch), function.num_items))
    return selection.trusted(function, found)


@functools.partial(pytrees.jit, static_argnames=("k", "batch"))
def _lazy_greedy(function, k, start, batch):
    rounding = 4 * float(jnp.finfo(jnp.float32).eps)

    def choose(step, state, available, bounds):
        bounds = jnp.where(available, bounds, -jnp.inf)
        margin = rounding * jnp.maximum(jnp.abs(function.value(state)), bounds.max())

        def best_new(carry):
            bounds, new, _ = carry
            return jnp.where(new, bounds, -jnp.inf).max()

        def undecided(carry):
            bounds, new, _ = carry
            old = jnp.where(new, -jnp.inf, bounds).max()
            return (old > -jnp.inf) & (old + margin >= best_new(carry))

        def refresh(carry):
            bounds, new, asked = carry
            old, ids = jax.lax.top_k(jnp.where(new, -jnp.inf, bounds), batch)
            needed = (old > -jnp.inf) & (old + margin >= best_new(carry))
            gains = function.gains(state, ids)
            bounds = bounds.at[ids].set(jnp.where(needed, gains, bounds[ids]))
            return (
                bounds,
                new.at[ids].set(new[ids] | needed),
                asked + jnp.sum(needed, dtype=jnp.int32),
            )

        new = jnp.broadcast_to(step == 0, bounds.shape)
        bounds, new, asked = jax.lax.while_loop(
            undecided, refresh, (bounds, new, jnp.zeros((), jnp.int32))
        )
        best, gain, take = start.best(jnp.where(new, bounds, -jnp.inf))
        return Choice(best, gain, take, ~take, asked, bounds)

    count = QueryCount.zero().plus(jnp.sum(start.available))
    proved, bounds = selection.guarantee(function, GREEDY_RATIO), function.gains(start.state)
    return selection.maximise(function, start, k, choose, bounds, proved, count)


def stochastic_sample_size(num_items: int, k: int, eps: float) -> int:
    r"""Items that a step looks at: $\lceil (n / k) \ln(1 / \epsilon) \rceil$, at most n."""
    validation.integer("num_items", num_items, minimum=1)
    validation.integer("k", k, minimum=1)
    validation.number("eps", eps, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    return min(max(math.ceil(num_items / k * math.log(1 / eps)), 1), num_items)


def stochastic_greedy(
    function: set_functions.SetFunction,
    k: int,
    key: jax.Array,
    *,
    eps: float = 0.1,
    mask: Mask | None = None,
    initial: ItemList | None = None,
    min_gain: ArrayLike | None = None,
) -> Selection:
    """Add k times the best of a few random items that are left.

    Other arguments are those of `greedy`, and errors too. `eps`, the loss in the guarantee, in
    (0, 1), is static: it sets the number of items looked at.

    Returns:
        A `Selection` of size k, at least `1 - 1/e - eps` of the best in expectation for a monotone
        function, with at most `k stochastic_sample_size(n, k, eps)` queries.

    Source: Mirzasoleiman et al., AAAI 2015, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import modular
        >>> result = stochastic_greedy(modular(jnp.ones(50)), 5, jax.random.key(0))
        >>> float(result.value), int(result.num_queries)
        (5.0, 120)
    """
    validation.integer("k", k, minimum=1)
    size = stochastic_sample_size(function.num_items, int(k), eps)
    started = selection.start(function, mask, initial, min_gain)
    found = _stochastic_greedy(function, int(k), started, key, eps, size)
    return selection.trusted(function, found)


@functools.partial(pytrees.jit, static_argnames=("k", "size"))
def _stochastic_greedy(function, k, start, key, eps, size):
    def choose(step, state, available, memory):
        draw = jax.random.uniform(jax.random.fold_in(key, step), available.shape)
        draw, ids = jax.lax.top_k(jnp.where(available, draw, -1), size)
        gains = jnp.where(draw >= 0, function.gains(state, ids), -jnp.inf)
        best, gain, take = start.best(gains)
        return Choice(ids[best], gain, take, ~jnp.any(available), jnp.sum(draw >= 0), memory)

    proved = selection.guarantee(function, GREEDY_RATIO - eps, "in expectation")
    return selection.maximise(function, start, k, choose, (), proved)


def random_greedy(
    function: set_functions.SetFunction,
    k: int,
    key: jax.Array,
    *,
    mask: Mask | None = None,
    initial: ItemList | None = None,
) -> Selection:
    """Add k times one of the k best items, at random: for functions that are not monotone.

    A step that draws an item whose gain is not positive, or a place beyond the last item, adds
    nothing and leaves its slot not valid. Other arguments are those of `greedy`, and errors too;
    with an `initial` set, the guarantee is for the gain over it.

    Returns:
        A `Selection` of size k, in expectation at least `1/e` of the best, `1 - 1/e` for a monotone
        function.

    Source: Buchbinder, Feldman, Naor and Schwartz, SODA 2014, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import cut
        >>> f = cut(jnp.ones((4, 4)))
        >>> float(random_greedy(f, 2, jax.random.key(0)).value)
        4.0
    """
    validation.integer("k", k, minimum=1)
    started = selection.start(function, mask, initial)
    return selection.trusted(function, _random_greedy(function, int(k), started, key))


@functools.partial(pytrees.jit, static_argnames="k")
def _random_greedy(function, k, start, key):
    size = min(k, function.num_items)

    def choose(step, state, available, memory):
        gains = jnp.where(available, function.gains(state), -jnp.inf)
        top, ids = jax.lax.top_k(gains, size)
        place = jax.random.randint(jax.random.fold_in(key, step), (), 0, k)
        inside = jnp.minimum(place, size - 1)
        take = (place < size) & (top[inside] > 0)
        best, gain, _ = start.best(gains)
        wrong = set_functions.impossible(gain)
        element, gain = jnp.where(wrong, best, ids[inside]), jnp.where(wrong, gain, top[inside])
        return Choice(element, gain, take, ~jnp.any(top > 0), jnp.sum(available), memory)

    ratio = GREEDY_RATIO if function.monotone else math.exp(-1)
    proved = Guarantee(jnp.asarray(ratio), "in expectation")
    return selection.maximise(function, start, k, choose, (), proved)


def threshold_greedy(
    function: set_functions.SetFunction,
    k: int,
    *,
    eps: ArrayLike = 0.1,
    mask: Mask | None = None,
    initial: ItemList | None = None,
) -> Selection:
    r"""Take every item whose gain reaches a threshold that falls from pass to pass.

    Thresholds are $d, d(1 - \epsilon), \dots \ge \epsilon d / n$, d the best single item; a pass
    looks at the items in order of their index. The gains of a whole pass are computed at once and
    again after each item added, but only those are counted that the pass looks at. At most k items
    are taken; `eps`, in (0, 1), may be traced. All else, errors too, is as in `greedy`.

    Returns:
        A `Selection` of size k, at least `1 - 1/e - eps` of the best for a monotone function, with
        `O((n / eps) log(n / eps))` queries.

    Source: Badanidiyuru and Vondrak, SODA 2014, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import modular
        >>> threshold_greedy(modular(jnp.array([1.0, 3.0, 2.9])), 2).indices.tolist()
        [1, 2]
    """
    validation.integer("k", k, minimum=1)
    validation.number("eps", eps, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    started = selection.start(function, mask, initial)
    return selection.trusted(function, _threshold_greedy(function, int(k), started, eps))


@functools.partial(pytrees.jit, static_argnames="k")
def _threshold_greedy(function, k, start, eps):
    n = function.num_items
    items = jnp.arange(n)
    single = jnp.where(start.available, function.gains(start.state), -jnp.inf)
    highest = single.max()
    # The lowest threshold is counted in passes: rounding must not add or drop the last one.
    passes = jnp.floor(jnp.log(eps / n) / jnp.log1p(-jnp.asarray(eps)) + 1e-5)

    def choose(step, state, available, memory):
        gains = jnp.where(available, function.gains(state), -jnp.inf)

        def searching(carry):
            number, _, _, found, _ = carry
            return ~found & (number <= passes)

        def look(carry):
            number, position, _, _, asked = carry
            ahead = available & (items >= position)
            reaches = ahead & (gains >= highest * (1 - eps) ** number)
            found, place = jnp.any(reaches), jnp.argmax(reaches)
            asked += jnp.sum(ahead & (~found | (items <= place)), dtype=jnp.int32)
            number, position = jnp.where(found, number, number + 1), jnp.where(found, place + 1, 0)
            return number, position, place, found, asked

        nothing = (zero, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        number, position, place, found, asked = jax.lax.while_loop(
            searching, look, (*memory, *nothing)
        )
        best, gain, _ = start.best(gains)
        place = jnp.where(set_functions.impossible(gain), best, place)
        return Choice(place, take(gains, place), found, ~found, asked, (number, position))

    zero = jnp.zeros((), jnp.argmax(items).dtype)
    memory = (jnp.where((highest > 0) & (highest < jnp.inf), 0.0, passes + 1), zero)
    count = QueryCount.zero().plus(jnp.sum(start.available))
    proved = selection.guarantee(function, GREEDY_RATIO - eps)
    return selection.maximise(function, start, k, choose, memory, proved, count)
