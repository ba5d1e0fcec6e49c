"""Client-level privacy: what the server sees, and what it is worth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl
from jaxkit import privacy
from jaxkit.federated import algorithm, cohorts


def everyone(num_clients=10):
    return fl.bernoulli_sampler(num_clients, 1.0, allow_empty=True)


def private(method, sampler, *, clip_norm=1.0, noise_multiplier=1.0, num_rounds=1):
    return fl.with_client_privacy(
        method, sampler, privacy.NoiseSource.from_os(), clip_norm=clip_norm,
        noise_multiplier=noise_multiplier, num_rounds=num_rounds,
    )  # fmt: skip


def result(size):
    delta = {"w": jnp.full((4, 3), size), "b": jnp.full(3, size)}
    return algorithm.LocalResult(delta, {}, jnp.float32(1), delta, jnp.int32(0))


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedspeed"])
def test_no_message_is_longer_than_the_clip_and_short_ones_pass(problem, name):
    plain = fl.ALGORITHMS[name]()
    protected = private(plain, everyone(), clip_norm=0.5, noise_multiplier=0.0)
    shared, memory = plain.init_shared(problem.params), plain.init_memory(problem.params)
    for size in (0.0, 1e-4, 3.0):
        message, kept = protected.report(shared, memory, result(size))
        expected, remembered = plain.report(shared, memory, result(size))
        norm = float(optax.tree.norm(expected))
        assert float(optax.tree.norm(message)) == pytest.approx(min(norm, 0.5), rel=1e-5)
        assert float(optax.tree.norm(message)) <= 0.5
        for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(remembered), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_message_of_a_narrow_type_is_not_rounded_above_the_clip():
    delta = {"w": jnp.full(15, 3, jnp.bfloat16)}
    protected = private(fl.fedavg(), everyone(), clip_norm=0.51)
    local = algorithm.LocalResult(delta, {}, jnp.float32(1), delta, jnp.int32(0))
    message, _ = protected.report({}, {}, local)
    norm = np.linalg.norm(np.asarray(message["delta"]["w"], np.float64))
    assert 0.5 <= norm <= 0.51 * (1 + 1e-5)  # in bfloat16, 0.5106


def test_noise_on_the_mean_has_the_promised_deviation():
    sampler = fl.bernoulli_sampler(1000, 0.02, allow_empty=True)
    protected = private(fl.fedavg(), sampler, clip_norm=2.0, noise_multiplier=1.5)
    total = {"delta": {"a": jnp.zeros(40_000), "b": jnp.zeros(40_000)}}
    seen = protected.aggregate(total, jnp.float32(3), jax.random.key(0))
    assert float(seen.count) == 20
    a, b = np.asarray(seen.mean["delta"]["a"]), np.asarray(seen.mean["delta"]["b"])
    assert a.std() == pytest.approx(1.5 * 2.0 / 20, rel=0.02)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


@pytest.mark.slow
def test_a_private_round_without_noise_or_clipping_is_the_plain_round(problem, quick_jit):
    def final(method, sampler):
        state = fl.init_state(method, problem.params, 10, jax.random.key(0))
        step = quick_jit(
            lambda s: fl.federated_round(method, problem.training, s, problem.data, sampler)
        )
        return step(state)[0].params["w"]

    protected = private(fl.fedspeed(), everyone(), clip_norm=1e6, noise_multiplier=0.0)
    np.testing.assert_allclose(
        final(protected, everyone()), final(fl.fedspeed(), fl.uniform_sampler(10, 10)), atol=1e-6
    )


def epsilon(sampler, noise_multiplier, num_rounds):
    method = private(fl.fedavg(), sampler, noise_multiplier=noise_multiplier, num_rounds=num_rounds)
    return method.privacy.epsilon(1e-5)


def test_epsilon_of_full_participation_is_the_gaussian_mechanisms():
    """(epsilon, delta) of one Gaussian of 1/sigma, by its exact formula."""
    from scipy import optimize, stats

    rounds, sigma, delta = 4, 2.0, 1e-5
    mu = math.sqrt(rounds) / sigma

    def excess(epsilon):
        return (
            stats.norm.cdf(mu / 2 - epsilon / mu)
            - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
            - delta
        )

    exact = optimize.brentq(excess, 0, 50)
    ours = epsilon(everyone(), sigma, rounds)
    assert exact <= ours <= 1.01 * exact


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    sampler = fl.bernoulli_sampler(1000, 0.01, max_size=60, allow_empty=True)
    few = epsilon(sampler, 1.0, 10)
    many = epsilon(sampler, 1.0, 1000)
    quiet = epsilon(sampler, 2.0, 1000)
    assert few < quiet < many
    assert epsilon(sampler, 0.0, 1) == math.inf


def test_cohorts_of_fixed_size_are_accounted_by_replacing_a_client():
    uniform = fl.uniform_sampler(1000, 10)
    assert private(fl.fedavg(), uniform).privacy.neighbours == "replace one client"
    one = epsilon(uniform, 2.0, 100)
    strata = fl.stratified_sampler(1000, 10, 5)  # the same ratio
    assert epsilon(strata, 2.0, 100) == pytest.approx(one, rel=1e-6)
    # Blocks of 32 and a last one of 8, whose clients always take part.
    unequal = fl.stratified_sampler(1000, 256, 32)
    assert epsilon(unequal, 8.0, 100) == pytest.approx(13.207, abs=2e-3)
    bernoulli = fl.bernoulli_sampler(1000, 0.01, max_size=60, allow_empty=True)
    assert one > epsilon(bernoulli, 2.0, 100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_a_broken_message_counts_as_nothing_and_leaves_the_others_alone(problem, value):
    plain = fl.fedavg()
    protected = private(plain, everyone(), clip_norm=0.5, noise_multiplier=0.0)
    shared, memory = plain.init_shared(problem.params), plain.init_memory(problem.params)
    message, _ = protected.report(shared, memory, result(value))
    norm = float(optax.tree.norm(message))
    assert norm <= 0.5 * (1 + 1e-5)
    if value != 3e38:
        assert norm == 0


def test_a_round_beyond_the_promise_is_refused_or_releases_nothing(problem):
    sampler = fl.uniform_sampler(10, 1)
    method = private(fl.fedavg(), sampler)
    state = fl.init_state(method, problem.params, 10, jax.random.key(0))
    parts = (method, problem.training, state, problem.data)
    other = fl.uniform_sampler(10, 10)
    with pytest.raises(ValueError, match=r"promised for, .*'cohort_size': 1.* got .*: 10"):
        fl.federated_round(*parts, other)
    with pytest.raises(ValueError, match=r"promised for, .*'kind': 'uniform'.* got .*'fixed'"):
        fl.federated_round(*parts, cohorts.fixed_sampler([[0]], 10))
    with pytest.raises(ValueError, match=r"within the 1 rounds .* got rounds up to 2"):
        fl.run_rounds(*parts, sampler, num_rounds=2)
    with pytest.raises(ValueError, match=r"within the 1 rounds .* got rounds up to 2"):
        fl.simulate(
            method, problem.training, problem.params, problem.data, sampler,
            num_rounds=2, key=jax.random.key(0),
        )  # fmt: skip
    step = jax.jit(
        lambda state: fl.federated_round(method, problem.training, state, problem.data, sampler)[0]
    )
    first = step(state)
    assert np.isfinite(first.params["w"]).all()
    assert np.isnan(step(first).params["w"]).all()
    assert method.privacy.epsilon(1e-5, state) == 0
    assert method.privacy.epsilon(1e-5, first) == method.privacy.epsilon(1e-5)


def test_what_changes_a_message_after_its_clip_is_refused(problem):
    sampler = fl.uniform_sampler(10, 10)
    method = private(fl.fedavg(), sampler)
    for changed in (
        method._replace(weighting="examples"),
        method._replace(aggregate=fl.fedavg().aggregate),
        fl.with_model_state(method, {"mean": jnp.zeros(3)}, "local"),
    ):
        state = fl.init_state(changed, problem.params, 10, jax.random.key(0))
        with pytest.raises((ValueError, TypeError), match="with_client_privacy comes last"):
            fl.federated_round(changed, problem.training, state, problem.data, sampler)


@pytest.mark.parametrize(
    "part", [{"noise_multiplier": 100.0}, {"num_rounds": 5}, {"sampler": fl.uniform_sampler(10, 1)}]
)
def test_a_promise_with_other_parts_than_its_noise_has_is_refused(problem, part):
    sampler = fl.uniform_sampler(10, 10)
    method = private(fl.fedavg(), sampler)
    forged = method._replace(privacy=method.privacy._replace(**part))
    state = fl.init_state(forged, problem.params, 10, jax.random.key(0))
    message = f"{next(iter(part))} of a promise must be what its noise was made with"
    for use in (
        lambda: forged.privacy.epsilon(1e-5),
        lambda: forged.privacy.epsilon(1e-5, state),
        lambda: fl.federated_round(forged, problem.training, state, problem.data, sampler),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.slow
def test_who_reads_the_state_knows_neither_the_cohorts_nor_the_noise(problem, quick_jit):
    sampler = fl.uniform_sampler(10, 1)
    parts, drawn = (problem.data, sampler), []
    for _ in range(2):  # the same public key, two sources
        method = private(fl.fedavg(), sampler)
        state = fl.init_state(method, problem.params, 10, jax.random.key(0))
        step = quick_jit(lambda s, m=method: fl.federated_round(m, problem.training, s, *parts)[0])
        released = step(state)
        drawn.append(np.asarray(released.params["w"]))
    assert not np.any(drawn[0] == drawn[1])
    source = privacy.NoiseSource.from_os()
    numbers = {"clip_norm": 1.0, "noise_multiplier": 1.0, "num_rounds": 1}
    fl.with_client_privacy(fl.fedavg(), sampler, source, **numbers)
    with pytest.raises(ValueError, match="another run needs a source of its own"):
        fl.with_client_privacy(fl.fedavg(), sampler, source, **numbers)
    public = privacy.NoiseSource.public(0)
    shown = fl.with_client_privacy(fl.fedavg(), sampler, public, **numbers)
    assert shown.privacy.epsilon(1e-5) == math.inf


@pytest.mark.usefixtures("bad_input")
def test_what_cannot_be_promised_is_refused():
    with pytest.raises(ValueError, match="must allow empty cohorts"):
        private(fl.fedavg(), fl.bernoulli_sampler(10, 0.5))
    with pytest.raises(ValueError, match=r"sampler.kind must be one of .* got 'fixed'"):
        private(fl.fedavg(), fl.cohorts.fixed_sampler([[0]], 10))
    with pytest.raises(TypeError, match="sampler must be a Sampler, got 4"):
        private(fl.fedavg(), 4)
    with pytest.raises(ValueError, match="noise_multiplier"):
        private(fl.fedavg(), everyone(), noise_multiplier=-1.0)
    with pytest.raises(ValueError, match="clip_norm"):
        private(fl.fedavg(), everyone(), clip_norm=0.0)
    tight = fl.bernoulli_sampler(1000, 0.01, max_size=12, allow_empty=True)
    with pytest.raises(ValueError, match="max_size must be larger than 12"):
        epsilon(tight, 1.0, 1)
