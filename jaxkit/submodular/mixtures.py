"""Set functions made of others: weighted sums, and a few items of one."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxkit import pytrees
from jaxkit.submodular import operands, set_functions
from jaxkit.submodular.operands import Item, Items


@pytrees.dataclass
class Mixture:
    """A weighted sum of set functions of the same items; make it with `mixture`."""

    functions: tuple[Any, ...]
    weights: jax.Array

    @property
    def num_items(self) -> int:
        return self.functions[0].num_items

    @property
    def monotone(self) -> bool:
        return all(function.monotone for function in self.functions)

    def init(self) -> tuple[Any, ...]:
        """State of the empty set: one state a function."""
        return tuple(function.init() for function in self.functions)

    def gains(self, state: tuple[Any, ...], candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`; one query, whatever the number of functions."""
        return self._sum([f.gains(s, candidates) for f, s in self._parts(state)])

    def add(self, state: tuple[Any, ...], element: Item) -> tuple[Any, ...]:
        return tuple(f.add(s, element) for f, s in self._parts(state))

    def value(self, state: tuple[Any, ...]) -> Float[Array, ""]:
        return self._sum([f.value(s) for f, s in self._parts(state)])

    def _parts(self, state: tuple[Any, ...]) -> Any:
        return zip(self.functions, state, strict=True)

    def _sum(self, terms: list[Any]) -> Any:
        return sum(w * term for w, term in zip(self.weights, terms, strict=True))


def mixture(functions: Sequence[set_functions.SetFunction], weights: ArrayLike) -> Mixture:
    r"""Make $F(S) = \sum_t w_t F_t(S)$.

    Args:
        functions: set functions over the same n items.
        weights: w, `[t]`, one for each, non-negative; sweep them with `vmap`.

    Returns:
        A submodular `SetFunction` of n items, monotone if all of them are.

    Raises:
        TypeError: if `weights` is not numeric.
        ValueError: if there is no function, their sizes differ, or a weight is negative, not
            finite or missing.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.submodular import modular
        >>> f = mixture([modular(jnp.array([1.0, 0.0])), modular(jnp.array([0.0, 1.0]))],
        ...     jnp.array([1, 2]))
        >>> f.gains(f.init()).tolist()
        [1.0, 2.0]
    """
    functions = tuple(functions)
    if not functions:
        raise ValueError("functions must hold at least one set function, got none")
    sizes = [function.num_items for function in functions]
    if len(set(sizes)) > 1:
        raise ValueError(f"functions must have the same number of items, got {sizes}")
    return Mixture(functions, operands.weights_or_ones("weights", weights, len(functions)))


@pytrees.dataclass
class Restriction:
    """A set function seen on `items` only: item i of it is item `items[i]` of the whole.

    Attributes:
        function: the set function.
        items: which items, `[s]`; padding may repeat one, if a mask leaves it out.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.submodular import modular
        >>> f = Restriction(modular(jnp.array([1.0, 2.0, 4.0])), jnp.array([2, 0]))
        >>> f.gains(f.init()).tolist()
        [4.0, 1.0]
    """

    function: Any
    items: jax.Array

    @property
    def num_items(self) -> int:
        return self.items.shape[0]

    @property
    def monotone(self) -> bool:
        return self.function.monotone

    def init(self) -> Any:
        return self.function.init()

    def gains(self, state: Any, candidates: Items | None = None) -> Float[Array, "*c"]:
        items = self.items if candidates is None else self.items[candidates]
        return self.function.gains(state, items)

    def add(self, state: Any, element: Item) -> Any:
        return self.function.add(state, self.items[element])

    def value(self, state: Any) -> Float[Array, ""]:
        return self.function.value(state)
