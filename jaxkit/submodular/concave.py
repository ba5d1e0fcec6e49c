"""Functions that are sums, alone or under a concave function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import operands
from jaxkit.submodular.items import Item, Items, take

#: Concave functions phi with phi(0) = 0, by name.
CONCAVE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "log1p": jnp.log1p,
    "min": lambda x: jnp.minimum(x, 1),
    "ratio": lambda x: x / (1 + x),
    "sqrt": jnp.sqrt,
}


class FeatureState(NamedTuple):
    """State of a feature-based function.

    Attributes:
        sums: sum over the set of each feature, `[d]`.
        chosen: items in the set, `[n]`.
    """

    sums: Float[Array, " d"]
    chosen: Bool[Array, " n"]


@pytrees.dataclass
class FeatureBased:
    """Concave over modular; make it with `feature_based` or `modular`.

    Attributes:
        rows: features of the items, `[n, d]`.
        weights: weight of each feature, `[d]`.
        concave: name of phi in `CONCAVE`.
    """

    rows: jax.Array
    weights: jax.Array
    concave: str = flax.struct.field(pytree_node=False)

    @property
    def num_items(self) -> int:
        """Size of the ground set."""
        return self.rows.shape[0]

    @property
    def monotone(self) -> bool:
        """Always: every gain is >= 0."""
        return True

    def init(self) -> FeatureState:
        """State of the empty set."""
        return FeatureState(jnp.zeros(self.rows.shape[1]), jnp.zeros(self.num_items, bool))

    def gains(self, state: FeatureState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`."""
        rows, chosen = self.rows, state.chosen
        if candidates is not None:
            rows, chosen = take(rows, candidates), take(chosen, candidates)
        phi = CONCAVE[self.concave]
        rise = phi(state.sums + rows) - phi(state.sums)
        return jnp.where(chosen, 0, (rise * self.weights).sum(-1))

    def add(self, state: FeatureState, element: Item) -> FeatureState:
        """State with one more item."""
        row = jnp.where(take(state.chosen, element), 0, take(self.rows, element))
        return FeatureState(
            state.sums + row, state.chosen | (jnp.arange(self.num_items) == element)
        )

    def value(self, state: FeatureState) -> Float[Array, ""]:
        """F of the set."""
        return (CONCAVE[self.concave](state.sums) * self.weights).sum()


def feature_based(
    features: ArrayLike, concave: str = "sqrt", weights: ArrayLike | None = None
) -> FeatureBased:
    r"""Make $F(S) = \sum_d w_d \, \varphi(\sum_{j \in S} X_{jd})$.

    Args:
        features: X, `[n, d]` items x features, non-negative.
        concave: phi: `"sqrt"`, `"log1p"`, `"ratio"` (x / (1 + x)), `"min"` (min(x, 1)) or
            `"identity"`.
        weights: w, `[d]`, non-negative; all 1 by default.

    Returns:
        A monotone submodular `SetFunction` of n items, which never compares two items.

    Raises:
        TypeError: if an array is not numeric.
        ValueError: if an entry is negative or not finite, a shape wrong, or `concave` unknown.

    Source: Kirchhoff and Bilmes, EMNLP 2014.

    Example:
        >>> f = feature_based(jnp.array([[4.0], [5.0]]))
        >>> f.gains(f.add(f.init(), 0)).tolist()
        [0.0, 1.0]
    """
    matrix = operands.operand("features", features, rank=2, minimum=0)
    validation.choice("concave", concave, sorted(CONCAVE))
    weights = operands.weights_or_ones("weights", weights, matrix.shape[1])
    return FeatureBased(matrix, weights, concave)


def modular(weights: ArrayLike) -> FeatureBased:
    r"""Make $F(S) = \sum_{j \in S} w_j$.

    Args:
        weights: w, `[n]`, non-negative.

    Returns:
        A monotone modular `SetFunction` of n items: greedy takes the k largest weights.

    Raises:
        TypeError: if `weights` is not numeric.
        ValueError: if a weight is negative or not finite.

    Example:
        >>> f = modular(jnp.array([1.0, 3.0]))
        >>> f.gains(f.init()).tolist()
        [1.0, 3.0]
    """
    weights = operands.operand("weights", weights, rank=1, minimum=0)
    return feature_based(weights[:, None], "identity")
