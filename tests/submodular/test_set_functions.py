"""Every set function goes through the same mill, and through independent numbers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from jaxkit import submodular


def golden_function(block, name):
    p = {key: np.asarray(value) for key, value in block["params"].items()}
    return {
        "facility_location": lambda: submodular.facility_location(p["W"]),
        "weighted_coverage": lambda: submodular.weighted_coverage(p["B"], p["w"]),
        "probabilistic_coverage": lambda: submodular.probabilistic_coverage(p["P"], p["w"]),
        "saturated_coverage": lambda: submodular.saturated_coverage(p["W"], float(p["alpha"])),
        "feature_based_sqrt": lambda: submodular.feature_based(p["X"], "sqrt", p["w"]),
        "feature_based_log1p": lambda: submodular.feature_based(p["X"], "log1p", p["w"]),
        "graph_cut": lambda: submodular.graph_cut(p["W"], float(p["lam"])),
        "cut": lambda: submodular.cut(p["A"]),
        "log_det": lambda: submodular.log_det(p["K"], float(p["lam"])),
        "facility_location_vmi": lambda: submodular.facility_location_mutual_information(
            p["W"], p["Wq"], float(p["eta"])
        ),
    }[name]()


GOLDEN = [
    "cut",
    "facility_location",
    "facility_location_vmi",
    "feature_based_log1p",
    "feature_based_sqrt",
    "graph_cut",
    "log_det",
    "probabilistic_coverage",
    "saturated_coverage",
    "weighted_coverage",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_values_and_gains_equal_the_float64_reference(golden, name):
    block = golden("submodular")["functions"][name]
    function = golden_function(block, name)
    padded = np.full((len(block["subsets"]), 10), -1)
    for row, subset in zip(padded, block["subsets"], strict=True):
        row[: len(subset)] = subset
    values = [submodular.evaluate(function, row) for row in padded]
    # The cut of everything is 0, a difference of numbers near 30.
    np.testing.assert_allclose(values, block["values"], rtol=1e-5, atol=1e-5)
    state = submodular.set_functions.add_all(
        function, function.init(), np.asarray(block["gain_base"]), np.ones(3, bool)
    )
    outside = [i for i, gain in enumerate(block["gains"]) if gain is not None]
    np.testing.assert_allclose(
        np.asarray(function.gains(state))[outside],
        [block["gains"][i] for i in outside],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_greedy_takes_the_reference_order_where_it_is_unambiguous(golden, name):
    block = golden("submodular")["functions"][name]
    function = golden_function(block, name)
    steps, want = block["greedy"]["unambiguous_steps"], block["greedy"]
    for maximise in (submodular.greedy, submodular.lazy_greedy):
        found = maximise(function, want["k"])
        assert found.indices.tolist()[:steps] == want["order"][:steps]
        np.testing.assert_allclose(found.gains[:steps], want["gains"][:steps], rtol=1e-5)


@pytest.mark.parametrize("name", GOLDEN)
def test_greedy_keeps_its_ratio_to_the_enumerated_optimum(golden, name):
    block = golden("submodular")["functions"][name]
    function = golden_function(block, name)
    for k, optimum in block["optimum"].items():
        found = submodular.greedy(function, int(k))
        assert float(found.value) >= float(found.guarantee.ratio) * optimum["value"] * (1 - 1e-6)
        assert float(found.value) <= optimum["value"] * (1 + 1e-5)


@jax.jit
def _walk(function, order):
    def step(state, item):
        before = function.value(state)
        gains = function.gains(state)
        after = function.add(state, item)
        again = function.add(after, item)
        one = function.gains(state, item)
        few = function.gains(state, jnp.stack([item, order[0]]))
        seen = gains, one, few, before, function.value(after), function.value(again)
        return after, (*seen, function.gains(after, item))

    return jax.lax.scan(step, function.init(), order)


QUICK_KINDS = (
    "facility_location",
    "graph_cut",
    "log_det",
    "mixture",
    "probabilistic_coverage",
    "saturated_coverage",
)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_gains_are_differences_of_values_diminish_and_ignore_repetition(kinds, quick, seed):
    # One example tries every kind: kinds differ in shape, so each compiles once.
    for name in QUICK_KINDS if quick else kinds.keys() - QUICK_KINDS:
        rng = np.random.default_rng(seed)
        function = kinds[name](rng, 7)
        order = jnp.asarray(rng.permutation(7))
        _, (gains, one, few, before, after, again, none) = _walk(function, order)
        scale = 1e-5 * max(1.0, float(jnp.abs(after).max()), float(jnp.abs(gains).max()))
        picked = np.asarray(gains)[np.arange(7), np.asarray(order)]
        np.testing.assert_allclose(after - before, picked, atol=scale, err_msg=name)
        np.testing.assert_allclose(one, picked, atol=scale, err_msg=name)
        np.testing.assert_allclose(few[:, 0], picked, atol=scale, err_msg=name)
        np.testing.assert_array_equal(again, after, err_msg=name)
        np.testing.assert_array_equal(none, 0, err_msg=name)
        assert float(before[0]) == 0
        outside = np.asarray(gains[1:]) != 0
        growth = np.where(outside, gains[1:] - gains[:-1], 0)
        assert growth.max() <= scale, name
        assert not function.monotone or gains.min() >= -scale, name


@pytest.mark.parametrize("name", ["cut", pytest.param("dpp", marks=pytest.mark.slow)])
def test_functions_that_are_not_monotone_say_so_and_are_caught(kinds, name):
    function = kinds[name](np.random.default_rng(3), 10)
    assert not function.monotone
    found = submodular.check_monotone(function, jax.random.key(0))
    base = jnp.flatnonzero(found.base)
    grown = jnp.concatenate([base, found.element[None]])
    drop = submodular.evaluate(function, base) - submodular.evaluate(function, grown)
    assert float(found.worst) > 0.1
    np.testing.assert_allclose(found.worst, drop, rtol=1e-4, atol=1e-5)


def test_check_submodular_catches_a_supermodular_function():
    class Square:
        """F(S) = |S|^2."""

        num_items, monotone = 5, True

        def init(self):
            return jnp.zeros(5, bool)

        def gains(self, state, candidates=None):
            gains = jnp.where(state, 0, 2.0 * jnp.sum(state) + 1)
            return gains if candidates is None else gains[candidates]

        def add(self, state, element):
            return state | (jnp.arange(5) == element)

        def value(self, state):
            return jnp.sum(state).astype(jnp.float32) ** 2

    jax.tree_util.register_pytree_node(Square, lambda f: ((), None), lambda *_: Square())
    assert float(submodular.check_submodular(Square(), jax.random.key(0)).worst) == 2


def test_facility_location_of_the_identity_counts_items():
    function = submodular.facility_location(np.eye(6))
    assert float(submodular.evaluate(function, np.array([4, 1, 5]))) == 3


def test_log_det_equals_slogdet_in_float64():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 12))
    kernel = rows @ rows.T / 12
    chosen = np.array([3, 17, 8, 1, 12])
    got = submodular.evaluate(submodular.log_det(kernel, 0.5), chosen)
    want = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)] + 0.5 * np.eye(5))[1]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    field = submodular.evaluate(submodular.information_gain(kernel, 0.25, max_size=5), chosen)
    want = 0.5 * np.linalg.slogdet(np.eye(5) + kernel[np.ix_(chosen, chosen)] / 0.25)[1]
    np.testing.assert_allclose(field, want, rtol=1e-5)


def test_log_det_never_takes_a_dependent_item():
    kernel = np.ones((3, 3), np.float32)
    found = submodular.greedy(submodular.log_det(kernel), 3, min_gain=-jnp.inf)
    assert found.valid.tolist() == [True, False, False]
    assert np.isfinite(float(found.value))


def test_log_det_takes_no_more_than_its_state_holds():
    found = submodular.greedy(submodular.log_det(np.eye(5) * 3, max_size=2), 4)
    assert found.valid.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "kernel",
    ["rbf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cosine", "shifted_cosine"))],
)
def test_blocked_and_sparse_facility_location_equal_the_dense_one(kernel):
    rows = np.random.default_rng(1).normal(size=(37, 4))
    matrix = submodular.similarity_matrix(rows, kernel=kernel, gamma=0.3)
    dense = submodular.facility_location(matrix)
    blocked = submodular.facility_location_from_features(rows, kernel=kernel, gamma=0.3, block=8)
    near = submodular.nearest_neighbors(rows, 37, kernel=kernel, gamma=0.3, block=8)
    sparse = submodular.facility_location_from_neighbors(near.indices, near.similarity, 37)
    want = submodular.greedy(dense, 6)
    for other in (blocked, sparse):
        got = submodular.greedy(other, 6)
        assert got.indices.tolist() == want.indices.tolist()
        np.testing.assert_allclose(got.gains, want.gains, rtol=1e-5)


def test_clients_may_differ_from_items():
    rng = np.random.default_rng(2)
    items, clients = rng.uniform(size=(11, 3)), rng.uniform(size=(23, 3))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    dense = submodular.facility_location(unit(clients) @ unit(items).T)
    blocked = submodular.facility_location_from_features(items, clients, block=5)
    np.testing.assert_allclose(blocked.gains(blocked.init()), dense.gains(dense.init()), rtol=1e-5)


def test_evaluate_ignores_the_order_and_the_padding():
    function = submodular.facility_location(np.random.default_rng(0).uniform(size=(4, 9)))
    a = submodular.evaluate(function, np.array([3, 1, 7, -1]))
    b = submodular.evaluate(function, np.array([7, -1, 3, 1]))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert float(submodular.evaluate(function, np.zeros(0, np.int32))) == 0
    with pytest.raises(ValueError, match="elements must be < 9, got 9"):
        submodular.evaluate(function, np.array([9]))


def test_weights_of_a_mixture_can_be_swept_by_vmap(count_traces):
    rng = np.random.default_rng(0)
    parts = [submodular.modular(rng.uniform(size=6)) for _ in range(2)]

    def first(weights):
        return submodular.greedy(submodular.mixture(parts, weights), 1).indices[0]

    counted = count_traces(first)
    weights = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    picked = jax.jit(jax.vmap(counted))(weights)
    assert counted.count == 1
    assert picked.tolist() == [int(part.rows[:, 0].argmax()) for part in parts]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: submodular.facility_location([[np.nan, 1.0]]), ValueError, "similarity must be f"),
        (lambda: submodular.facility_location([[-0.5, 1.0]]), ValueError, "got an entry -0.5"),
        (lambda: submodular.facility_location([1.0]), ValueError, "rank 2"),
        (lambda: submodular.facility_location([["a"]]), TypeError, "real numbers"),
        (lambda: submodular.facility_location([[1j]]), TypeError, "complex"),
        (lambda: submodular.facility_location([[1e300]]), ValueError, "float32"),
        (lambda: submodular.facility_location(np.zeros((0, 3))), ValueError, "non-empty"),
        (lambda: submodular.weighted_coverage([[0.5]]), ValueError, "only 0 and 1, got an entry"),
        (lambda: submodular.weighted_coverage([[1]], [-1.0]), ValueError, "weights"),
        (lambda: submodular.weighted_coverage([[1]], [1.0, 2.0]), ValueError, r"shape \(1,\)"),
        (lambda: submodular.probabilistic_coverage([[1.5]]), ValueError, "1.5"),
        (lambda: submodular.saturated_coverage([[1.0]], 0.0), ValueError, "alpha"),
        (lambda: submodular.saturated_coverage([[1.0]], np.ones(2)), ValueError, "one number"),
        (lambda: submodular.feature_based([[-1.0]]), ValueError, "features"),
        (lambda: submodular.feature_based([[1.0]], "sqr"), ValueError, "did you mean 'sqrt'"),
        (lambda: submodular.graph_cut([[1.0, 2.0]], 0.5), ValueError, "square"),
        (lambda: submodular.graph_cut([[1.0, 2.0], [0.0, 1.0]], 0.5), ValueError, "symmetric"),
        (lambda: submodular.graph_cut([[1.0]], -0.5), ValueError, "lam"),
        (lambda: submodular.cut([[np.inf]]), ValueError, "adjacency"),
        (lambda: submodular.log_det([[1.0, 2.0], [2.0, 1.0]]), ValueError, "eigenvalue -1"),
        (lambda: submodular.log_det([[1.0]], max_size=0), ValueError, "max_size"),
        (lambda: submodular.information_gain([[1.0]], 0.0), ValueError, "noise_variance"),
        (lambda: submodular.mixture([], []), ValueError, "at least one"),
        (
            lambda: submodular.mixture(
                [submodular.modular([1.0]), submodular.modular([1.0, 2.0])], [1.0, 1.0]
            ),
            ValueError,
            r"same number of items, got \[1, 2\]",
        ),
        (
            lambda: submodular.facility_location_from_features([[1.0]], kernel="cosin"),
            ValueError,
            "did you mean 'cosine'",
        ),
        (
            lambda: submodular.facility_location_from_features([[1.0]], [[1.0, 2.0]]),
            ValueError,
            "clients",
        ),
        (
            lambda: submodular.facility_location_from_neighbors([[3]], [[1.0]], 3),
            ValueError,
            r"in \[0, 3\), got 3",
        ),
        (
            lambda: submodular.facility_location_from_neighbors([[1, 1]], [[1.0, 1.0]], 3),
            ValueError,
            "repeat",
        ),
        (
            lambda: submodular.facility_location_from_neighbors([[1.0]], [[1.0]], 3),
            TypeError,
            "integers",
        ),
        (
            lambda: submodular.facility_location_mutual_information([[1.0]], [[1.0], [1.0]]),
            ValueError,
            "query_similarity",
        ),
        (lambda: submodular.nearest_neighbors([[1.0]], 2), ValueError, "num_neighbors"),
    ],
)
@pytest.mark.usefixtures("bad_input")
def test_bad_input_raises_where_it_enters(make, error, message):
    with pytest.raises(error, match=message):
        make()


POINTS = jnp.asarray(np.random.default_rng(0).random((6, 3)), jnp.float32)
GRAM = (POINTS @ POINTS.T + (POINTS @ POINTS.T).T) / 2
NEAR = submodular.nearest_neighbors(POINTS, 2)
RELEVANT, FIRST = POINTS.T > 0.5, jnp.array([1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: submodular.facility_location(GRAM),
        lambda: submodular.facility_location_from_features(POINTS),
        lambda: submodular.facility_location_from_neighbors(NEAR.indices, NEAR.similarity, 6),
        lambda: submodular.weighted_coverage(RELEVANT),
        lambda: submodular.graph_cut(GRAM, 0.5),
        lambda: submodular.information_gain(GRAM, 1.0),
    ],
)
def test_arrays_that_a_traced_caller_closes_over_are_taken_and_checked(make):
    def value():
        f = make()
        return submodular.greedy(f, 2, initial=FIRST).value + submodular.evaluate(f, FIRST)

    assert float(jax.jit(value)()) == pytest.approx(float(value()), rel=1e-5)


def test_what_a_traced_caller_closes_over_is_refused_as_elsewhere():
    negative, beyond = -GRAM, jnp.array([6])
    f = submodular.facility_location(GRAM)
    with pytest.raises(ValueError, match="similarity must be in"):
        jax.jit(lambda: submodular.facility_location(negative).rows)()
    with pytest.raises(ValueError, match=r"initial must be in \[0, 6\), got 6"):
        jax.jit(lambda: submodular.greedy(f, 2, initial=beyond).value)()


def test_numbers_with_types_of_pandas_own_are_taken_and_what_is_missing_is_named():
    frame = pd.DataFrame({"a": pd.array([1, 2, 3], dtype="Int64"), "b": [1.0, 0.5, 2.0]})
    plain = submodular.select(frame.to_numpy(np.float64), 2)
    assert submodular.select(frame, 2).indices.tolist() == plain.indices.tolist()
    frame["a"] = pd.array([1, None, 3], dtype="Int64")
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in row 1"):
        submodular.select(frame, 2)


@pytest.mark.parametrize(
    "use",
    [
        lambda rows: submodular.select(rows, 2),
        lambda rows: submodular.SubsetSelector(2).fit(rows),
        lambda rows: submodular.SubsetSelector(2).partial_fit(rows),
        lambda rows: submodular.modular(rows[:, 0]),
    ],
)
def test_masked_entries_are_refused_and_not_read(use):
    rows = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3, dtype=bool))
    with pytest.raises(ValueError, match="no masked entries"):
        use(rows)
    use(np.ma.array(np.ones((4, 3))))  # nothing is masked


def test_a_mask_or_fractions_are_no_items():
    function = submodular.modular(jnp.array([1.0, 2.0, 4.0]))
    with pytest.raises(TypeError, match="list the items of a mask"):
        submodular.evaluate(function, np.array([False, False, True]))
    with pytest.raises(TypeError, match="elements must be integers, got dtype float"):
        submodular.evaluate(function, [1.7])
    sieve = submodular.sieve_streaming(2)
    with pytest.raises(TypeError, match="elements must be integers, got dtype bool"):
        sieve.run(function, sieve.init(function), np.array([False, False, True]))
    assert float(submodular.evaluate(function, [])) == 0.0


def test_what_is_no_set_function_is_refused_by_name():
    for call in (
        lambda: submodular.greedy(np.ones((3, 3)), 2),
        lambda: submodular.lazy_greedy(lambda items: 1.0, 2),
        lambda: submodular.evaluate(np.ones((3, 3)), [0]),
        lambda: submodular.DynamicMaximiser(np.ones((3, 3)), 2, jax.random.key(0)),
    ):
        with pytest.raises(TypeError, match="function must be a SetFunction, such as"):
            call()


def test_sparse_operands_are_taken_and_ragged_ones_named():
    incidence = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    function = submodular.weighted_coverage(scipy.sparse.csr_matrix(incidence))
    assert function.gains(function.init()).tolist() == [1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="incidence must be an array, got rows of different"):
        submodular.weighted_coverage([[0, 1], [1]])


def test_log_det_keeps_its_state_under_x64():
    with jax.enable_x64(True):
        function = submodular.log_det(np.diag([2.0, 3.0]))
        value = submodular.evaluate(function, [0, 1])
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, np.log(6.0), rtol=1e-12)
