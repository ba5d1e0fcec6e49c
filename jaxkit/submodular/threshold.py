"""Greedy by falling thresholds: passes over the items instead of a search for the best."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkit import pytrees, validation
from jaxkit.submodular import selection, set_functions
from jaxkit.submodular.items import ItemList, Mask
from jaxkit.submodular.selection import Choice, Guarantee, Selection


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
    again after each item added, but only those are counted that the pass looks at.

    Args:
        function: the set function.
        k: number of items at most, static.
        eps: step of the thresholds, in (0, 1); may be traced.
        mask: as `greedy`.
        initial: as `greedy`.

    Returns:
        A `Selection` of size k, at least `1 - 1/e - eps` of the best for a monotone function, with
        `O((n / eps) log(n / eps))` queries.

    Raises:
        TypeError: as `greedy`.
        ValueError: as `greedy`, or if `eps` is not in (0, 1).

    Source: Badanidiyuru and Vondrak, SODA 2014, Algorithm 1.

    Example:
        >>> from jaxkit.submodular import modular
        >>> threshold_greedy(modular(jnp.array([1.0, 3.0, 2.9])), 2).indices.tolist()
        [1, 2]
    """
    validation.integer("k", k, minimum=1)
    validation.number("eps", eps, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    started = selection.start(function, mask, initial)
    return _threshold_greedy(function, int(k), started, eps)


@functools.partial(pytrees.jit, static_argnames="k")
def _threshold_greedy(function, k, start, eps):
    n = function.num_items
    items = jnp.arange(n)
    single = jnp.where(start.available, function.gains(start.state), -jnp.inf)
    highest = single.max()
    # The lowest threshold is counted in passes: rounding must not add or drop the last one.
    passes = jnp.floor(jnp.log(eps / n) / jnp.log1p(-jnp.asarray(eps)) + 1e-5)

    def choose(step, state, available, memory: Any):
        gains = jnp.where(available, function.gains(state), -jnp.inf)

        def searching(carry):
            number, _, _, found, _ = carry
            return ~found & (number <= passes)

        def look(carry):
            number, position, _, _, asked = carry
            threshold = highest * (1 - eps) ** number
            ahead = available & (items >= position)
            reaches = ahead & (gains >= threshold)
            found = jnp.any(reaches)
            place = jnp.argmax(reaches)
            asked += jnp.sum(ahead & (~found | (items <= place)))
            return (
                jnp.where(found, number, number + 1),
                jnp.where(found, place + 1, 0),
                place,
                found,
                asked,
            )

        number, position = memory
        begin = (
            number,
            position,
            jnp.zeros((), position.dtype),
            jnp.zeros((), bool),
            jnp.zeros((), jnp.int32),
        )
        number, position, place, found, asked = jax.lax.while_loop(searching, look, begin)
        return Choice(place, gains[place], found, ~found, asked, (number, position))

    usable = (highest > 0) & jnp.isfinite(highest)
    zero = jnp.zeros((), jnp.argmax(items).dtype)
    memory = (jnp.where(usable, 0.0, passes + 1), zero)
    ratio = jnp.maximum(selection.GREEDY_RATIO - jnp.asarray(eps), 0)
    guarantee = Guarantee(ratio, "always") if function.monotone else selection.NO_GUARANTEE
    count = selection.queries.QueryCount.zero().plus(jnp.sum(start.available))
    return selection.maximise(
        function, start.state, start.available, k, choose, memory, guarantee, count
    )
