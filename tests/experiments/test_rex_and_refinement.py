"""The schedule experiments: the pieces they judge with, and the quick runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import schedules
from jaxkit.experiments import character_mlp, last_iterate, refinement, rex


def test_tuning_takes_each_schedules_best_peak_and_never_a_diverged_one():
    grid = np.array([[[3.0, 3.0], [1.0, 2.0], [np.nan, 0.0]], [[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]])
    tuned = character_mlp.tune(("a", "b"), np.array([0.1, 0.2, 0.4]), jnp.asarray(grid))
    assert tuned.losses["a"].tolist() == [1.0, 2.0]
    assert tuned.peaks == {"a": 0.2, "b": 0.1}
    assert tuned.edge == ["b"]


def test_ranks_are_averaged_over_budgets():
    tuned = character_mlp.Tuned(
        {name: np.array([float(i)]) for i, name in enumerate(rex.NAMES)}, {}, []
    )
    ranks = rex.average_ranks({1: tuned, 5: tuned})
    assert [ranks[name] for name in rex.RANKED] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_grid_equals_training_one_model_after_another():
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = jnp.stack([jnp.ones(5), jnp.linspace(1, 0.2, 5)])
    momenta = jnp.full((2, 5), 0.9)
    peaks = jnp.array([0.05, 0.1])
    grid = character_mlp.grid_losses(
        keys, peaks, shapes, momenta, make_optimizer=refinement.momentum_sgd
    )
    alone, norms = character_mlp.train(
        keys[1], 0.1 * shapes[1], momenta[1], refinement.momentum_sgd, 1.0, record="l1"
    )
    assert float(grid[1, 1, 1]) == pytest.approx(float(alone), rel=1e-5)
    assert norms.shape == (5,)
    assert (np.asarray(norms) > 0).all()


@pytest.fixture(scope="module")
def convex():
    return last_iterate.problem(0)


@pytest.mark.slow
def test_the_convex_problem_knows_its_minimum(convex):
    a, b, minimum = convex
    x = np.linalg.lstsq(a, b, rcond=None)[0]
    assert minimum < np.abs(a @ x - b).mean() < 1.1 * minimum


@pytest.mark.slow
def test_the_convex_runs_equal_a_loop(convex):
    a, b, minimum = convex
    key = jax.random.key(3)
    shape = np.asarray(schedules.schedule_from_profile("linear", 1.0, 6)(jnp.arange(6)))
    losses, norms = last_iterate.excess_losses(
        key[None], jnp.array([[0.1]]), shape[None], jnp.arange(1, 7), a, b, minimum, largest_batch=6
    )
    x, total = np.zeros(a.shape[1]), np.zeros(a.shape[1])
    for t in range(6):
        rows = jax.random.randint(jax.random.fold_in(key, t), (6,), 0, len(a))[: t + 1]
        gradient = np.mean(np.sign(a[rows] @ x - b[rows])[:, None] * a[rows], axis=0)
        assert float(norms[0, 0, 0, t]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        x = x - 0.1 * shape[t] * gradient
        total += x
    expected = [np.abs(a @ p - b).mean() - minimum for p in (x, total / 6)]
    np.testing.assert_allclose(losses[:, 0, 0, 0], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.claims
@pytest.mark.parametrize("experiment", [rex, refinement])
def test_the_quick_run_shows_its_claims(experiment):
    evidence = experiment.run(quick=True)
    assert evidence.holds, [claim.measured for claim in evidence.claims]
    assert evidence.figures
    assert all(len(row) == len(table.columns) for table in evidence.tables for row in table.rows)
