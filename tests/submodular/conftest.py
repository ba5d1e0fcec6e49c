"""Small set functions of every kind, and exact optima by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular


def _similarity(rng, m, n):
    return rng.uniform(size=(m, n)).astype(np.float32)


def _kernel(rng, n):
    rows = rng.normal(size=(n, 5))
    return (rows @ rows.T / 5).astype(np.float32)


def _facility(rng, n):
    return submodular.facility_location(_similarity(rng, 9, n))


def _from_features(rng, n):
    rows = rng.normal(size=(n, 3))
    return submodular.facility_location_from_features(rows, kernel="rbf", block=4)


def _from_neighbors(rng, n):
    near = submodular.nearest_neighbors(rng.normal(size=(n, 3)), min(4, n), kernel="rbf", block=4)
    return submodular.facility_location_from_neighbors(near.indices, near.similarity, n)


def _symmetric(rng, n):
    matrix = rng.uniform(size=(n, n))
    return (matrix + matrix.T) / 2


def _mixture(rng, n):
    parts = [_facility(rng, n), submodular.feature_based(rng.uniform(size=(n, 3)))]
    return submodular.mixture(parts, jnp.array([0.5, 2.0]))


#: How to make a small random function of each kind: `make(rng, n)`.
FUNCTIONS = {
    "facility_location": _facility,
    "facility_location_from_features": _from_features,
    "facility_location_from_neighbors": _from_neighbors,
    "facility_location_mutual_information": lambda rng, n: (
        submodular.facility_location_mutual_information(
            _similarity(rng, 9, n), rng.uniform(size=(9, 2)), 0.8
        )
    ),
    "weighted_coverage": lambda rng, n: submodular.weighted_coverage(
        rng.uniform(size=(12, n)) < 0.3, rng.uniform(size=12)
    ),
    "probabilistic_coverage": lambda rng, n: submodular.probabilistic_coverage(
        rng.uniform(size=(12, n)), rng.uniform(size=12)
    ),
    "saturated_coverage": lambda rng, n: submodular.saturated_coverage(_similarity(rng, 9, n), 0.3),
    "feature_sqrt": lambda rng, n: submodular.feature_based(rng.uniform(size=(n, 5)), "sqrt"),
    "feature_log1p": lambda rng, n: submodular.feature_based(rng.uniform(size=(n, 5)), "log1p"),
    "feature_ratio": lambda rng, n: submodular.feature_based(rng.uniform(size=(n, 5)), "ratio"),
    "feature_min": lambda rng, n: submodular.feature_based(rng.uniform(size=(n, 5)), "min"),
    "modular": lambda rng, n: submodular.modular(rng.uniform(size=n)),
    "graph_cut": lambda rng, n: submodular.graph_cut(_symmetric(rng, n), 0.4),
    "graph_cut_redundant": lambda rng, n: submodular.graph_cut(_symmetric(rng, n), 0.8),
    "cut": lambda rng, n: submodular.cut(_symmetric(rng, n)),
    "log_det": lambda rng, n: submodular.log_det(_kernel(rng, n), 1.0),
    "dpp": lambda rng, n: submodular.log_det(_kernel(rng, n), 0.3),
    "information_gain": lambda rng, n: submodular.information_gain(_kernel(rng, n), 0.1),
    "mixture": _mixture,
}


@pytest.fixture(scope="session")
def kinds():
    """`kinds[name](rng, n)` makes a small random function of each kind."""
    return FUNCTIONS


@jax.jit
def _extend(function, states, item):
    gains = jax.vmap(function.gains, (0, None))(states, item)
    return gains, jax.vmap(function.add, (0, None))(states, item)


@pytest.fixture(scope="session")
def all_values():
    """`all_values(function)`: F of every subset."""
    return _all_values


@pytest.fixture(scope="session")
def best_of():
    """`best_of(values, live, k)`: the exact optimum."""
    return _best_of


def _all_values(function):
    """F of every subset, by bit mask: float64 `[2^n]`, adding one item at a time."""
    n = function.num_items
    values = np.zeros(2**n)
    masks = np.zeros(1, np.int64)
    states = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function.init())
    for item in range(n):
        gains, more = _extend(function, states, item)
        values[masks | 1 << item] = values[masks] + np.asarray(gains)
        masks = np.concatenate([masks, masks | 1 << item])
        states = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), states, more)
    return values


def _best_of(values, live, k):
    """Largest value of a subset of `live` of at most k items."""
    live = list(live)
    return max(
        values[sum(1 << i for i in chosen)]
        for size in range(min(k, len(live)) + 1)
        for chosen in itertools.combinations(live, size)
    )
