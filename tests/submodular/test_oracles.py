"""Set functions of a user whose answers no set function gives are refused, or never selected."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import pytrees, submodular

N, BAD = 6, 3


@pytrees.dataclass
class Own:
    """Weights, where item 3 answers `wrong` once the set holds `after` items."""

    weights: jax.Array
    wrong: jax.Array
    after: int = flax.struct.field(pytree_node=False)
    monotone: bool = flax.struct.field(pytree_node=False, default=True)
    kind: str = flax.struct.field(pytree_node=False, default="right")

    @property
    def num_items(self):
        return self.weights.shape[0]

    def init(self):
        return jnp.zeros(N, bool)

    def gains(self, state, candidates=None):
        bad = (jnp.arange(N) == BAD) & (state.sum() >= self.after)
        gains = jnp.where(state, 0, jnp.where(bad, self.wrong, self.weights))
        gains = gains if candidates is None else gains[candidates]
        return {"column": gains[..., None], "integer": gains.astype(int)}.get(self.kind, gains)

    def add(self, state, element):
        added = state | (jnp.arange(N) == element)
        return added.astype(jnp.float32) if self.kind == "state" else added

    def value(self, state):
        value = (state * self.weights).sum()
        return value[None] if self.kind == "value" else value


def own(wrong, after=0, weight=0.5, **options):
    return Own(jnp.array([4.0, 1.0, 3.0, weight, 1.5, 2.5]), jnp.asarray(wrong), after, **options)


KEY = jax.random.key(0)
MAXIMISERS = {
    "greedy": lambda f: submodular.greedy(f, 5),
    "lazy": lambda f: submodular.lazy_greedy(f, 5, batch=2),
    "stochastic": lambda f: submodular.stochastic_greedy(f, 5, KEY, eps=0.01),
    "random": lambda f: submodular.random_greedy(f, 5, KEY),
    "threshold": lambda f: submodular.threshold_greedy(f, 5),
    "knapsack": lambda f: submodular.knapsack_greedy(f, np.ones(N), 5.0),
    "partition": lambda f: submodular.partition_matroid_greedy(f, [0] * N, [5]),
}


def sieved(f):
    sieve = submodular.sieve_streaming_pp(3)
    return sieve.solution(f, sieve.run(f, sieve.init(f), jnp.arange(N)))


each = pytest.mark.parametrize("maximise", [*MAXIMISERS.values(), sieved], ids=[*MAXIMISERS, "++"])


@each
@pytest.mark.usefixtures("bad_input")
def test_a_gain_that_is_no_number_is_refused_by_name_and_never_selected_under_jit(maximise):
    compiled = jax.jit(maximise)
    for wrong, after in ((jnp.nan, 0), (jnp.inf, 0), (jnp.nan, 1), (jnp.inf, 1)):
        with pytest.raises(ValueError, match=f"gains of Own must be finite.* for item {BAD}"):
            maximise(own(wrong, after))
        found = compiled(own(wrong, after))
        assert jnp.isnan(found.value)
        assert int(found.flawed) == BAD
        assert BAD not in found.indices.tolist()
    right = compiled(own(2.0))
    assert int(right.flawed) == -1
    assert float(right.value) > 0


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("name", ["greedy", "lazy", "stochastic", "partition"])
def test_a_monotone_function_may_not_lose_but_another_may(name):
    weights = jnp.array([4.0, 1.0, -3.0, -2.0, -1.5, -2.5])
    loses = Own(weights, jnp.asarray(-2.0), 0)
    with pytest.raises(ValueError, match="of a monotone function, >= 0, got another for item 4"):
        MAXIMISERS[name](loses)
    honest = Own(weights, jnp.asarray(-2.0), 0, monotone=False)
    found = MAXIMISERS[name](honest)
    assert sorted(found.indices.tolist())[-2:] == [0, 1]
    assert (float(found.value), int(found.flawed)) == (5.0, -1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("column", r"Own.gains\(state\) must be of floating point and shape \(6,\)"),
        ("integer", r"Own.gains\(state\) must be of floating point .* got int32"),
        ("value", r"Own.value\(state\) must be of floating point and shape \(\)"),
        ("state", "Own.add must keep the structure, shapes and types of a state"),
    ],
)
@pytest.mark.usefixtures("bad_input")
def test_methods_of_wrong_shapes_or_types_are_named(kind, message):
    f = own(2.0, kind=kind)
    for use in (
        *MAXIMISERS.values(),
        sieved,
        lambda f: submodular.evaluate(f, jnp.arange(2)),
        lambda f: submodular.DynamicMaximiser(f, 2, KEY),
        lambda f: submodular.dynamic_start(f, submodular.LevelSettings(2), (1, 4), KEY),
    ):
        with pytest.raises(TypeError, match=message):
            use(f)


@pytest.mark.usefixtures("bad_input")
def test_the_dynamic_maximisers_leave_such_an_item_out_and_say_so():
    for wrong in (jnp.nan, jnp.inf):
        live = submodular.DynamicMaximiser(own(wrong), 2, KEY)
        with pytest.raises(ValueError, match=f"Own got .* for element {BAD}"):
            live.insert([0, BAD])
        assert live.live.size == 0
        live = submodular.DynamicMaximiser(own(wrong, 1, weight=2.0), 2, KEY)
        with pytest.raises(ValueError, match=f"gains of Own must be finite.* for item {BAD}"):
            live.insert(np.arange(N))
        assert BAD not in live.solution().indices.tolist()
        inserts, settings = np.ones(N, bool), submodular.LevelSettings(2)
        for after in (0, 1):
            f = own(wrong, after, weight=2.0)
            state = submodular.dynamic_start(f, settings, (1, 4), KEY)
            state, trace = submodular.dynamic_scan(f, settings, state, inserts, np.arange(N))
            assert int(state.num_ignored) == (after == 0)
            assert BAD not in trace.indices[-1].tolist()
