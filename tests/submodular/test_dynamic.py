"""The dynamic maximiser: its invariants, its bound, its counts, and its two drivers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from jaxkit import submodular
from jaxkit.submodular import levels, scan

N, K, EPS = 10, 3, 0.2


def facility(rng):
    return submodular.facility_location((rng.uniform(size=(9, N)) ** 3).astype(np.float32))


def coverage(rng):
    return submodular.weighted_coverage(rng.uniform(size=(12, N)) < 0.25, rng.uniform(size=12))


def stream(rng, length, insert_share=0.6, num_items=N):
    """Random operations (insert?, item), every one legal."""
    live, operations = set(), []
    for _ in range(length):
        absent = sorted(set(range(num_items)) - live)
        if not live or (absent and rng.uniform() < insert_share):
            item = int(rng.choice(absent))
            live.add(item)
            operations.append((True, item))
        else:
            item = int(rng.choice(sorted(live)))
            live.remove(item)
            operations.append((False, item))
    return operations


def apply(maximiser, insert, item):
    (maximiser.insert if insert else maximiser.delete)(item)


def mask_of(items):
    return sum(1 << int(item) for item in items)


def check_invariants(maximiser, values):
    """The five invariants of every copy, from the definitions, in float64 by lookup."""
    state, settings = maximiser.state, maximiser.settings
    live = set(maximiser.live.tolist())
    for c, guess in enumerate(state.guesses):
        copy = jax.tree.map(lambda leaf, c=c: leaf[c], state.levels)
        tau, depth = guess / (2 * K), state.depth[c]
        top = int(copy.num_levels)
        samples = [copy.order[copy.level == i] for i in range(top + 1)]
        prefix = [mask_of(copy.order[(copy.level > 0) & (copy.level <= i)]) for i in range(top + 1)]
        dead = [(~copy.alive[copy.level == i]).sum() for i in range(top + 1)]
        alive = copy.order[copy.alive].tolist()

        def gain(item, i, prefix=prefix):
            return values[prefix[i] | 1 << item] - values[prefix[i]]

        assert (copy.level > 0).sum() <= K
        assert set(alive) <= live
        assert len(set(alive)) == len(alive)
        for i in range(1, top + 1):
            reservoir = set(np.flatnonzero(depth >= i).tolist())
            assert reservoir <= live
            assert len(reservoir) == copy.size[i] < settings.growth * copy.built[i]
            assert {e for e in samples[i].tolist() if e in alive} <= reservoir
            assert len(samples[i]) == copy.drawn[i] >= 1
            assert dead[i] <= settings.inner_eps * copy.drawn[i]
            assert all(gain(e, i - 1) >= tau * (1 - 1e-5) for e in reservoir)
        if (copy.level > 0).sum() < K:
            mine = [e for e in live if tau * 1.00001 <= values[1 << e] <= guess * 0.99999]
            assert all(gain(e, top) < tau * 1.00001 for e in mine if e not in alive)


@pytest.mark.parametrize(
    ("make", "mode", "seeds"),
    [
        (coverage, "verified", range(2)),
        *(
            pytest.param(make, mode, range(6), marks=pytest.mark.slow)
            for make in (facility, coverage)
            for mode in ("verified", "single")
        ),
    ],
)
def test_invariants_and_bound_hold_after_every_update(make, mode, seeds, all_values, best_of):
    """2 streams of 40 updates; in the slow suite 6 for each of 2 functions and 2 modes: 24."""
    smallest = math.inf
    for seed in seeds:
        rng = np.random.default_rng(seed)
        function = make(rng)
        values = all_values(function)
        maximiser = submodular.DynamicMaximiser(
            function, K, jax.random.key(seed), eps=EPS, mode=mode
        )
        for insert, item in stream(rng, 40):
            apply(maximiser, insert, item)
            check_invariants(maximiser, values)
            optimum = best_of(values, maximiser.live, K)
            found = maximiser.solution()
            np.testing.assert_allclose(values[mask_of(found.indices)], found.value, atol=1e-5)
            assert found.value >= maximiser.guarantee.ratio * optimum - 1e-5
            if optimum > 0:
                smallest = min(smallest, found.value / optimum)
                state, x = maximiser.state, maximiser.settings.inner_eps
                near = (state.guesses >= optimum) & (state.guesses <= (1 + x) * optimum)
                assert near.any()
                for c in np.flatnonzero(near):
                    own = state.levels.order[c][state.levels.alive[c]]
                    assert values[mask_of(own)] >= (0.5 - EPS) * optimum - 1e-5
    assert smallest < 1


@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_the_optimum_of_reference_streams_is_kept_to_half_minus_eps(golden, number):
    block = golden("submodular")
    functions = block["functions"]
    p = {
        name: {key: np.asarray(value) for key, value in functions[name]["params"].items()}
        for name in ("facility_location", "weighted_coverage", "feature_based_sqrt")
    }
    functions = {
        "facility_location": submodular.facility_location(p["facility_location"]["W"]),
        "weighted_coverage": submodular.weighted_coverage(
            p["weighted_coverage"]["B"], p["weighted_coverage"]["w"]
        ),
        "feature_based_sqrt": submodular.feature_based(
            p["feature_based_sqrt"]["X"], "sqrt", p["feature_based_sqrt"]["w"]
        ),
    }
    for case in block["dynamic"][number : number + 1]:
        maximiser = submodular.DynamicMaximiser(
            functions[case["function"]], case["k"], jax.random.key(0), eps=case["eps"]
        )
        optima = case["optimum_after_each_update"]
        for (code, item), optimum in zip(case["ops"], optima, strict=True):
            apply(maximiser, code > 0, item)
            found = maximiser.solution().value
            assert (0.5 - case["eps"]) * optimum - 1e-5 <= found <= optimum + 1e-5


def test_updates_without_rebuild_cost_nothing_to_delete_and_a_search_to_insert(monkeypatch):
    rebuilt = []
    original = submodular.DynamicMaximiser._rebuild

    def spy(self, copy, first):
        rebuilt.append(copy)
        original(self, copy, first)

    monkeypatch.setattr(submodular.DynamicMaximiser, "_rebuild", spy)
    quiet = {True: 0, False: 0}
    rng = np.random.default_rng(0)
    function = submodular.facility_location(rng.uniform(size=(9, 80)))
    maximiser = submodular.DynamicMaximiser(function, K, jax.random.key(0))
    for insert, item in stream(rng, 180, num_items=80):
        state, before = maximiser.state, maximiser.num_queries
        searches = np.ceil(np.log2(state.levels.num_levels + 2)).sum()
        rebuilt.clear()
        apply(maximiser, insert, item)
        spent = maximiser.num_queries - before
        if not rebuilt:
            quiet[insert] += 1
            assert spent == 0 if not insert else 1 <= spent <= 1 + searches
    assert quiet[True] > 10
    assert quiet[False] > 10


def test_all_inserted_and_deleted_again_leaves_nothing():
    rng = np.random.default_rng(0)
    maximiser = submodular.DynamicMaximiser(facility(rng), K, jax.random.key(0))
    assert maximiser.solution(polish=True).indices.size == 0
    for item in range(N):
        maximiser.insert(item)
    for item in rng.permutation(N):
        maximiser.delete(item)
    assert maximiser.live.size == 0
    assert maximiser.solution().value == 0
    assert maximiser.solution(polish=True).indices.size == 0
    assert not maximiser.state.depth.any()
    assert not maximiser.state.levels.num_levels.any()


@pytest.mark.parametrize("mode", ["verified", "single", "montecarlo"])
def test_samples_are_uniform_over_their_bucket(mode):
    function = submodular.modular(np.ones(8))
    settings = levels.LevelSettings(2, 0.2, mode, num_trials=2)

    def pair(key):
        return levels.build(
            function,
            settings,
            levels.Levels.empty(2),
            levels.empty_prefixes(function, 2),
            jnp.array(1),
            jnp.arange(8),
            jnp.ones(8, bool),
            jnp.array(2.0),
            key,
            jnp.array(0),
        ).levels.order

    orders = np.asarray(jax.jit(jax.vmap(pair))(jax.random.split(jax.random.key(1), 5600)))
    assert (orders[:, 0] != orders[:, 1]).all()
    counts = np.zeros((8, 8))
    np.add.at(counts, (orders[:, 0], orders[:, 1]), 1)
    assert scipy.stats.chisquare(counts[~np.eye(8, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["verified", pytest.param("montecarlo", marks=pytest.mark.slow)])
def test_the_scan_takes_the_same_decisions_and_queries_as_the_host(mode):
    settings = submodular.LevelSettings(K, EPS, mode, num_trials=4)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        function, key = facility(rng), jax.random.key(seed)
        operations = stream(rng, 60)
        host = submodular.DynamicMaximiser(function, K, key, eps=EPS, mode=mode, num_trials=4)
        queries, values = [], []
        for insert, item in operations:
            before = host.num_queries
            apply(host, insert, item)
            queries.append(host.num_queries - before)
            values.append(host.solution().value)
        state = submodular.dynamic_start(function, settings, (0.2, 9.0), key)
        inserts, items = (np.asarray(column) for column in zip(*operations, strict=True))
        state, trace = submodular.dynamic_scan(function, settings, state, inserts, items)
        assert trace.num_queries.tolist() == queries
        np.testing.assert_allclose(trace.values, values, rtol=1e-6)
        assert int(state.num_queries) == host.num_queries
        assert not bool(state.overflow)
        assert int(state.num_ignored) == 0
        if seed == 0:
            compiled = scan._dynamic_scan.compiled._cache_size()
    assert scan._dynamic_scan.compiled._cache_size() == compiled


def test_the_scan_flags_what_it_cannot_do():
    function = submodular.modular(np.array([1.0, 50.0, 1.0]))
    settings = submodular.LevelSettings(1)
    state = submodular.dynamic_start(function, settings, (1.0, 2.0), jax.random.key(0))
    inserts, items = np.array([True, True, False, True]), np.array([0, 0, 2, 7])
    after, trace = submodular.dynamic_scan(function, settings, state, inserts, items)
    assert int(after.num_ignored) == 3
    assert not bool(after.overflow)
    assert trace.values.tolist() == [1, 1, 1, 1]
    high = np.array([1, 1, 1, 1])
    after, _ = submodular.dynamic_scan(function, settings, after, inserts, high)
    assert bool(after.overflow)


def test_batches_keep_the_invariants_and_the_bound_with_fewer_queries(all_values, best_of):
    rng = np.random.default_rng(2)
    function = facility(rng)
    values = all_values(function)
    key = jax.random.key(0)
    one_by_one = submodular.DynamicMaximiser(function, K, key)
    batched = submodular.DynamicMaximiser(function, K, key)
    for _ in range(12):
        absent = np.setdiff1d(np.arange(N), batched.live)
        coming = rng.permutation(absent)[: rng.integers(1, 5)]
        if coming.size:
            batched.insert(coming)
            for item in coming:
                one_by_one.insert(item)
        check_invariants(batched, values)
        going = rng.permutation(batched.live)[: rng.integers(1, 4)]
        batched.delete(going)
        for item in going:
            one_by_one.delete(item)
        check_invariants(batched, values)
        assert batched.live.tolist() == one_by_one.live.tolist()
        optimum = best_of(values, batched.live, K)
        assert batched.solution().value >= batched.guarantee.ratio * optimum - 1e-5
    assert batched.num_queries < one_by_one.num_queries


@pytest.mark.slow
def test_a_stream_longer_than_the_memory_uses_places_again():
    rng = np.random.default_rng(0)
    clients = rng.normal(size=(20, 3))
    capacity, window = 64, 30
    function = submodular.facility_location_from_features(
        np.ones((capacity, 3)), clients, kernel="rbf"
    )
    live = submodular.DynamicMaximiser(function, K, jax.random.key(0))
    rows, inside, worst = np.ones((capacity, 3), np.float32), [], 1.0
    for _ in range(16):
        places = live.free[:10]
        rows[places] = rng.normal(size=(places.size, 3))
        live.function = dataclasses.replace(live.function, rows=jnp.asarray(rows))
        live.insert(places)
        inside.extend(places.tolist())
        if len(inside) > window:
            live.delete(inside[:-window])
            inside = inside[-window:]
        mask = np.isin(np.arange(capacity), inside)
        best = float(submodular.greedy(live.function, K, mask=mask).value)
        found = live.solution()
        assert set(found.indices.tolist()) <= set(inside)
        np.testing.assert_allclose(
            submodular.evaluate(live.function, found.indices), found.value, rtol=1e-5
        )
        worst = min(worst, found.value / best)
    assert worst >= 0.3
    assert live.state.depth.shape[1] == capacity


def test_polish_is_never_worse_and_never_changes_the_state():
    rng = np.random.default_rng(4)
    function = facility(rng)
    maximiser = submodular.DynamicMaximiser(function, K, jax.random.key(0))
    better = 0
    for insert, item in stream(rng, 60):
        apply(maximiser, insert, item)
        plain = maximiser.solution()
        before = maximiser.num_queries
        polished = maximiser.solution(polish=True)
        assert maximiser.num_queries == before
        assert polished.value >= plain.value
        assert set(polished.indices.tolist()) <= set(maximiser.live.tolist())
        assert len(polished.indices) <= K
        np.testing.assert_allclose(
            submodular.evaluate(function, polished.indices), polished.value, rtol=1e-5
        )
        better += polished.value > plain.value
    assert better > 0


def test_a_restored_maximiser_goes_on_as_the_saved_one(tmp_path):
    rng = np.random.default_rng(0)
    function, operations = facility(rng), stream(rng, 30)
    first = submodular.DynamicMaximiser(function, K, jax.random.key(5))
    for insert, item in operations[:15]:
        apply(first, insert, item)
    first.save(tmp_path / "state")
    second = submodular.DynamicMaximiser(function, K, jax.random.key(6))
    second.restore(tmp_path / "state")
    for insert, item in operations[15:]:
        apply(first, insert, item)
        apply(second, insert, item)
        assert first.num_queries == second.num_queries
        assert first.solution().indices.tolist() == second.solution().indices.tolist()
    second.save(tmp_path / "state")  # beside the first, of which it is a later state
    first.restore(tmp_path / "state")
    assert first.live.tolist() == second.live.tolist()
    for k, options, other, message in (
        (2, {}, function, "settings.k was 3, is now 2"),
        (K, {"eps": 0.1}, function, "settings.eps was 0.2, is now 0.1"),
        (K, {"mode": "single"}, function, "settings.mode was 'verified', is now 'single'"),
        (K, {}, facility(rng), "data was"),
        (K, {}, coverage(rng), "function was 'FacilityLocation', is now"),
    ):
        third = submodular.DynamicMaximiser(other, k, jax.random.key(0), **options)
        for use in (third.restore, third.save):
            with pytest.raises(ValueError, match=message):
                use(tmp_path / "state")
    with pytest.raises(ValueError, match="none has no checkpoint yet"):
        second.restore(tmp_path / "none")


def test_an_item_worth_nothing_joins_no_copy():
    maximiser = submodular.DynamicMaximiser(
        submodular.modular(np.array([0.0, 1.0])), 1, jax.random.key(0)
    )
    maximiser.insert(0)
    assert (maximiser.num_queries, maximiser.solution().value) == (1, 0)
    maximiser.delete(0)
    maximiser.insert(0)
    assert maximiser.live.tolist() == [0]


@pytest.mark.usefixtures("bad_input")
def test_bad_operations_raise_and_change_nothing():
    maximiser = submodular.DynamicMaximiser(
        submodular.modular(np.arange(1.0, 5.0)), 2, jax.random.key(0)
    )
    maximiser.insert(1)
    maximiser.insert(2)
    plain = lambda: jax.tree.map(  # noqa: E731
        np.array, maximiser.state._replace(key=jax.random.key_data(maximiser.state.key))
    )
    before = plain()
    for call, error, message in (
        (lambda: maximiser.insert(1), ValueError, "element must not be in already, got 1"),
        (lambda: maximiser.delete(3), KeyError, "element must be in, got 3"),
        (lambda: maximiser.insert(4), IndexError, r"element must be in \[0, 4\), got 4"),
        (lambda: maximiser.insert(-1), IndexError, "got -1"),
        (lambda: maximiser.delete(2.5), TypeError, "element must be an integer, got 2.5"),
        (lambda: maximiser.insert([0, 3, 0]), ValueError, "elements must not repeat, got 0 twice"),
        (lambda: maximiser.insert([0, 2]), ValueError, "element must not be in already, got 2"),
        (lambda: maximiser.delete([1, 3]), KeyError, "element must be in, got 3"),
        (lambda: maximiser.delete([0.5, 1.0]), TypeError, "elements must be integers"),
    ):
        with pytest.raises(error, match=message):
            call()
        jax.tree.map(np.testing.assert_array_equal, plain(), before)


@pytest.mark.usefixtures("bad_input")
def test_an_item_whose_value_has_no_guesses_in_float32_is_named():
    maximiser = submodular.DynamicMaximiser(
        submodular.modular(np.array([1.0, 1e38])), 2, jax.random.key(0)
    )
    with pytest.raises(ValueError, match="got 1e\\+38 for element 1"):
        maximiser.insert([0, 1])
    assert maximiser.live.size == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be an integer >= 1, got 0"),
        ({"k": 2.5}, TypeError, "k must be an integer, got 2.5"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"eps": 1.0}, ValueError, "eps"),
        ({"eps": math.nan}, ValueError, "eps"),
        ({"mode": "verify"}, ValueError, "did you mean 'verified'"),
        ({"growth": 1.0}, ValueError, "growth"),
        ({"num_trials": 0}, ValueError, "num_trials"),
    ],
)
@pytest.mark.usefixtures("bad_input")
def test_bad_settings_raise_at_once(options, error, message):
    options = {"k": 2, **options}
    with pytest.raises(error, match=message):
        submodular.DynamicMaximiser(
            submodular.modular(np.ones(3)), options.pop("k"), jax.random.key(0), **options
        )


@pytest.mark.usefixtures("bad_input")
def test_a_bad_stream_for_the_scan_raises():
    function, settings = submodular.modular(np.ones(3)), submodular.LevelSettings(1)
    with pytest.raises(ValueError, match="value_range"):
        submodular.dynamic_start(function, settings, (0.0, 1.0), jax.random.key(0))
    with pytest.raises(ValueError, match="value_range"):
        submodular.dynamic_start(function, settings, (2.0, 1.0), jax.random.key(0))
    state = submodular.dynamic_start(function, settings, (1.0, 1.0), jax.random.key(0))
    with pytest.raises(TypeError, match="inserts must be boolean"):
        submodular.dynamic_scan(function, settings, state, np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="one same axis"):
        submodular.dynamic_scan(function, settings, state, np.ones(2, bool), np.array([1]))
