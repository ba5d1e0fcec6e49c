"""Concave over modular: sums over the set, each under a concave function."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

from collections.abc import Callable
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


class Concave(NamedTuple):
    """phi(x) with phi(0) = 0, and phi(x + y) - phi(x) for y >= 0 without its cancellation."""

    value: Callable[[jax.Array], jax.Array]
    rise: Callable[[jax.Array, jax.Array], jax.Array]


def _root_rise(x, y):
    # The divisor is 0 only where the rise is.
    return y / jnp.maximum(jnp.sqrt(x + y) + jnp.sqrt(x), jnp.finfo(x.dtype).tiny)


#: The concave functions, by name; "miss" is of probabilistic coverage alone.
_CONCAVE = {
    "identity": Concave(lambda x: x, lambda x, y: y),
    "log1p": Concave(jnp.log1p, lambda x, y: jnp.log1p(y / (1 + x))),
    "min": Concave(lambda x: jnp.minimum(x, 1), lambda x, y: jnp.minimum(y, jnp.maximum(1 - x, 0))),
    "miss": Concave(lambda x: -jnp.expm1(-x), lambda x, y: -jnp.exp(-x) * jnp.expm1(-y)),
    "ratio": Concave(lambda x: x / (1 + x), lambda x, y: y / (1 + x) / (1 + x + y)),
    "sqrt": Concave(jnp.sqrt, _root_rise),
}
_NAMES = ("identity", "log1p", "min", "ratio", "sqrt")


class ModularState(NamedTuple):
    """State: the sum over the set of each feature, and which items are in the set."""

    sums: Float[Array, " d"]
    chosen: Bool[Array, " n"]


@pytrees.dataclass
class ConcaveOverModular:
    """`sum_d w_d phi(sum_{j in S} X_jd)`; make it by one of the factories of this file."""

    rows: jax.Array
    weights: jax.Array
    concave: str = flax.struct.field(pytree_node=False)
    monotone = True

    @property
    def num_items(self) -> int:
        return self.rows.shape[0]

    def init(self) -> ModularState:
        return ModularState(jnp.zeros(self.rows.shape[1]), jnp.zeros(self.num_items, bool))

    def gains(self, state: ModularState, candidates: Items | None = None) -> Float[Array, "*c"]:
        rows, chosen = self.rows, state.chosen
        if candidates is not None:
            rows, chosen = take(rows, candidates), take(chosen, candidates)
        rise = _CONCAVE[self.concave].rise(state.sums, rows)
        return jnp.where(chosen, 0, (rise * self.weights).sum(-1))

    def add(self, state: ModularState, element: Item) -> ModularState:
        row = jnp.where(take(state.chosen, element), 0, take(self.rows, element))
        return ModularState(
            state.sums + row, state.chosen | (jnp.arange(self.num_items) == element)
        )

    def value(self, state: ModularState) -> Float[Array, ""]:
        return (_CONCAVE[self.concave].value(state.sums) * self.weights).sum()


def feature_based(
    features: ArrayLike, concave: str = "sqrt", weights: ArrayLike | None = None
) -> ConcaveOverModular:
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
    validation.choice("concave", concave, _NAMES)
    weights = operands.weights_or_ones("weights", weights, matrix.shape[1])
    return ConcaveOverModular(matrix, weights, concave)


def modular(weights: ArrayLike) -> ConcaveOverModular:
    r"""Make $F(S) = \sum_{j \in S} w_j$.

    A monotone modular `SetFunction` of n items: greedy takes the k largest weights. Errors as
    `feature_based`.

    Args:
        weights: w, `[n]`, non-negative.

    Example:
        >>> f = modular(jnp.array([1.0, 3.0]))
        >>> f.gains(f.init()).tolist()
        [1.0, 3.0]
    """
    weights = operands.operand("weights", weights, rank=1, minimum=0)
    return feature_based(weights[:, None], "identity")


def weighted_coverage(incidence: ArrayLike, weights: ArrayLike | None = None) -> ConcaveOverModular:
    r"""Make $F(S) = \sum_i w_i [\exists j \in S: B_{ij} = 1]$.

    A monotone submodular `SetFunction` of n items, all gains of which cost one `m n` sum; errors as
    `feature_based`.

    Args:
        incidence: B, `[m, n]` concepts x items, bool or only zeros and ones.
        weights: w, `[m]`, non-negative; all 1 by default.

    Source: standard; arXiv 2305.15192 §1 names coverage as its example.

    Example:
        >>> f = weighted_coverage(jnp.array([[1, 1, 0], [0, 1, 1]]), jnp.array([2.0, 3.0]))
        >>> f.gains(f.init()).tolist()
        [2.0, 5.0, 3.0]
    """
    matrix = operands.operand("incidence", incidence, rank=2)
    if not validation.is_traced(matrix):
        with jax.ensure_compile_time_eval():
            wrong = matrix[(matrix != 0) & (matrix != 1)]
            if wrong.size:
                entry = float(wrong[0])
                raise ValueError(f"incidence must hold only 0 and 1, got an entry {entry:g}")
    weights = operands.weights_or_ones("weights", weights, matrix.shape[0])
    return ConcaveOverModular(matrix.T, weights, "min")


def probabilistic_coverage(
    probabilities: ArrayLike, weights: ArrayLike | None = None
) -> ConcaveOverModular:
    r"""Make $F(S) = \sum_i w_i (1 - \prod_{j \in S} (1 - P_{ij}))$.

    A monotone submodular `SetFunction` of n items; errors as `feature_based`.

    Args:
        probabilities: P, `[m, n]` concepts x items, in `[0, 1]`.
        weights: w, `[m]`, non-negative; all 1 by default.

    Example:
        >>> f = probabilistic_coverage(jnp.array([[0.5, 0.5]]))
        >>> float(f.value(f.add(f.add(f.init(), 0), 1)))
        0.75
    """
    matrix = operands.operand("probabilities", probabilities, rank=2, minimum=0, maximum=1)
    weights = operands.weights_or_ones("weights", weights, matrix.shape[0])
    # A certain concept has an infinite sum, whose phi is 1.
    return ConcaveOverModular(-jnp.log1p(-matrix.T), weights, "miss")


def saturated_coverage(similarity: ArrayLike, alpha: ArrayLike) -> ConcaveOverModular:
    r"""Make $F(S) = \sum_i \min(\sum_{j \in S} W_{ij}, \alpha \sum_{j \in V} W_{ij})$.

    A monotone submodular `SetFunction` of n items; errors as `feature_based`.

    Args:
        similarity: W, `[m, n]` concepts x items, non-negative.
        alpha: share of its total at which each concept saturates, in `(0, 1]`.

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
    caps = jnp.asarray(alpha) * matrix.sum(1)
    return ConcaveOverModular(matrix.T / jnp.where(caps > 0, caps, 1), caps, "min")
