import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkit import jobs, models, training
from jaxkit.jobs import runs

KEY = jax.random.key(0)


def parameters(files):
    return jax.device_get(jobs.open_run(files.folder).params)


def assert_same(a, b, atol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def test_a_run_leaves_configuration_metrics_checkpoints_figures_and_report(finished_run):
    rows = training.read_metrics(finished_run.metrics)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert {"step", "loss", "learning_rate", "gradient_norm"} <= rows[0].keys()
    evaluations = training.read_metrics(finished_run.evaluations)
    assert [row["step"] for row in evaluations] == [3, 6]
    page = finished_run.report.read_text("utf-8")
    assert page.count("data:image/png;base64") == 3
    assert "validation loss" in page
    for figure in ("loss", "loss_by_position", "learning_rate"):
        assert (finished_run.folder / f"{figure}.png").stat().st_size > 5000
    assert json.loads(finished_run.config.read_text())["config"]["steps"] == 6


def test_the_logged_learning_rate_is_that_of_the_update(finished_run, small_config, tmp_path):
    schedule = small_config(tmp_path).schedule_function()
    logged = [row["learning_rate"] for row in training.read_metrics(finished_run.metrics)]
    np.testing.assert_allclose(logged, [float(schedule(i)) for i in range(6)], rtol=1e-6)


def test_running_a_finished_run_again_changes_nothing(finished_run, small_config):
    before = finished_run.metrics.read_text()
    params = parameters(finished_run)
    jobs.train(small_config(finished_run.folder.parent))
    assert finished_run.metrics.read_text() == before
    assert_same(parameters(finished_run), params)


def test_a_run_cut_after_a_checkpoint_ends_with_the_same_bits(
    finished_run, small_config, tmp_path, train_until_killed
):
    config = small_config(tmp_path)
    train_until_killed(config, step=6)
    resumed = jobs.train(config)
    assert_same(parameters(resumed), parameters(finished_run))
    losses = [
        [row["loss"] for row in training.read_metrics(files.metrics)]
        for files in (resumed, finished_run)
    ]
    assert losses[0] == losses[1]


def test_a_run_may_move_to_another_mesh(finished_run, small_config, tmp_path):
    config = small_config(tmp_path, mesh="fsdp=2,tensor=2,data=-1")
    moved = jobs.train(config)
    assert_same(parameters(moved), parameters(finished_run), atol=1e-5)


@pytest.mark.usefixtures("bad_input")
def test_another_configuration_or_text_is_refused_and_nothing_is_touched(
    finished_run, small_config, tmp_path
):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    before = {path: path.read_bytes() for path in (tmp_path / "default").glob("*.json*")}
    with pytest.raises(ValueError, match=r"seed was 0, is now 1.*another --name"):
        jobs.train(small_config(tmp_path, seed=1))
    other = tmp_path / "other.txt"
    other.write_text("the quick brown fox jumps over the lazy god; " * 200)
    with pytest.raises(ValueError, match=r"text was .*the train data is another"):
        jobs.train(small_config(tmp_path, text=str(other)))
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.usefixtures("bad_input")
def test_a_damaged_configuration_is_named(finished_run, small_config, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    (tmp_path / "default" / "config.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"config\.json: not a JSON object"):
        jobs.train(small_config(tmp_path))


def test_two_writers_of_one_run_are_refused(tmp_path):
    with (
        runs.exclusive(tmp_path / "run"),
        pytest.raises(OSError, match="is being written by another process"),
        runs.exclusive(tmp_path / "run"),
    ):
        pass


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": "data=3"}, "must multiply to the number of devices, 8"),
        ({"batch_size": 6}, "batch_size must be divisible by data x fsdp = 8"),
        ({"mesh": "tensor=8", "num_heads": 3, "batch_size": 6}, "heads of .* does not divide"),
        ({"mesh": "fsdp=8", "d_model": 12}, "embed of .* size 12.* does not divide"),
        ({"sequence_length": 100_000}, "shorter than one context"),
        ({"text": "no/such/file.txt"}, "no/such/file.txt"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    small_config, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        jobs.train(small_config(tmp_path, **changes))
    assert not (tmp_path / "default" / "config.json").exists()


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation_steps": 3}, "accumulation_steps must divide batch_size=8, got 3"),
        ({"schedule": "linaer"}, "did you mean 'linear'"),
        ({"warmup_steps": 6}, "warmup_steps"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"learning_rate": -1.0}, "learning_rate must be finite"),
        ({"clip_norm": 0.0}, "clip_norm must be finite"),
        ({"b2": 1.0}, "b2 must be finite"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"sequence_length": 0}, "sequence_length must be an integer >= 1"),
    ],
)
def test_a_bad_configuration_is_refused(small_config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **changes)


def test_a_lexinvariant_run_trains_and_writes(small_config, tmp_path):
    config = small_config(tmp_path, embedding="lexinvariant", steps=3)
    files = jobs.train(config)
    run = jobs.open_run(files.folder)
    assert "embedding" not in run.params["params"]
    assert len(jobs.sample_run(run, "the quick ", num_tokens=5)) == 5


def test_accumulation_gives_the_same_run(finished_run, small_config, tmp_path):
    files = jobs.train(small_config(tmp_path, accumulation_steps=2, mesh="tensor=2,data=4"))
    assert_same(parameters(files), parameters(finished_run), atol=2e-5)


def test_every_option_is_a_documented_field():
    documented = jobs.TrainConfig.__doc__
    for field in dataclasses.fields(jobs.TrainConfig):
        assert f"    {field.name}: " in documented


def test_the_width_rule_reaches_the_optimizer_and_the_readout(small_config, tmp_path):
    plain, scaled = small_config(tmp_path), small_config(tmp_path, d_model=32, num_heads=4, d_ff=64)
    scaled = dataclasses.replace(scaled, base_width=16)
    assert scaled.model(30).config.readout_multiplier == pytest.approx(2**-0.5)
    assert dataclasses.replace(plain, base_width=16).model(30).config.readout_multiplier == 1.0

    def first_update(config):
        shapes = jax.eval_shape(models.initializer(config.model(30)), KEY)
        params = jax.tree.map(lambda p: jax.numpy.ones(p.shape), nn.meta.unbox(shapes))
        optimizer = config.optimizer(30)
        gradient = jax.tree.map(lambda p: 1e-3 * p, params)

        @jax.jit
        def two_updates(gradient, params):
            _, state = optimizer.update(gradient, optimizer.init(params), params)
            return optimizer.update(gradient, state, params)[0]  # the first has learning rate 0

        return two_updates(gradient, params)["params"]

    wide = first_update(scaled)
    unscaled = first_update(dataclasses.replace(scaled, base_width=None))
    decay = plain.weight_decay
    matrix = float(wide["layers"]["up"].mean() / unscaled["layers"]["up"].mean())
    assert matrix == pytest.approx(0.5 * (1 + decay * 2**0.5) / (1 + decay), rel=1e-4)
    np.testing.assert_allclose(wide["embedding"], unscaled["embedding"], rtol=1e-5)


@pytest.mark.usefixtures("bad_input")
def test_a_base_width_must_scale_the_heads_to_a_whole_number(small_config, tmp_path):
    with pytest.raises(ValueError, match=r"base_width=12 must scale num_heads=2 .* got 1.5"):
        small_config(tmp_path, base_width=12)
