"""A set function on a few of its items, renumbered."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from jaxkit import pytrees
from jaxkit.submodular.items import Item, Items


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
        """Number of items it is seen on."""
        return self.items.shape[0]

    @property
    def monotone(self) -> bool:
        """As the function."""
        return self.function.monotone

    def init(self) -> Any:
        """State of the empty set."""
        return self.function.init()

    def gains(self, state: Any, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all its items or of `candidates`."""
        items = self.items if candidates is None else self.items[candidates]
        return self.function.gains(state, items)

    def add(self, state: Any, element: Item) -> Any:
        """State with one more item."""
        return self.function.add(state, self.items[element])

    def value(self, state: Any) -> Float[Array, ""]:
        """F of the set."""
        return self.function.value(state)
