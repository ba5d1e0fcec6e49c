"""How well a set represents what is relevant to some queries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import concave, facilities, mixtures, operands
from jaxkit.submodular.items import Item, Items, take


class MutualInformationState(NamedTuple):
    """State of the mutual information.

    Attributes:
        best: similarity of each client to its best item in the set, `[m]`.
    """

    best: Float[Array, " m"]


@pytrees.dataclass
class FacilityLocationMutualInformation:
    """Make it with `facility_location_mutual_information`.

    Attributes:
        rows: similarity of items to clients, `[n, m]`.
        caps: `eta` times the best similarity of each client to a query, `[m]`.
    """

    rows: jax.Array
    caps: jax.Array

    @property
    def num_items(self) -> int:
        """Size of the ground set."""
        return self.rows.shape[0]

    @property
    def monotone(self) -> bool:
        """Always: every gain is >= 0."""
        return True

    def init(self) -> MutualInformationState:
        """State of the empty set."""
        return MutualInformationState(jnp.zeros(self.rows.shape[1]))

    def gains(
        self, state: MutualInformationState, candidates: Items | None = None
    ) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`."""
        rows = self.rows if candidates is None else take(self.rows, candidates)
        return jnp.maximum(jnp.minimum(rows, self.caps) - state.best, 0).sum(-1)

    def add(self, state: MutualInformationState, element: Item) -> MutualInformationState:
        """State with one more item."""
        row = jnp.minimum(take(self.rows, element), self.caps)
        return MutualInformationState(jnp.maximum(state.best, row))

    def value(self, state: MutualInformationState) -> Float[Array, ""]:
        """F of the set."""
        return state.best.sum()


def facility_location_mutual_information(
    similarity: ArrayLike, query_similarity: ArrayLike, eta: ArrayLike = 1.0
) -> FacilityLocationMutualInformation:
    r"""Make $F(S) = \sum_i \min(\max_{j \in S} W_{ij}, \eta \max_q Q_{iq})$: relevant exemplars.

    Args:
        similarity: W, `[m, n]` clients x items, non-negative.
        query_similarity: Q, `[m, q]` clients x queries, non-negative.
        eta: how much relevance to the queries counts against representation, >= 0.

    Returns:
        A monotone submodular `SetFunction` of n items.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if an entry is negative or not finite, or the numbers of clients differ.

    Source: Iyer et al., ALT 2021 (the variant whose clients are the whole ground set).

    Example:
        >>> f = facility_location_mutual_information(jnp.eye(2), jnp.array([[1.0], [0.0]]))
        >>> f.gains(f.init()).tolist()
        [1.0, 0.0]
    """
    items = operands.operand("similarity", similarity, rank=2, minimum=0)
    queries = operands.operand("query_similarity", query_similarity, rank=2, minimum=0)
    validation.number("eta", eta, minimum=0)
    if queries.shape[0] != items.shape[0]:
        raise ValueError(
            f"query_similarity must have {items.shape[0]} rows as similarity has, "
            f"got {queries.shape[0]}"
        )
    return FacilityLocationMutualInformation(items.T, jnp.asarray(eta) * queries.max(1))


def facility_location_query(query_similarity: ArrayLike, eta: ArrayLike = 1.0) -> mixtures.Mixture:
    r"""Make $F(S) = \sum_q \max_{j \in S} Q_{qj} + \eta \sum_{j \in S} \max_q Q_{qj}$.

    The variant of the mutual information whose clients are the queries only.

    Args:
        query_similarity: Q, `[q, n]` queries x items, non-negative.
        eta: weight of the relevance of each item, >= 0.

    Returns:
        A monotone submodular `SetFunction` of n items.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if an entry is negative or not finite.

    Source: Iyer et al., ALT 2021.

    Example:
        >>> f = facility_location_query(jnp.array([[1.0, 0.5]]), 2.0)
        >>> f.gains(f.init()).tolist()
        [3.0, 1.5]
    """
    matrix = operands.operand("query_similarity", query_similarity, rank=2, minimum=0)
    validation.number("eta", eta, minimum=0)
    weights = jnp.stack([jnp.ones(()), jnp.asarray(eta, jnp.float32)])
    return mixtures.mixture(
        [facilities.facility_location(matrix), concave.modular(matrix.max(0))], weights
    )
