"""Folders of pictures as streams: layouts, orders, what is drawn, what is decoded."""

import jax
import numpy as np
import pytest

from jaxkit import continual, datasets, models, training
from jaxkit.continual import image_folders

pillow = pytest.importorskip("PIL.Image")


def make_pictures(folder, layout, size=12):
    """Grey squares, one shade a class."""
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
    shades = task.train_images[:].mean((1, 2, 3))
    np.testing.assert_allclose(shades, 0.4 * task.train_labels, 1e-6)
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
    stream = continual.folder_stream(tmp_path)
    with pytest.raises(ValueError, match=r"[xy]\.png is not a picture"):
        stream.tasks[0].train_images[:1]


def test_a_class_a_task_and_a_given_split_keep_every_class_on_both_sides(tmp_path):
    make_pictures(tmp_path / "one", {f"c{i}": 20 * i for i in range(10)})
    for seed in range(3):
        stream = continual.folder_stream(
            tmp_path / "one", image_size=8, classes_per_task=1, seed=seed, class_order=seed
        )
        assert [(len(t.train_labels), len(t.test_labels)) for t in stream.tasks] == [(4, 1)] * 10
        for task, name in zip(stream.tasks, stream.class_names, strict=True):
            assert float(task.test_images[:].mean()) == pytest.approx(20 * int(name[1:]) / 255)
    make_pictures(tmp_path / "two", {f"{part}/{c}": 9 for part in ("train", "test") for c in "ab"})
    (task,) = continual.folder_stream(tmp_path / "two", image_size=8).tasks
    assert (len(task.train_labels), len(task.test_labels), task.name) == (10, 10, "a, b")


#: The first classes of CIFAR-100 in the order that iCaRL, DER, PILOT and SEMA share.
CIFAR100 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]


def test_class_orders_are_the_published_ones(tmp_path):
    labels = np.arange(100, dtype=np.int32)
    pixels = np.zeros((100, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    stream = continual.folder_stream(tmp_path / "a.npz", benchmark="cifar100", image_size=8)
    assert len(stream.tasks) == 10
    assert [int(name) for name in stream.class_names[:20]] == CIFAR100
    assert stream.tasks[1].name == ", ".join(map(str, CIFAR100[10:]))
    with pytest.raises(ValueError, match=r"'imagenet-a' has 200 classes, .*a\.npz has 100"):
        continual.folder_stream(tmp_path / "a.npz", benchmark="imagenet-a")
    # ImageNet-A and VTAB are not shuffled.
    assert [image_folders.BENCHMARKS[b].class_order for b in ("imagenet-a", "vtab")] == [
        "sorted"
    ] * 2
    given = continual.folder_stream(
        tmp_path / "a.npz", class_order=[str(99 - i) for i in range(100)], classes_per_task=50
    )
    assert given.class_names[:2] == ("99", "98")
    with pytest.raises(ValueError, match=r"class_order must name each of 100 classes.*'x'"):
        continual.folder_stream(tmp_path / "a.npz", class_order=["x"])


def test_a_class_that_is_only_tested_is_named_by_its_name():
    images = np.zeros((3, 2, 2, 1), np.float32)
    split = datasets.ArraySplit(
        images[:2], np.array([0, 1]), images, np.array([0, 1, 2]), ("cat", "dog", "eel")
    )
    with pytest.raises(ValueError, match=r"must be trained, got no training images of \['eel'\]"):
        continual.class_incremental_stream(split, 2)


def test_training_crops_depend_on_seed_pass_and_picture_alone(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
            pillow.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (task,) = continual.folder_stream(tmp_path, image_size=8, augment=True).tasks
    assert task.is_augmented
    images = task.train_images
    rows = np.arange(len(images))
    whole = images.drawn(rows, 3, 1)
    pieces = [images.drawn(rows[i : i + 3], 3, 1) for i in range(0, len(rows), 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    for seed, epoch in ((3, 2), (4, 1)):
        assert not np.array_equal(images.drawn(rows, seed, epoch), whole)
    recipe = datasets.picture_recipe("sema", image_size=8)
    picture = images.pictures.open(4)
    draw = recipe.draw(3, 1, 4, picture.size)
    expected = recipe.pixels(picture, draw.box)
    expected = expected[:, ::-1] if draw.flip else expected
    np.testing.assert_array_equal(whole[4], expected / np.float32(255))


def test_a_fingerprint_of_pictures_does_not_decode_them(tmp_path):
    make_pictures(tmp_path, {"a": 3, "b": 5})
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    (task,) = continual.folder_stream(tmp_path, image_size=8).tasks
    first = training.fingerprint(task.train_images)
    assert first == training.fingerprint(task.train_images)
    (smaller,) = continual.folder_stream(tmp_path, image_size=4).tasks
    assert training.fingerprint(smaller.train_images) != first


def test_frozen_features_of_pictures_are_computed_once(tmp_path, monkeypatch):
    make_pictures(tmp_path, {"a": 3, "b": 90, "c": 150, "d": 220})
    stream = continual.folder_stream(tmp_path, image_size=8, classes_per_task=2)
    model = models.VisionTransformer(8, 4, 3, width=8, depth=1, num_heads=2, mlp_dim=8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    backbone = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), shapes)
    opened = []
    whole = datasets.Pictures.open
    monkeypatch.setattr(datasets.Pictures, "open", lambda p, i: opened.append(i) or whole(p, i))
    result = continual.run_stream(continual.SimpleCIL(model, backbone, 4), stream)
    assert np.isfinite(result.accuracy[np.triu_indices(2)]).all()
    assert len(opened) == 20  # the tests of the first task are scored twice
