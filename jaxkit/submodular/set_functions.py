"""What every set function of this room is: a pytree with four pure methods, and checks of it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import operands
from jaxkit.submodular.operands import FlagList, Item, ItemList, Items

State = Any


@runtime_checkable
class SetFunction(Protocol):
    """A normalised set function F over items `0 .. num_items - 1`, evaluated incrementally.

    An implementation is a pytree: its data (similarities, weights) are leaves, so that `jit`,
    `vmap` and shardings act on them, and everything else is static. States are pytrees of fixed
    shape, usable inside `scan` and `vmap` with traced items. Functions are of *sets*: an item that
    is in the set already has gain 0, and adding it again changes nothing.

    Register a class of your own by `jaxkit.pytrees.dataclass`, or with
    `jax.tree_util.register_pytree_with_keys_class`: classes of `flax.struct.dataclass` and
    `jax.tree_util.register_dataclass` may be confused by `jax.jit` (see `jaxkit.pytrees`). The
    maximisers of this room take those too, because they compile for each class.

    Example:
        >>> from jaxkit.submodular import modular
        >>> f = modular(jnp.array([1.0, 3.0]))
        >>> isinstance(f, SetFunction), f.num_items
        (True, 2)
        >>> state = f.add(f.init(), 1)
        >>> float(f.value(state)), f.gains(state).tolist()
        (3.0, [1.0, 0.0])
    """

    @property
    def num_items(self) -> int:
        """Size of the ground set, n."""
        ...

    @property
    def monotone(self) -> bool:
        """Whether every gain is known to be >= 0."""
        ...

    def init(self) -> State:
        """State of the empty set."""
        ...

    def gains(self, state: State, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains `F(S + e) - F(S)` of all items `[n]`, or of `candidates` of any shape `[*c]`.

        A gain of `-inf` marks an item that cannot be added. Each gain counts as one query.
        """
        ...

    def add(self, state: State, element: Item) -> State:
        """State of `S + element`."""
        ...

    def value(self, state: State) -> Float[Array, ""]:
        """`F(S)`; free of queries, because the state holds it."""
        ...


def check_kind(function: Any) -> None:
    """Raise TypeError unless this is a set function, such as a matrix is not."""
    what = "a SetFunction, such as facility_location(similarity)"
    validation.instance("function", function, SetFunction, what)


def check(function: SetFunction) -> None:
    """Raise TypeError where shapes or types of the methods do not fit together; nothing is run."""
    check_kind(function)
    name, few = type(function).__name__, jnp.zeros(2, jnp.int32)

    def look():
        state = function.init()
        several = function.gains(state), function.gains(state, few), function.value(state)
        return state, function.add(state, few[0]), several

    state, added, several = jax.eval_shape(look)
    shapes = {
        "gains(state)": (function.num_items,),
        "gains(state, [0, 0])": (2,),
        "value(state)": (),
    }
    for (call, shape), found in zip(shapes.items(), several, strict=True):
        if found.shape != shape or not jnp.issubdtype(found.dtype, jnp.floating):
            raise TypeError(
                f"{name}.{call} must be of floating point and shape {shape}, got {found.dtype} "
                f"and {found.shape}"
            )
    if jax.tree.structure(state) != jax.tree.structure(added) or any(
        (a.shape, a.dtype) != (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(added), strict=True)
    ):
        raise TypeError(
            f"{name}.add must keep the structure, shapes and types of a state, got {added} from "
            f"{state}"
        )


def impossible(gains: Float[Array, "*c"]) -> Bool[Array, "*c"]:
    """Which answers of an oracle no set function gives: NaN and plus infinity."""
    return ~(gains < jnp.inf)


def add_all(function: SetFunction, state: State, elements: ItemList, valid: FlagList) -> State:
    """State with the valid ones of `elements [s]` added in order; the others may hold anything."""

    def step(state, element_and_valid):
        element, valid = element_and_valid
        added = function.add(state, jnp.where(valid, element, 0))
        return jax.tree.map(lambda new, old: jnp.where(valid, new, old), added, state), None

    return jax.lax.scan(step, state, (elements, valid))[0]


@pytrees.jit
def _value_of(function, elements, valid):
    check(function)
    return function.value(add_all(function, function.init(), elements, valid))


def evaluate(function: SetFunction, elements: ItemList) -> Float[Array, ""]:
    """Compute F of a set given by its items; negative entries are padding.

    Args:
        function: the set function.
        elements: items `[s]`, each below `num_items`; -1 (as in `Selection.indices`) is skipped.

    Raises:
        TypeError: if items are not integers, as a mask is not: `np.flatnonzero(mask)` lists it.
        ValueError: if a concrete item is `num_items` or more.

    Example:
        >>> from jaxkit.submodular import modular
        >>> float(evaluate(modular(jnp.array([1.0, 2.0, 4.0])), jnp.array([2, 0, -1])))
        5.0
    """
    check_kind(function)
    elements = operands.item_list("elements", elements)
    if not validation.is_traced(elements) and elements.size:
        largest = int(np.asarray(elements).max())
        if largest >= function.num_items:
            raise ValueError(f"elements must be < {function.num_items}, got {largest}")
    return _value_of(function, elements, elements >= 0)


class Violation(NamedTuple):
    """How far the worst gain is on the wrong side, 0 if none, the set as a mask, and the item."""

    worst: Float[Array, ""]
    base: Bool[Array, " n"]
    element: Item


@functools.partial(pytrees.jit, static_argnames="wrong")
def _worst(function, keys, wrong) -> Violation:
    """The largest of `wrong(gains, inside)`, both `[chains, n, n]`, along random orders of items.

    Before step i of a chain, `gains[:, i]` are those of all items and `inside[:, i]` is the set.
    """
    n = function.num_items

    def chain(key):
        def step(carry, element):
            state, mask = carry
            gains = function.gains(state)
            return (function.add(state, element), mask.at[element].set(True)), (gains, mask)

        begin = (function.init(), jnp.zeros(n, bool))
        return jax.lax.scan(step, begin, jax.random.permutation(key, n))[1]

    gains, inside = jax.vmap(chain)(keys)
    violations = jnp.maximum(wrong(gains, inside), 0)
    place = jnp.unravel_index(jnp.argmax(violations), violations.shape)
    return Violation(violations.max(), inside[place[0], place[1]], place[2].astype(jnp.int32))


def _loss(gains, inside):
    return -gains


def _growth(gains, inside):
    grown = jnp.diff(gains, axis=1, prepend=gains[:, :1])
    return jnp.where(inside, 0, grown)


def check_monotone(function: SetFunction, key: jax.Array, *, num_chains: int = 8) -> Violation:
    """Look for negative gains along random chains of growing sets.

    A spot test: a violation is a proof that F is not monotone, none is not a proof that it is.

    Args:
        function: the set function; `n^2` gains are computed for each chain.
        key: typed PRNG key.
        num_chains: number of random orders of all items.

    Returns:
        The worst violation `max(0, -gain)`, up to float32 rounding, and where it is.

    Raises:
        ValueError: if `num_chains` is not positive.

    Example:
        >>> from jaxkit.submodular import cut
        >>> f = cut(jnp.ones((4, 4)) - jnp.eye(4))
        >>> float(check_monotone(f, jax.random.key(0)).worst)
        3.0
    """
    validation.integer("num_chains", num_chains, minimum=1)
    return _worst(function, jax.random.split(key, num_chains), _loss)


def check_submodular(function: SetFunction, key: jax.Array, *, num_chains: int = 8) -> Violation:
    """Look for gains that grow along random chains of growing sets, as `check_monotone`.

    Returns:
        The worst violation `max(0, F(e | B) - F(e | A))` over consecutive sets `A < B` of a chain
        and items outside B, with B and the item.

    Example:
        >>> from jaxkit.submodular import cut
        >>> f = cut(jnp.ones((4, 4)) - jnp.eye(4))
        >>> float(check_submodular(f, jax.random.key(0)).worst)
        0.0
    """
    validation.integer("num_chains", num_chains, minimum=1)
    return _worst(function, jax.random.split(key, num_chains), _growth)
