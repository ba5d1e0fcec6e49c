"""Every maximiser goes through one mill: a pure function of a set function, and perhaps a key."""

import functools
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular
from jaxkit.submodular import exemplars, scan, streaming

N, K = 16, 3
SETTINGS = submodular.LevelSettings(2, 0.3)
INSERTS = np.array([True, True, True, False, True, True])
ITEMS = np.array([5, 2, 9, 2, 7, 0], np.int32)


class Case(NamedTuple):
    """A maximiser.

    Attributes:
        run: from data and a key to what it selects.
        of_rows: whether its data is a table instead of a set function.
        refused: calls on a modular function of 3 items, with the message of each refusal.
    """

    run: Callable[[Any, jax.Array], Any]
    of_rows: bool = False
    refused: tuple[tuple[Callable[[Any], Any], str], ...] = ()


def sieved(make):
    def run(function, key):
        sieve = make(K, eps=0.3)
        order = jax.random.permutation(key, N)
        return sieve.solution(function, sieve.run(function, sieve.init(function), order))

    return Case(
        run,
        refused=(
            (lambda f: make(0), "k must be an integer >= 1, got 0"),
            (lambda f: make(2, eps=1.0), "eps"),
            (lambda f: make(2).run(f, make(2).init(f), np.array([3])), "elements must be in"),
        ),
    )


def scanned(function, key):
    state = submodular.dynamic_start(function, SETTINGS, (0.1, 20.0), key)
    return submodular.dynamic_scan(function, SETTINGS, state, INSERTS, ITEMS)


COSTS = np.linspace(0.5, 1.5, N)
GROUPS, CAPACITIES = np.arange(N) % 3, np.array([1, 0, 2])
SHARED = (
    (lambda f, m: m(f, 0), "k must be an integer >= 1, got 0"),
    (lambda f, m: m(f, 2.5), "k must be an integer, got 2.5"),
    (lambda f, m: m(f, 1, mask=np.ones(2, bool)), "mask must have shape"),
    (lambda f, m: m(f, 1, initial=np.array([7])), "initial must be in"),
)


def checked(maximise):
    return tuple((functools.partial(call, m=maximise), message) for call, message in SHARED)


def keyed(maximise, **options):
    return lambda f, k, **more: maximise(f, k, jax.random.key(0), **options, **more)


CASES = {
    "submodular.greedy": Case(
        lambda f, key: submodular.greedy(f, K), refused=checked(submodular.greedy)
    ),
    "submodular.lazy_greedy": Case(
        lambda f, key: submodular.lazy_greedy(f, K, batch=2),
        refused=(
            *checked(submodular.lazy_greedy),
            (lambda f: submodular.lazy_greedy(f, 1, batch=0), "batch must"),
        ),
    ),
    "submodular.stochastic_greedy": Case(
        lambda f, key: submodular.stochastic_greedy(f, K, key, eps=0.3),
        refused=(
            *checked(keyed(submodular.stochastic_greedy)),
            (lambda f: keyed(submodular.stochastic_greedy, eps=0.0)(f, 1), "eps must"),
        ),
    ),
    "submodular.random_greedy": Case(
        lambda f, key: submodular.random_greedy(f, K, key),
        refused=checked(keyed(submodular.random_greedy)),
    ),
    "submodular.threshold_greedy": Case(
        lambda f, key: submodular.threshold_greedy(f, K, eps=0.2),
        refused=(
            *checked(submodular.threshold_greedy),
            (lambda f: submodular.threshold_greedy(f, 1, eps=1.0), "eps must"),
        ),
    ),
    "submodular.knapsack_greedy": Case(
        lambda f, key: submodular.knapsack_greedy(f, COSTS, 2.5, max_size=5),
        refused=(
            (lambda f: submodular.knapsack_greedy(f, [1.0, 1.0], 1.0), "costs must have"),
            (lambda f: submodular.knapsack_greedy(f, [1.0, 0.0, 1.0], 1.0), "costs must"),
            (lambda f: submodular.knapsack_greedy(f, np.ones(3), 0.0), "budget must"),
        ),
    ),
    "submodular.partition_matroid_greedy": Case(
        lambda f, key: submodular.partition_matroid_greedy(f, GROUPS, CAPACITIES),
        refused=(
            (lambda f: submodular.partition_matroid_greedy(f, [0, 1, 2], [1, 1]), "groups must be"),
            (lambda f: submodular.partition_matroid_greedy(f, [0, 1, 1], [1, -1]), "capacities"),
        ),
    ),
    "submodular.select": Case(
        lambda rows, key: submodular.select(rows, K, maximiser="stochastic", key=key),
        of_rows=True,
        refused=(
            (lambda f: submodular.select(np.eye(3), 0), "k must be an integer >= 1, got 0"),
            (lambda f: submodular.select(np.eye(3), 1, maximiser="lasy"), "did you mean 'lazy'"),
            (lambda f: submodular.select(np.full((3, 3), np.nan), 1), "features must be finite"),
        ),
    ),
    "submodular.sieve_streaming": sieved(submodular.sieve_streaming),
    "submodular.sieve_streaming_pp": sieved(submodular.sieve_streaming_pp),
    "submodular.dynamic_scan": Case(
        scanned,
        refused=(
            (
                lambda f: submodular.dynamic_scan(
                    f,
                    SETTINGS,
                    submodular.dynamic_start(f, SETTINGS, (1, 1), jax.random.key(0)),
                    np.ones(2),
                    np.array([0, 1]),
                ),
                "inserts must be boolean",
            ),
            (
                lambda f: submodular.dynamic_start(f, SETTINGS, (2, 1), jax.random.key(0)),
                "value_range must",
            ),
            (lambda f: submodular.LevelSettings(0), "k must be an integer >= 1, got 0"),
        ),
    ),
}

EXCLUDED = {
    "submodular.DynamicMaximiser": "driven from the host; dynamic_scan is the same, pure",
    "submodular.SubsetSelector": "driven from the host; select and the sieves are its pure parts",
}

#: Those that have a state between items, as functions of one item.
STREAMS = {
    name: make(K, eps=0.3)
    for name, make in (
        ("submodular.sieve_streaming", submodular.sieve_streaming),
        ("submodular.sieve_streaming_pp", submodular.sieve_streaming_pp),
    )
}


def data(name, seed=0):
    rng = np.random.default_rng(seed)
    if CASES[name].of_rows:
        return jnp.asarray(rng.uniform(size=(N, 3)), jnp.float32)
    return submodular.facility_location(rng.uniform(size=(9, N)) ** 2)


TRACES = []


@functools.cache
def compiled(name):
    def run(data, key):
        TRACES.append(name)
        return CASES[name].run(data, key)

    return jax.jit(run)


@functools.cache
def found(name, seed=0):
    return compiled(name)(data(name, seed), jax.random.key(seed))


#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "submodular.greedy",
    "submodular.stochastic_greedy",
    "submodular.select",
    "submodular.sieve_streaming_pp",
)

each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_maximiser_is_in_the_table(assert_complete, returned):
    results = (submodular.Selection, streaming.Sieve, scan.ScanTrace)

    def is_of_kind(value):
        selects = any(hasattr(value, part) for part in ("solution", "fit_transform"))
        kinds = (returned(value), *typing.get_args(returned(value)))
        return selects or any(kind in results for kind in kinds)

    assert_complete(is_of_kind, CASES, EXCLUDED)


@each
def test_one_program_serves_all_data_and_a_selection_has_the_value_it_claims(name):
    result = found(name)
    found(name, 1)
    assert TRACES.count(name) == 1
    if name == "submodular.dynamic_scan":
        _, trace = result
        function, chosen, value = data(name), trace.indices[-1], trace.values[-1]
    else:
        function = exemplars.objective_of(data(name)) if CASES[name].of_rows else data(name)
        chosen, value = result.indices, result.value
        assert (result.indices.dtype, result.gains.dtype) == (jnp.int32, jnp.float32)
        assert result.indices.shape == result.gains.shape == result.valid.shape
        assert (result.valid == (result.indices >= 0)).all()
        np.testing.assert_allclose(result.gains.sum(), value, rtol=1e-5)
        assert int(result.num_queries) > 0
    items = [int(i) for i in chosen if i >= 0]
    assert len(items) == len(set(items)) > 0
    assert (value.shape, value.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(submodular.evaluate(function, np.array(items)), value, rtol=1e-5)


@some
def test_called_alone_it_selects_what_its_compiled_form_does(name, assert_same):
    assert_same(CASES[name].run(data(name), jax.random.key(0)), found(name))


@some
def test_data_and_keys_under_vmap_and_scan_are_each_alone(name, assert_same):
    both = jax.tree.map(lambda *x: jnp.stack(x), data(name), data(name, 1))
    keys = jax.vmap(jax.random.key)(jnp.arange(2))

    @jax.jit
    def ways(both, keys):
        _, scanned = jax.lax.scan(lambda c, x: (c, CASES[name].run(*x)), None, (both, keys))
        return jax.vmap(CASES[name].run)(both, keys), scanned

    for results in ways(both, keys):
        for seed in range(2):
            assert_same(jax.tree.map(lambda leaf: leaf[seed], results), found(name, seed))  # noqa: B023


@some
def test_candidates_on_eight_devices_give_the_selection_of_one(name, spread, assert_same):
    if CASES[name].of_rows:
        split = spread(data(name), "candidates")
    else:
        mesh = jax.make_mesh((8,), ("candidates",))
        split = submodular.shard_candidates(data(name), mesh)
    assert not jax.tree.leaves(split)[0].sharding.is_fully_replicated
    result = compiled(name)(split, spread(jax.random.key(0), "candidates"))
    assert len(jax.tree.leaves(result)[0].sharding.device_set) == 8
    assert_same(result, found(name))


@each
def test_orbax_restores_what_was_selected(name, resaved, assert_same):
    assert_same(resaved(found(name)), found(name))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_may_be_saved_between_items_and_its_state_donated(
    name, resaved, assert_donatable, assert_same, count_traces
):
    sieve, function = STREAMS[name], data(name)
    assert_donatable(lambda: sieve.init(function), function)
    order = jax.random.permutation(jax.random.key(0), N)
    counted = count_traces(lambda state, item: sieve.update(function, state, item))
    update = jax.jit(counted, donate_argnums=0)
    state = sieve.init(function)
    for count, item in enumerate(order):
        held = jax.tree.leaves(state)
        state = update(state, item)
        assert all(leaf.is_deleted() for leaf in held)
        if count == N // 2:
            state = resaved(state)
    assert counted.count == 1
    assert_same(sieve.solution(function, state), found(name))


def test_the_first_state_of_a_dynamic_stream_may_be_donated_and_another_made(assert_donatable):
    function, key = data("submodular.dynamic_scan"), jax.random.key(0)
    start = functools.partial(submodular.dynamic_start, function, SETTINGS, (0.1, 20.0), key)
    assert_donatable(start, function, key)


@pytest.mark.slow
def test_a_dynamic_stream_may_be_saved_between_items_and_its_state_donated(
    resaved, assert_same, count_traces
):
    function = data("submodular.dynamic_scan")
    counted = count_traces(functools.partial(submodular.dynamic_scan, function, SETTINGS))
    run = jax.jit(counted, donate_argnums=0)
    start = submodular.dynamic_start(function, SETTINGS, (0.1, 20.0), jax.random.key(0))
    middle, _ = run(start, INSERTS[:3], ITEMS[:3])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    state, trace = run(resaved(middle), INSERTS[3:], ITEMS[3:])
    assert counted.count == 1
    want_state, want_trace = found("submodular.dynamic_scan")
    assert_same(state, want_state)
    assert_same(trace, jax.tree.map(lambda leaf: leaf[3:], want_trace))


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call(submodular.modular(np.ones(3)))
