"""Limits, errors and conventions of the stationary-point algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy

from jaxkit import privacy
from jaxkit.privacy.noise import gaussian_draw

STEPS = 7


def planned(sampling, noise_multipliers, num_steps=STEPS, phase_length=1):
    return privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0), sampling, sampling,
        num_steps=num_steps, phase_length=phase_length, difference_clip=0.25,
        noise_multipliers=noise_multipliers, delta=1e-5,
    )  # fmt: skip


NINE = privacy.full_batches(9)


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(9, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sign(random.normal(size=9))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


@pytest.fixture(scope="module")
def runs(data, count_traces_module):
    """SpiderBoost on all examples, swept over noise and keys by vmap, by phase length."""

    def run(noise, key, phase_length):
        plan = planned(NINE, (noise, noise), phase_length=phase_length)
        return privacy.run_spiderboost(
            plan, optax.sgd(2.0), jnp.zeros(3), data, key, probe=lambda params: params
        )

    counted = count_traces_module(run)
    swept = jax.jit(jax.vmap(counted, (0, 0, None)), static_argnums=2)
    return swept, counted


@pytest.fixture(scope="module")
def count_traces_module():
    class Counter:
        def __init__(self, function):
            self.function, self.count = function, 0

        def __call__(self, *args):
            self.count += 1
            return self.function(*args)

    return Counter


def descent(data, noise=None):
    x, y = (np.asarray(leaf, np.float64) for leaf in data)
    w, iterates = np.zeros(3), []
    for t in range(STEPS):
        g = (-y / (1 + np.exp(y * (x @ w)))) @ x / 9
        w = w - 2.0 * (g if noise is None else g + noise[t])
        iterates.append(w)
    return np.asarray(iterates)


def test_without_noise_every_phase_length_is_gradient_descent_and_nothing_retraces(
    data, runs, close
):
    swept, counted = runs
    keys = jax.random.split(jax.random.key(0), 2)
    before = counted.count
    for _ in range(2):
        result = swept(jnp.zeros(2), keys, 3)
    assert counted.count == before + 1
    close(result.record.probe[0], descent(data))
    close(result.params[1], descent(data)[-1])
    # Runs draw their own random outputs, each one of the iterates.
    for run in range(2):
        rows = np.asarray(result.record.probe[run])
        assert np.any(np.all(rows == np.asarray(result.random_params[run]), axis=1))
    norms = np.asarray(result.record.estimate_norm[0])
    iterates = np.concatenate([np.zeros((1, 3)), result.record.probe[0]])
    np.testing.assert_array_equal(result.best_params[0], np.float32(iterates[np.argmin(norms)]))
    assert np.all(np.asarray(result.record.count) == 9)
    assert np.all(np.asarray(result.record.clipped) == 0)


@pytest.mark.slow
def test_phases_of_one_step_are_noisy_gradient_descent_with_the_same_draws(data, runs, close):
    swept, _ = runs
    key = jax.random.key(4)
    _, estimator_key, _ = jax.random.split(key, 3)
    stream = jax.random.fold_in(estimator_key, 0)
    noise = [0.5 / 9 * gaussian_draw(stream, t, jnp.zeros(3)) for t in range(STEPS)]
    result = swept(jnp.full(1, 0.5), key[None], 1)
    close(result.record.probe[0], descent(data, np.asarray(noise, np.float64)))


@pytest.mark.slow
def test_estimation_error_has_the_variance_of_the_lemma(data):
    """Full batch: the error is the anchor's noise and that of the differences since."""
    runs, z1, z2 = 2000, 3.0, 2.0
    points = jnp.asarray([[0.0, 0, 0], [1.0, 0, 0], [1.0, 2.0, 0], [1.0, 2.0, 50.0]])

    def error(key):
        plan = planned(NINE, (z1, z2))
        state, _ = plan.anchor(plan.init(points[0]), points[0], data, key)
        for point in points[1:]:
            state, _ = plan.variation(state, point, data, key)
        return state.estimate

    estimates = np.asarray(jax.jit(jax.vmap(error))(jax.random.split(jax.random.key(1), runs)))
    x, y = (np.asarray(leaf, np.float64) for leaf in data)
    truth = (-y / (1 + np.exp(y * (x @ np.asarray(points[-1]))))) @ x / 9
    bounds = [min(0.25 * d, 2.0) for d in (1.0, 2.0, 50.0)]  # the cap binds for the last
    variance = (z1**2 + sum((z2 * b) ** 2 for b in bounds)) / 9**2
    statistic = np.sum((estimates - truth) ** 2) / variance
    low, high = scipy.stats.chi2(3 * runs).interval(0.999)
    assert low < statistic < high


def test_still_parameters_need_no_noise(data):
    plan, key = planned(NINE, (1.0, 5.0)), jax.random.key(0)

    @jax.jit
    def twice(params):
        state, _ = plan.anchor(plan.init(params), params, data, key)
        return state.estimate, plan.variation(state, params, data, key)[0].estimate

    first, second = twice(jnp.ones(3))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_poisson_batches_estimate_the_full_gradient_without_bias(data):
    sampling = privacy.Sampling("poisson", 9, 4.5, 9)
    plan = planned(sampling, (0.0, 0.0), num_steps=1)

    def first_step(key):
        run = privacy.run_spiderboost(plan, optax.sgd(1.0), jnp.zeros(3), data, key)
        return run.params, run.record.count[0]

    params, counts = jax.jit(jax.vmap(first_step))(jax.random.split(jax.random.key(2), 4000))
    x, y = (np.asarray(leaf, np.float64) for leaf in data)
    expected = (y / 2) @ x / 9
    error = np.std(params, axis=0) / 4000**0.5
    assert np.all(np.abs(np.mean(params, axis=0) - expected) < 4.5 * error)
    assert len(set(np.asarray(counts).tolist())) > 5


@pytest.mark.slow
def test_huber_instance_cannot_be_solved_better_than_its_lower_bound():
    """Theorem 4.3: for Huber losses, the gradient is the error of a private mean."""
    n, d, mu = 200, 16, 0.5
    random = np.random.default_rng(3)
    x = random.normal(size=(n, d)) / d**0.5 / 8
    data = jnp.asarray(x, jnp.float32)
    loss = lambda w, row, key: jnp.mean(optax.huber_loss(jnp.linalg.norm(row - w, axis=-1)))  # noqa: E731

    def final(key):
        noise = privacy.privatize_sum(STEPS**0.5 / mu, n, key)
        gradient = privacy.clipped_grad_sum(loss, 1.0)

        def step(carry, _):
            w, state = carry
            update, state = noise.update(gradient(w, data), state)
            return (w - 0.5 * update, state), None

        start = jnp.full(d, 1e-3)
        return jax.lax.scan(step, (start, noise.init(start)), length=STEPS)[0][0]

    outputs = np.asarray(jax.jit(jax.vmap(final))(jax.random.split(jax.random.key(0), 30)))
    errors = np.linalg.norm(outputs - x.mean(0), axis=1)
    assert errors.mean() > 0.3 * d**0.5 / (n * mu)


@pytest.mark.slow
def test_projection_preserves_norms_and_keeps_half_of_a_low_rank_space():
    @jax.jit
    @jax.vmap
    def draw(key):
        return privacy.projection(key, 64, 20)

    phi = np.asarray(draw(jax.random.split(jax.random.key(0), 300)))
    x = np.random.default_rng(0).normal(size=64)
    ratios = np.sum((phi @ x) ** 2, axis=1) / np.sum(x**2)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 300**0.5
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 5)))[0]
    smallest = np.linalg.svd(phi @ basis, compute_uv=False)[:, -1]
    assert np.median(smallest) > 0.45  # k = 4 rank
    np.testing.assert_array_equal(privacy.projection(jax.random.key(0), 4, 9), np.eye(4))


def test_a_plan_keeps_its_budget_and_gives_one_key_for_one_run(data):
    gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
    plan = privacy.spiderboost(
        gradient, NINE, NINE, num_steps=4, phase_length=2, difference_clip=0.25, epsilon=2.0,
        delta=1e-3,
    )  # fmt: skip
    assert plan.epsilon() == pytest.approx(2.0, rel=1e-3)
    source = privacy.NoiseSource.from_os()
    assert plan.statement(source).startswith("(epsilon, delta)-differential privacy with epsilon")
    assert "NOT PRIVATE" in plan.statement(privacy.NoiseSource.public(0))
    key = plan.key(source)
    with pytest.raises(ValueError, match="another run needs a source of its own"):
        plan.key(source)
    state, _ = plan.anchor(plan.init(jnp.zeros(3)), jnp.zeros(3), data, key)
    assert not any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_algorithm_takes_parameters_of_any_type(data, dtype):
    def runs(gradient, w, key):
        sharp = {"depth": 1, "root_size": 2, "num_rounds": 1, "smoothness": 0.25, "beta": 0.1}
        once = privacy.one_pass(gradient, noise_multiplier=1.0, delta=1e-5)
        yield privacy.run_spiderboost(plan, optax.sgd(0.1), w, data, key)
        yield privacy.tree_spider(once, w, data, key, **sharp)
        yield privacy.recursive_regularization(
            once, w, data, key, regularisation=0.1, steps_per_round=[3, 3], radius=1.0,
        )  # fmt: skip

    with jax.enable_x64(dtype == "float64"):
        w, plan = jnp.zeros(3, dtype), planned(NINE, (1.0, 1.0), 4, 2)
        for run in runs(plan.gradient, w, jax.random.key(0)):
            assert run.params.dtype == w.dtype
            assert jnp.all(jnp.isfinite(run.params))
