"""What a maximiser returns, and the one loop that all of them run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxkit import pytrees, validation
from jaxkit.submodular import operands, set_functions
from jaxkit.submodular.operands import ItemList, Mask


class QueryCount(NamedTuple):
    """A number of oracle queries, below 2^64 in two limbs; `int(count)` reads it.

    One marginal gain, or one value that no state holds, is one query; F of the empty set and of a
    set whose state is at hand are free. Padding and masked items are not counted.

    Attributes:
        high: queries / 2^32.
        low: the rest.
    """

    high: UInt32[Array, "*b"]
    low: UInt32[Array, "*b"]

    @classmethod
    def zero(cls) -> QueryCount:
        """No queries."""
        return cls(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))

    def plus(self, number: ArrayLike) -> QueryCount:
        """Count `number` more, an integer in `[0, 2^32)`."""
        low = self.low + jnp.asarray(number, jnp.uint32)
        return QueryCount(self.high + (low < self.low).astype(jnp.uint32), low)

    def __int__(self) -> int:
        return (int(self.high) << 32) + int(self.low)


@pytrees.dataclass
class Guarantee:
    """What is proved of a value: `F(S) >= ratio * OPT`, always, in expectation or not known."""

    ratio: Any
    holds: str = flax.struct.field(pytree_node=False)

    def __str__(self) -> str:
        if self.holds == "not known":
            return "no bound is known"
        return f"proved to be at least {float(self.ratio):.3f} of the optimum, {self.holds}"


#: 1 - 1/e.
GREEDY_RATIO = 1 - math.exp(-1)


def guarantee(
    function: set_functions.SetFunction, ratio: ArrayLike, holds: str = "always"
) -> Guarantee:
    """What is proved of a maximiser of monotone functions: nothing where F may not be monotone."""
    known = Guarantee(jnp.maximum(jnp.asarray(ratio), 0), holds)
    return known if function.monotone else Guarantee(0.0, "not known")


@pytrees.dataclass
class Selection:
    """A selected set, in the order of selection.

    Attributes:
        indices: items `[k]`, -1 in slots not used.
        gains: gain of each when it was added `[k]`, 0 in slots not used.
        valid: which slots are used `[k]`.
        value: F of the set (with the initial set, where one was given), a scalar; NaN where an
            oracle answered what no F can (see `flawed`).
        num_queries: oracle queries spent; read it with `int`.
        guarantee: what is proved of the value.
        flawed: the item whose gain was NaN, infinite, or negative though the function says that it
            is monotone, -1 for none: the search ended there, without it. Outside of `jit` and
            `vmap` it is raised.
    """

    indices: jax.Array
    gains: jax.Array
    valid: jax.Array
    value: jax.Array
    num_queries: QueryCount
    guarantee: Guarantee
    flawed: jax.Array


class Choice(NamedTuple):
    """What one step of a maximiser decided.

    An element whose gain is no number goes before all others; without `take`, nothing is added;
    `memory` is carried to the next step.
    """

    element: Int[Array, ""]
    gain: Float[Array, ""]
    take: Bool[Array, ""]
    stop: Bool[Array, ""]
    num_queries: Int[Array, ""]
    memory: Any


class _Progress(NamedTuple):
    step: Int[Array, ""]
    stop: Bool[Array, ""]
    state: Any
    available: Bool[Array, " n"]
    memory: Any
    indices: Int[Array, " k"]
    gains: Float[Array, " k"]
    count: QueryCount
    flawed: Int[Array, ""]


class Start(NamedTuple):
    """Where a maximiser starts, checked: the state, what may be added, and from which gain on."""

    state: Any
    available: Bool[Array, " n"]
    min_gain: Float[Array, ""]

    def best(self, gains: Float[Array, " c"]) -> tuple[Int[Array, ""], Float[Array, ""], Any]:
        """Place of the largest gain (the first on ties, NaN before all), it, and if to take it."""
        place, gain = jnp.argmax(gains), gains.max()
        return place, gain, (gain >= self.min_gain) & (gain > -jnp.inf)


def maximise(
    function: set_functions.SetFunction,
    start: Start,
    size: int,
    choose: Callable[[Int[Array, ""], Any, Bool[Array, " n"], Any], Choice],
    memory: Any,
    proved: Guarantee,
    count: QueryCount | None = None,
) -> Selection:
    """Add one item a step, as `choose` decides, until it stops or `size` steps are done.

    `choose` is `(step, state, available, memory) -> Choice`; an item added is available no more.
    `count` is of the queries spent before.
    """
    set_functions.check(function)
    kind = jnp.promote_types(jax.eval_shape(function.value, start.state).dtype, jnp.float32)

    def running(progress: _Progress):
        return (progress.step < size) & ~progress.stop

    def step(progress: _Progress) -> _Progress:
        i = progress.step
        choice = choose(i, progress.state, progress.available, progress.memory)
        element = choice.element.astype(jnp.int32)
        added = function.add(progress.state, element)
        wrong = set_functions.impossible(choice.gain)
        if function.monotone:
            rounding = 1e-4 * jnp.maximum(jnp.abs(function.value(added)), 1)
            wrong |= choice.take & (choice.gain < -rounding)
        take = choice.take & ~wrong
        return _Progress(
            i + 1,
            choice.stop | wrong,
            jax.tree.map(lambda new, old: jnp.where(take, new, old), added, progress.state),
            progress.available & ~((jnp.arange(function.num_items) == element) & take),
            choice.memory,
            progress.indices.at[i].set(jnp.where(take, element, -1)),
            progress.gains.at[i].set(jnp.where(take, choice.gain, 0).astype(kind)),
            progress.count.plus(choice.num_queries),
            jnp.where(wrong, element, progress.flawed),
        )

    begin = _Progress(
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
        start.state,
        start.available,
        memory,
        jnp.full(size, -1, jnp.int32),
        jnp.zeros(size, kind),
        QueryCount.zero() if count is None else count,
        jnp.full((), -1, jnp.int32),
    )
    end = jax.lax.while_loop(running, step, begin)
    value = jnp.where(end.flawed >= 0, jnp.nan, function.value(end.state))
    return Selection(end.indices, end.gains, end.indices >= 0, value, end.count, proved, end.flawed)


Answer = TypeVar("Answer", bound=Any)


def trusted(function: set_functions.SetFunction, found: Answer) -> Answer:
    """Return what was found, or raise where an answer of the oracle was flawed and can be seen."""
    if not validation.is_traced(found.flawed) and int(found.flawed) >= 0:
        raise flaw(function, found.flawed)
    return found


def flaw(function: set_functions.SetFunction, item: Any) -> ValueError:
    """The error that names the function and the item whose gain no set function has."""
    kind = "finite and, of a monotone function, >= 0" if function.monotone else "finite"
    return ValueError(
        f"gains of {type(function).__name__} must be {kind}, got another for item {int(item)}"
    )


def start(
    function: set_functions.SetFunction,
    mask: Mask | None,
    initial: ItemList | None,
    min_gain: ArrayLike | None = None,
) -> Start:
    """Check what all maximisers share, and build the state of the initial set."""
    set_functions.check_kind(function)
    n = function.num_items
    available = jnp.ones(n, bool) if mask is None else jnp.asarray(mask)
    if available.dtype != bool:
        raise TypeError(f"mask must be boolean, got dtype {available.dtype}")
    if available.shape != (n,):
        raise ValueError(f"mask must have shape ({n},), got {available.shape}")
    state = function.init()
    if initial is not None:
        items = operands.indices("initial", initial, n)
        if items.ndim != 1:
            raise ValueError(f"initial must have rank 1, got shape {items.shape}")
        if not validation.is_traced(initial) and np.unique(initial).size != items.size:
            raise ValueError(f"initial must not repeat an item, got {np.asarray(initial).tolist()}")
        state = set_functions.add_all(function, state, items, jnp.ones(items.shape[0], bool))
        available = available.at[items].set(False)
    if min_gain is None:
        min_gain = -jnp.inf if function.monotone else 0.0
    return Start(state, available, jnp.asarray(min_gain, jnp.float32))
