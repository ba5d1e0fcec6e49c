"""`jaxkit continual`: a run, its report, its resumption."""

import dataclasses
import shutil
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkit import continual
from jaxkit.jobs import continual as job
from jaxkit.jobs import stream_report


def fast(tmp_path, **options):
    return job.ContinualConfig(
        runs=str(tmp_path), name="run", train_epochs=2, describe_epochs=2, **options
    )


@pytest.fixture
def small_backbone(monkeypatch):
    """A backbone that nobody trains."""

    def untrained(key, model, images, labels, **options):
        return nn.meta.unbox(model.init(key, jax.numpy.asarray(images[:1])))

    monkeypatch.setattr(continual, "pretrain_backbone", untrained)


def test_weights_do_not_fit_digits(tmp_path):
    with pytest.raises(ValueError, match="weights must be left out"):
        job.learn_stream(fast(tmp_path, weights="vit.safetensors"))


def test_a_missing_extra_leaves_no_folder(tmp_path, monkeypatch):
    for module, extra in (("sklearn.datasets", "datasets"), ("matplotlib", "train")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=rf"jaxkit\[{extra}\]"):
                job.learn_stream(fast(tmp_path))
    assert not any(tmp_path.iterdir())


def test_an_unknown_method_is_refused(tmp_path, bad_input):
    with pytest.raises(ValueError, match="did you mean 'sema'"):
        job.learn_stream(fast(tmp_path, method="semma"))


@pytest.mark.parametrize(
    ("method", "kind"),
    [("sema", continual.SEMALearner), ("l2p", continual.PromptLearner),
     ("dual-prompt", continual.PromptLearner), ("coda-prompt", continual.PromptLearner),
     ("ranpac", continual.RanPAC), ("simple-cil", continual.SimpleCIL),
     ("adapter-prototypes", continual.AdaptedPrototypes)],
)  # fmt: skip
def test_each_method_is_a_learner_of_the_stream(tmp_path, method, kind):
    stream, _ = continual.digits_stream()
    model = continual.tiny_vision_transformer()
    config = fast(tmp_path, method=method)
    learner = job._learner(config, stream, model, {})
    assert type(learner) is kind
    assert learner.description()["num_classes"] == 30
    assert "learner 0 MiB" not in job._memory(config, learner, stream, model, {})


def test_the_report_tells_the_settings_of_the_method_as_used_and_no_others(tmp_path):
    stream, _ = continual.digits_stream()
    model = continual.tiny_vision_transformer()

    def told(method):
        config = fast(tmp_path, method=method)
        return stream_report.settings(config, job._learner(config, stream, model, {}))

    assert "general_blocks=(0,)" in told("dual-prompt")["prompting"]
    assert told("dual-prompt")["learning_rate"] == 0.03
    assert told("sema")["train_learning_rate"] == 0.05
    assert told("ranpac")["num_projections"] == 1000
    for facts in (told("ranpac"), told("dual-prompt")):
        assert {"threshold", "describe_epochs", "weights", "class_seed"}.isdisjoint(facts)


@pytest.mark.slow
def test_a_stopped_run_resumes_and_writes_its_report(tmp_path, small_backbone, monkeypatch):
    once, show = [], stream_report.show_piece

    def stopping(bar, stream, index, piece):
        show(bar, stream, index, piece)
        if index == 1 and not once:
            once.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(stream_report, "show_piece", stopping)
    config = fast(tmp_path, threshold=0.1)
    stopped = job.learn_stream(config)
    assert stopped.report is None
    assert not stopped.result.finished
    done = job.learn_stream(config)
    assert done.result.finished
    page = done.report.read_text("utf-8")
    for text in ("forgetting", "threshold", "every task would add 10", "task 2 block"):
        assert text in page
    assert {p.name for p in tmp_path.glob("run/*.png")} == {
        "accuracy.png", "expansion.png", "growth.png", "router.png"
    }  # fmt: skip
    whole = job.learn_stream(job.ContinualConfig(**{**vars(config), "name": "other"}))
    np.testing.assert_array_equal(whole.result.accuracy, done.result.accuracy)


def write_pictures(folder):
    """Three tasks of coloured squares: two classes, the same two again, then two much brighter."""
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    tasks = {"1 dark": (0, 80), "2 dark": (0, 80), "3 bright": (150, 255)}
    for task, (low, high) in tasks.items():
        for name, side in (("left", slice(0, 5)), ("right", slice(5, 10))):
            place = folder / task / name
            place.mkdir(parents=True)
            for number in range(20):
                picture = rng.integers(low, high, (10, 12, 3), dtype=np.uint8)
                picture[:, side] //= 4
                pillow.fromarray(picture).save(place / f"{number}.png")


@pytest.mark.slow
def test_folders_of_pictures_killed_in_a_phase_resume_to_the_same_bits(tmp_path):
    """By the command itself, killed without warning; the backbone comes from the first task."""
    write_pictures(tmp_path / "pictures")
    config = job.ContinualConfig(
        stream=str(tmp_path / "pictures"), image_size=8, train_epochs=8, describe_epochs=40,
        describe_learning_rate=0.005, checkpoint_every=3, runs=str(tmp_path), name="killed",
    )  # fmt: skip
    chosen = {name: value for name, value in vars(config).items()
              if value != getattr(job.ContinualConfig(), name)}  # fmt: skip
    words = [
        w for name, value in chosen.items() for w in (f"--{name.replace('_', '-')}", f"{value}")
    ]
    program = "import sys; from jaxkit.cli import main; main(sys.argv[1:])"
    killed = subprocess.Popen(
        [sys.executable, "-c", program, "continual", *words], stderr=subprocess.PIPE, text=True
    )
    seen = []
    assert killed.stderr is not None
    for line in killed.stderr:
        seen.append(line)
        if "grows" in line:  # of the third task: its new adapter has not been trained yet
            killed.kill()
            break
    killed.stderr.close()
    assert killed.wait() == -signal.SIGKILL, "".join(seen)
    assert any("task 2 (2 dark) learnt" in line for line in seen)

    resumed = job.learn_stream(config)
    assert resumed.result.num_steps > 0
    (tmp_path / "whole").mkdir()  # on the same backbone
    (backbone,) = (tmp_path / "killed").glob("backbone-*.msgpack")
    shutil.copy(backbone, tmp_path / "whole")
    whole = job.learn_stream(dataclasses.replace(config, name="whole"))
    assert {task for task, _ in whole.result.expansions} == {2}
    assert resumed.result.expansions == whole.result.expansions
    np.testing.assert_array_equal(resumed.result.accuracy, whole.result.accuracy)
    jax.tree.map(np.testing.assert_array_equal, resumed.result.state, whole.result.state)
    page = resumed.report.read_text("utf-8")
    assert "task 3 block" in page
    assert np.nanmin(whole.result.accuracy) > 0.5  # better than a guess between two


def test_options_without_what_they_are_for_are_refused(tmp_path):
    for options, message in (
        ({"normalization": "half"}, "normalization is for weights, got 'half' without"),
        ({"num_heads": 3}, "num_heads is for weights"),
        ({"benchmark": "vtab"}, "benchmark must be left out for stream='digits'.*'vtab'"),
        ({"augment": True}, "augment must be left out"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            fast(tmp_path, **options)


@pytest.fixture
def folder_and_weights(tmp_path, golden):
    """Pictures in train and test folders, and a small published transformer."""
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 2)):
        for name in "abcd":
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 14, 3), np.uint8)
                pillow.fromarray(pixels).save(place / f"{i}.png")
    params = golden("sema")["vit_weight_conversion"]["timm_params"]
    np.savez(tmp_path / "deit.npz", **{k: np.asarray(x, np.float32) for k, x in params.items()})
    return {
        "stream": str(tmp_path / "pictures"), "weights": str(tmp_path / "deit.npz"),
        "num_heads": 2, "image_size": 8, "classes_per_task": 2, "class_order": "shuffled",
        "class_seed": 7,
    }  # fmt: skip


@pytest.mark.slow
def test_pictures_and_published_weights_make_a_run(tmp_path, folder_and_weights, capsys):
    files = job.learn_stream(fast(tmp_path, augment=True, batch_size=4, **folder_and_weights))
    told = capsys.readouterr().err
    for line in ("DeiT, timm's layout", "normalized by imagenet", "memory: backbone"):
        assert line in told
    assert files.report is not None
    assert files.result.num_tests.tolist() == [4, 4]
    order = np.random.RandomState(7).permutation(4)
    assert f"task 1 ({', '.join('abcd'[c] for c in order[:2])}) learnt" in told
