"""L2P: which prompts an image gets, what a step changes, a stream of digits."""

import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, datasets, models
from jaxkit.continual import prompts, prototypes
from jaxkit.datasets import ArraySplit

MODEL = models.VisionTransformer(8, 4, 1, width=16, depth=1, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module")
def backbone(random_backbone):
    """Random weights of moderate size."""
    return random_backbone(MODEL)


@pytest.fixture(scope="module")
def stream():
    """Digits 0 and 1, then 2 and 3."""
    digits = datasets.load_digits()

    def few(images, labels, count):
        rows = np.flatnonzero(np.asarray(labels) < 4)[:count]
        return images[rows], np.asarray(labels)[rows]

    train = few(digits.train_inputs, digits.train_labels, 300)
    test = few(digits.test_inputs, digits.test_labels, 120)
    return continual.class_incremental_stream(ArraySplit(*train, *test), 2)


@pytest.fixture(scope="module")
def learner(backbone):
    """Six prompts of two tokens, two an image."""
    return continual.L2P(
        MODEL, backbone, 4, pool_size=6, prompt_length=2, num_chosen=2, learning_rate=0.03,
        num_epochs=12, batch_size=16, scan_batch_size=16, steps_per_call=7,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(learner, stream):
    """The run that nobody interrupts."""
    return continual.run_stream(learner, stream, seed=3)


def test_an_image_gets_the_prompts_whose_keys_point_its_way():
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    angles = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    expected = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ angles.T
    chosen, cosines = prompts.choose_prompts(jnp.asarray(keys), jnp.asarray(queries), 3)
    np.testing.assert_array_equal(chosen, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(cosines, -np.sort(-expected, axis=1)[:, :3], atol=1e-6)


def test_a_step_leaves_prompts_that_no_image_chose_to_the_bit(learner, stream, backbone):
    before = learner.init(5)
    after, _, _ = next(learner.phases(stream, 0, 5)).run(before, 0, 1)
    queries = prototypes.frozen_features(MODEL, backbone, stream.tasks[0].train_images, 16)
    chosen, _ = prompts.choose_prompts(before.pool.keys, jnp.asarray(queries), 2)
    never = ~np.isin(np.arange(6), chosen)
    assert 0 < never.sum() < 5
    for old, new in zip(before.pool[:2], after.pool[:2], strict=True):
        np.testing.assert_array_equal(old[never], new[never])
        assert np.any(old != new)


def test_prompted_features_are_the_mean_of_what_the_prompts_became(backbone, stream):
    images = jnp.asarray(stream.tasks[0].train_images[:2])
    chosen = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, MODEL.width)), jnp.float32)
    tokens = MODEL.apply(backbone, images, method="embed")
    joined = jnp.concatenate([chosen, tokens], 1)
    ends = MODEL.apply(backbone, MODEL.apply(backbone, joined, method="encode")[0], method="finish")
    found = prompts.prompted_features(MODEL, backbone, images, chosen)
    np.testing.assert_allclose(found, np.asarray(ends)[:, :4].mean(1), rtol=1e-5, atol=1e-6)
    # Prompts have no position, so that their order means nothing.
    turned = prompts.prompted_features(MODEL, backbone, images, chosen[:, ::-1])
    np.testing.assert_allclose(found, turned, rtol=1e-4, atol=1e-5)


def test_prompts_learn_a_stream_with_one_compilation(learner, whole, stream):
    assert isinstance(learner, continual.Learner)
    assert whole.accuracy[0, 0] > 0.85
    assert np.isfinite(whole.accuracy[np.triu_indices(2)]).all()
    assert learner._train._cache_size() == learner._predict._cache_size() == 1


def test_training_draws_the_chosen_keys_to_their_images(learner, whole, stream, backbone):
    queries = prototypes.frozen_features(MODEL, backbone, stream.tasks[1].train_images, 16)

    def nearness(state):
        return float(prompts.choose_prompts(state.pool.keys, jnp.asarray(queries), 2)[1].mean())

    assert nearness(whole.state) > nearness(learner.init(3)) + 0.2


@pytest.mark.slow
def test_a_killed_run_of_prompts_resumes_to_the_same_bits(learner, whole, stream, tmp_path):
    options = {"seed": 3, "folder": tmp_path / "run", "checkpoint_every": 40}
    asked = itertools.count()

    def stop(task, piece):
        if next(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = continual.run_stream(learner, stream, on_advance=stop, **options)
    assert not stopped.finished
    resumed = continual.run_stream(learner, stream, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chosen": 11}, "num_chosen must be at most pool_size=10, got 11"),
        ({"prompt_length": 0}, "prompt_length"),
        ({"pull": -1.0}, "pull"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        continual.L2P(MODEL, {}, 4, **options)
