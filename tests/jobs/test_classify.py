"""`jaxkit classify`: a grid of trainings, its resumption, its report."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxkit import cli, models, schedules, training
from jaxkit.jobs import classifiers, picture_problem
from jaxkit.jobs import classify as job


def fast(folder, **options):
    chosen = {"model": "logistic", "epochs": 1.0, "batch_size": 128, "normalization": "half"}
    return job.ClassifyConfig(runs=str(folder), **{**chosen, **options})


GRID = {
    "budgets": (0.5, 1.0),
    "schedules": ("rex", "step"),
    "learning_rates": (0.05, 0.5),
    "seeds": 2,
}


def test_every_classifier_of_a_grid_is_the_one_trained_alone(tmp_path):
    found = job.classify(fast(tmp_path, **GRID)).scores
    assert {budget: a.shape for budget, a in found.items()} == {0.5: (2, 2, 2), 1.0: (2, 2, 2)}
    # First weights depend on the budget's place, so that budgets are independent trials.
    alone = job.classify(fast(tmp_path, name="alone", **{**GRID, "schedules": ("step",)}))
    for budget in GRID["budgets"]:
        np.testing.assert_allclose(alone.scores[budget][:, 0], found[budget][:, 1], atol=1e-7)
    assert len(np.unique(found[1.0])) > 3


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_updates_are_those_of_optax(tmp_path, optimizer):
    config = fast(tmp_path, optimizer=optimizer, schedules=("linear",), warmup=0.25)
    schedule = schedules.schedule_from_profile("linear", 0.1, 8, warmup_steps=2)
    plain = (
        optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
        if optimizer == "sgdm"
        else optax.adamw(schedule, weight_decay=5e-4)
    )
    ours = config.direction()
    theirs = ours_params = {"w": jax.numpy.array([1.0, -2.0])}
    states = [plain.init(theirs), ours.init(ours_params)]
    for step in range(8):
        grads = {"w": jax.numpy.array([0.3, 0.1]) * (step + 1)}
        updates, states[0] = plain.update(grads, states[0], theirs)
        theirs = optax.apply_updates(theirs, updates)
        updates, states[1] = ours.update(grads, states[1], ours_params)
        rate = config.rates(8)[step, 0]
        ours_params = jax.tree.map(lambda p, u, r=rate: p - r * u, ours_params, updates)
    np.testing.assert_allclose(ours_params["w"], theirs["w"], rtol=1e-5)


@pytest.mark.parametrize("stop", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_accuracies(tmp_path, monkeypatch, stop):
    options = {**GRID, "seeds": 1}  # 6 steps of the first budget, 11 of the second
    whole = job.classify(fast(tmp_path, name="whole", **options))
    step, calls = classifiers.Program.step, []

    def told_to_stop(self, *arguments):
        calls.append(arguments[1:])
        if len(calls) == stop:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(classifiers.Program, "step", told_to_stop)
    first = job.classify(fast(tmp_path, **options))
    assert (first.report, len(calls)) == (None, stop)
    second = job.classify(fast(tmp_path, **options, checkpoint_every=5))
    assert len(calls) == 17
    assert second.report is not None
    for budget, found in whole.scores.items():
        np.testing.assert_array_equal(second.scores[budget], found)
    assert job.classify(fast(tmp_path, **options)).scores.keys() == whole.scores.keys()
    assert len(calls) == 17
    with pytest.raises(ValueError, match=r"epochs"):
        job.classify(fast(tmp_path, **options, epochs=2.0))


def test_the_report_names_the_best_rate_and_the_ranks(tmp_path):
    run = job.classify(fast(tmp_path, **GRID))
    page = run.report.read_text("utf-8")
    assert "digits: 1,438 train, 359 test, 10 classes" in page
    stored = json.loads((run.folder / "accuracies.json").read_text("utf-8"))
    best = np.array(stored["1.0"]).mean(0).max(-1)
    for accuracy in best:
        assert f"{100 * accuracy:.2f} ±" in page
    rows = (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    assert all(np.isfinite(json.loads(row)["loss"]) for row in rows)


@pytest.mark.slow
def test_folders_and_running_statistics(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for c, name in enumerate(("dark", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(128 * c, 128 * c + 128, (10 + i, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")

    def small(classes, size, channels):
        return models.ResNet(classes, (4,), (1,), "cifar")

    monkeypatch.setitem(picture_problem.NETWORKS, "resnet20", small)
    run = job.classify(
        fast(
            tmp_path, data=str(tmp_path / "data"), model="resnet20", norm="batch", image_size=8,
            batch_size=8, epochs=20.0,
        )
    )  # fmt: skip
    assert run.scores[1.0].item() == 1.0


def test_more_devices_train_the_same(tmp_path, devices):
    options = {**GRID, "seeds": 1, "budgets": (1.0,)}
    several, one = (
        job.classify(fast(tmp_path, name=mesh.replace("=", ""), mesh=mesh, **options)).scores
        for mesh in ("data=8", "tensor=8")
    )
    np.testing.assert_allclose(several[1.0], one[1.0], atol=0.004)  # one picture of 359


def test_the_command_runs_on_digits(tmp_path, capsys):
    cli.main(["classify", "--runs", str(tmp_path), "--epochs", "1", "--model", "logistic",
              "--schedules", "rex", "linear", "--seeds", "2"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "mean rank" in shown
    assert (tmp_path / "classify" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet21"}, "did you mean 'resnet20'"),
        ({"schedules": ("rexx",)}, "schedules must be .* did you mean 'rex'"),
        ({"schedules": ()}, "schedules must be different values, at least one"),
        ({"budgets": (0.5, 0.5)}, "budgets must be different values"),
        ({"budgets": (0.0,)}, "budgets must be finite and in"),
        ({"learning_rates": (float("nan"),)}, "learning_rates must be finite"),
        ({"name": "../x"}, "name must be a plain folder name"),
        ({"batch_size": 5000}, "batch_size must be at most the 1438 training pictures"),
        ({"norm": "batch"}, "norm is for ResNets, got 'batch' with 'logistic'"),
        ({"recipe": "cifar"}, "did you mean 'cifar"),
        ({"width": 0.333, "model": "mlp"}, "width must make whole numbers"),
        ({"width": 2.0}, "width is for MLPs, ResNets and ViTs, got 2.0 with 'logistic'"),
        ({"base_width": 0.5, "model": "mlp"}, "base_width is for adamw"),
        ({"augmentations": 2}, "augmentations is for private training"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, bad_input, options, message):
    with pytest.raises(ValueError, match=message):
        job.classify(fast(tmp_path, **options))


@pytest.mark.slow
def test_pictures_of_a_network_in_another_width_train_by_the_width_rule(tmp_path):
    options = {"model": "mlp", "optimizer": "adamw", "weight_decay": 0.1, "epochs": 0.2}
    config = fast(tmp_path, width=0.5, base_width=0.25, learning_rates=(0.01,), **options)
    split, mesh = config.pictures(0), training.make_mesh("")
    program = classifiers.Program(
        config, split, config.transform(split.train), mesh, tmp_path, fresh=True
    )
    matched = jax.tree.map(lambda leaf: leaf[0, 0], program.init(0).params)
    assert matched["head"]["kernel"].shape == (100, 10)
    assert program._network.logit_scale == 0.5  # 1/m
    grads = jax.tree.map(jnp.ones_like, matched)  # Adam's first direction is 1
    updates, _ = program._direction.update(grads, program._direction.init(matched), matched)
    # A hidden matrix: rate 1/m and decay sqrt(m), m = 2; a bias: neither.
    kernel, update = matched["linear2"]["kernel"], updates["linear2"]["kernel"]
    np.testing.assert_allclose(update, (1 + 0.1 * 2**0.5 * kernel) / 2, rtol=1e-5)
    np.testing.assert_allclose(updates["linear2"]["bias"], 1.0, rtol=1e-5)
    # Its first scale is that of the base over sqrt(m); the readout's that of the base.
    rms = lambda tree: {n: float(jnp.sqrt((tree[n]["kernel"] ** 2).mean())) for n in tree}  # noqa: E731
    key = jax.random.fold_in(jax.random.key(0), 0)
    base, wide = rms(program._base.init(key)[0]), rms(matched)
    assert wide["linear2"] == pytest.approx(base["linear2"] / 2**0.5, rel=1e-5)
    assert wide["head"] == pytest.approx(base["head"], rel=1e-5)


def test_vision_transformers_have_the_published_sizes():
    model = picture_problem.NETWORKS["vit-base"](1000, 224, 3)
    assert (model.width, model.depth, model.num_heads, model.patch_size) == (768, 12, 12, 16)
    assert picture_problem.NETWORKS["vit-tiny"](10, 32, 3).patch_size == 4
