"""A whole stream: one compile a kind of phase, growth, resumption, devices, baselines."""

import dataclasses
import itertools
import os
import signal

import jax
import numpy as np
import pytest

from jaxkit import continual, models, training
from jaxkit.continual import prototypes, sema_programs, sema_task
from jaxkit.datasets import ArraySplit

MODEL = models.VisionTransformer(4, 2, 1, width=8, depth=1, num_heads=2, mlp_dim=8)
CONFIG = continual.SEMAConfig(
    MODEL, 4, 2, 3, 0, 0, capacity=3, buffer_size=20, threshold=2.0, train_epochs=3,
    train_learning_rate=0.05, describe_epochs=12, describe_learning_rate=0.05, batch_size=8,
    scan_batch_size=16, steps_per_call=6,
)  # fmt: skip
PROGRAMS = ("train_steps", "describe_steps", "prefix_tokens", "observe", "score_tokens",
            "predict_images")  # fmt: skip


def make_stream():
    """Three tasks of 4 x 4 images: two classes, the same two again, then two that are brighter."""
    rng = np.random.default_rng(0)

    def split(low, high, sizes=(22, 10)):
        parts = []
        for size in sizes:
            labels = (np.arange(size) % 2).astype(np.int32)
            images = rng.uniform(low, high, (size, 4, 4, 1))
            images[..., :2, 0] *= 1 - 0.8 * labels[:, None, None]
            parts += [images.astype(np.float32), labels]
        return ArraySplit(*parts)

    parts = [("dark", "a", split(0, 0.3)), ("dark again", "a", split(0, 0.3)),
             ("bright", "b", split(0.6, 1.0))]  # fmt: skip
    return continual.domain_incremental_stream(parts, ("left", "right"), name="toy")


@pytest.fixture(scope="module")
def backbone(random_backbone):
    """Random weights of moderate size."""
    return random_backbone(MODEL)


@pytest.fixture(scope="module")
def stream():
    """The toy stream."""
    return make_stream()


@pytest.fixture(scope="module")
def learner(backbone):
    """SEMA on the toy stream."""
    return continual.SEMALearner(CONFIG, backbone)


def compilations():
    return {name: getattr(sema_programs, name)._cache_size() for name in PROGRAMS}


@pytest.fixture(scope="module")
def whole_and_compilations(learner, stream):
    """The run that nobody interrupts, and how often it compiled each program."""
    before = compilations()
    result = continual.run_stream(learner, stream, seed=3)
    return result, {name: count - before[name] for name, count in compilations().items()}


@pytest.fixture(scope="module")
def whole(whole_and_compilations):
    return whole_and_compilations[0]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_a_block_grows_at_the_shift_and_not_before(whole):
    assert whole.expansions == [(2, 0)]
    assert whole.state.sema.num_active.tolist() == [2]
    assert np.isfinite(whole.accuracy[np.triu_indices(3)]).all()
    assert np.isnan(whole.accuracy[1, 0])


def test_a_stream_compiles_each_program_once_a_kind_of_phase(whole_and_compilations):
    """Classification is three: of a first task, above frozen blocks, of the head."""
    assert whole_and_compilations[1] == {name: 1 for name in PROGRAMS} | {"train_steps": 3}


def test_the_phases_of_a_task_are_those_of_the_paper(whole):
    kinds = [[e["kind"] for e in whole.events if e["task"] == task] for task in range(3)]
    assert kinds == [["train", "describe"], ["scan", "train"],
                     ["scan", "expand", "train", "describe", "scan"]]  # fmt: skip


class Stop(Exception):
    """A kill."""


def stop_at(piece):
    """Ask for a clean end during that piece of work."""
    pieces = itertools.count(1)

    def on_advance(task, done):
        if next(pieces) == piece:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_advance


def kill_and_resume(learner, stream, folder, when, most=5):
    """The process is lost at the end of a piece of work, whatever it was."""
    pieces = itertools.count(1)

    def kill(task, piece):
        if when(next(pieces), piece.phase.kind):
            raise Stop

    options = {"seed": 3, "folder": folder, "checkpoint_every": most + 1, "max_steps": most}
    with pytest.raises(Stop):
        continual.run_stream(learner, stream, on_advance=kill, **options)
    return continual.run_stream(learner, stream, **options)


def assert_same_run(found, wanted):
    assert same(found.state, wanted.state)
    np.testing.assert_array_equal(found.accuracy, wanted.accuracy)
    assert found.events == wanted.events
    assert found.num_steps == wanted.num_steps


def test_a_run_killed_in_the_scan_resumes_to_the_same_bits(learner, whole, stream, tmp_path):
    found = kill_and_resume(
        learner, stream, tmp_path / "run", lambda n, kind: kind == "scan", most=20
    )
    assert_same_run(found, whole)


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_resumes_to_the_same_bits(
    learner, whole, stream, tmp_path
):
    pieces = []
    options = {"checkpoint_every": 6, "max_steps": 5, "folder": tmp_path / "whole"}
    watch = lambda task, piece: pieces.append(piece.phase.kind)  # noqa: E731
    continual.run_stream(learner, stream, seed=3, on_advance=watch, **options)
    moments = np.random.default_rng(0).choice(len(pieces), 10, replace=False) + 1
    assert {"scan", "train", "describe"} <= {pieces[moment - 1] for moment in moments}
    for moment in moments:
        found = kill_and_resume(
            learner, stream, tmp_path / f"{moment}", lambda n, kind, at=moment: n == at
        )
        assert_same_run(found, whole)


def test_a_run_stopped_on_request_says_so_and_resumes(learner, whole, stream, tmp_path):
    options = {"seed": 3, "folder": tmp_path / "run"}
    first = continual.run_stream(learner, stream, on_advance=stop_at(5), **options)
    assert not first.finished
    rows = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["doing"], row["num_steps"]) for row in rows][-1] == ("describe", first.num_steps)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert same(continual.run_stream(learner, stream, **options).state, whole.state)


def test_a_folder_of_another_run_is_refused_with_all_differences(
    learner, backbone, stream, tmp_path
):
    options = {"seed": 3, "folder": tmp_path / "run"}
    continual.run_stream(learner, stream, on_advance=stop_at(1), **options)
    other = continual.SEMALearner(
        dataclasses.replace(CONFIG, capacity=4, adapter_dim=3), backbone, continual.never_grow
    )
    with pytest.raises(ValueError, match=r"phases was .*_dim was 2, is now 3; capacity was 3"):
        continual.run_stream(other, stream, **options)
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, backbone)
    other = continual.SEMALearner(CONFIG, moved)
    with pytest.raises(ValueError, match="backbone was"):
        continual.run_stream(other, stream, **options)


def test_a_stream_with_more_classes_than_the_head_is_refused(learner, stream):
    more = dataclasses.replace(stream, class_names=(*stream.class_names, "fifth"))
    with pytest.raises(ValueError, match="num_classes must be at least the stream's 5, got 4"):
        continual.run_stream(learner, more)


def test_an_infinite_threshold_never_grows(backbone, stream):
    """Functional parts are those of `never_grow`: descriptors that never speak change nothing."""
    quiet = dataclasses.replace(CONFIG, threshold=np.inf)
    silent = continual.run_stream(continual.SEMALearner(quiet, backbone), stream, seed=3)
    never = continual.SEMALearner(CONFIG, backbone, continual.never_grow)
    never = continual.run_stream(never, stream, seed=3)
    assert same(silent.state.sema.params, never.state.sema.params)
    assert silent.expansions == never.expansions == []


def test_every_task_grows_every_block_and_fills_its_capacity(backbone, stream):
    learner = continual.SEMALearner(CONFIG, backbone, continual.grow_every_task)
    result = continual.run_stream(learner, stream, seed=3)
    assert result.expansions == [(1, 0), (2, 0)]
    longer = dataclasses.replace(stream, tasks=(*stream.tasks, stream.tasks[0]))
    with pytest.raises(ValueError, match="capacity 3 exhausted in block 0 at task 3"):
        continual.run_stream(learner, longer, seed=3)


def test_only_fine_tuning_moves_the_first_adapters(backbone, stream, whole):
    after_first = []

    def watch(task, piece):
        if task == 0:
            after_first.append(jax.tree.map(np.asarray, piece.state.sema.params))

    def first_slots(params):
        return (params.single, jax.tree.map(lambda x: np.asarray(x)[:, 0], params.adapters))

    for phases, still in ((continual.grow_on_shift, True), (continual.finetune_adapters, False)):
        after_first.clear()
        learner = continual.SEMALearner(CONFIG, backbone, phases)
        result = continual.run_stream(learner, stream, seed=3, on_advance=watch)
        last = first_slots(result.state.sema.params)
        assert same(first_slots(after_first[-1]), last) == still


def test_a_descriptor_that_diverges_raises_instead_of_never_growing(backbone, stream):
    hot = dataclasses.replace(CONFIG, describe_learning_rate=100.0)
    with pytest.raises(FloatingPointError, match=r"describe_learning_rate=100\.0 must"):
        continual.run_stream(continual.SEMALearner(hot, backbone), stream, seed=3)


def test_statistics_that_are_not_finite_raise(whole):
    records = whole.state.sema.records
    spoilt = records._replace(values=records.values.at[0, 1, 0].set(np.nan))
    with pytest.raises(FloatingPointError, match=r"blocks \[0\].*describe_learning_rate"):
        sema_task.require_finite_statistics(
            CONFIG, whole.state.sema._replace(records=spoilt), "bright"
        )


def test_prototypes_are_means_of_frozen_features(backbone, stream):
    learner = continual.SimpleCIL(MODEL, backbone, 4, batch_size=16)
    result = continual.run_stream(learner, stream)
    task = stream.tasks[2]
    features = prototypes.FrozenFeatures(MODEL, backbone, 16)(task.train_images)
    mean = features[task.train_labels == 3].mean(0)
    found = result.state.totals[3] / result.state.counts[3]
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_adapted_prototypes_resume_too(backbone, stream, tmp_path):
    adapted = continual.SEMALearner(CONFIG, backbone, continual.never_grow)
    learner = continual.AdaptedPrototypes(adapted)
    whole = continual.run_stream(learner, stream, seed=3)
    options = {"seed": 3, "folder": tmp_path / "run", "checkpoint_every": 4}
    continual.run_stream(learner, stream, on_advance=stop_at(3), **options)
    resumed = continual.run_stream(learner, stream, **options)
    assert same(resumed.state, whole.state)
    assert resumed.state.prototypes.counts.sum() == 66


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(backbone, stream, whole, devices):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = continual.SEMALearner(CONFIG, backbone, mesh=mesh)
    before = compilations()
    result = continual.run_stream(spread, stream, seed=3)
    assert result.expansions == whole.expansions
    np.testing.assert_array_equal(result.accuracy, whole.accuracy)
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    made = {name: count - before[name] for name, count in compilations().items()}
    assert (made["train_steps"], made["describe_steps"], made["score_tokens"]) == (3, 1, 1)
