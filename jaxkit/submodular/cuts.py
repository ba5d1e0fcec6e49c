"""Functions of pairs: graph cut and the cut of a graph."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import operands
from jaxkit.submodular.operands import Item, Items, take


class GraphCutState(NamedTuple):
    """State: the weight from each item into the set, which items are in it, and F."""

    links: Float[Array, " n"]
    chosen: Bool[Array, " n"]
    value: Float[Array, ""]


@pytrees.dataclass
class GraphCut:
    """`sum_{V,S} W - lam sum_{S,S} W`, W with row sums `totals`; by `graph_cut` or `cut`."""

    rows: jax.Array
    totals: jax.Array
    lam: jax.Array
    monotone: bool = flax.struct.field(pytree_node=False)

    @property
    def num_items(self) -> int:
        return self.rows.shape[0]

    def init(self) -> GraphCutState:
        return GraphCutState(
            jnp.zeros(self.num_items), jnp.zeros(self.num_items, bool), jnp.zeros(())
        )

    def gains(self, state: GraphCutState, candidates: Items | None = None) -> Float[Array, "*c"]:
        redundant = 2 * state.links + jnp.diagonal(self.rows)
        gains = jnp.where(state.chosen, 0, self.totals - self.lam * redundant)
        return gains if candidates is None else take(gains, candidates)

    def add(self, state: GraphCutState, element: Item) -> GraphCutState:
        row = jnp.where(take(state.chosen, element), 0, take(self.rows, element))
        return GraphCutState(
            state.links + row,
            state.chosen | (jnp.arange(self.num_items) == element),
            state.value + self.gains(state, element),
        )

    def value(self, state: GraphCutState) -> Float[Array, ""]:
        return state.value


def graph_cut(similarity: ArrayLike, lam: ArrayLike) -> GraphCut:
    r"""Make $F(S) = \sum_{i \in V, j \in S} W_{ij} - \lambda \sum_{i, j \in S} W_{ij}$.

    Convention: pairs are ordered and include the diagonal, and lambda stands on the second term
    (as in submodlib; apricot-select puts its `alpha` on the first).

    Args:
        similarity: W, `[n, n]`, symmetric and non-negative.
        lam: lambda >= 0, weight of redundancy inside the set.

    Returns:
        A submodular `SetFunction` of n items, monotone if `lam <= 1/2`. A traced `lam` counts as
        not monotone. All gains cost n operations.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if the matrix is not square, symmetric, finite and non-negative, or lambda
            negative.

    Source: Iyer et al., ALT 2021.

    Example:
        >>> f = graph_cut(jnp.array([[1.0, 0.5], [0.5, 1.0]]), 0.5)
        >>> f.gains(f.init()).tolist()
        [1.0, 1.0]
    """
    matrix = operands.symmetric("similarity", similarity, minimum=0)
    validation.number("lam", lam, minimum=0)
    monotone = not validation.is_traced(lam) and float(np.asarray(lam)) <= 0.5
    return GraphCut(matrix, matrix.sum(1), jnp.asarray(lam, jnp.float32), monotone)


def cut(adjacency: ArrayLike) -> GraphCut:
    r"""Make $F(S) = \sum_{i \in S, j \notin S} A_{ij}$, the weight of the edges that leave S.

    A submodular `SetFunction` of n items, not monotone: use `random_greedy`. Errors as `graph_cut`.

    Args:
        adjacency: A, `[n, n]`, symmetric and non-negative; the diagonal is ignored.

    Example:
        >>> f = cut(jnp.ones((3, 3)))
        >>> f.gains(f.add(f.init(), 0)).tolist()
        [0.0, 0.0, 0.0]
    """
    matrix = operands.symmetric("adjacency", adjacency, minimum=0)
    matrix = jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0, matrix)
    return GraphCut(matrix, matrix.sum(1), jnp.asarray(1.0), False)
