"""What a maximiser returns, and the one loop that all of them run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkit import pytrees, validation
from jaxkit.submodular import queries, set_functions
from jaxkit.submodular.items import ItemList, Mask


@pytrees.dataclass
class Guarantee:
    """What is proved of a value: `F(S) >= ratio * OPT`.

    Attributes:
        ratio: the factor; 0 where nothing is known.
        holds: `"always"`, `"in expectation"` or `"not known"`.

    Example:
        >>> from jaxkit.submodular import greedy, modular
        >>> guarantee = greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2).guarantee
        >>> round(float(guarantee.ratio), 3), guarantee.holds
        (0.632, 'always')
    """

    ratio: Any
    holds: str = flax.struct.field(pytree_node=False)

    def __str__(self) -> str:
        if self.holds == "not known":
            return "no bound is known"
        return f"proved to be at least {float(self.ratio):.3f} of the optimum, {self.holds}"


#: What holds of a greedy on a function that is not known to be monotone.
NO_GUARANTEE = Guarantee(0.0, "not known")

#: 1 - 1/e.
GREEDY_RATIO = 1 - math.exp(-1)


@pytrees.dataclass
class Selection:
    """A selected set, in the order of selection.

    Attributes:
        indices: items `[k]`, -1 in slots not used.
        gains: gain of each when it was added `[k]`, 0 in slots not used.
        valid: which slots are used `[k]`.
        value: F of the set (with the initial set, where one was given), a scalar.
        num_queries: oracle queries spent; read it with `int`.
        guarantee: what is proved of the value.

    Example:
        >>> from jaxkit.submodular import greedy, modular
        >>> chosen = greedy(modular(jnp.array([1.0, 3.0, 2.0])), 2)
        >>> chosen.indices.tolist(), chosen.gains.tolist(), float(chosen.value)
        ([1, 2], [3.0, 2.0], 5.0)
    """

    indices: jax.Array
    gains: jax.Array
    valid: jax.Array
    value: jax.Array
    num_queries: queries.QueryCount
    guarantee: Guarantee


class Choice(NamedTuple):
    """What one step of a maximiser decided.

    Attributes:
        element: the item.
        gain: its gain.
        take: whether to add it.
        stop: whether to end here; with `take` false, nothing is added.
        num_queries: queries spent in the step.
        memory: what the maximiser carries to its next step.
    """

    element: Int[Array, ""]
    gain: Float[Array, ""]
    take: Bool[Array, ""]
    stop: Bool[Array, ""]
    num_queries: Int[Array, ""]
    memory: Any


Choose = Callable[[Int[Array, ""], Any, Bool[Array, " n"], Any], Choice]


class _Progress(NamedTuple):
    step: Int[Array, ""]
    stop: Bool[Array, ""]
    state: Any
    available: Bool[Array, " n"]
    memory: Any
    indices: Int[Array, " k"]
    gains: Float[Array, " k"]
    count: queries.QueryCount


def maximise(
    function: set_functions.SetFunction,
    state: Any,
    available: Bool[Array, " n"],
    size: int,
    choose: Choose,
    memory: Any,
    guarantee: Guarantee,
    count: queries.QueryCount | None = None,
) -> Selection:
    """Add one item a step, as `choose` decides, until it stops or `size` steps are done.

    Args:
        function: the set function.
        state: state of the set to start from.
        available: which items may be added `[n]`; an item added is available no more.
        size: number of steps, static.
        choose: `(step, state, available, memory) -> Choice`.
        memory: the maximiser's own memory before the first step.
        guarantee: what the maximiser is proved to reach.
        count: queries spent before.

    Returns:
        The selection, `[size]`.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.array([1.0, 3.0]))
        >>> def first(step, state, available, memory):
        ...     none = jnp.sum(available) == 0
        ...     return Choice(jnp.argmax(available), f.gains(state)[0], ~none, none, 1, memory)
        >>> maximise(f, f.init(), jnp.ones(2, bool), 2, first, (), NO_GUARANTEE).indices.tolist()
        [0, 1]
    """

    def running(progress: _Progress):
        return (progress.step < size) & ~progress.stop

    def step(progress: _Progress) -> _Progress:
        i = progress.step
        choice = choose(i, progress.state, progress.available, progress.memory)
        element, take = choice.element.astype(jnp.int32), choice.take
        added = function.add(progress.state, element)
        return _Progress(
            i + 1,
            choice.stop,
            jax.tree.map(lambda new, old: jnp.where(take, new, old), added, progress.state),
            progress.available & ~((jnp.arange(function.num_items) == element) & take),
            choice.memory,
            progress.indices.at[i].set(jnp.where(take, element, -1)),
            progress.gains.at[i].set(jnp.where(take, choice.gain, 0)),
            progress.count.plus(choice.num_queries),
        )

    start = _Progress(
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
        state,
        available,
        memory,
        jnp.full(size, -1, jnp.int32),
        jnp.zeros(size, jnp.float32),
        queries.QueryCount.zero() if count is None else count,
    )
    end = jax.lax.while_loop(running, step, start)
    return Selection(
        end.indices, end.gains, end.indices >= 0, function.value(end.state), end.count, guarantee
    )


class Start(NamedTuple):
    """Where a maximiser starts: checked arguments.

    Attributes:
        state: state of the initial set.
        available: which items may be added, `[n]`.
        min_gain: gains below it are not added.
    """

    state: Any
    available: Bool[Array, " n"]
    min_gain: Float[Array, ""]


def start(
    function: set_functions.SetFunction,
    mask: Mask | None,
    initial: ItemList | None,
    min_gain: ArrayLike | None = None,
) -> Start:
    """Check what all maximisers share, and build the state of the initial set.

    Args:
        function: the set function.
        mask: which items may be added `[n]`; all by default.
        initial: items that are in the set from the start `[s]`; none by default.
        min_gain: gains below it are not added; by default 0 for a function not known to be
            monotone and no limit else.

    Returns:
        The start.

    Raises:
        TypeError: if the mask is not boolean or the items not integers.
        ValueError: if a shape is wrong or an item out of range or twice in the initial set.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.array([1.0, 3.0]))
        >>> start(f, None, jnp.array([1])).available.tolist()
        [True, False]
    """
    n = function.num_items
    available = jnp.ones(n, bool) if mask is None else jnp.asarray(mask)
    if available.dtype != bool:
        raise TypeError(f"mask must be boolean, got dtype {available.dtype}")
    if available.shape != (n,):
        raise ValueError(f"mask must have shape ({n},), got {available.shape}")
    state = function.init()
    if initial is not None:
        items = jnp.asarray(initial)
        if not jnp.issubdtype(items.dtype, jnp.integer):
            raise TypeError(f"initial must hold integers, got dtype {items.dtype}")
        if items.ndim != 1:
            raise ValueError(f"initial must have rank 1, got shape {items.shape}")
        if not validation.is_traced(items) and items.size:
            wrong = items[(items < 0) | (items >= n)]
            if wrong.size:
                raise ValueError(f"initial must be in [0, {n}), got {int(wrong[0])}")
            if jnp.unique(items).size != items.size:
                raise ValueError(f"initial must not repeat an item, got {items.tolist()}")
        state = set_functions.add_all(function, state, items, jnp.ones(items.shape[0], bool))
        available = available.at[items].set(False)
    if min_gain is None:
        min_gain = -jnp.inf if function.monotone else 0.0
    return Start(state, available, jnp.asarray(min_gain, jnp.float32))
