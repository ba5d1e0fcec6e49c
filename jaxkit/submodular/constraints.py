"""Greedy maximisation under a budget and under limits for groups."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkit import pytrees, validation
from jaxkit.submodular import operands, selection, set_functions
from jaxkit.submodular.operands import Mask, take
from jaxkit.submodular.selection import GREEDY_RATIO, Choice, Selection


def knapsack_greedy(
    function: set_functions.SetFunction,
    costs: ArrayLike,
    budget: ArrayLike,
    *,
    mask: Mask | None = None,
    max_size: int | None = None,
) -> Selection:
    r"""Spend a budget: the best of greedy by gain per cost, greedy by gain, and one item.

    Both greedy runs skip items that do not fit what is left and go on.

    Args:
        function: the set function.
        costs: cost of each item, `[n]`, positive.
        budget: what the items may cost together, positive; in the unit of the costs. Sweep it with
            `vmap`.
        mask: as `greedy`.
        max_size: number of slots, static; n by default.

    Returns:
        A `Selection` of size `max_size`, at least `(1 - 1/e) / 2` of the best for a monotone
        function as long as `max_size` does not bind. An item dearer than the budget is never taken.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if a cost or the budget is not positive and finite, or a shape wrong.

    Source: Leskovec et al., KDD 2007, §3.2; Krause and Guestrin, 2005.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.array([3.0, 2.0, 2.0]))
        >>> result = knapsack_greedy(f, jnp.array([3.0, 1.0, 1.0]), 3.0)
        >>> result.indices.tolist(), float(result.value)
        ([1, 2, -1], 4.0)
    """
    prices = operands.operand("costs", costs, rank=1)
    operands.matches("costs", prices, (function.num_items,))
    validation.number("costs", costs, minimum=0, open_minimum=True)
    validation.number("budget", budget, minimum=0, open_minimum=True)
    size = operands.size_limit(max_size, function.num_items)
    started = selection.start(function, mask, None)
    found = _knapsack_greedy(function, prices, jnp.asarray(budget, jnp.float32), started, size)
    return selection.trusted(function, found)


@functools.partial(pytrees.jit, static_argnames="size")
def _knapsack_greedy(function, costs, budget, start, size):
    # Sums of float32 costs may miss the budget by rounding.
    budget = budget * (1 + 1e-6)

    def spend(score):
        def choose(step, state, available, left):
            fits = available & (costs <= left)
            gains = jnp.where(fits, function.gains(state), -jnp.inf)
            best = jnp.argmax(jnp.where(fits, score(gains), -jnp.inf))
            gain = take(gains, best)
            fit = jnp.any(fits) & (gain >= start.min_gain) & (gain > -jnp.inf)
            left = left - jnp.where(fit, costs[best], 0)
            return Choice(best, gain, fit, ~fit, jnp.sum(fits), left)

        return selection.maximise(function, start, size, choose, budget, proved)

    ratio = GREEDY_RATIO / 2 if size == function.num_items else 0.0
    proved = selection.guarantee(function, ratio, "always" if ratio else "not known")
    by_density, by_gain = spend(lambda gains: gains / costs), spend(lambda gains: gains)
    # The first step of the plain greedy is the best single item that fits.
    single = dataclasses.replace(
        by_gain,
        indices=by_gain.indices.at[1:].set(-1),
        gains=by_gain.gains.at[1:].set(0),
        valid=by_gain.valid.at[1:].set(False),
        value=by_gain.gains[0],
    )
    runs = jax.tree.map(lambda *leaves: jnp.stack(leaves), by_density, by_gain, single)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmax(runs.value)], runs)
    spent = by_density.num_queries.plus(by_gain.num_queries.low)
    spent = spent._replace(high=spent.high + by_gain.num_queries.high)
    return dataclasses.replace(best, num_queries=spent)


def partition_matroid_greedy(
    function: set_functions.SetFunction,
    groups: ArrayLike,
    capacities: ArrayLike,
    *,
    mask: Mask | None = None,
    max_size: int | None = None,
) -> Selection:
    """Take at most so many items of each group: greedy among the items still allowed.

    Args:
        function: the set function.
        groups: group of each item, `[n]`, integers in `[0, g)`.
        capacities: how many of each group, `[g]`, non-negative integers; may be traced.
        mask: as `greedy`.
        max_size: number of slots, static; by default the sum of the capacities, at most n, and n
            if they are traced. It also limits the number of items.

    Returns:
        A `Selection` of size `max_size`, at least half of the best for a monotone function.

    Raises:
        TypeError: if groups or capacities are not integers.
        ValueError: if a group is out of range, a capacity negative, or a shape wrong.

    Source: Fisher, Nemhauser and Wolsey, 1978.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.array([3.0, 2.0, 1.0]))
        >>> partition_matroid_greedy(f, jnp.array([0, 0, 1]), jnp.array([1, 1])).indices.tolist()
        [0, 2]
    """
    limits = operands.indices("capacities", capacities, np.iinfo(np.int32).max)
    if limits.ndim != 1 or limits.size == 0:
        raise ValueError(f"capacities must be a non-empty array of rank 1, got {limits.shape}")
    group_ids = operands.indices("groups", groups, limits.size)
    operands.matches("groups", group_ids, (function.num_items,))
    size = function.num_items
    # Of what was given: in a traced caller, `jnp.asarray` makes a tracer of a constant too.
    if not validation.is_traced(capacities):
        size = int(np.minimum(np.asarray(capacities, np.int64).sum(), size))
    size = operands.size_limit(max_size, size)
    started = selection.start(function, mask, None)
    found = _partition_greedy(function, group_ids, limits, started, size)
    return selection.trusted(function, found)


@functools.partial(pytrees.jit, static_argnames="size")
def _partition_greedy(function, groups, capacities, start, size):
    def choose(step, state, available, left):
        allowed = available & (left[groups] > 0)
        gains = jnp.where(allowed, function.gains(state), -jnp.inf)
        best, gain, take = start.best(gains)
        left = left.at[groups[best]].add(-take.astype(left.dtype))
        return Choice(best, gain, take, ~take, jnp.sum(allowed), left)

    proved = selection.guarantee(function, 0.5)
    return selection.maximise(function, start, size, choose, capacities, proved)
