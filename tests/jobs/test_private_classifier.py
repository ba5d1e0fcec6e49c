"""`jaxkit classify` under differential privacy: what is clipped, what is spent, what is refused."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import datasets, models
from jaxkit.jobs import classifiers, picture_problem, private_classifier
from jaxkit.jobs import classify as job
from jaxkit.jobs.config import PrivacyConfig

OPTIONS = {
    "privacy": PrivacyConfig(epsilon=8.0, delta=1e-4, public_noise_seed=0), "augmentations": 2,
    "recipe": "cifar10", "image_size": 8, "normalization": "half", "schedules": ("constant",),
    "model": "logistic", "epochs": 0.5, "batch_size": 128, "log_every": 10,
}  # fmt: skip


def private(folder, **options):
    return job.ClassifyConfig(runs=str(folder), **{**OPTIONS, **options})


def picture_losses(recipe, network, params, batch, key, augmentations):
    """Gradients of each augmentation of each picture, by hand."""

    def loss(params, image, label, drawn, k):
        one = {"images": image[None], "flip": drawn["flip"][k, None]}
        one["offset"] = drawn["offset"][k, None]
        logits, _ = network.logits(params, {}, recipe.prepare(one))
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)

    gradient, found = jax.jit(jax.grad(loss)), []
    for i, (image, label) in enumerate(zip(batch["images"], batch["labels"], strict=True)):
        drawn = recipe.draw_on_device(jax.random.fold_in(key, i), augmentations)
        grads = [gradient(params, image, label, drawn, k) for k in range(augmentations)]
        found.append(jax.tree.map(lambda *leaves: sum(leaves) / augmentations, *grads))
    return found


@pytest.mark.parametrize("augmentations", [1, 3])
def test_the_mean_over_augmentations_is_what_is_clipped(augmentations):
    rng = np.random.default_rng(0)
    network = picture_problem.Network(models.MLP(3, (5,)), (1, 6, 6, 1))
    recipe = datasets.PictureRecipe(6, pad=2, mean=(0.5,), std=(0.5,))
    params, _ = network.init(jax.random.key(0))
    batch = {
        "images": jnp.asarray(rng.integers(0, 256, (4, 6, 6, 1), np.uint8)),
        "labels": jnp.array([0, 1, 2, 1]),
    }
    key = jax.random.key(3)
    each = picture_losses(recipe, network, params, batch, key, augmentations)
    norms = [float(optax.tree.norm(grads)) for grads in each]
    clip_norm = float(np.median(norms))
    scaled = [
        jax.tree.map(lambda g, norm=norm: min(1.0, clip_norm / norm) * g, grads)
        for grads, norm in zip(each, norms, strict=True)
    ]
    gradient = private_classifier.clipped_picture_grad(
        network, recipe, clip_norm, augmentations=augmentations
    )
    found = jax.jit(gradient)(params, batch, key)
    expected = jax.tree.map(lambda *leaves: sum(leaves), *scaled)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found.total, expected
    )
    assert int(found.clipped) == 2


@pytest.mark.slow
def test_a_private_training_keeps_its_budget_and_resumes_with_its_own_noise(tmp_path, monkeypatch):
    whole = job.classify(private(tmp_path, name="whole"))
    rows = [json.loads(row) for row in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epsilon_if_secret"] <= 8.0 for row in rows] == [True] * len(rows)
    assert "NOT PRIVATE" in whole.report.read_text("utf-8")
    step, calls = classifiers.Program.step, []

    def told_to_stop(self, *arguments):
        calls.append(arguments[1:])
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(classifiers.Program, "step", told_to_stop)
    assert job.classify(private(tmp_path)).report is None
    resumed = job.classify(private(tmp_path))
    assert len(calls) == 6
    np.testing.assert_array_equal(resumed.scores[1.0], whole.scores[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 2}, "budget of one training, got 2"),
        ({"recipe": "sema"}, "area must be None"),
        ({"model": "resnet20"}, "norm must be group in private training"),
        ({"privacy": PrivacyConfig()}, "augmentations is for private training"),
    ],
)
def test_what_a_budget_does_not_cover_is_refused(tmp_path, bad_input, options, message):
    with pytest.raises(ValueError, match=message):
        job.classify(private(tmp_path, **options))
