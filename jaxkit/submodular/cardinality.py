"""Greedy maximisation under a limit on the number of items, and its cheaper equals."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkit import pytrees, validation
from jaxkit.submodular import queries, selection, set_functions
from jaxkit.submodular.items import ItemList, Mask
from jaxkit.submodular.selection import Choice, Guarantee, Selection


def _greedy_guarantee(function, loss: ArrayLike = 0.0, holds: str = "always") -> Guarantee:
    if not function.monotone:
        return selection.NO_GUARANTEE
    return Guarantee(jnp.maximum(selection.GREEDY_RATIO - jnp.asarray(loss), 0), holds)


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
        TypeError: if k is not an integer, or a mask or item of the wrong kind.
        ValueError: if k is not positive, or a mask or item does not fit the function.

    Source: Nemhauser, Wolsey and Fisher, 1978.

    Example:
        >>> from jaxkit.submodular import modular
        >>> result = greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2)
        >>> result.indices.tolist(), float(result.value), int(result.num_queries)
        ([1, 2], 5.0, 5)
    """
    validation.integer("k", k, minimum=1)
    return _greedy(function, int(k), selection.start(function, mask, initial, min_gain))


@functools.partial(pytrees.jit, static_argnames="k")
def _greedy(function, k, start):
    def choose(step, state, available, memory):
        gains = jnp.where(available, function.gains(state), -jnp.inf)
        best, gain = jnp.argmax(gains), gains.max()
        take = (gain >= start.min_gain) & (gain > -jnp.inf)
        return Choice(best, gain, take, ~take, jnp.sum(available), memory)

    guarantee = _greedy_guarantee(function)
    return selection.maximise(function, start.state, start.available, k, choose, (), guarantee)


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

    Each step asks again for the `batch` largest bounds that could still win, until the best new
    gain is above every old bound. Bounds are compared with a margin of a few units of float32
    rounding, so that the result is that of `greedy`, ties included.

    Args:
        function: the set function; it must be submodular.
        k: as `greedy`.
        mask: as `greedy`.
        initial: as `greedy`.
        min_gain: as `greedy`.
        batch: gains asked for at a time, static.

    Returns:
        The `Selection` of `greedy`, with at most as many queries.

    Raises:
        TypeError: as `greedy`.
        ValueError: as `greedy`, or if `batch` is not positive.

    Source: Minoux, 1978.

    Example:
        >>> from jaxkit.submodular import modular
        >>> lazy_greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2).indices.tolist()
        [1, 2]
    """
    validation.integer("k", k, minimum=1)
    validation.integer("batch", batch, minimum=1)
    started = selection.start(function, mask, initial, min_gain)
    return _lazy_greedy(function, int(k), started, min(int(batch), function.num_items))


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
            return bounds, new.at[ids].set(new[ids] | needed), asked + jnp.sum(needed)

        new = jnp.broadcast_to(step == 0, bounds.shape)
        bounds, new, asked = jax.lax.while_loop(
            undecided, refresh, (bounds, new, jnp.zeros((), jnp.int32))
        )
        gains = jnp.where(new, bounds, -jnp.inf)
        best, gain = jnp.argmax(gains), gains.max()
        take = (gain >= start.min_gain) & (gain > -jnp.inf)
        return Choice(best, gain, take, ~take, asked, bounds)

    bounds = function.gains(start.state)
    count = queries.QueryCount.zero().plus(jnp.sum(start.available))
    guarantee = _greedy_guarantee(function)
    return selection.maximise(
        function, start.state, start.available, k, choose, bounds, guarantee, count
    )


def stochastic_sample_size(num_items: int, k: int, eps: float) -> int:
    r"""Compute $\lceil (n / k) \ln(1 / \epsilon) \rceil$, at least 1 and at most n.

    Args:
        num_items: n.
        k: number of items to select.
        eps: loss in the guarantee, in (0, 1).

    Returns:
        Items that `stochastic_greedy` looks at in a step.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is not positive or `eps` not in (0, 1).

    Source: Mirzasoleiman et al., AAAI 2015, Algorithm 1.

    Example:
        >>> stochastic_sample_size(1000, 50, 0.1)
        47
    """
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

    Args:
        function: the set function.
        k: as `greedy`.
        key: typed PRNG key.
        eps: loss in the guarantee, in (0, 1), static: it sets the number of items looked at.
        mask: as `greedy`.
        initial: as `greedy`.
        min_gain: as `greedy`.

    Returns:
        A `Selection` of size k, at least `1 - 1/e - eps` of the best in expectation for a monotone
        function, with at most `k stochastic_sample_size(n, k, eps)` queries.

    Raises:
        TypeError: as `greedy`.
        ValueError: as `greedy`, or if `eps` is not in (0, 1).

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
    return _stochastic_greedy(function, int(k), started, key, eps, size)


@functools.partial(pytrees.jit, static_argnames=("k", "size"))
def _stochastic_greedy(function, k, start, key, eps, size):
    def choose(step, state, available, memory):
        draw = jax.random.uniform(jax.random.fold_in(key, step), available.shape)
        draw, ids = jax.lax.top_k(jnp.where(available, draw, -1), size)
        gains = jnp.where(draw >= 0, function.gains(state, ids), -jnp.inf)
        best, gain = jnp.argmax(gains), gains.max()
        take = (gain >= start.min_gain) & (gain > -jnp.inf)
        stop = ~jnp.any(available)
        return Choice(ids[best], gain, take, stop, jnp.sum(draw >= 0), memory)

    guarantee = _greedy_guarantee(function, eps, "in expectation")
    return selection.maximise(function, start.state, start.available, k, choose, (), guarantee)


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
    nothing and leaves its slot not valid.

    Args:
        function: the set function.
        k: as `greedy`.
        key: typed PRNG key.
        mask: as `greedy`.
        initial: as `greedy`; the guarantee is then for the gain over it.

    Returns:
        A `Selection` of size k, in expectation at least `1/e` of the best, `1 - 1/e` for a monotone
        function.

    Raises:
        TypeError: as `greedy`.
        ValueError: as `greedy`.

    Source: Buchbinder, Feldman, Naor and Schwartz, SODA 2014, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import cut
        >>> f = cut(jnp.ones((4, 4)))
        >>> float(random_greedy(f, 2, jax.random.key(0)).value)
        4.0
    """
    validation.integer("k", k, minimum=1)
    return _random_greedy(function, int(k), selection.start(function, mask, initial), key)


@functools.partial(pytrees.jit, static_argnames="k")
def _random_greedy(function, k, start, key):
    size = min(k, function.num_items)

    def choose(step, state, available, memory):
        gains = jnp.where(available, function.gains(state), -jnp.inf)
        top, ids = jax.lax.top_k(gains, size)
        place = jax.random.randint(jax.random.fold_in(key, step), (), 0, k)
        inside = jnp.minimum(place, size - 1)
        take = (place < size) & (top[inside] > 0)
        stop = ~jnp.any(top > 0)
        return Choice(ids[inside], top[inside], take, stop, jnp.sum(available), memory)

    ratio = selection.GREEDY_RATIO if function.monotone else math.exp(-1)
    guarantee = Guarantee(jnp.asarray(ratio), "in expectation")
    return selection.maximise(function, start.state, start.available, k, choose, (), guarantee)
