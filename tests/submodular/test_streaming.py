"""Sieves, and the selector that feeds them rows."""

import jax
import numpy as np
import pandas as pd
import pytest
import scipy

from jaxkit import submodular
from jaxkit.submodular import streaming

SIEVES = (submodular.sieve_streaming, submodular.sieve_streaming_pp)


def test_sets_queries_and_memory_equal_the_reference(golden):
    block = golden("submodular")
    function = submodular.facility_location(
        np.asarray(block["functions"]["facility_location"]["params"]["W"])
    )
    want = block["streaming"]
    for make in SIEVES:
        sieve = make(want["k"], eps=want["eps"])
        state = sieve.run(function, sieve.init(function), np.asarray(want["order"]))
        found, expected = sieve.solution(function, state), want[make.__name__]
        assert found.indices.tolist() == expected["set"]
        np.testing.assert_allclose(found.value, expected["value"], rtol=1e-5)
        assert int(found.num_queries) == expected["queries"]
        assert int(state.peak_stored) == expected["peak_stored_with_multiplicity"]


def test_guess_grids_equal_the_reference(golden):
    for grid in golden("submodular")["streaming"]["guess_grid"]:
        found = submodular.levels.grid_exponents(grid["lo"], grid["hi"], grid["eps"])
        assert found.tolist() == grid["exponents"]


@pytest.mark.parametrize("make", [SIEVES[1], pytest.param(SIEVES[0], marks=pytest.mark.slow)])
def test_a_sieve_keeps_half_minus_eps_of_the_optimum_in_any_order(make, all_values, best_of):
    sieve = make(3, eps=0.1)
    worst = 1.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        matrix = rng.uniform(size=(6, 8)) ** 4
        function = submodular.facility_location(matrix)
        values = all_values(function)
        # Every prefix of every order: the solution may be read at any time.
        for order in [np.argsort(matrix.sum(0)), *(rng.permutation(8) for _ in range(3))]:
            state = sieve.init(function)
            for seen, item in enumerate(order, 1):
                state = sieve.update(function, state, int(item))
                optimum = best_of(values, order[:seen], 3)
                found = sieve.solution(function, state)
                worst = min(worst, float(found.value) / optimum)
                assert float(found.value) >= float(found.guarantee.ratio) * optimum
    assert worst < 1


def test_updates_one_by_one_equal_one_run():
    function = submodular.facility_location(np.random.default_rng(0).uniform(size=(5, 30)))
    sieve = submodular.sieve_streaming(4)
    one = sieve.init(function)
    for item in range(30):
        one = sieve.update(function, one, item)
    run = sieve.run(function, sieve.init(function), np.arange(30))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(run), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", SIEVES)
def test_memory_does_not_grow_with_the_stream(make):
    function = submodular.facility_location(np.random.default_rng(0).uniform(size=(5, 400)))
    sieve = make(3, eps=0.2)
    state = sieve.run(function, sieve.init(function), np.arange(400))
    assert int(state.peak_stored) <= sieve.num_sets * 3
    assert state.sets.shape == (sieve.num_sets, 3)


@pytest.mark.slow
def test_sieve_plus_plus_stores_less_than_its_predecessor():
    function = submodular.feature_based(np.random.default_rng(0).uniform(size=(300, 8)))
    stored = []
    for make in SIEVES:
        sieve = make(20, eps=0.1)
        state = sieve.run(function, sieve.init(function), np.arange(300))
        stored.append(int(np.asarray(state.sizes).sum()))
    assert stored[1] < stored[0]


def test_sets_never_hold_an_item_twice_or_one_not_offered():
    function = submodular.facility_location(np.random.default_rng(3).uniform(size=(5, 40)))
    sieve = submodular.sieve_streaming_pp(6)
    state = sieve.run(function, sieve.init(function), np.arange(40), np.arange(40) % 2 == 0)
    for items in np.asarray(state.sets):
        kept = items[items >= 0]
        assert len(set(kept.tolist())) == len(kept)
        assert (kept % 2 == 0).all()


def test_a_run_over_new_data_is_not_traced_again():
    rng = np.random.default_rng(0)
    for trial in range(3):
        function = submodular.facility_location(rng.uniform(size=(5, 21)))
        sieve = submodular.sieve_streaming(2)
        sieve.run(function, sieve.init(function), rng.permutation(21))
        if trial == 0:
            compiled = streaming._run.compiled._cache_size()
    assert streaming._run.compiled._cache_size() == compiled


def test_the_first_item_asks_every_set_it_brings_up():
    function, sieve = submodular.modular(np.ones(3)), submodular.sieve_streaming(3)
    first = sieve.update(function, sieve.init(function), 0)
    used = int((first.exponents > streaming._UNUSED).sum())
    assert int(first.num_queries) == 1 + used


@pytest.mark.usefixtures("bad_input")
def test_bad_input_raises_where_it_enters():
    for make in SIEVES:
        with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
            make(0)
        with pytest.raises(TypeError, match=r"k must be an integer, got 2.5"):
            make(2.5)
        with pytest.raises(ValueError, match="eps"):
            make(2, eps=1.0)
    function, sieve = submodular.modular(np.ones(3)), submodular.sieve_streaming(2)
    with pytest.raises(ValueError, match=r"elements must be in \[0, 3\), got 3"):
        sieve.run(function, sieve.init(function), np.array([0, 3]))


def test_the_selector_fits_as_select_does():
    rows = np.random.default_rng(0).uniform(size=(40, 3))
    selector = submodular.SubsetSelector(5)
    picked = selector.fit_resample(rows)
    found = submodular.select(rows, 5)
    assert selector.ranking_.tolist() == found.indices.tolist()
    np.testing.assert_array_equal(picked, rows[selector.ranking_])
    np.testing.assert_array_equal(selector.exemplars_, picked)
    np.testing.assert_allclose(
        selector.transform(rows),
        submodular.similarity_matrix(rows)[:, selector.ranking_],
        rtol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("bad_input")
def test_the_selector_passes_every_check_of_scikit_learn():
    from sklearn.utils import estimator_checks

    results = estimator_checks.check_estimator(
        submodular.SubsetSelector(), on_fail=None, on_skip=None
    )
    failed = [
        (found["check_name"], found["exception"])
        for found in results
        if found["status"] == "failed"
    ]
    assert not failed
    assert len(results) > 40


def test_the_selector_takes_tables_of_every_kind_and_stands_in_pipelines():
    from sklearn import base, linear_model, pipeline, preprocessing

    rows = np.random.default_rng(0).normal(size=(30, 3)).round(2)
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    labels = np.arange(30) % 2
    want = submodular.SubsetSelector(4).fit(rows).ranking_
    picked, kept = submodular.SubsetSelector(4).fit_resample(frame, labels)
    assert picked.equals(frame.iloc[want])
    assert kept.tolist() == labels[want].tolist()
    sparse = submodular.SubsetSelector(4).fit_resample(scipy.sparse.csr_array(rows))
    np.testing.assert_allclose(sparse.toarray(), rows[want])
    assert submodular.select(frame, 4).indices.tolist() == want.tolist()
    assert submodular.select(scipy.sparse.csr_array(rows), 4).indices.tolist() == want.tolist()
    selector = base.clone(submodular.SubsetSelector(4)).set_output(transform="pandas")
    assert selector.fit_transform(frame).columns.tolist() == [
        f"subsetselector{i}" for i in range(4)
    ]
    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(), submodular.SubsetSelector(4), linear_model.Ridge()
    )
    assert model.fit(rows, labels).predict(rows).shape == (30,)
    for take in (submodular.SubsetSelector(4).fit, lambda table: submodular.select(table, 4)):
        with pytest.raises(TypeError, match="columns 'name' that do not"):
            take(frame.assign(name="x"))


def test_a_row_of_zeros_is_similar_to_nothing_and_chosen_last():
    chosen = submodular.select(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 3)
    assert chosen.indices.tolist() == [1, 2, 0]
    assert chosen.gains.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "objective", ["feature_based", pytest.param("facility_location", marks=pytest.mark.slow)]
)
def test_partial_fit_equals_a_sieve_over_the_whole_table(objective):
    rows = np.random.default_rng(0).uniform(size=(700, 3)).astype(np.float32)
    selector = submodular.SubsetSelector(4, objective=objective, eps=0.2, reference=rows[:50])
    for batch in np.array_split(rows, 7):
        selector.partial_fit(batch)
    if objective == "feature_based":
        function = submodular.feature_based(rows)
    else:
        function = submodular.facility_location_from_features(rows, rows[:50])
    sieve = submodular.sieve_streaming_pp(4, eps=0.2)
    state = sieve.run(function, sieve.init(function), np.arange(700))
    want = sieve.solution(function, state)
    assert selector.ranking_.tolist() == want.indices[want.valid].tolist()
    np.testing.assert_allclose(selector.gains_, want.gains[want.valid], rtol=1e-5)
    np.testing.assert_array_equal(selector.exemplars_, rows[selector.ranking_])


@pytest.mark.usefixtures("bad_input")
def test_the_selector_refuses_bad_input_and_keeps_its_state():
    from sklearn import exceptions

    selector = submodular.SubsetSelector(2, objective="feature_based")
    with pytest.raises(exceptions.NotFittedError):
        selector.transform(np.eye(3))
    selector.partial_fit(np.eye(3))
    before = selector.ranking_.tolist()
    with pytest.raises(ValueError, match="4 features"):
        selector.partial_fit(np.eye(4))
    with pytest.raises(ValueError, match="NaN"):
        selector.partial_fit(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="-1"):
        selector.partial_fit(-np.eye(3))
    assert selector.ranking_.tolist() == before
    with pytest.raises(ValueError, match="partial_fit needs"):
        submodular.SubsetSelector(2, objective="graph_cut").partial_fit(np.eye(3))
    with pytest.raises(ValueError, match="did you mean"):
        submodular.SubsetSelector(2, objective="facility_locations").fit(np.eye(3))


def test_the_figure_marks_every_selected_row():
    rows = np.random.default_rng(0).uniform(size=(30, 5))
    figure = submodular.selection_figure(rows, submodular.select(rows, 4))
    left, right = figure.axes
    assert len(left.collections[1].get_offsets()) == 4
    assert len(right.lines[0].get_xdata()) == 4
