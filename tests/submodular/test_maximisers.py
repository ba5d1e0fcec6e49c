"""Maximisers against brute force, closed forms and each other."""

import functools
import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import submodular
from jaxkit.submodular import cardinality, selection

K = 4


@pytest.fixture(scope="module")
def reference(golden):
    block = golden("submodular")
    return submodular.facility_location(
        np.asarray(block["functions"]["facility_location"]["params"]["W"])
    ), block["optimisers"]


QUICK_KINDS = ("facility_location", "feature_sqrt", "log_det", "cut")


def check_lazy(kinds, names, seed):
    for name in names:
        function = kinds[name](np.random.default_rng(seed), 12)
        want, got = submodular.greedy(function, 5), submodular.lazy_greedy(function, 5, batch=3)
        assert got.indices.tolist() == want.indices.tolist(), name
        np.testing.assert_allclose(got.gains, want.gains, rtol=1e-6, atol=1e-6, err_msg=name)
        assert int(got.num_queries) <= int(want.num_queries), name


@hypothesis.settings(max_examples=20)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_lazy_greedy_equals_greedy_with_no_more_queries(kinds, seed):
    check_lazy(kinds, QUICK_KINDS, seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_lazy_greedy_equals_greedy_for_every_other_kind(kinds, seed):
    check_lazy(kinds, kinds.keys() - QUICK_KINDS, seed)


@hypothesis.given(seed=st.integers(0, 10**6))
def test_lazy_greedy_breaks_ties_as_greedy_does(seed):
    # Small integers: nearly every step is a tie, and all sums are exact.
    matrix = np.random.default_rng(seed).integers(0, 3, size=(6, 20))
    function = submodular.facility_location(matrix)
    for batch in (1, 4):
        got = submodular.lazy_greedy(function, 8, batch=batch)
        assert got.indices.tolist() == submodular.greedy(function, 8).indices.tolist()


@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_every_maximiser_keeps_its_guarantee(all_values, best_of, seed):
    rng = np.random.default_rng(seed)
    function = submodular.facility_location(rng.uniform(size=(6, 9)).astype(np.float32))
    values = all_values(function)
    optimum = best_of(values, range(9), K)
    key = jax.random.key(seed)
    for result in (
        submodular.greedy(function, K),
        submodular.lazy_greedy(function, K),
        submodular.threshold_greedy(function, K, eps=0.1),
    ):
        assert result.guarantee.holds == "always"
        assert float(result.value) >= float(result.guarantee.ratio) * optimum - 1e-5
        chosen = [int(i) for i in result.indices if i >= 0]
        np.testing.assert_allclose(values[sum(1 << i for i in chosen)], result.value, rtol=1e-5)
        np.testing.assert_allclose(jnp.sum(result.gains), result.value, rtol=1e-5)
    keys = jax.random.split(key, 32)
    sampled = jax.vmap(lambda k: submodular.stochastic_greedy(function, K, k, eps=0.3))(keys)
    assert float(sampled.value.mean()) >= float(sampled.guarantee.ratio[0]) * optimum
    assert sampled.guarantee.holds == "in expectation"


@hypothesis.settings(max_examples=5)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_random_greedy_keeps_1_over_e_of_a_cut(all_values, best_of, seed):
    matrix = np.random.default_rng(seed).uniform(size=(9, 9))
    function = submodular.cut(matrix + matrix.T)
    optimum = best_of(all_values(function), range(9), K)
    keys = jax.random.split(jax.random.key(seed), 64)
    found = jax.vmap(lambda key: submodular.random_greedy(function, K, key))(keys)
    assert float(found.value.mean()) >= math.exp(-1) * optimum
    assert float(found.guarantee.ratio[0]) == pytest.approx(math.exp(-1))


@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_constrained_maximisers_keep_their_guarantee(all_values, seed):
    rng = np.random.default_rng(seed)
    function = submodular.facility_location(rng.uniform(size=(6, 9)).astype(np.float32))
    values = all_values(function)
    members = (np.arange(2**9)[:, None] >> np.arange(9)) & 1
    costs, budget = rng.uniform(0.5, 2, size=9), 3.0
    spent = submodular.knapsack_greedy(function, costs, budget)
    chosen = np.asarray(spent.indices[spent.valid])
    assert costs[chosen].sum() <= budget + 1e-5
    optimum = values[members @ costs <= budget].max()
    assert float(spent.value) >= (1 - math.exp(-1)) / 2 * optimum
    groups, limits = rng.integers(0, 3, size=9), np.array([1, 2, 1])
    split = submodular.partition_matroid_greedy(function, groups, limits)
    counts = members @ (groups[:, None] == np.arange(3))
    chosen = np.asarray(split.indices[split.valid])
    assert (np.bincount(groups[chosen], minlength=3) <= limits).all()
    assert float(split.value) >= 0.5 * values[(counts <= limits).all(1)].max()


def test_orders_and_query_counts_equal_the_reference(reference):
    function, want = reference
    greedy = submodular.greedy(function, 4)
    assert int(greedy.num_queries) == want["greedy_queries_k4"] == 10 + 9 + 8 + 7
    lazy = submodular.lazy_greedy(function, 4, batch=1)
    assert lazy.indices.tolist() == want["lazy_order"]
    assert int(lazy.num_queries) == want["lazy_queries_k4"]
    block = want["threshold_greedy"]
    found = submodular.threshold_greedy(function, block["k"], eps=block["eps"])
    assert found.indices.tolist() == block["order"]
    assert int(found.num_queries) == block["queries"]
    block = want["knapsack"]
    found = submodular.knapsack_greedy(function, np.asarray(block["cost"]), block["budget"])
    assert sorted(i for i in found.indices.tolist() if i >= 0) == sorted(block["best"])
    block = want["partition_matroid"]
    found = submodular.partition_matroid_greedy(
        function, np.asarray(block["group"]), np.asarray(block["caps"])
    )
    assert found.indices.tolist() == block["order"]
    for block in want["stochastic_sample_size"]:
        size = cardinality.stochastic_sample_size(block["n"], block["k"], block["eps"])
        assert size == block["size"]


@pytest.mark.slow
def test_orders_equal_those_of_apricot(golden):
    functions, peers = golden("submodular")["functions"], golden("submodular")["apricot"]
    square = np.asarray(functions["graph_cut"]["params"]["W"])
    features = np.asarray(functions["feature_based_sqrt"]["params"]["X"])
    ours = {
        "facility_location_square": submodular.facility_location(square),
        "graph_cut_alpha1": submodular.graph_cut(square, 1.0),
        "saturated_coverage_alpha0.5": submodular.saturated_coverage(square, 0.5),
        "feature_based_sqrt_unweighted": submodular.feature_based(features),
    }
    for name, function in ours.items():
        steps = peers[name]["unambiguous_steps"]
        found = submodular.lazy_greedy(function, 5)
        assert found.indices.tolist()[:steps] == peers[name]["order"][:steps]
        np.testing.assert_allclose(found.gains, peers[name]["gains"], rtol=1e-5)


def test_digits_exemplars_equal_those_of_two_peers(golden):
    datasets = pytest.importorskip("sklearn.datasets")
    want = golden("submodular")["digits_facility_location"]
    rows = datasets.load_digits().data[:400]
    found = submodular.select(rows, want["k"])
    assert found.indices.tolist() == want["apricot_order"] == want["submodlib_order"]
    np.testing.assert_allclose(found.gains, want["reference_gains"], rtol=1e-4)
    np.testing.assert_allclose(found.value, want["value"], rtol=1e-5)


def test_greedy_on_modular_weights_takes_the_largest():
    weights = np.random.default_rng(0).uniform(size=30)
    found = submodular.greedy(submodular.modular(weights), 7)
    assert found.indices.tolist() == np.argsort(-weights)[:7].tolist()


def test_more_than_all_items_are_all_items_and_slots_not_valid():
    function = submodular.modular(np.array([1.0, 0.0, 2.0]))
    for maximise in (submodular.greedy, submodular.lazy_greedy):
        found = maximise(function, 5)
        assert found.indices.tolist() == [2, 0, 1, -1, -1]
        assert found.valid.tolist() == [True, True, True, False, False]
        assert found.gains.tolist() == [2, 1, 0, 0, 0]


@pytest.mark.slow
def test_no_available_item_gives_an_empty_selection():
    function, none = submodular.modular(np.ones(4)), np.zeros(4, bool)
    key = jax.random.key(0)
    for found in (
        submodular.greedy(function, 2, mask=none),
        submodular.lazy_greedy(function, 2, mask=none),
        submodular.stochastic_greedy(function, 2, key, mask=none),
        submodular.threshold_greedy(function, 2, mask=none),
        submodular.random_greedy(function, 2, key, mask=none),
        submodular.knapsack_greedy(function, np.ones(4), 2.0, mask=none),
    ):
        assert float(found.value) == 0
        assert not found.valid.any()
        assert int(found.num_queries) == 0


def test_masked_items_are_never_selected_and_vmap_over_masks_works(count_traces):
    function = submodular.modular(np.arange(1.0, 7.0))
    masks = np.tril(np.ones((6, 6), bool))
    counted = count_traces(lambda mask: submodular.greedy(function, 2, mask=mask).indices)
    found = jax.jit(jax.vmap(counted))(masks)
    assert counted.count == 1
    assert found.tolist() == [[0, -1], [1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]


def test_vmap_over_budgets_gives_each_its_own_set():
    function = submodular.modular(np.array([3.0, 2.0, 2.0]))
    costs = np.array([3.0, 1.0, 1.0])
    found = jax.vmap(lambda b: submodular.knapsack_greedy(function, costs, b).value)(
        jnp.array([1.0, 2.0, 3.0, 4.0])
    )
    assert found.tolist() == [2, 4, 4, 5]


def test_an_item_dearer_than_the_budget_is_never_taken():
    function = submodular.modular(np.array([100.0, 1.0]))
    found = submodular.knapsack_greedy(function, np.array([5.0, 1.0]), 2.0)
    assert found.indices.tolist() == [1, -1]


def test_an_initial_set_counts_in_the_value_and_is_not_selected_again():
    function = submodular.facility_location(np.random.default_rng(0).uniform(size=(5, 8)))
    whole = submodular.greedy(function, 5)
    rest = submodular.greedy(function, 3, initial=whole.indices[:2])
    assert rest.indices.tolist() == whole.indices.tolist()[2:]
    np.testing.assert_allclose(rest.value, whole.value, rtol=1e-6)


def test_greedy_stops_where_a_cut_would_shrink():
    function = submodular.cut(np.ones((4, 4)))
    assert submodular.greedy(function, 4).valid.tolist() == [True, True, False, False]
    forced = submodular.greedy(function, 4, min_gain=-jnp.inf)
    assert forced.valid.all()


def test_new_data_of_the_same_shape_is_not_traced_again():
    rng = np.random.default_rng(0)
    for seed in range(3):
        function = submodular.facility_location(rng.uniform(size=(5, 17)))
        submodular.lazy_greedy(function, 3)
        submodular.stochastic_greedy(function, 3, jax.random.key(seed))
        if seed == 0:
            compiled = cardinality._lazy_greedy.compiled._cache_size()
            sampled = cardinality._stochastic_greedy.compiled._cache_size()
    assert cardinality._lazy_greedy.compiled._cache_size() == compiled
    assert cardinality._stochastic_greedy.compiled._cache_size() == sampled


@pytest.mark.parametrize(
    "maximise",
    [submodular.greedy, pytest.param(submodular.lazy_greedy, marks=pytest.mark.slow)],
)
def test_sharded_candidates_give_the_same_selection(devices, maximise):
    mesh = jax.make_mesh((8,), ("candidates",))
    rng = np.random.default_rng(0)
    matrix = rng.uniform(size=(33, 64)).astype(np.float32)
    for function in (
        submodular.facility_location(matrix),
        submodular.log_det(matrix.T @ matrix / 33, 1.0, max_size=6),
    ):
        split = submodular.shard_candidates(function, mesh)
        want, got = maximise(function, 6), maximise(split, 6)
        assert got.indices.tolist() == want.indices.tolist()
        assert int(got.num_queries) == int(want.num_queries)
        np.testing.assert_allclose(got.gains, want.gains, rtol=1e-5)


@pytest.mark.usefixtures("bad_input")  # `lower` fills the tree with descriptions of arrays
@pytest.mark.parametrize(
    ("make", "shapes", "most_moved", "most_kept"),
    [
        (submodular.facility_location, [(96, 512)], 96, 10**5),
        # A million candidates and no matrix: a device keeps its items, gains and part of a tile.
        (
            functools.partial(submodular.facility_location_from_features, block=512),
            [(10**6, 16), (4096, 16)],
            16,
            4 * (4 * 10**6 + 2 * 512**2) // 8,
        ),
    ],
    ids=["matrix", "features"],
)
def test_only_the_best_gains_and_the_winning_row_cross_devices(
    devices, make, shapes, most_moved, most_kept
):
    mesh = jax.make_mesh((8,), ("candidates",), axis_types=(AxisType.Auto,))

    def spread(path, leaf):
        split = P("candidates") if path[-1].name == "rows" else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, split))

    function = jax.eval_shape(make, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    split = jax.tree_util.tree_map_with_path(spread, function)
    compiled = jax.jit(lambda f: submodular.greedy(f, 5)).lower(split).compile()
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\][^=]*? (?:all-gather|all-reduce|all-to-all|collective-permute)",
        compiled.as_text(),
    )
    assert moved
    sizes = [math.prod(int(d) for d in dims.split(",") if d) for dims in moved]
    assert max(sizes) <= most_moved
    assert compiled.memory_analysis().temp_size_in_bytes <= most_kept


@pytest.mark.slow
@pytest.mark.parametrize("num_items", [40, 56, 8 * 31])
def test_tiles_of_any_height_give_the_gains_of_the_matrix(devices, num_items):
    rng = np.random.default_rng(0)
    rows, clients = rng.normal(size=(num_items, 3)), rng.normal(size=(21, 3))
    function = submodular.facility_location_from_features(rows, clients, kernel="rbf", block=8)
    split = submodular.shard_candidates(function, jax.make_mesh((8,), ("candidates",)))
    want = np.exp(-((rows[:, None] - clients[None]) ** 2).sum(-1)).sum(1)
    for f in (function, split):
        np.testing.assert_allclose(jax.jit(f.gains)(f.init()), want, rtol=1e-5)


def test_query_counts_pass_32_bits():
    count = selection.QueryCount.zero()
    for _ in range(3):
        count = count.plus(2**31 + 5)
    assert int(count) == 3 * (2**31 + 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: submodular.greedy(f, 0), ValueError, "k must be an integer >= 1, got 0"),
        (lambda f: submodular.greedy(f, 2.5), TypeError, "k must be an integer, got 2.5"),
        (lambda f: submodular.lazy_greedy(f, -1), ValueError, "k must"),
        (lambda f: submodular.lazy_greedy(f, 1, batch=0), ValueError, "batch"),
        (lambda f: submodular.greedy(f, 1, mask=np.ones(2, bool)), ValueError, "mask"),
        (lambda f: submodular.greedy(f, 1, mask=np.ones(3)), TypeError, "boolean"),
        (lambda f: submodular.greedy(f, 1, initial=np.array([7])), ValueError, "initial"),
        (lambda f: submodular.greedy(f, 1, initial=np.array([1, 1])), ValueError, "repeat"),
        (lambda f: submodular.greedy(f, 1, initial=np.array([1.0])), TypeError, "integers"),
        (lambda f: submodular.threshold_greedy(f, 1, eps=1.0), ValueError, "eps"),
        (
            lambda f: submodular.stochastic_greedy(f, 1, jax.random.key(0), eps=0.0),
            ValueError,
            "eps",
        ),
        (lambda f: submodular.knapsack_greedy(f, [1.0, 1.0], 1.0), ValueError, "costs must have"),
        (lambda f: submodular.knapsack_greedy(f, [1.0, 0.0, 1.0], 1.0), ValueError, "costs"),
        (lambda f: submodular.knapsack_greedy(f, [1.0, np.nan, 1.0], 1.0), ValueError, "costs"),
        (lambda f: submodular.knapsack_greedy(f, np.ones(3), 0.0), ValueError, "budget"),
        (
            lambda f: submodular.partition_matroid_greedy(f, [0, 1, 2], [1, 1]),
            ValueError,
            r"groups must be in \[0, 2\), got 2",
        ),
        (
            lambda f: submodular.partition_matroid_greedy(f, [0, 1, 1], [1, -1]),
            ValueError,
            r"capacities must be in .*, got -1",
        ),
        (
            lambda f: submodular.partition_matroid_greedy(f, [0.0, 1.0, 1.0], [1, 1]),
            TypeError,
            "groups must be integers",
        ),
        (lambda f: submodular.select(np.eye(3), 1, maximiser="lasy"), ValueError, "'lazy'"),
        (lambda f: submodular.select(np.eye(3), 1, objective="dpp"), ValueError, "objective"),
        (
            lambda f: submodular.select(np.eye(3), 1, objective="log_det", num_neighbors=2),
            ValueError,
            "num_neighbors",
        ),
    ],
)
@pytest.mark.usefixtures("bad_input")
def test_bad_input_raises_where_it_enters(call, error, message):
    with pytest.raises(error, match=message):
        call(submodular.modular(np.ones(3)))


def test_a_mesh_that_does_not_fit_raises(devices):
    function = submodular.modular(np.ones(3))
    with pytest.raises(ValueError, match="axis must be one of"):
        submodular.shard_candidates(function, jax.make_mesh((8,), ("data",)))
    with pytest.raises(ValueError, match="must divide by the 8 devices"):
        submodular.shard_candidates(function, jax.make_mesh((8,), ("candidates",)))


@pytest.mark.parametrize(
    "maximise",
    [
        submodular.greedy,
        submodular.lazy_greedy,
        submodular.threshold_greedy,
        lambda function, k: submodular.stochastic_greedy(function, k, jax.random.key(0)),
        lambda function, k: submodular.random_greedy(function, k, jax.random.key(0)),
    ],
    ids=["greedy", "lazy_greedy", "threshold_greedy", "stochastic_greedy", "random_greedy"],
)
def test_functions_of_float64_are_maximised_in_float64(maximise):
    with jax.enable_x64(True):
        function = submodular.facility_location(np.random.default_rng(0).uniform(size=(30, 30)))
        found = maximise(function, 4)
        total = submodular.evaluate(function, found.indices)
        assert found.gains.dtype == found.value.dtype == jnp.float64
        np.testing.assert_allclose(found.gains.sum(), total, rtol=1e-12)


def test_streams_and_updates_take_functions_of_float64():
    with jax.enable_x64(True):
        function = submodular.facility_location(np.random.default_rng(0).uniform(size=(20, 20)))
        sieve = submodular.sieve_streaming(4)
        found = sieve.solution(function, sieve.run(function, sieve.init(function), np.arange(20)))
        assert found.value >= submodular.greedy(function, 4).value / 2
        maximiser = submodular.DynamicMaximiser(function, 4, jax.random.key(0))
        for item in range(9):
            maximiser.insert(item)
        maximiser.delete(3)
        assert maximiser.solution().value > 0
