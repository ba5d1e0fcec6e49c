"""Every wrong input is refused where it enters, naming the argument and what is allowed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models
from jaxkit.continual import adapters
from jaxkit.datasets import ArraySplit

MODEL = models.VisionTransformer(8, 4, 1, width=8, depth=2, num_heads=2, mlp_dim=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expand_from": 1, "expand_to": 0}, "expand_from=1 and expand_to=0"),
        ({"expand_to": 2}, "0 to 1, got expand_from=1 and expand_to=2"),
        ({"capacity": 0}, "capacity must be an integer >= 1, got 0"),
        ({"adapter_dim": 0}, "adapter_dim"),
        ({"descriptor_dim": -1}, "descriptor_dim"),
        ({"buffer_size": 2}, "buffer_size must be an integer >= 3"),
        ({"score": "batch_mean"}, "did you mean 'batch_mean_abs'"),
        ({"routing": "sofd"}, "did you mean 'soft'"),
        ({"threshold": float("nan")}, "threshold must be >= 0"),
        ({"threshold": -0.5}, "threshold must be >= 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"momentum": 1.0}, "momentum"),
        ({"train_learning_rate": float("inf")}, "train_learning_rate"),
    ],
)
def test_configurations_are_checked_when_made(change, message, bad_input):
    fields = {"model": MODEL, "num_classes": 3, "expand_from": 1, "expand_to": 1}
    with pytest.raises(ValueError, match=message):
        continual.SEMAConfig(**{**fields, **change})


def test_adapters_are_added_only_where_there_is_room(bad_input):
    config = continual.SEMAConfig(MODEL, 3, 2, 2, 1, 1, capacity=1)
    state = continual.SEMAState(None, None, None, np.array([1]))
    with pytest.raises(ValueError, match="capacity 1 exhausted in block 1"):
        continual.add_adapter(jax.random.key(0), config, state, 1)
    with pytest.raises(ValueError, match="must be one that may grow, 1 to 1, got 0"):
        continual.add_adapter(jax.random.key(0), config, state, 0)


GOOD = {
    "name": "first", "train_images": np.zeros((2, 8, 8, 1), np.float32),
    "train_labels": np.array([0, 1]), "test_images": np.zeros((1, 8, 8, 1), np.float32),
    "test_labels": np.array([1]), "classes": (0, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_labels": np.array([0, 2])}, ValueError, r"task 'first'.*got \[2\]"),
        ({"train_labels": np.array([0, -1])}, ValueError, r"got \[-1\]"),
        ({"train_labels": np.array([0.0, 1.0])}, TypeError, "must be integers, got float64"),
        ({"train_labels": np.array([0])}, ValueError, "must be 2 like the images, got 1"),
        ({"train_labels": np.array([0, 0])}, ValueError, "must hold every class"),
        ({"train_images": np.zeros((0, 8, 8, 1), np.float32)}, ValueError, "must be images"),
        ({"train_images": np.zeros((2, 8, 8, 1), np.uint8)}, ValueError, "divide bytes by 255"),
        ({"test_images": np.full((1, 8, 8, 1), 255.0)}, ValueError, "255 to 255"),
        ({"test_images": np.full((1, 8, 8, 1), np.nan)}, ValueError, "must be finite"),
        ({"classes": ()}, ValueError, "must not be empty"),
    ],
)
def test_tasks_are_checked_when_made(change, error, message, bad_input):
    with pytest.raises(error, match=message):
        continual.Task(**{**GOOD, **change})


def test_streams_are_checked_when_made(bad_input):
    task = continual.Task(**GOOD)
    other = continual.Task(
        **{**GOOD, "train_images": np.zeros((2, 4, 4, 1)), "test_images": np.zeros((1, 4, 4, 1))}
    )
    with pytest.raises(ValueError, match="must not be empty"):
        continual.Stream("s", (), ("a", "b"))
    with pytest.raises(ValueError, match="one shape"):
        continual.Stream("s", (task, other), ("a", "b"))
    with pytest.raises(ValueError, match="must be numbers 0 to 0"):
        continual.Stream("s", (task,), ("a",))


def test_metrics_refuse_what_is_no_accuracy(bad_input):
    with pytest.raises(ValueError, match="square matrix"):
        continual.forgetting(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        continual.average_accuracy(np.array([[50.0]]))
    with pytest.raises(ValueError, match="num_tests must be 1 positive"):
        continual.pooled_accuracies(np.array([[0.5]]), np.array([0]))


def test_random_routings_need_a_key(bad_input):
    router = adapters.Router(jnp.zeros((8, 2)), jnp.zeros(2))
    pooled, active = jnp.ones((1, 8)), jnp.ones(2, bool)
    with pytest.raises(ValueError, match="key must be given"):
        adapters.router_weights(router, pooled, active, routing="random_choice")
    with pytest.raises(ValueError, match="errors must be given"):
        adapters.router_weights(router, pooled, active, routing="descriptor")


def test_pretraining_refuses_labels_beyond_the_head(bad_input):
    model = dataclasses.replace(MODEL, num_classes=2)
    images = np.zeros((4, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="labels must be 0 to num_classes - 1 = 1, got 0 to 5"):
        continual.pretrain_backbone(
            jax.random.key(0), model, images, np.array([0, 1, 5, 0]), batch_size=2
        )
    with pytest.raises(ValueError, match="at least batch_size=8"):
        continual.pretrain_backbone(
            jax.random.key(0), model, images, np.array([0, 1, 1, 0]), batch_size=8
        )


def test_class_order_is_drawn_by_the_seed_and_labels_follow_it():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 5)
    images = np.broadcast_to(labels[:, None, None, None] / 4, (20, 2, 2, 1)).astype(np.float32)
    order = rng.permutation(20)
    split = ArraySplit(images[order], labels[order], images, labels, ("a", "b", "c", "d"))
    stream = continual.class_incremental_stream(split, 3, seed=1)
    assert [task.classes for task in stream.tasks] == [(0, 1, 2), (3,)]
    assert sorted(stream.class_names) == ["a", "b", "c", "d"]
    for task in stream.tasks:
        names = [stream.class_names[c] for c in task.train_labels]
        assert names == ["abcd"[round(4 * float(x.mean()))] for x in task.train_images]


def make_pictures(folder, layout, size=12):
    """Grey squares, one shade a class."""
    pillow = pytest.importorskip("PIL.Image")
    for place, shade in layout.items():
        (folder / place).mkdir(parents=True)
        for i in range(5):
            pixels = np.full((size + i, size, 3), shade, np.uint8)
            pillow.fromarray(pixels).save(folder / place / f"{i}.png")


def test_folders_of_classes_and_of_tasks_become_streams(tmp_path):
    make_pictures(tmp_path / "classes", {"cat": 0, "dog": 102, "eel": 255})
    stream = continual.folder_stream(tmp_path / "classes", image_size=8, classes_per_task=2)
    assert [task.name for task in stream.tasks] == ["cat, dog", "eel"]
    assert stream.tasks[0].image_shape == (8, 8, 3)
    task = stream.tasks[0]
    np.testing.assert_allclose(task.train_images.mean((1, 2, 3)), 0.4 * task.train_labels, 1e-6)
    make_pictures(tmp_path / "tasks", {"day/cat": 255, "night/cat": 0, "night/dog": 51})
    stream = continual.folder_stream(tmp_path / "tasks", image_size=8)
    assert [task.classes for task in stream.tasks] == [(0,), (0, 1)]
    assert stream.class_names == ("cat", "dog")


def test_folders_without_pictures_or_with_broken_ones_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        continual.folder_stream(tmp_path)
    (tmp_path / "a" / "x.png").write_bytes(b"no picture")
    (tmp_path / "a" / "y.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"[xy]\.png is not a picture"):
        continual.folder_stream(tmp_path)


def test_a_class_a_task_and_a_given_split_keep_every_class_on_both_sides(tmp_path):
    make_pictures(tmp_path / "one", {f"c{i}": 20 * i for i in range(10)})
    for seed in range(3):
        stream = continual.folder_stream(
            tmp_path / "one", image_size=8, classes_per_task=1, seed=seed, shuffle_classes=True
        )
        assert [(len(t.train_labels), len(t.test_labels)) for t in stream.tasks] == [(4, 1)] * 10
        for task, name in zip(stream.tasks, stream.class_names, strict=True):
            assert float(task.test_images.mean()) == pytest.approx(20 * int(name[1:]) / 255)
    make_pictures(tmp_path / "two", {f"{part}/{c}": 9 for part in ("train", "test") for c in "ab"})
    (task,) = continual.folder_stream(tmp_path / "two", image_size=8).tasks
    assert (len(task.train_labels), len(task.test_labels), task.name) == (10, 10, "a, b")
