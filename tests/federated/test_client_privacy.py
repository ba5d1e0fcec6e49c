"""Client-level privacy: what the server sees, and what it is worth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl
from jaxkit.federated import algorithm


def everyone(num_clients=10):
    return fl.bernoulli_sampler(num_clients, 1.0, allow_empty=True)


def result(size):
    delta = {"w": jnp.full((4, 3), size), "b": jnp.full(3, size)}
    zero = jax.tree.map(jnp.zeros_like, delta)
    return algorithm.LocalResult(zero, delta, jnp.float32(1), delta, (), jnp.int32(0), False)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedspeed"])
def test_no_message_is_longer_than_the_clip_and_short_ones_pass(problem, name):
    plain = fl.ALGORITHMS[name]()
    private = fl.with_client_privacy(plain, everyone(), clip_norm=0.5, noise_multiplier=0.0)
    shared, memory = plain.init_shared(problem.params), plain.init_memory(problem.params)
    for size in (0.0, 1e-4, 3.0):
        message, kept = private.report(shared, memory, result(size))
        expected, remembered = plain.report(shared, memory, result(size))
        norm = float(optax.tree.norm(expected))
        assert float(optax.tree.norm(message)) == pytest.approx(min(norm, 0.5), rel=1e-5)
        assert float(optax.tree.norm(message)) <= 0.5
        for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(remembered), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_noise_on_the_mean_has_the_promised_deviation():
    sampler = fl.bernoulli_sampler(1000, 0.02, allow_empty=True)
    private = fl.with_client_privacy(fl.fedavg(), sampler, clip_norm=2.0, noise_multiplier=1.5)
    total = {"delta": {"a": jnp.zeros(40_000), "b": jnp.zeros(40_000)}}
    seen = private.aggregate(total, jnp.float32(3), jax.random.key(0))
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

    private = fl.with_client_privacy(fl.fedspeed(), everyone(), clip_norm=1e6, noise_multiplier=0.0)
    np.testing.assert_allclose(
        final(private, everyone()), final(fl.fedspeed(), fl.uniform_sampler(10, 10)), atol=1e-6
    )


def private_fedavg(sampler, noise_multiplier=1.0):
    return fl.with_client_privacy(
        fl.fedavg(), sampler, clip_norm=1.0, noise_multiplier=noise_multiplier
    )


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
    ours = fl.client_epsilon(private_fedavg(everyone(), sigma), rounds, delta)
    assert exact <= ours <= 1.01 * exact


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    sampler = fl.bernoulli_sampler(1000, 0.01, max_size=60, allow_empty=True)
    few = fl.client_epsilon(private_fedavg(sampler), 10, 1e-5)
    many = fl.client_epsilon(private_fedavg(sampler), 1000, 1e-5)
    quiet = fl.client_epsilon(private_fedavg(sampler, 2.0), 1000, 1e-5)
    assert few < quiet < many
    assert fl.client_epsilon(private_fedavg(sampler, 0.0), 1, 1e-5) == math.inf


def test_cohorts_of_fixed_size_are_accounted_by_replacing_a_client():
    uniform = private_fedavg(fl.uniform_sampler(1000, 10), 2.0)
    assert uniform.privacy.neighbours == "replace one client"
    strata = private_fedavg(fl.stratified_sampler(1000, 10, 5), 2.0)
    one = fl.client_epsilon(uniform, 100, 1e-5)
    assert fl.client_epsilon(strata, 100, 1e-5) == pytest.approx(one, rel=1e-6)  # same ratio
    # Blocks of 32 and a last one of 8, whose clients always take part.
    unequal = private_fedavg(fl.stratified_sampler(1000, 256, 32), 8.0)
    assert fl.client_epsilon(unequal, 100, 1e-5) == pytest.approx(13.207, abs=2e-3)
    bernoulli = fl.bernoulli_sampler(1000, 0.01, max_size=60, allow_empty=True)
    assert one > fl.client_epsilon(private_fedavg(bernoulli, 2.0), 100, 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_a_broken_message_counts_as_nothing_and_leaves_the_others_alone(problem, value):
    plain = fl.fedavg()
    private = fl.with_client_privacy(plain, everyone(), clip_norm=0.5, noise_multiplier=0.0)
    shared, memory = plain.init_shared(problem.params), plain.init_memory(problem.params)
    message, _ = private.report(shared, memory, result(value))
    norm = float(optax.tree.norm(message))
    assert norm <= 0.5 * (1 + 1e-5)
    if value != 3e38:
        assert norm == 0


def test_a_round_with_another_sampler_than_was_promised_for_is_refused(problem):
    private = private_fedavg(fl.uniform_sampler(10, 1))
    state = fl.init_state(private, problem.params, 10, jax.random.key(0))
    other = fl.uniform_sampler(10, 10)
    with pytest.raises(ValueError, match=r"promised for, .*'cohort_size': 1.* got .*: 10"):
        fl.federated_round(private, problem.training, state, problem.data, other)


@pytest.mark.usefixtures("bad_input")
def test_what_cannot_be_promised_is_refused():
    with pytest.raises(ValueError, match="must allow empty cohorts"):
        private_fedavg(fl.bernoulli_sampler(10, 0.5))
    with pytest.raises(ValueError, match=r"sampler.kind must be one of .* got 'fixed'"):
        private_fedavg(fl.fixed_sampler([[0]], 10))
    with pytest.raises(ValueError, match="noise_multiplier"):
        private_fedavg(everyone(), -1.0)
    with pytest.raises(ValueError, match="clip_norm"):
        fl.with_client_privacy(fl.fedavg(), everyone(), clip_norm=0.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="FedAvg is not private"):
        fl.client_epsilon(fl.fedavg(), 1, 1e-5)
    tight = fl.bernoulli_sampler(1000, 0.01, max_size=12, allow_empty=True)
    with pytest.raises(ValueError, match="max_size must be larger than 12"):
        fl.client_epsilon(private_fedavg(tight), 1, 1e-5)
