"""Every set function goes through one mill: a pytree whose methods are pure and incremental.

Items are added one by one in a random order; what the state says must be what F says.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular, subrl

N = 8
ORDER = np.array([5, 0, 3, 6, 1], np.int32)


class Case(NamedTuple):
    """A set function.

    Attributes:
        make: from a NumPy generator to a random one of N items; its numbers are random too, so
            that a program that were made for one of them would be traced again.
        of_visits: whether an item counts again at every visit.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[[np.random.Generator], Any]
    of_visits: bool = False
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def square(rng):
    matrix = rng.uniform(size=(N, N)).astype(np.float32)
    return (matrix + matrix.T) / 2


def kernel(rng):
    rows = rng.normal(size=(N, 5)).astype(np.float32)
    return rows @ rows.T / 5


def rows(rng):
    return rng.uniform(size=(N, 3)).astype(np.float32)


def neighbours(rng):
    near = submodular.nearest_neighbors(rows(rng), 4, kernel="rbf", block=4)
    return submodular.facility_location_from_neighbors(near.indices, near.similarity, N)


EYE, NAN, ONES = np.eye(N), np.full((N, N), np.nan), np.ones(N)

CASES = {
    "submodular.facility_location": Case(
        lambda rng: submodular.facility_location(rng.uniform(size=(9, N))),
        refused=(
            (lambda: submodular.facility_location(ONES), "similarity must be a non-empty array"),
            (lambda: submodular.facility_location(NAN), "similarity must be finite"),
        ),
    ),
    "submodular.facility_location_from_features": Case(
        lambda rng: submodular.facility_location_from_features(rows(rng), kernel="rbf", block=4),
        refused=(
            (lambda: submodular.facility_location_from_features(NAN), "features must be finite"),
            (
                lambda: submodular.facility_location_from_features(EYE, kernel="cosin"),
                "did you mean 'cosine'",
            ),
        ),
    ),
    "submodular.facility_location_from_neighbors": Case(
        neighbours,
        refused=(
            (
                lambda: submodular.facility_location_from_neighbors([[N]], [[1.0]], N),
                "neighbors must",
            ),
        ),
    ),
    "submodular.facility_location_mutual_information": Case(
        lambda rng: submodular.facility_location_mutual_information(
            rng.uniform(size=(9, N)), rng.uniform(size=(9, 2)), rng.uniform(0.5, 1)
        ),
        refused=(
            (
                lambda: submodular.facility_location_mutual_information(EYE, EYE[:3]),
                "query_similarity must",
            ),
        ),
    ),
    "submodular.weighted_coverage": Case(
        lambda rng: submodular.weighted_coverage(
            rng.uniform(size=(12, N)) < 0.3, rng.uniform(size=12)
        ),
        refused=(
            (lambda: submodular.weighted_coverage(EYE, np.ones(3)), "weights must have shape"),
            (lambda: submodular.weighted_coverage(EYE, -ONES), "weights must be in"),
        ),
    ),
    "submodular.probabilistic_coverage": Case(
        lambda rng: submodular.probabilistic_coverage(rng.uniform(size=(11, N))),
        refused=((lambda: submodular.probabilistic_coverage(2 * EYE), "probabilities must be in"),),
    ),
    "submodular.saturated_coverage": Case(
        lambda rng: submodular.saturated_coverage(rng.uniform(size=(9, N)), rng.uniform(0.2, 0.5)),
        refused=((lambda: submodular.saturated_coverage(EYE, -0.1), "alpha must"),),
    ),
    "submodular.feature_based": Case(
        lambda rng: submodular.feature_based(rng.uniform(size=(N, 5)), "log1p"),
        refused=(
            (lambda: submodular.feature_based(-EYE), "features must be in"),
            (lambda: submodular.feature_based(EYE, "sqr"), "did you mean 'sqrt'"),
        ),
    ),
    "submodular.modular": Case(
        lambda rng: submodular.modular(rng.uniform(size=N)),
        refused=((lambda: submodular.modular(EYE), "weights must be a non-empty array of rank 1"),),
    ),
    "submodular.graph_cut": Case(
        lambda rng: submodular.graph_cut(square(rng), rng.uniform(0.2, 0.5)),
        refused=(
            (lambda: submodular.graph_cut(np.ones((2, 3)), 0.4), "similarity must be square"),
            (lambda: submodular.graph_cut(EYE, float("nan")), "lam must"),
        ),
    ),
    "submodular.cut": Case(
        lambda rng: submodular.cut(square(rng)),
        refused=((lambda: submodular.cut(np.triu(np.ones((3, 3)))), "adjacency must be symm"),),
    ),
    "submodular.log_det": Case(
        lambda rng: submodular.log_det(kernel(rng), rng.uniform(1, 2)),
        refused=(
            (lambda: submodular.log_det(EYE, -1.0), "ridge must"),
            (lambda: submodular.log_det(EYE, max_size=0), "max_size must"),
        ),
    ),
    "submodular.information_gain": Case(
        lambda rng: submodular.information_gain(kernel(rng), rng.uniform(0.1, 0.2), max_size=6),
        refused=((lambda: submodular.information_gain(EYE, 0.0), "noise_variance must"),),
    ),
    "submodular.mixture": Case(
        lambda rng: submodular.mixture(
            [submodular.modular(rng.uniform(size=N)), submodular.cut(square(rng))],
            rng.uniform(0.5, 2, size=2),
        ),
        refused=(
            (lambda: submodular.mixture([], []), "functions must"),
            (
                lambda: submodular.mixture([submodular.modular(ONES)], [1.0, 2.0]),
                "weights must have shape",
            ),
        ),
    ),
    "submodular.Restriction": Case(
        lambda rng: submodular.Restriction(
            submodular.facility_location(rng.uniform(size=(9, 2 * N))),
            jnp.asarray(rng.permutation(2 * N)[:N]),
        )
    ),
    "subrl.measurements": Case(
        lambda rng: subrl.measurements(kernel(rng), rng.uniform(0.1, 0.2), max_size=6),
        of_visits=True,
        refused=((lambda: subrl.measurements(EYE, 0.0, max_size=3), "noise_variance must"),),
    ),
}

EXCLUDED = {
    "submodular.SetFunction": "the protocol itself",
}


def is_set_function(value):
    return all(hasattr(value, part) for part in ("init", "gains", "add", "value"))


@functools.cache
def made(name, seed=0):
    return CASES[name].make(np.random.default_rng(seed))


def walk(function, order):
    """Gains before each item is added, F after it, and the last state."""

    def step(state, item):
        gains = function.gains(state)
        state = function.add(state, item)
        return state, (gains, function.value(state))

    return jax.lax.scan(step, function.init(), order)


TRACES = []


@jax.jit
def compiled(function, order):
    TRACES.append(jax.tree.structure(function))
    return walk(function, order)


@functools.cache
def eager(name):
    """The walk, item by item in Python."""
    function = made(name)
    state, gains, values = function.init(), [], []
    for item in ORDER:
        gains.append(function.gains(state))
        state = function.add(state, item)
        values.append(function.value(state))
    return state, (jnp.stack(gains), jnp.stack(values))


#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "submodular.facility_location_from_neighbors",
    "submodular.feature_based",
    "submodular.log_det",
    "submodular.mixture",
    "submodular.Restriction",
)

each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_set_function_is_in_the_table(assert_complete, returned):
    def is_of_kind(value):
        found = returned(value)
        return is_set_function(value) or (found is not None and is_set_function(found))

    assert_complete(is_of_kind, CASES, EXCLUDED)


@each
def test_it_is_a_pytree_of_arrays_with_the_methods_of_the_protocol(name, described):
    function = made(name)
    assert isinstance(function, submodular.SetFunction)
    assert function.num_items == N
    leaves, structure = jax.tree.flatten(function)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure
    state = function.init()
    after = jax.eval_shape(function.add, state, 0)
    assert described(after) == described(state)
    for candidates, shape in ((None, (N,)), (jnp.int32(2), ()), (jnp.zeros((2, 3), int), (2, 3))):
        gains = jax.eval_shape(function.gains, state, candidates)
        assert (gains.shape, gains.dtype) == (shape, jnp.float32)
    value = jax.eval_shape(function.value, state)
    assert (value.shape, value.dtype) == ((), jnp.float32)


@some
def test_a_scan_in_one_program_is_the_eager_walk_and_new_data_is_not_traced(name, assert_same):
    del TRACES[:]
    assert_same(compiled(made(name), ORDER), eager(name))
    other = compiled(made(name, 1), ORDER[::-1])
    # Names of one concept share its program: traced here, or for the name before.
    assert TRACES in ([], [jax.tree.structure(made(name))])
    assert not np.allclose(other[1][1], eager(name)[1][1])


@some
def test_values_add_up_gains_and_an_item_counts_once(name):
    _, (gains, values) = eager(name)
    gains, values = np.asarray(gains), np.asarray(values)
    steps = np.diff(values, prepend=0)
    size = 1e-5 * max(1.0, np.abs(values).max(), np.abs(gains[np.isfinite(gains)]).max())
    np.testing.assert_allclose(steps, gains[np.arange(len(ORDER)), ORDER], atol=size)
    for t, item in enumerate(ORDER[:-1]):
        again = gains[t + 1, item]
        assert again > 0 if CASES[name].of_visits else again == 0


@pytest.mark.usefixtures("bad_input")  # annotated shapes have no axis for a stack of functions
@some
def test_functions_and_states_under_vmap_are_each_alone(name, assert_same):
    functions, orders = [made(name), made(name, 1)], np.stack([ORDER, ORDER[::-1]])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *functions)
    together = jax.jit(jax.vmap(walk))(stacked, orders)
    for row in range(2):
        alone = compiled(functions[row], orders[row])
        assert_same(jax.tree.map(lambda leaf: leaf[row], together), alone)  # noqa: B023


@some
def test_orbax_restores_function_and_state_to_go_on(name, resaved, assert_same):
    function = made(name)
    state = function.add(function.init(), ORDER[0])
    function, state = resaved((function, state))
    for item in ORDER[1:]:
        state = function.add(state, item)
    assert_same(state, eager(name)[0])


@some
def test_eight_devices_give_the_numbers_of_one(name, spread, assert_same):
    mesh = jax.make_mesh((8,), ("candidates",))
    split = submodular.shard_candidates(made(name), mesh)
    shared_out = not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split))
    assert shared_out
    _, (gains, values) = compiled(split, spread(ORDER, "candidates"))
    assert len(values.sharding.device_set) == 8
    want = eager(name)[1]
    size = max(1.0, float(np.abs(np.asarray(want[1])).max()))
    np.testing.assert_allclose(gains, want[0], atol=1e-5 * size)
    np.testing.assert_allclose(values, want[1], atol=1e-5 * size)


@pytest.mark.parametrize("name", CASES)
def test_a_first_state_may_be_donated_and_another_made(name, assert_donatable):
    function = made(name)
    assert_donatable(function.init, function)


@some
def test_a_state_may_be_donated(name, assert_same):
    function = made(name)
    add = jax.jit(lambda state, item: function.add(state, item), donate_argnums=0)
    state = function.init()
    for item in ORDER:
        held = jax.tree.leaves(state)
        state = add(state, item)
        assert all(leaf.is_deleted() for leaf in held)
    assert_same(state, eager(name)[0])
    assert add._cache_size() == 1


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
