"""From a table of features to k exemplars, in one call."""

from __future__ import annotations

from typing import Any

import jax

from jaxkit import validation
from jaxkit.submodular import (
    cardinality,
    concave,
    cuts,
    determinants,
    facilities,
    kernels,
    operands,
    set_functions,
)
from jaxkit.submodular.selection import Selection

#: Objectives of a similarity matrix and the largest set that will be asked for.
_OF_MATRIX = {
    "facility_location": lambda matrix, k: facilities.facility_location(matrix),
    "graph_cut": lambda matrix, k: cuts.graph_cut(matrix, 0.5),
    "log_det": lambda matrix, k: determinants.log_det(matrix, 1.0, max_size=k),
    "saturated_coverage": lambda matrix, k: concave.saturated_coverage(matrix, 0.25),
}

#: What a selection can be good at.
OBJECTIVES = ("feature_based", *_OF_MATRIX)

#: How it can be found.
MAXIMISERS = ("greedy", "lazy", "stochastic", "threshold")

#: Items up to which facility location keeps the whole similarity matrix (1 GB of float32).
_LARGEST_MATRIX = 16_384


def objective_of(
    features: Any,
    objective: str = "facility_location",
    *,
    k: int | None = None,
    kernel: str = "cosine",
    gamma: float = 1.0,
    num_neighbors: int | None = None,
) -> set_functions.SetFunction:
    """Make the set function that `select` maximises, of sets of at most k items."""
    validation.choice("objective", objective, OBJECTIVES)
    if num_neighbors is not None and objective != "facility_location":
        raise ValueError(
            f"num_neighbors goes with objective 'facility_location' only, got {objective!r}"
        )
    features = operands.table(features)
    if objective == "feature_based":
        return concave.feature_based(features)
    if objective == "facility_location":
        if num_neighbors is not None:
            near = kernels.nearest_neighbors(features, num_neighbors, kernel=kernel, gamma=gamma)
            n = near.indices.shape[0]
            return facilities.facility_location_from_neighbors(near.indices, near.similarity, n)
        if operands.operand("features", features, rank=2).shape[0] > _LARGEST_MATRIX:
            return facilities.facility_location_from_features(features, kernel=kernel, gamma=gamma)
    matrix = kernels.similarity_matrix(features, kernel=kernel, gamma=gamma)
    return _OF_MATRIX[objective](matrix, k)


def select(
    features: Any,
    k: int,
    *,
    objective: str = "facility_location",
    maximiser: str = "lazy",
    kernel: str = "cosine",
    gamma: float = 1.0,
    num_neighbors: int | None = None,
    eps: float = 0.1,
    key: jax.Array | None = None,
) -> Selection:
    """Pick k rows of a table: exemplars, a coreset, a summary.

    Args:
        features: `[n, d]`, one row an item: an array, a data frame of numbers or a sparse matrix of
            SciPy (made dense).
        k: number of rows to pick, static; with fewer rows, all are picked, and the other slots of
            the selection are not `valid` and hold -1.
        objective: `"facility_location"` (every row has a near exemplar), `"saturated_coverage"`
            (at 25 %), `"graph_cut"` (central rows, lambda 1/2), `"log_det"` (diverse rows, ridge 1)
            or `"feature_based"` (square roots of sums of non-negative features).
        maximiser: `"lazy"`, `"greedy"`, `"stochastic"` or `"threshold"`.
        kernel: `"cosine"`, `"shifted_cosine"` or `"rbf"`; of all objectives but the last. For
            `"log_det"` it must be positive semi-definite: `"rbf"`, or `"cosine"` of features that
            are non-negative.
        gamma: of `"rbf"`.
        num_neighbors: keep only this many similarities a row (facility location): memory
            `8 n num_neighbors` bytes. Without it, above 16 384 rows similarities are computed in
            blocks when needed.
        eps: of `"stochastic"` and `"threshold"`.
        key: typed PRNG key, for `"stochastic"`; `jax.random.key(0)` by default.

    Returns:
        The `Selection`, best rows first.

    Raises:
        TypeError: if `features` is not numeric or k not an integer.
        ValueError: if a number is out of range or not finite, or a name unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> points = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1], [0.0, 1.0]])
        >>> sorted(select(points, 2).indices.tolist())
        [2, 3]
    """
    validation.integer("k", k, minimum=1)
    validation.choice("maximiser", maximiser, MAXIMISERS)
    function = objective_of(
        features, objective, k=k, kernel=kernel, gamma=gamma, num_neighbors=num_neighbors
    )
    if maximiser == "greedy":
        return cardinality.greedy(function, k)
    if maximiser == "stochastic":
        key = jax.random.key(0) if key is None else key
        return cardinality.stochastic_greedy(function, k, key, eps=eps)
    if maximiser == "threshold":
        return cardinality.threshold_greedy(function, k, eps=eps)
    return cardinality.lazy_greedy(function, k)
