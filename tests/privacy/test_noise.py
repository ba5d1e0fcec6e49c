"""Noise: its size, its independence of devices, tree aggregation, and optimizer state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from scipy import stats

from jaxkit import privacy


def test_noise_is_gaussian_of_the_stated_size():
    noise = privacy.privatize_sum(2.0, 3.0, 4, jax.random.key(0))
    zeros = jnp.zeros(20_000)
    draw, state = jax.jit(noise.update)(zeros, noise.init(zeros))
    assert stats.kstest(np.asarray(draw) / (2.0 * 3.0 / 4), "norm").pvalue > 1e-3
    again, _ = jax.jit(noise.update)(zeros, state)
    assert abs(np.corrcoef(draw, again)[0, 1]) < 0.03


def test_noise_is_equal_on_one_and_eight_devices(devices):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    noise = privacy.add_gaussian_noise(1.0, jax.random.key(1))
    zeros = jnp.zeros((16, 4))
    update = jax.jit(lambda g: noise.update(g, noise.init(g))[0])
    spread = NamedSharding(mesh, PartitionSpec("data"))
    np.testing.assert_array_equal(update(zeros), update(jax.device_put(zeros, spread)))


def test_running_sum_of_tree_noise_is_one_draw_for_each_node():
    steps, runs = 6, 4000

    def sums(key):
        noise = privacy.add_tree_noise(1.0, 4, key)
        step = lambda state, _: noise.update(jnp.zeros(()), state)[::-1]  # noqa: E731
        return jnp.cumsum(jax.lax.scan(step, noise.init(None), length=steps)[1])

    drawn = np.asarray(jax.jit(jax.vmap(sums))(jax.random.split(jax.random.key(0), runs)))
    # Nodes that cover updates 1..t: {1}, {12}, {12, 3}, {1234}; then a second tree is added.
    nodes = [{"a1"}, {"a12"}, {"a12", "a3"}, {"a1234"}, {"a1234", "b1"}, {"a1234", "b12"}]
    expected = np.array([[len(s & t) for s in nodes] for t in nodes])
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=6 * 2 / runs**0.5)


@pytest.mark.parametrize("name", ["dp_sgd", "dp_adam", "dp_ftrl"])
def test_private_optimizers_without_noise_are_their_optax_counterparts(name):
    settings = {
        "clip_norm": 1.0,
        "noise_multiplier": 0.0,
        "expected_batch_size": 4,
        "key": jax.random.key(0),
    }
    private, plain = {
        "dp_sgd": (privacy.dp_sgd(0.1, momentum=0.9, **settings), optax.sgd(0.1, 0.9)),
        "dp_adam": (
            privacy.dp_adam(0.1, weight_decay=0.01, **settings),
            optax.adamw(0.1, weight_decay=0.01),
        ),
        "dp_ftrl": (privacy.dp_ftrl(0.1, steps_per_tree=8, **settings), optax.sgd(0.1)),
    }[name]

    def run(optimizer, scale):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(scale * (params - 1), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros(2)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=5)[0]

    (private_params, state), (plain_params, _) = jax.jit(lambda: (run(private, 4), run(plain, 1)))()
    np.testing.assert_allclose(private_params, plain_params, rtol=1e-6)
    # The state is arrays alone, the key among them.
    leaves, structure = jax.tree.flatten(state)
    assert any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure


def test_a_restored_state_draws_the_noise_that_the_uninterrupted_run_draws(tmp_path):
    noise = privacy.add_gaussian_noise(1.0, jax.random.key(5))
    update = jax.jit(noise.update)
    _, state = update(jnp.zeros(3), noise.init(None))
    ocp.save(tmp_path / "state", state)
    restored = ocp.load(tmp_path / "state", state)
    np.testing.assert_array_equal(update(jnp.zeros(3), state)[0], update(jnp.zeros(3), restored)[0])


def test_dp_aggregate_gives_what_clipped_sums_and_noise_give(close):
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    rows[1, 0] = np.nan
    mask = np.array([True] * 5 + [False])
    aggregate = privacy.dp_aggregate(0.5, 1.0, 5, jax.random.key(2))
    noise = privacy.privatize_sum(0.5, 1.0, 5, jax.random.key(2))
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x @ w), 0.5)

    @jax.jit
    def both(rows, mask):
        params = jnp.zeros(3)
        direct, _ = aggregate.update(rows, aggregate.init(params), mask=mask)
        total = gradient(params, rows, None, mask).total
        return direct, noise.update(total, noise.init(params))[0]

    direct, composed = both(rows, mask)
    assert np.all(np.isfinite(direct))
    close(direct, composed, 1e-6)


def test_bfloat16_updates_are_cast_after_the_noise_is_added():
    noise = privacy.add_gaussian_noise(1.0, jax.random.key(0))
    ones = jnp.ones(64, jnp.bfloat16)
    noisy, _ = noise.update(ones, noise.init(ones))
    expected = (1 + privacy.gaussian_draw(jax.random.key(0), 0, ones)).astype(jnp.bfloat16)
    assert noisy.dtype == jnp.bfloat16
    np.testing.assert_array_equal(noisy, expected)
