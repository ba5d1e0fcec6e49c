"""The car and the point mass: physics, ends of episodes, and learning."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import submodular, subrl
from jaxkit.subrl import subpo

TRACK = subrl.car.CarParams(jnp.array(16.41), jnp.array(0.2), jnp.array(0.8))


@jax.jit
def _drive(state, duty, steering):
    """The states of 600 steps."""

    def step(state, _):
        state = subrl.car.car_step(state, duty, steering, TRACK)
        return state, state

    return jax.lax.scan(step, state, None, length=600)[1]


def test_the_car_reaches_the_speed_at_which_forces_balance():
    """0.287 D - 0.054527 v D - 0.000348 v^2 - 0.051891 = 0 at D = 1."""
    at_rest = subrl.car.CarState(*[jnp.zeros(())] * 6)
    straight = _drive(at_rest, 1.0, 0.0)
    want = np.roots([-0.000348, -0.054527, 0.287 - 0.051891]).max()
    np.testing.assert_allclose(straight.forward[-1], want, rtol=1e-3)
    assert (np.diff(straight.forward) > -1e-4).all()


def test_below_walking_pace_the_car_does_not_roll_backwards():
    at_rest = subrl.car.CarState(*[jnp.zeros(())] * 6)
    assert float(_drive(at_rest, -1.0, 0.0).forward.min()) > -1e-3


def test_the_derivative_of_the_car_is_the_numpy_one_at_speed():
    state = subrl.car.CarState(*map(jnp.float32, (1.0, 0.05, 0.1, 1.5, 0.2, 3.0)))
    got = jax.jit(subrl.car.car_derivative)(state, 0.5, 0.3, TRACK)
    s, d, mu, v_x, v_y, r = (float(x) for x in state)
    turn = 2 * np.pi / 16.41
    kappa = turn * (1 + 0.8 * np.sin(2 * turn * s))
    force = 0.287 * 0.5 - 0.054527 * v_x * 0.5 - 0.000348 * v_x**2 - 0.051891
    front_slip = 0.3 - np.arctan((0.029 * r + v_y) / (v_x + 1e-5))
    rear_slip = np.arctan((0.033 * r - v_y) / (v_x + 1e-5))
    front = 0.2016 * np.sin(1.2 * np.arctan(2.579 * front_slip))
    rear = 0.20844 * np.sin(1.2691 * np.arctan(2.8210 * rear_slip))
    along = (v_x * np.cos(mu) - v_y * np.sin(mu)) / (1 - kappa * d)
    want = (
        along,
        v_x * np.sin(mu) + v_y * np.cos(mu),
        r - kappa * along,
        (force - front * np.sin(0.3) + 0.041 * v_y * r) / 0.041,
        (rear + front * np.cos(0.3) - 0.041 * v_x * r) / 0.041,
        (0.029 * front * np.cos(0.3) - 0.033 * rear) / 27.8e-6,
    )
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_leaving_the_map_ends_an_episode_and_its_rewards():
    env = subrl.point_mass_world(half_side=1.0, cells_a_side=10, block=1, horizon=30)

    def right(key, observations):
        return jnp.tile(jnp.array([1.0, 0.0]), (len(observations), 1))

    drawn = jax.jit(lambda key: subrl.rollout(key, env, right, 1))(jax.random.key(0))
    end = int(drawn.active[0].sum())
    assert 1 < end < 29
    assert not drawn.gains[0, end:].any()
    assert not drawn.singles[0, end:].any()
    cells = {int(e) for e in drawn.elements[0, : end + 1] if e >= 0}
    np.testing.assert_allclose(drawn.values[0], 0.1 * len(cells), rtol=1e-5)
    visits = sum(int(e) >= 0 for e in drawn.elements[0, : end + 1])
    np.testing.assert_allclose(drawn.modular_values[0], 0.1 * visits, rtol=1e-5)


@pytest.mark.slow
def test_a_car_learns_to_drive_where_the_modular_one_waits():
    env = subrl.car_world(horizon=60)
    reached = {}
    for objective in subpo.OBJECTIVES:
        train = subrl.make_training(
            env,
            subrl.GaussianPolicy(2, hidden=(32, 32), initial_log_std=-0.7),
            optax.adam(3e-3),
            subrl.Estimator(objective, baseline="critic"),
            batch_size=32,
            num_steps=100,
        )
        metrics = jax.jit(train.run)(jax.random.key(0))[1]
        reached[objective] = np.asarray(metrics.mean)
    assert reached["submodular"][-1] > reached["submodular"][0] + 1
    assert reached["submodular"][-1] > reached["modular"][-1]


@pytest.mark.slow
def test_a_point_mass_learns_to_spread_its_marks():
    env = subrl.point_mass_world(half_side=5.0, cells_a_side=25, horizon=60)
    train = subrl.make_training(
        env,
        subrl.GaussianPolicy(2, hidden=(32,), initial_log_std=-0.5),
        optax.adam(5e-3),
        batch_size=64,
        num_steps=200,
    )
    metrics = jax.jit(train.run)(jax.random.key(0))[1]
    assert float(metrics.mean[-1]) > 1.3 * float(metrics.mean[0])


def test_a_gymnax_environment_is_a_world():
    gymnax = pytest.importorskip("gymnax", exc_type=ImportError)
    rooms, params = gymnax.make("FourRooms-misc")
    world = subrl.gymnax_world(
        rooms,
        submodular.modular(jnp.ones(13 * 13)),
        lambda state: state.pos[0] * 13 + state.pos[1],
        env_params=params,
        horizon=6,
    )
    _, state = world.reset(jax.random.key(0))
    gains = [float(world.default_params.set_function.value(state.covered))]
    for action in (1, 1, 3):
        taken = jax.jit(world.step_env)(jax.random.key(1), state, action)
        state = taken.state
        gains.append(float(taken.reward))
    assert gains[0] == 1
    assert set(gains[1:]) <= {0.0, 1.0}
    visited = int(state.covered.chosen.sum())
    assert sum(gains) == visited > 1
    policy = subrl.CategoricalPolicy(4, hidden=(8,))
    train = subrl.make_training(world, policy, optax.adam(0.01), batch_size=4, num_steps=2)
    assert jax.jit(train.run)(jax.random.key(0))[1].mean.shape == (2,)


@pytest.mark.slow
def test_ant_walks_on_its_map():
    if importlib.util.find_spec("brax") is None:
        pytest.skip("brax is not installed: pip install 'jaxkit[ant]'")
    env = subrl.ant_world(horizon=3)
    assert env.action_size == 8
    observation, state = jax.jit(env.reset)(jax.random.key(0))
    assert observation.shape == (30,)
    taken = jax.jit(env.step_env)(jax.random.key(1), state, jnp.zeros(8))
    assert np.isfinite(float(taken.reward))


def test_ant_without_brax_names_what_to_install():
    if importlib.util.find_spec("brax") is not None:
        pytest.skip("brax is installed")
    with pytest.raises(ImportError, match=r"needs brax: pip install 'jaxkit\[ant\]'"):
        subrl.ant_world()


def test_the_car_keeps_its_types_under_x64():
    with jax.enable_x64(True):
        assert subrl.car_world(horizon=3).num_items == 128
