"""Moves, covers and values agree with the official program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular, subrl
from jaxkit.subrl import cells, fields, grids, information, planning


def test_moves_and_covers_are_those_of_the_official_grid(vectors):
    table = vectors["grid_table"]
    shape = (table["rows"], table["cols"])
    assert grids.grid_moves(shape).tolist() == table["next_state"]
    assert [list(c) for c in grids.grid_blocks(shape, 2)] == vectors["grid_cover_small"]["cells"]
    assert [list(c) for c in grids.grid_blocks(shape, 3)] == vectors["grid_cover_large"]["cells"]


def test_the_two_rooms_are_the_official_ones(vectors):
    golden = vectors["two_rooms"]
    free = grids.two_rooms()
    assert free.astype(int).tolist() == golden["free"]
    moves = grids.grid_moves((7, 14), free)
    cover = grids.grid_blocks((7, 14), 2, free)
    for state, nexts in golden["next_state_of_free"].items():
        assert moves[int(state)].tolist() == nexts
    for state, covered in golden["cover_of_free"].items():
        assert list(cover[int(state)]) == covered


def _replay(env, trajectories):
    """F, modular value, first and gains of golden trajectories, all in one program."""
    actions = jnp.array([t["actions"] for t in trajectories])
    plans = jax.vmap(lambda a: planning.follow(env, a))(actions)
    f = env.default_params.set_function
    alone = f.gains(f.init())[plans.states]
    return plans, np.asarray(alone.sum(1)), np.asarray(alone[:, 0])


@pytest.mark.parametrize("world", ["constant", "bimodal", "gp"])
def test_coverage_of_official_trajectories(vectors, gp_world, world):
    golden = vectors[f"coverage_{world}_30x30"]["trajectories"]
    weights = {"constant": None, "bimodal": fields.bimodal_weights()}
    env = gp_world if world == "gp" else subrl.coverage_world(weights=weights[world])
    plans, modular, first = _replay(env, golden)
    np.testing.assert_allclose(plans.value, [t["F"] for t in golden], rtol=1e-5)
    np.testing.assert_allclose(modular, [t["modular"] for t in golden], rtol=1e-5)
    if world != "gp":
        np.testing.assert_allclose(first, [t["first"] for t in golden], rtol=1e-5)
        np.testing.assert_allclose(plans.gains, [t["gains"] for t in golden], atol=1e-5)


def test_two_rooms_values_of_official_trajectories(vectors):
    golden = vectors["two_rooms_values"]["trajectories"]
    plans, _, _ = _replay(subrl.two_rooms_world(), golden)
    assert plans.states.tolist() == [t["states"] for t in golden]
    np.testing.assert_allclose(plans.value, [t["F"] for t in golden], rtol=1e-5)


def test_item_values_of_official_trajectories(vectors):
    golden = vectors["item_collection"]
    env = subrl.item_world(golden["groups"], tuple(golden["caps"]))
    plans, modular, _ = _replay(env, golden["trajectories"])
    np.testing.assert_allclose(plans.value, [t["F"] for t in golden["trajectories"]], rtol=1e-5)
    want = [t["modular"] for t in golden["trajectories"]]
    np.testing.assert_allclose(modular, want, rtol=1e-5)
    everything = submodular.evaluate(env.default_params.set_function, jnp.arange(105))
    np.testing.assert_allclose(everything, 21, rtol=1e-6)


@pytest.fixture(scope="module")
def covariance(vectors):
    golden = vectors["experiment_design"]
    points = 0.3 * np.stack(np.divmod(np.arange(36), 6), axis=1)
    return fields.posterior_covariance(points, golden["conditioning_points"])


def test_information_gain_of_official_trajectories(vectors, covariance):
    golden = vectors["experiment_design"]
    cases = golden["trajectories"]
    env = subrl.design_world(covariance, (6, 6), start=golden["start"], horizon=8)
    plans, _, first = _replay(env, cases)
    want = [t["information_gain_noise_1e_3_nats"] for t in cases]
    np.testing.assert_allclose(plans.value, want, rtol=1e-4)
    np.testing.assert_allclose(first, [t["first"] for t in cases], rtol=1e-4)
    np.testing.assert_allclose(plans.gains, [t["gains"] for t in cases], rtol=1e-4, atol=1e-4)
    for plan_states, case in zip(plans.states.tolist(), cases, strict=True):
        matrix = np.eye(8) + covariance[np.ix_(plan_states, plan_states)] / 1e-3
        reference = 0.5 * np.linalg.slogdet(matrix)[1]
        np.testing.assert_allclose(case["information_gain_noise_1e_3_nats"], reference, rtol=1e-8)


def test_the_official_formula_of_experiment_design_is_a_named_variant(vectors, covariance):
    golden = vectors["experiment_design"]
    cases = golden["trajectories"]
    env = subrl.design_world(
        covariance,
        (6, 6),
        start=golden["start"],
        horizon=8,
        noise_variance=information.OFFICIAL_NOISE,
        offset=information.OFFICIAL_OFFSET,
    )
    plans, _, _ = _replay(env, cases)
    # A repeat with noise 1e-6 asks for a pivot of 2e-6, which float32 knows to some per cent.
    np.testing.assert_allclose(plans.value, [t["official_F"] for t in cases], rtol=3e-3)


def test_a_diagonal_field_gives_a_sum_of_logarithms():
    variances = jnp.array([0.5, 1.0, 2.0])
    f = subrl.measurements(jnp.diag(variances), 0.1, max_size=3)
    value = submodular.evaluate(f, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(value, 0.5 * np.log1p(np.array(variances) / 0.1).sum(), rtol=1e-5)


FUNCTIONS = {
    "cells": lambda: cells.cell_coverage(grids.grid_blocks((3, 4), 2), jnp.linspace(0, 2, 12)),
    "items": lambda: cells.item_collection([(0, 3, 4), (1, 2)], jnp.array([2.0, 1.0]), 6),
    "measurements": lambda: subrl.measurements(
        np.exp(-np.abs(np.subtract.outer(range(6), range(6)))), max_size=6
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("check", ["check_monotone", "check_submodular"])
def test_gains_shrink_and_are_not_negative_along_random_chains(name, check):
    f = FUNCTIONS[name]()
    assert f.monotone
    assert float(getattr(submodular, check)(f, jax.random.key(0), num_chains=20).worst) < 1e-4


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gains_along_an_episode_telescope_and_shrink(name):
    f = FUNCTIONS[name]()

    def step(state, element):
        gains = f.gains(state)
        return f.add(state, element), (gains, gains[element])

    order = jnp.array([4, 1, 3, 0, 5])
    last, (all_gains, gains) = jax.jit(lambda: jax.lax.scan(step, f.init(), order))()
    np.testing.assert_allclose(f.value(last), gains.sum(), rtol=1e-5)
    assert (np.diff(all_gains, axis=0) < 1e-5).all()
    assert (np.asarray(all_gains) > -1e-6).all()


def test_coverage_equals_the_dense_form_of_the_submodular_room():
    shape, weights = (4, 5), jnp.linspace(0.1, 2, 20)
    cover = grids.grid_blocks(shape, 3)
    incidence = np.zeros((20, 20))
    for item, covered in enumerate(cover):
        incidence[list(covered), item] = 1
    dense = submodular.weighted_coverage(incidence, weights)
    sparse = cells.cell_coverage(cover, weights)
    chosen = jnp.array([3, 8, 9, 3])
    np.testing.assert_allclose(
        submodular.evaluate(sparse, chosen), submodular.evaluate(dense, chosen), rtol=1e-6
    )


def test_coverage_ignores_order_and_repeats():
    env = subrl.coverage_world((4, 4), fields.bimodal_weights((4, 4)), start=0)
    f = env.default_params.set_function
    values = [
        float(submodular.evaluate(f, jnp.array(s)))
        for s in ([1, 6, 6, 11], [11, 1, 6, 1], [6, 11, 1, 11])
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_random_worlds_have_the_official_ranges():
    weights = np.asarray(subrl.gp_weights(jax.random.key(0), (12, 12)))
    assert weights.shape == (144,)
    assert 0 <= weights.min() < 3
    assert 3 < weights.max() < 6.5
    groups = subrl.random_groups(jax.random.key(0))
    assert [len(g) for g in groups] == [18, 14, 13, 16, 18, 14]
    assert len(set().union(*groups)) == 93
    variances = np.diagonal(subrl.random_posterior(jax.random.key(0), (6, 6)))
    assert (variances > 0).all()
    assert (variances <= np.log(2) + 1e-6).all()


def test_a_step_has_six_values_and_starts_anew_at_the_end():
    env = subrl.coverage_world((3, 3), horizon=3, start=4)
    step = jax.jit(env.step)
    _, state = jax.jit(env.reset)(jax.random.key(0))
    first = step(jax.random.key(1), state, 0)
    assert len(first) == 6
    assert not bool(first.truncated)
    second = step(jax.random.key(2), first.state, 2)
    assert bool(second.truncated)
    assert not bool(second.terminated)
    assert int(second.state.position) == 4
    assert int(second.state.time) == 0
    last = np.asarray(second.info["final_observation"])
    np.testing.assert_allclose(last[:2], [1, 0], atol=1e-6)


def test_slips_replace_actions_as_often_as_stated():
    dynamics, params = grids.grid_dynamics((3, 3), start=4, slip=0.5)
    keys = jax.random.split(jax.random.key(0), 20_000)
    moved = jax.jit(jax.vmap(lambda k: dynamics.move(k, 4, 1, params).position))(keys)
    share = float((moved == 5).mean())
    assert abs(share - 0.6) < 4 * np.sqrt(0.6 * 0.4 / 20_000)
