"""Coverage of weighted concepts: certain, probabilistic, and saturated."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import operands
from jaxkit.submodular.items import Item, Items, take


class CoverageState(NamedTuple):
    """State of a coverage function.

    Attributes:
        missed: weight of each concept times the chance that nothing chosen covers it, `[m]`.
        chosen: items in the set, `[n]`.
        value: F, a scalar.
    """

    missed: Float[Array, " m"]
    chosen: Bool[Array, " n"]
    value: Float[Array, ""]


@pytrees.dataclass
class Coverage:
    """Weighted or probabilistic coverage; make it with the factory of that name.

    Attributes:
        rows: chance that an item covers a concept, `[n, m]`, 0 or 1 for certain coverage.
        weights: weight of each concept, `[m]`.
    """

    rows: jax.Array
    weights: jax.Array

    @property
    def num_items(self) -> int:
        """Size of the ground set."""
        return self.rows.shape[0]

    @property
    def monotone(self) -> bool:
        """Always: every gain is >= 0."""
        return True

    def init(self) -> CoverageState:
        """State of the empty set."""
        # A copy: the state may be donated, and the next one still needs the weights.
        missed = jnp.array(self.weights)
        return CoverageState(missed, jnp.zeros(self.num_items, bool), jnp.zeros(()))

    def gains(self, state: CoverageState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`."""
        rows, chosen = self.rows, state.chosen
        if candidates is not None:
            rows, chosen = take(rows, candidates), take(chosen, candidates)
        return jnp.where(chosen, 0, (rows * state.missed).sum(-1))

    def add(self, state: CoverageState, element: Item) -> CoverageState:
        """State with one more item."""
        left = state.missed * (1 - take(self.rows, element))
        return CoverageState(
            jnp.where(take(state.chosen, element), state.missed, left),
            state.chosen | (jnp.arange(self.num_items) == element),
            state.value + self.gains(state, element),
        )

    def value(self, state: CoverageState) -> Float[Array, ""]:
        """F of the set."""
        return state.value


def weighted_coverage(incidence: ArrayLike, weights: ArrayLike | None = None) -> Coverage:
    r"""Make $F(S) = \sum_i w_i [\exists j \in S: B_{ij} = 1]$.

    Args:
        incidence: B, `[m, n]` concepts x items, bool or only zeros and ones.
        weights: w, `[m]`, non-negative; all 1 by default.

    Returns:
        A monotone submodular `SetFunction` of n items. All gains cost one `m n` sum.

    Raises:
        TypeError: if an array is not numeric.
        ValueError: if an entry is not 0 or 1, a weight negative or not finite, a shape wrong.

    Source: standard; arXiv 2305.15192 §1 names coverage as its example.

    Example:
        >>> f = weighted_coverage(jnp.array([[1, 1, 0], [0, 1, 1]]), jnp.array([2.0, 3.0]))
        >>> f.gains(f.init()).tolist()
        [2.0, 5.0, 3.0]
    """
    matrix = operands.operand("incidence", incidence, rank=2)
    if not validation.is_traced(matrix) and not bool(((matrix == 0) | (matrix == 1)).all()):
        wrong = float(matrix[(matrix != 0) & (matrix != 1)][0])
        raise ValueError(f"incidence must hold only 0 and 1, got an entry {wrong:g}")
    return Coverage(matrix.T, operands.weights_or_ones("weights", weights, matrix.shape[0]))


def probabilistic_coverage(probabilities: ArrayLike, weights: ArrayLike | None = None) -> Coverage:
    r"""Make $F(S) = \sum_i w_i (1 - \prod_{j \in S} (1 - P_{ij}))$.

    Args:
        probabilities: P, `[m, n]` concepts x items, in `[0, 1]`.
        weights: w, `[m]`, non-negative; all 1 by default.

    Returns:
        A monotone submodular `SetFunction` of n items.

    Raises:
        TypeError: if an array is not numeric.
        ValueError: if an entry is not a probability, a weight negative or not finite, a shape
            wrong.

    Example:
        >>> f = probabilistic_coverage(jnp.array([[0.5, 0.5]]))
        >>> float(f.value(f.add(f.add(f.init(), 0), 1)))
        0.75
    """
    matrix = operands.operand("probabilities", probabilities, rank=2, minimum=0, maximum=1)
    return Coverage(matrix.T, operands.weights_or_ones("weights", weights, matrix.shape[0]))


class SaturatedState(NamedTuple):
    """State of saturated coverage.

    Attributes:
        covered: sum over the set for each concept, not capped, `[m]`.
        chosen: items in the set, `[n]`.
    """

    covered: Float[Array, " m"]
    chosen: Bool[Array, " n"]


@pytrees.dataclass
class SaturatedCoverage:
    """Saturated coverage; make it with `saturated_coverage`.

    Attributes:
        rows: similarity of items to concepts, `[n, m]`.
        caps: where each concept saturates, `[m]`.
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

    def init(self) -> SaturatedState:
        """State of the empty set."""
        return SaturatedState(jnp.zeros(self.rows.shape[1]), jnp.zeros(self.num_items, bool))

    def gains(self, state: SaturatedState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`."""
        rows, chosen = self.rows, state.chosen
        if candidates is not None:
            rows, chosen = take(rows, candidates), take(chosen, candidates)
        room = jnp.maximum(self.caps - state.covered, 0)
        return jnp.where(chosen, 0, jnp.minimum(rows, room).sum(-1))

    def add(self, state: SaturatedState, element: Item) -> SaturatedState:
        """State with one more item."""
        row = jnp.where(take(state.chosen, element), 0, take(self.rows, element))
        return SaturatedState(
            state.covered + row, state.chosen | (jnp.arange(self.num_items) == element)
        )

    def value(self, state: SaturatedState) -> Float[Array, ""]:
        """F of the set."""
        return jnp.minimum(state.covered, self.caps).sum()


def saturated_coverage(similarity: ArrayLike, alpha: ArrayLike) -> SaturatedCoverage:
    r"""Make $F(S) = \sum_i \min(\sum_{j \in S} W_{ij}, \alpha \sum_{j \in V} W_{ij})$.

    Args:
        similarity: W, `[m, n]` concepts x items, non-negative.
        alpha: share of its total at which each concept saturates, in `(0, 1]`.

    Returns:
        A monotone submodular `SetFunction` of n items.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if an entry is negative or not finite, or `alpha` out of range.

    Source: Lin and Bilmes, ACL 2011, eq. (4).

    Example:
        >>> f = saturated_coverage(jnp.array([[1.0, 1.0, 2.0]]), 0.5)
        >>> [float(g) for g in f.gains(f.add(f.init(), 0))]
        [0.0, 1.0, 1.0]
    """
    matrix = operands.operand("similarity", similarity, rank=2, minimum=0)
    validation.number("alpha", alpha, minimum=0, maximum=1, open_minimum=True)
    if not validation.is_traced(alpha) and np.ndim(alpha):
        raise ValueError(f"alpha must be one number, got shape {np.shape(alpha)}")
    return SaturatedCoverage(matrix.T, jnp.asarray(alpha) * matrix.sum(1))
