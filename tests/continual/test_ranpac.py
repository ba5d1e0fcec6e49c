"""RanPAC is ridge regression on all examples seen, whatever the order of the tasks."""

import numpy as np
import pytest

from jaxkit import continual, datasets, models
from jaxkit.continual import prototypes, ranpac

MODEL = models.VisionTransformer(8, 4, 1, width=16, depth=1, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module")
def learner(random_backbone):
    """Forty projections."""
    return continual.RanPAC(MODEL, random_backbone(MODEL), 10, num_projections=40, batch_size=64)


@pytest.fixture(scope="module")
def stream():
    """Digits, five classes a task."""
    return continual.class_incremental_stream(datasets.load_digits(), 5)


def test_scores_are_those_of_ridge_regression_in_float64(learner, stream, random_backbone):
    result = continual.run_stream(learner, stream, seed=4)
    ridge = result.events[-1]["ridge"]

    def projected(images):
        features = prototypes.FrozenFeatures(MODEL, random_backbone(MODEL), 64)(images)
        return np.maximum(features.astype(float) @ np.asarray(result.state.projection, float), 0)

    h = np.concatenate([projected(task.train_images) for task in stream.tasks])
    y = np.eye(10)[np.concatenate([task.train_labels for task in stream.tasks])]
    weights = np.linalg.solve(h.T @ h + ridge * np.eye(40), h.T @ y)
    assert np.linalg.cond(h.T @ h + ridge * np.eye(40)) > 1e7  # beyond float32
    tests = stream.tasks[0].test_images
    found = learner.predict(result.state, tests)
    np.testing.assert_allclose(found, projected(tests) @ weights, rtol=1e-3, atol=1e-4)


def test_tasks_in_any_order_give_the_same_sums(learner, stream):
    whole = continual.run_stream(learner, stream, seed=4).state
    turned = continual.Stream("turned", stream.tasks[::-1], stream.class_names)
    again = continual.run_stream(learner, turned, seed=4).state
    for one, two in zip(whole[:3], again[:3], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-4)


def test_the_ridge_is_the_candidate_that_predicts_best():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(60, 50))
    y = h @ rng.normal(size=(50, 3)) + 5 * rng.normal(size=(60, 3))
    gram, totals, ridges = h[:48].T @ h[:48], h[:48].T @ y[:48], ranpac.RIDGES[4:]
    errors = [
        np.mean((h[48:] @ np.linalg.solve(gram + r * np.eye(50), totals) - y[48:]) ** 2)
        for r in ridges
    ]
    assert ranpac.choose_ridge(h, y) == ridges[np.argmin(errors)]
    assert np.isfinite(ranpac.choose_ridge(h[:1], y[:1]))
