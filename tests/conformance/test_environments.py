"""Every environment goes through one mill: pure steps of a state of one shape."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular, subrl
from jaxkit.subrl import environments

HORIZON = 5
BATCH = 8


class Case(NamedTuple):
    """An environment.

    Attributes:
        make: makes it, small.
        bonus: what a move earns beside gains.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[[], subrl.SubmodularEnvironment]
    bonus: float = 0.0
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def grid(factory, *arguments, **options):
    """A world on a grid, whose start and slip are checked."""
    make = functools.partial(factory, *arguments, horizon=HORIZON, **options)
    return Case(
        functools.partial(make, slip=0.3),
        refused=(
            (lambda: make(slip=1.5), r"slip must be finite and in \[0, 1\], got 1.5"),
            (lambda: make(features="positon"), "did you mean 'position'"),
            (lambda: make(return_scale=0.0), "return_scale must be finite"),
            (functools.partial(factory, *arguments, **{**options, "horizon": 1}), "horizon must"),
        ),
    )


def chain():
    """Four states in a row, moved along by chance."""
    dynamics, params = subrl.table_dynamics([[0, 1], [1, 2], [2, 3], [3, 0]], slip=0.5)
    return subrl.make_environment(
        dynamics, params, submodular.modular(jnp.arange(1.0, 5.0)), horizon=HORIZON
    )


def bare(**changes):
    dynamics, params = subrl.table_dynamics([[0, 1], [1, 0]])
    function = changes.pop("function", submodular.modular(np.ones(2)))
    return subrl.make_environment(dynamics, params, function, **{"horizon": 3, **changes})


def drifting(**changes):
    options = {"half_side": 2.0, "cells_a_side": 4, "block": 1, "action_size": 2}
    return subrl.occupancy_world(
        lambda key: jax.random.uniform(key, (2,)),
        lambda key, body, action: body + action + 0.1 * jax.random.normal(key, (2,)),
        place=lambda body: body,
        see=lambda body: body,
        horizon=HORIZON,
        **{**options, **changes},
    )


CASES = {
    "subrl.make_environment": Case(
        chain,
        refused=(
            (lambda: bare(horizon=1), "horizon must be an integer >= 2, got 1"),
            (lambda: bare(function=3), "set_function must have the methods"),
            (lambda: bare(function=submodular.modular(np.ones(3))), "one item for each of the 2"),
            (lambda: bare(features="visitd"), "did you mean 'visited'"),
        ),
    ),
    "subrl.make_environment visited": Case(lambda: bare(features="visited", horizon=HORIZON)),
    "subrl.make_environment official_history": Case(
        lambda: bare(features="official_history", horizon=HORIZON)
    ),
    "subrl.grid_world": grid(
        subrl.grid_world, (2, 3), submodular.modular(np.arange(1.0, 7.0)), start=1
    ),
    "subrl.coverage_world": grid(
        subrl.coverage_world, (3, 3), np.linspace(1, 2, 9).astype(np.float32), start=4
    ),
    "subrl.two_rooms_world": grid(subrl.two_rooms_world, features="visited"),
    "subrl.item_world": grid(
        subrl.item_world, [(0, 1, 4), (2,)], np.array([2.0, 1.0]), (2, 3), start=0
    ),
    "subrl.design_world": grid(
        subrl.design_world,
        np.exp(-np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))),
        (2, 3),
        start=0,
        noise_variance=0.1,
    ),
    "subrl.named_world": Case(
        lambda: subrl.named_world("bimodal", horizon=HORIZON),
        refused=((lambda: subrl.named_world("coverge"), "did you mean 'coverage'"),),
    ),
    "subrl.car_world": Case(
        lambda: subrl.car_world(horizon=HORIZON),
        bonus=-0.01,
        refused=(
            (lambda: subrl.car_world(length=0.0), "length must be finite"),
            (lambda: subrl.car_world(bend=2.0), "bend must be finite"),
            (lambda: subrl.car_world(num_bins=1000), "num_bins must leave parts"),
            (lambda: subrl.car_world(half_width=3.0), "half_width must be below"),
        ),
    ),
    "subrl.occupancy_world": Case(
        drifting,
        refused=(
            (lambda: drifting(half_side=0.0), "half_side must be finite"),
            (lambda: drifting(cells_a_side=0), "cells_a_side must be an integer >= 1, got 0"),
            (lambda: drifting(action_size=0), "action_size must be an integer >= 1, got 0"),
        ),
    ),
    "subrl.point_mass_world": Case(
        lambda: subrl.point_mass_world(half_side=2.0, cells_a_side=4, block=1, horizon=HORIZON),
        refused=(
            (lambda: subrl.point_mass_world(top_speed=0.0), "top_speed must be finite"),
            (lambda: subrl.point_mass_world(time_step=2.0), "time_step must be finite"),
        ),
    ),
}

EXCLUDED = {
    "subrl.gymnax_world": "needs gymnax; its test stands with the room",
    "subrl.ant_world": "needs Brax; point_mass_world is an occupancy world too",
}

#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "subrl.make_environment",
    "subrl.make_environment visited",
    "subrl.coverage_world",
    "subrl.point_mass_world",
)


@functools.cache
def made(name):
    return CASES[name].make()


@functools.cache
def actions(name):
    """An action for each of T steps and 8 episodes."""
    env, shape = made(name), (BATCH, HORIZON - 1)
    if env.num_actions is None:
        return jax.random.uniform(jax.random.key(2), (*shape, env.action_size), minval=-1.0)
    return jax.random.randint(jax.random.key(2), shape, 0, env.num_actions)


@functools.cache
def keys():
    return jax.vmap(jax.random.key)(jnp.arange(BATCH))


def episode(env, key, chosen, params=None):
    """One episode in a scan: the first observation and state, and every step's six values."""
    first, *later = jax.random.split(key, HORIZON)
    observation, state = env.reset(first, params)

    def step(state, key_and_action):
        taken = env.step_env(key_and_action[0], state, key_and_action[1], params)
        return taken.state, taken

    _, steps = jax.lax.scan(step, state, (jnp.stack(later), chosen))
    return observation, state, steps


@functools.cache
def batch(name):
    """A compiled function of keys, actions and params, and what it gives: 8 episodes."""
    env = made(name)
    run = jax.jit(jax.vmap(functools.partial(episode, env), in_axes=(0, 0, None)))
    return run, run(keys(), actions(name), env.default_params)


each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_environment_is_in_the_table(assert_complete, returned):
    def is_of_kind(value):
        called = callable(value) and getattr(value, "__name__", "").endswith("_world")
        return called or returned(value) is subrl.SubmodularEnvironment

    assert_complete(is_of_kind, CASES, EXCLUDED)


@pytest.mark.parametrize("name", CASES)
def test_a_step_gives_six_values_and_a_state_and_observation_like_those_before(name, described):
    env = made(name)
    key, action = jax.random.key(0), actions(name)[0, 0]
    observation, state = jax.eval_shape(env.reset, key)
    assert observation.ndim == 1
    assert observation.dtype == jnp.float32
    for step in (env.step_env, env.step):
        taken = jax.eval_shape(step, key, state, action)
        assert len(taken) == 6
        assert described(taken.state) == described(state)
        assert (taken.observation.shape, taken.observation.dtype) == (
            observation.shape,
            observation.dtype,
        )
        assert (taken.reward.shape, taken.reward.dtype) == ((), jnp.float32)
        assert taken.terminated.dtype == taken.truncated.dtype == bool
        assert taken.info["element"].dtype == jnp.int32


@pytest.mark.parametrize("name", CASES)
def test_a_first_state_may_be_donated_and_another_made(name, assert_donatable):
    env, key = made(name), jax.random.key(0)
    assert_donatable(lambda: env.reset(key)[1], env.default_params, key)


@some
def test_episodes_step_by_step_are_those_of_a_scan_under_vmap(name, assert_same, count_traces):
    env = made(name)
    observation, first, steps = jax.tree.map(lambda leaf: leaf[0], batch(name)[1])
    counted = count_traces(env.step_env)
    step = jax.jit(counted, donate_argnums=1)
    first_key, *later = jax.random.split(keys()[0], HORIZON)
    seen, state = env.reset(first_key)
    assert_same((seen, state), (observation, first))
    for t, key in enumerate(later):
        held = jax.tree.leaves(state)
        taken = step(key, state, actions(name)[0, t])
        assert all(leaf.is_deleted() for leaf in held)
        assert_same(taken, jax.tree.map(lambda leaf: leaf[t], steps))  # noqa: B023
        state = taken.state
    assert counted.count == 1


@some
def test_an_eager_step_with_an_action_that_is_checked_is_the_compiled_one(name, assert_same):
    env = made(name)
    _, first, steps = jax.tree.map(lambda leaf: leaf[0], batch(name)[1])
    action = actions(name)[0, 0]
    key = jax.random.split(keys()[0], HORIZON)[1]
    taken = env.step_env(key, first, int(action) if env.num_actions else action)
    assert_same(taken, jax.tree.map(lambda leaf: leaf[0], steps))


@some
def test_rewards_add_up_to_the_value_of_the_visited_set(name):
    env = made(name)
    _, first, steps = batch(name)[1]
    function = env.default_params.set_function
    value = jax.vmap(function.value)
    last = jax.tree.map(lambda leaf: leaf[:, -1], steps.state.covered)
    gained = value(last) - value(first.covered) + CASES[name].bonus * (HORIZON - 1)
    np.testing.assert_allclose(np.asarray(steps.reward).sum(1), gained, rtol=1e-4, atol=1e-5)
    assert np.asarray(steps.truncated)[:, -1].all()
    assert not np.asarray(steps.truncated)[:, :-1].any()


@some
def test_a_state_that_orbax_restored_goes_on_as_the_saved_one(name, resaved, assert_same):
    env = made(name)
    _, _, steps = jax.tree.map(lambda leaf: leaf[0], batch(name)[1])
    step = jax.jit(env.step_env)
    state = jax.tree.map(lambda leaf: leaf[1], steps.state)
    params, state = resaved((env.default_params, state))
    for t, key in enumerate(jax.random.split(keys()[0], HORIZON)[1:]):
        if t > 1:
            taken = step(key, state, actions(name)[0, t], params)
            assert_same(taken, jax.tree.map(lambda leaf: leaf[t], steps))  # noqa: B023
            state = taken.state


@some
def test_eight_devices_give_the_episodes_of_one(name, spread, assert_same):
    run, want = batch(name)
    found = run(spread(keys()), spread(actions(name)), made(name).default_params)
    assert len(found[2].reward.sharding.device_set) == 8
    assert_same(found, want)


@some
def test_params_may_be_traced_and_swept(name, assert_same):
    env = made(name)
    params = env.default_params
    lengths = params.max_steps_in_episode - jnp.arange(2)
    axes = environments.Params(None, None, None, 0)
    run = jax.jit(jax.vmap(functools.partial(episode, env), in_axes=(None, None, axes)))
    found = run(keys()[0], actions(name)[0], params._replace(max_steps_in_episode=lengths))
    alone = jax.tree.map(lambda leaf: leaf[0], batch(name)[1])
    assert_same(jax.tree.map(lambda leaf: leaf[0], found), alone)
    assert found[2].truncated[1].tolist() == [False] * (HORIZON - 3) + [True] * 2


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    env, key = made(name), jax.random.key(0)
    _, state = env.reset(key)
    for wrong in (env.num_actions, -1) if env.num_actions else (np.zeros(env.action_size + 1), 0.0):
        with pytest.raises(ValueError, match="action must be"):
            env.step_env(key, state, wrong)
