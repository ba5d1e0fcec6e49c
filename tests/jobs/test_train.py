import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkit import jobs, models, training
from jaxkit.jobs import continual

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


def test_a_run_cut_after_a_checkpoint_and_moved_with_its_text_ends_with_the_same_bits(
    finished_run, small_config, tmp_path, train_until_killed
):
    config = small_config(tmp_path)
    train_until_killed(config, step=6)
    (tmp_path / config.name).rename(tmp_path / "moved")
    text = shutil.copy(config.text, tmp_path / "moved.txt")
    resumed = jobs.train(dataclasses.replace(config, name="moved", text=str(text)))
    assert_same(parameters(resumed), parameters(finished_run))
    losses = [
        [row["loss"] for row in training.read_metrics(files.metrics)]
        for files in (resumed, finished_run)
    ]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("bad_input")
def test_another_configuration_or_text_is_refused_and_nothing_is_touched(
    finished_run, small_config, tmp_path
):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    before = {path: path.read_bytes() for path in (tmp_path / "default").glob("*.json*")}
    with pytest.raises(ValueError, match=r"config.seed was 0, is now 1.*another folder"):
        jobs.train(small_config(tmp_path, seed=1))
    other = tmp_path / "other.txt"
    other.write_text("the quick brown fox jumps over the lazy god; " * 200)
    with pytest.raises(ValueError, match=r"data.train was .*another folder"):
        jobs.train(small_config(tmp_path, text=str(other)))
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.usefixtures("bad_input")
def test_a_damaged_configuration_is_named(finished_run, small_config, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    (tmp_path / "default" / "config.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"config\.json: not a JSON object"):
        jobs.train(small_config(tmp_path))


def test_two_writers_of_one_run_are_refused(small_config, tmp_path):
    with (
        training.Run(tmp_path / "default"),
        pytest.raises(OSError, match="default is being written by another process"),
    ):
        jobs.train(small_config(tmp_path))


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


@pytest.mark.slow
def test_a_lexinvariant_run_trains_and_writes(small_config, tmp_path):
    config = small_config(tmp_path, embedding="lexinvariant", steps=3)
    files = jobs.train(config)
    run = jobs.open_run(files.folder)
    assert "embedding" not in run.params["params"]
    assert len(jobs.sample_run(run, "the quick ", num_tokens=5)) == 5


@pytest.mark.slow
def test_accumulation_on_another_mesh_gives_the_same_run(finished_run, small_config, tmp_path):
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


def test_a_finished_run_is_made_longer_and_only_then(finished_run, small_config, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    jobs.train(small_config(tmp_path, steps=9, keep_every=3))
    run = jobs.open_run(tmp_path / "default")
    assert (run.step, run.config.steps) == (9, 9)
    assert jobs.open_run(tmp_path / "default", step=6).step == 6
    rows = training.read_metrics(tmp_path / "default" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert rows[:6] == training.read_metrics(finished_run.metrics)
    norms = (tmp_path / "default" / "gradient_norms.csv").read_text().splitlines()
    assert norms[1:7] == finished_run.gradient_norms.read_text().splitlines()[1:]
    assert len(norms) == 10
    with pytest.raises(ValueError, match=r"config\.steps was 9, is now 6"):
        jobs.train(small_config(tmp_path, steps=6))


def test_an_unfinished_run_keeps_its_length(finished_run, small_config, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    shutil.rmtree(tmp_path / "default" / "checkpoints" / "6")
    with pytest.raises(ValueError, match=r"config\.steps was 6, is now 9"):
        jobs.train(small_config(tmp_path, steps=9))


@pytest.mark.slow
def test_the_best_and_every_nth_checkpoint_are_kept_and_read(small_config, tmp_path):
    files = jobs.train(
        small_config(tmp_path, keep_checkpoints=1, keep_every=4, keep_best=True, evaluate_every=2)
    )
    kept = sorted(int(path.name) for path in files.checkpoints.iterdir())
    losses = {
        row["step"]: row["validation_loss"] for row in training.read_metrics(files.evaluations)
    }
    assert kept == sorted({4, 6, min(losses, key=lambda step: losses[step])})
    assert jobs.open_run(files.folder, step=4).step == 4
    with pytest.raises(ValueError, match="has no checkpoint 2"):
        jobs.open_run(files.folder, step=2)


@pytest.mark.usefixtures("bad_input")
def test_a_configuration_changed_by_hand_is_said_and_nothing_is_renamed(finished_run, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "default")
    path = tmp_path / "default" / "config.json"
    good = path.read_text()
    path.write_text(good.replace('"d_model": 16', '"d_model": 8'))
    listed = sorted((tmp_path / "default").rglob("*"))
    with pytest.raises(ValueError, match=r"params.*is float32\[\d+, 16\] there, .* 8\] here"):
        jobs.open_run(tmp_path / "default")
    assert sorted((tmp_path / "default").rglob("*")) == listed
    path.write_text(good)
    assert jobs.open_run(tmp_path / "default").step == 6


@pytest.mark.slow
@pytest.mark.usefixtures("bad_input")
def test_a_tokenizer_that_changed_is_refused_and_the_stored_one_stays(tmp_path, small_config):
    words = tmp_path / "words.json"
    vocabulary = {"the": 0, "quick": 1, "[UNK]": 2}

    def write(**extra):
        words.write_text(json.dumps({
            "version": "1.0", "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary | extra, "unk_token": "[UNK]"},
        }))  # fmt: skip

    write()
    files = jobs.train(small_config(tmp_path, tokenizer=str(words), steps=2, warmup_steps=0))
    before = {p: p.read_bytes() for p in files.folder.rglob("*") if p.is_file()}
    for extra in ({"brown": 3}, {"quick": 3, "brown": 1}):
        write(**extra)
        with pytest.raises(ValueError, match=r"tokenizer\.fingerprint was"):
            jobs.train(small_config(tmp_path, tokenizer=str(words), steps=2, warmup_steps=0))
    assert before == {p: p.read_bytes() for p in files.folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("seed", [2**32, 2**63, -1])
def test_a_seed_that_would_wrap_is_refused(small_config, tmp_path, seed):
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 4294967296\)"):
        small_config(tmp_path, seed=seed)
    with pytest.raises(ValueError, match="seed must be"):
        continual.ContinualConfig(seed=seed)


@pytest.mark.usefixtures("bad_input")
def test_keeping_the_best_needs_its_evaluation(small_config, tmp_path):
    with pytest.raises(ValueError, match="evaluate_every must divide checkpoint_every=2, got 3"):
        small_config(tmp_path, keep_best=True)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", "a/b", ".x"])
def test_a_run_of_continual_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="name must be a plain folder name"):
        continual.ContinualConfig(name=name)
