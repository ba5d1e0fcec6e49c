"""Planners and exact answers agree with brute force; the bounds hold."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import submodular, subrl
from jaxkit.subrl import bandits, cells, planning, trees


def _tiny(case, **options):
    return subrl.coverage_world(
        (case["rows"], case["cols"]),
        jnp.array(case["weights"]),
        block=case.get("width", 2),
        horizon=case["horizon"],
        start=case["start"],
        **options,
    )


@pytest.mark.parametrize(
    "index", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_optimum_greedy_and_curvature_of_the_golden_cases(vectors, index):
    case = vectors["optima"]["cases"][index]
    env = _tiny(case)
    best, greedy = subrl.exhaustive_plan(env), subrl.greedy_plan(env)
    np.testing.assert_allclose(best.value, case["optimum"], rtol=1e-5)
    np.testing.assert_allclose(greedy.value, case["greedy_value"], rtol=1e-5)
    assert greedy.states.tolist() == case["greedy_states"]
    follow = planning.follow(env, jnp.array(case["one_optimal_action_sequence"]))
    np.testing.assert_allclose(follow.value, case["optimum"], rtol=1e-5)
    np.testing.assert_allclose(
        planning.curvature(env.default_params.set_function), case["curvature"], atol=1e-6
    )
    beam = subrl.beam_plan(env, 64)
    assert case["greedy_value"] - 1e-5 <= float(beam.value) <= case["optimum"] + 1e-5


def test_expectimax_is_the_golden_history_dependent_optimum(vectors):
    case = vectors["optima"]["expectimax"]
    tree = trees.move_tree(_tiny(case, slip=case["slip"]))
    value = float(trees.expectimax_value(tree))
    np.testing.assert_allclose(value, case["optimal_history_dependent"], rtol=1e-5)


@pytest.mark.slow
def test_without_slip_memory_does_not_help():
    case = {"rows": 2, "cols": 3, "horizon": 4, "start": 0, "weights": np.arange(1.0, 7)}
    env = _tiny(case)
    history = trees.expectimax_value(trees.move_tree(env))
    np.testing.assert_allclose(history, subrl.exhaustive_plan(env).value, rtol=1e-6)


def test_greedy_and_beam_on_the_official_gp_map(gp_world, vectors):
    golden = vectors["coverage_gp_30x30"]
    greedy = subrl.greedy_plan(gp_world)
    np.testing.assert_allclose(greedy.value, golden["greedy_F"], rtol=1e-5)
    beam = subrl.beam_plan(gp_world, 1000)
    assert float(beam.value) >= golden["best_known_F_beam_width_1000"] * (1 - 1e-5)
    np.testing.assert_allclose(beam.value, planning.follow(gp_world, beam.actions).value, rtol=1e-6)


@pytest.mark.parametrize(
    ("horizon", "bound"), [(40, 82), pytest.param(80, 162, marks=pytest.mark.slow)]
)
def test_greedy_reaches_the_upper_bound_of_constant_coverage(horizon, bound):
    env = subrl.coverage_world(horizon=horizon)
    assert float(subrl.greedy_plan(env).value) == bound
    assert float(env.default_params.return_scale) == bound


@pytest.mark.slow
def test_the_modular_plan_solves_the_surrogate_and_keeps_its_bound():
    """Every visit measures with noise of its own, so the curvature over visits is below 1."""
    covariance = np.array([[0.5, 0.2, 0.1], [0.2, 0.4, 0.1], [0.1, 0.1, 0.6]])
    horizon, noise = 4, 2.0
    env = subrl.design_world(covariance, (1, 3), start=0, horizon=horizon, noise_variance=noise)
    modular = subrl.modular_plan(env)
    tree = trees.move_tree(env)

    later = np.zeros(len(tree.states[-1]))
    for singles in reversed(tree.singles):
        later = (np.asarray(singles) + later.reshape(singles.shape)).max(1)
    np.testing.assert_allclose(modular.value, tree.first + later[0], rtol=1e-5)

    visits = np.tile(covariance, (horizon, horizon))
    c = planning.curvature(submodular.information_gain(visits, noise))
    ratio = 1 - float(c)
    assert 0.2 < ratio < 1
    reached = float(planning.follow_policy(env, modular.policy).value)
    optimum = float(subrl.exhaustive_plan(env).value)
    assert reached >= ratio * optimum
    assert reached <= optimum + 1e-6


def test_the_bandit_objective_is_the_golden_one_and_is_dr_submodular(vectors):
    golden = vectors["bandit"]
    f = cells.cell_coverage(golden["cover"], jnp.array(golden["weights"]))
    objective = bandits.bandit_objective(f, golden["horizon"])
    x = jnp.array(golden["probabilities"])
    value, gradient, hessian = jax.jit(
        lambda x: (objective(x), jax.grad(objective)(x), jax.hessian(objective)(x))
    )(x)
    np.testing.assert_allclose(value, golden["J"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden["grad"], rtol=1e-5)
    cross = np.asarray(hessian)[0, :, 1].reshape(-1)
    np.testing.assert_allclose(cross, golden["cross_derivatives_step0_step1"], atol=2e-3)
    assert np.abs(np.asarray(hessian)[0, :, 0]).max() < 1e-5
    assert np.asarray(hessian).max() < 1e-5
    assert np.asarray(gradient).min() >= 0


def test_ascent_methods_keep_their_promises_on_the_bandit(vectors):
    golden = vectors["bandit"]
    f = cells.cell_coverage(golden["cover"], jnp.array(golden["weights"]))
    objective = bandits.bandit_objective(f, 3)
    unions = (set().union(*chosen) for chosen in itertools.combinations(golden["cover"], 3))
    optimum = max(sum(golden["weights"][cell] for cell in union) for union in unions)
    wolfe = jax.jit(lambda: objective(bandits.frank_wolfe(objective, (3, 4), steps=50)))()
    assert float(wolfe) >= (1 - np.exp(-1)) * optimum
    start = jnp.full((3, 4), 0.1)
    climbed = jax.jit(lambda x: bandits.projected_gradient(objective, x, steps=200))(start)
    assert float(objective(climbed)) >= 0.5 * optimum
    assert float(climbed.min()) >= 0
    assert float(climbed.sum(1).max()) <= 1 + 1e-5
