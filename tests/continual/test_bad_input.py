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
        ({"train_labels": np.array([0.0, 1.0])}, TypeError, "array of integers, got float64"),
        ({"train_labels": np.array([0])}, ValueError, "must be 2 like the images, got 1"),
        ({"train_labels": np.array([0, 0])}, ValueError, "must hold every class"),
        ({"train_images": np.zeros((0, 8, 8, 1), np.float32)}, ValueError, "must be images"),
        ({"train_images": np.zeros((2, 8, 8, 1), np.uint8)}, ValueError, "divide bytes by 255"),
        ({"test_images": np.full((1, 8, 8, 1), 255.0)}, ValueError, "255 to 255"),
        ({"test_images": np.full((1, 8, 8, 1), np.nan)}, ValueError, "must be finite"),
        ({"train_labels": [0, 1]}, TypeError, "array of integers, got list"),
        ({"test_images": np.zeros((1, 4, 8, 1))}, ValueError, r"the shape of its train_images"),
        ({"classes": ()}, ValueError, "must not be empty"),
        ({"classes": (1, 0)}, ValueError, r"must be sorted, none twice, got \(1, 0\)"),
    ],
)
def test_tasks_are_checked_when_made(change, error, message, bad_input):
    with pytest.raises(error, match=message):
        continual.Task(**{**GOOD, **change})


def test_labels_that_are_no_numbers_of_classes_are_refused(bad_input):
    images = np.zeros((2, 8, 8, 1), np.float32)
    for labels in (np.array([0.0, 1.0]), np.array(["a", "b"])):
        split = ArraySplit(images, labels, images, labels)
        with pytest.raises(TypeError, match="train_labels must be an array of integers"):
            continual.class_incremental_stream(split, 1)
        with pytest.raises(ValueError, match="labels of task 'a' must be 0 to 1"):
            continual.domain_incremental_stream([("a", "d", split)], "xy")


def test_a_learner_of_fewer_classes_is_refused_before_it_learns():
    stream = continual.Stream("s", (continual.Task(**GOOD),), ("a", "b"))
    learners = (
        continual.SimpleCIL(MODEL, {}, 1),
        continual.RanPAC(MODEL, {}, 1, num_projections=4),
        continual.PromptLearner(MODEL, {}, 1, continual.L2P(2, 1, 1)),
        continual.SEMALearner(continual.SEMAConfig(MODEL, 1, 2, 2, 1, 1, capacity=1), {}),
    )
    for learner in learners:
        with pytest.raises(ValueError, match="num_classes must be at least the stream's 2, got 1"):
            next(iter(learner.phases(stream, 0, 0)))


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
    stream = continual.class_incremental_stream(split, 3, class_order=1)
    assert [task.classes for task in stream.tasks] == [(0, 1, 2), (3,)]
    assert sorted(stream.class_names) == ["a", "b", "c", "d"]
    for task in stream.tasks:
        names = [stream.class_names[c] for c in task.train_labels]
        assert names == ["abcd"[round(4 * float(x.mean()))] for x in task.train_images]
