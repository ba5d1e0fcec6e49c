import functools
import logging
import os
import pickle
import struct
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from jaxkit import datasets

RAMP = np.linspace(0, 65535, 16).round().astype(np.uint16).reshape(1, 16) * np.ones((4, 1), int)
RNG = np.random.default_rng(0)


def picture(path, size=(20, 16), mode="RGB", seed=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def folder(root, classes=("10", "2"), count=4, ending=".png"):
    for c, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i}{ending}", seed=100 * c + i)
    return root


def shown(split, part="train", i=0):
    return np.asarray(getattr(split, part).open(i))


# Layouts.


def test_folders_of_classes_are_sorted_as_strings_and_split_class_by_class(tmp_path, caplog):
    folder(tmp_path, ("10", "2", "9"), 5)
    with caplog.at_level(logging.INFO, "jaxkit.datasets"):
        split = datasets.find_pictures(tmp_path, test_fraction=0.2, seed=3)
    assert split.class_names == ("10", "2", "9")
    assert np.bincount(split.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(split.test.labels).tolist() == [1, 1, 1]
    line = "folders of classes: 12 train, 3 test, 3 classes (split drawn by seed 3)"
    assert [record.getMessage() for record in caplog.records] == [line] == list(split.notes)
    again = datasets.find_pictures(tmp_path, test_fraction=0.2, seed=3)
    assert again.test.source.names == split.test.source.names
    assert again.train.fingerprint() == split.train.fingerprint() != split.test.fingerprint()


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_split_that_the_folders_give_is_kept(tmp_path, held):
    folder(tmp_path / "train", count=3)
    folder(tmp_path / held, count=1, ending=".JPG")
    split = datasets.find_pictures(tmp_path)
    assert (split.layout, split.class_names) == (f"train-{held}-folders", ("10", "2"))
    assert (len(split.train), len(split.test)) == (6, 2)
    assert split.test.source.names == (f"{held}/10/0.JPG", f"{held}/2/0.JPG")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("training", "validation"),
        ("train", "eval"),
        ("train", "dev"),
    ],
)
def test_a_split_by_other_names_is_no_pair_of_tasks_or_classes(tmp_path, train, test):
    folder(tmp_path / train, count=3)
    folder(tmp_path / test, count=1)
    split = datasets.find_pictures(tmp_path, prefer="task-folders")
    assert (split.class_names, split.task_names) == (("10", "2"), ())
    assert (len(split.train), len(split.test)) == (6, 2)


def test_other_classes_to_test_on_are_named(tmp_path):
    folder(tmp_path / "train", ("a", "b"))
    folder(tmp_path / "test", ("b", "c"))
    with pytest.raises(ValueError, match=r"only to train \['a'\], only to test \['c'\]"):
        datasets.find_pictures(tmp_path)


def test_two_layouts_that_fit_are_refused_until_one_is_named(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", count=1)
    folder(tmp_path, ("extra",))
    with pytest.raises(ValueError, match=r"fits class-folders .* and train-test-folders"):
        datasets.find_pictures(tmp_path)
    split = datasets.find_pictures(tmp_path, layout="train-test-folders")
    assert len(split.train) == 8
    forced = datasets.find_pictures(tmp_path, layout="class-folders")
    assert forced.class_names == ("extra", "test", "train")
    folder(tmp_path / "val", count=1)
    with pytest.raises(ValueError, match=r"train-test-folders .* and train-val-folders"):
        datasets.find_pictures(tmp_path)


def test_tasks_and_deep_classes_are_told_apart_or_refused(tmp_path):
    folder(tmp_path / "a" / "day", ("cat", "dog"))
    folder(tmp_path / "a" / "night", ("dog", "eel"))
    with pytest.raises(ValueError, match=r"fits class-folders .* and task-folders"):
        datasets.find_pictures(tmp_path / "a")
    split = datasets.find_pictures(tmp_path / "a", prefer="task-folders")
    assert (split.task_names, split.class_names) == (("day", "night"), ("cat", "dog", "eel"))
    pairs = set(zip(split.train.tasks.tolist(), split.train.labels.tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (1, 1), (1, 2)}
    deep = datasets.find_pictures(tmp_path / "a", layout="class-folders")
    assert deep.class_names == ("day", "night")
    for task in ("one", "two"):
        folder(tmp_path / "b" / task / "train")
        folder(tmp_path / "b" / task / "test", count=1)
    split = datasets.find_pictures(tmp_path / "b")
    assert (split.layout, len(split.train), len(split.test)) == ("task-folders", 16, 4)
    folder(tmp_path / "c" / "x", ("images",))
    folder(tmp_path / "c" / "y", ("images",))
    assert datasets.find_pictures(tmp_path / "c").class_names == ("x", "y")


def test_list_files_and_tiny_imagenet(tmp_path):
    folder(tmp_path / "pool", ("a b",), 3)
    (tmp_path / "train_list.txt").write_text("pool/a b/0.png 0\npool/a b/1.png 3\n\n")
    (tmp_path / "val_list.txt").write_text("pool/a b/2.png 3\n")
    split = datasets.find_pictures(tmp_path)
    assert (split.layout, split.train.labels.tolist()) == ("list-files", [0, 3])
    (tmp_path / "val_list.txt").write_text("pool/9.png 3\n")
    with pytest.raises(ValueError, match=r"val_list\.txt:1: pool/9\.png does not exist"):
        datasets.find_pictures(tmp_path)
    (tmp_path / "val_list.txt").write_text("pool/9.png\n")
    with pytest.raises(ValueError, match=r"val_list\.txt:1: must be `relative/path label`"):
        datasets.find_pictures(tmp_path)

    tiny = tmp_path / "tiny-imagenet-200"
    for name in ("n2", "n1"):
        folder(tiny / "train" / name, ("images",), 2, ".JPEG")
    folder(tiny / "val", ("images",), 2, ".JPEG")
    folder(tiny / "test", ("images",), 2, ".JPEG")
    (tiny / "wnids.txt").write_text("n2\nn1\n")
    (tiny / "val" / "val_annotations.txt").write_text("1.JPEG\tn1\t0\t0\t1\t1\n0.JPEG\tn2\t0\n")
    split = datasets.find_pictures(tiny)
    assert (split.class_names, split.test.labels.tolist()) == (("n2", "n1"), [1, 0])
    assert split.test.source.names[0] == "val/images/1.JPEG"
    assert "wnids.txt" in split.notes[0]


def cifar(root, pixels, labels, protocol=2):
    """Both forms of CIFAR-10, written by hand from planes of red, green and blue."""
    root.mkdir(exist_ok=True)
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    for name, part in {"data_batch_1": slice(0, 4), "data_batch_2": slice(4, 8),
                       "test_batch": slice(8, 10)}.items():  # fmt: skip
        both = np.concatenate([labels[part, None].astype(np.uint8), rows[part]], axis=1)
        (root / "bin").mkdir(exist_ok=True)
        (root / "py").mkdir(exist_ok=True)
        (root / "bin" / f"{name}.bin").write_bytes(both.tobytes())
        found = {b"data": rows[part], b"labels": labels[part].tolist()}
        (root / "py" / name).write_bytes(pickle.dumps(found, protocol))
    (root / "bin" / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")
    meta = {b"label_names": [c.encode() for c in "abcdefghij"]}
    (root / "py" / "batches.meta").write_bytes(pickle.dumps(meta, protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_binary_and_python_batches_read_equal(tmp_path, protocol):
    pixels = RNG.integers(0, 256, (10, 32, 32, 3), np.uint8)
    labels = np.array([*range(8), 3, 3])
    cifar(tmp_path, pixels, labels, protocol)
    for form in ("bin", "py"):
        split = datasets.find_pictures(tmp_path / form)
        np.testing.assert_array_equal(split.train.source, pixels[:8])
        np.testing.assert_array_equal(split.test.source, pixels[8:])
        assert split.train.labels.tolist() == list(range(8))
        assert split.class_names == tuple("abcdefghij")
        np.testing.assert_array_equal(shown(split), pixels[0])
    assert datasets.find_pictures(tmp_path / "bin").notes == (
        "CIFAR-10, binary batches: 8 train, 2 test, 8 classes",
    )


def test_cifar100_takes_the_fine_label(tmp_path):
    pixels = RNG.integers(0, 256, (4, 3072), np.uint8)
    fine = np.array([[1, 99], [1, 5], [1, 99], [1, 5]], np.uint8)
    for part in ("train", "test"):
        rows = np.concatenate([fine, pixels], 1)
        (tmp_path / f"{part}.bin").write_bytes(rows.tobytes())
    assert datasets.find_pictures(tmp_path).train.labels.tolist() == [99, 5, 99, 5]
    (tmp_path / "py").mkdir()
    for part in ("train", "test"):
        found = {b"data": pixels, b"fine_labels": [99, 5, 99, 5], b"coarse_labels": [1] * 4}
        (tmp_path / "py" / part).write_bytes(pickle.dumps(found, 2))
    split = datasets.find_pictures(tmp_path / "py")
    assert split.train.labels.tolist() == [99, 5, 99, 5]
    assert split.layout == "cifar100-python"


class Bomb:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar(tmp_path, RNG.integers(0, 256, (10, 32, 32, 3), np.uint8), np.arange(10) % 3)
    for value, message in [
        ({b"data": Bomb()}, "system is not allowed"),
        ([1, 2], r"must be a dict with data and b'labels', got 'list'"),
        ({b"data": np.zeros((2, 3)), b"labels": [0, 1]}, r"must hold uint8 \[n, 3072\]"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, "labels of 10 classes"),
    ]:
        (tmp_path / "py" / "test_batch").write_bytes(pickle.dumps(value, 2))
        with pytest.raises(ValueError, match=message):
            datasets.find_pictures(tmp_path / "py")
    (tmp_path / "py" / "test_batch").write_bytes(b"\x80\x02no pickle")
    with pytest.raises(ValueError, match="test_batch cannot be read as a plain pickle"):
        datasets.find_pictures(tmp_path / "py")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "bin" / "data_batch_1.bin").write_bytes(b"x" * 3072)
    with pytest.raises(ValueError, match="must hold records of 3073 bytes, got 3072"):
        datasets.find_pictures(tmp_path / "bin")
    (tmp_path / "bin" / "data_batch_4.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin is missing"):
        datasets.find_pictures(tmp_path / "bin")


def test_stl10_is_stored_column_by_column_and_numbered_from_one(tmp_path):
    pixels = RNG.integers(0, 256, (3, 96, 96, 3), np.uint8)
    for part in ("train", "test"):
        (tmp_path / f"{part}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        (tmp_path / f"{part}_y.bin").write_bytes(bytes([1, 10, 3]))
    split = datasets.find_pictures(tmp_path)
    np.testing.assert_array_equal(split.train.source, pixels)
    assert isinstance(split.train.source.base, np.memmap)
    assert split.test.labels.tolist() == [0, 9, 2]
    (tmp_path / "test_y.bin").write_bytes(bytes([1, 10]))
    with pytest.raises(ValueError, match="must hold pictures, 27648 bytes for each of 2"):
        datasets.find_pictures(tmp_path)
    for name in ("train_X.bin", "train_y.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"train_X.bin must hold pictures"):
        datasets.find_pictures(tmp_path)


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_idx_folders_keep_their_split_and_emnist_is_turned(tmp_path):
    images = RNG.integers(0, 256, (6, 5, 4), np.uint8)
    for part, first in (("train", 0), ("t10k", 4)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images[first:]))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(first, 6)))
    split = datasets.find_pictures(tmp_path)
    np.testing.assert_array_equal(split.train.source[..., 0], images)
    assert split.test.labels.tolist() == [4, 5]
    assert (split.layout, split.train.channels, shown(split).shape) == ("idx", 1, (5, 4))
    labels = tmp_path / "other"
    labels.write_bytes(idx(np.zeros(2)))
    alone = datasets.find_pictures(
        tmp_path / "t10k-images-idx3-ubyte", labels_path=labels, test_fraction=0.5
    )
    assert alone.train.labels.tolist() == [0]
    for part in ("train", "test"):
        (tmp_path / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(1, 7)))
    with pytest.raises(ValueError, match=r"got those of \['', 'emnist-letters-'\]"):
        datasets.find_pictures(tmp_path)
    letters = tmp_path / "emnist-letters-train-images-idx3-ubyte"
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(idx(np.full(6, 26)))
    turned = datasets.find_pictures(letters, test_fraction=0.5)
    assert set(turned.train.labels.tolist()) == {25}
    assert shown(turned).tobytes() in [image.T.tobytes() for image in images]


def test_fashion_mnist_is_read_as_bytes(shared_data):
    split = datasets.find_pictures(shared_data("fashion_mnist"))
    assert split.notes == ("IDX files: 60,000 train, 10,000 test, 10 classes",)
    assert (split.train.shape, split.train.source.dtype) == ((28, 28, 1), np.uint8)
    assert np.bincount(split.train.labels).tolist() == [6000] * 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, r"must hold arrays named like .* got \['a'\]"),
        ({"x": np.zeros((4, 2, 2), np.uint8), "y": np.zeros(3, int)}, r"4 pictures, but labels"),
        ({"x": np.zeros((4, 2, 2), np.uint8)}, "has no labels"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int)}, r"must be pictures \[n, H, W\]"),
        ({"x": np.zeros((4, 3, 5, 5)), "y": np.zeros(4, int)}, "channels come last"),
        ({"x": np.full((4, 2, 2), 255.0), "y": np.zeros(4, int)}, r"numbers in \[0, 1\]"),
        ({"x": np.full((4, 2, 2), np.nan), "y": np.zeros(4, int)}, r"numbers in \[0, 1\]"),
        ({"x": np.zeros((4, 2, 2), np.uint8), "y": np.zeros(4)}, "must have integer labels"),
        ({"x": np.zeros((4, 2, 2), np.int32), "y": np.zeros(4, int)}, "must be uint8, uint16"),
        ({"x": np.zeros((3, 2, 2)), "y": np.array([0, 0, 7])}, "class '7' has 1 example"),
    ],
)
def test_npz_errors_name_the_array(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.find_pictures(tmp_path / "a.npz")


def test_what_is_missing_or_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        datasets.find_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no pictures in a known layout"):
        datasets.find_pictures(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'class-folders'"):
        datasets.find_pictures(tmp_path, layout="class-folder")
    folder(tmp_path / "train")
    with pytest.raises(ValueError, match=r"must hold train/CLASS/ and test/CLASS/"):
        datasets.find_pictures(tmp_path, layout="train-test-folders")


def test_files_that_are_no_pictures_are_named_and_an_empty_class_is_refused(tmp_path):
    folder(tmp_path, ("cat",))
    picture(tmp_path / "gifs" / "a.GIF", mode="P", seed=1)
    picture(tmp_path / "gifs" / "b.gif", mode="P", seed=2)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    picture(tmp_path / "stray.png")
    split = datasets.find_pictures(tmp_path)
    assert split.class_names == ("cat", "gifs")
    assert split.notes[1:] == (
        "left out 1 files (in no class): stray.png",
        "left out 1 files (no pictures): cat/Thumbs.db",
    )
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.xcf").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"dog has no pictures, it holds only \.xcf"):
        datasets.find_pictures(tmp_path)


# Modes and damage.


def one(tmp_path, save, **options):
    """What becomes of a picture that `save` writes."""
    for name in "ab":
        (tmp_path / "c").mkdir(exist_ok=True)
        save(tmp_path / "c" / f"{name}.{options.get('ending', 'png')}")
    options.pop("ending", None)
    return shown(datasets.find_pictures(tmp_path, test_fraction=0.5, **options))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_pictures_of_16_bits_are_scaled_and_not_cut_off(tmp_path, ending):
    found = one(tmp_path, Image.fromarray(RAMP.astype(np.uint16)).save, ending=ending, channels=1)
    np.testing.assert_array_equal(found, np.round(RAMP / 257))


def test_a_tiff_of_12_bits_says_its_white(tmp_path):
    grey = (RAMP >> 4).astype(np.uint16)
    found = one(
        tmp_path,
        lambda path: Image.fromarray(grey).save(path, tiffinfo={281: 4095}),
        ending="tif",
        channels=1,
    )
    np.testing.assert_array_equal(found, np.round(grey / 4095 * 255))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused_by_file_and_mode(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"c/.\.tif is not a picture .*mode '[IF]' has no known"):
        one(tmp_path, Image.fromarray(np.ones((4, 4), dtype)).save, ending="tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_as_pillow_converts_them(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    made = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
    found = one(tmp_path, made.save, ending=ending)
    with Image.open(tmp_path / "c" / f"a.{ending}") as stored:
        np.testing.assert_array_equal(found, np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_keep_their_color_or_lie_on_white(tmp_path, mode):
    made = Image.new("LA", (4, 2), (90, 0))
    made = Image.new("RGBA", (4, 2), (9, 8, 7, 0)) if mode == "RGBA" else made

    def save(path):
        if mode == "P":
            Image.new("P", (4, 2), 0).save(path, transparency=b"\0")
        else:
            made.save(path)

    hidden = {"RGBA": (9, 8, 7), "LA": (90, 90, 90), "P": (0, 0, 0)}[mode]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuple(one(tmp_path, save)[0, 0]) == hidden
        assert tuple(one(tmp_path, save, alpha="white")[0, 0]) == (255, 255, 255)


def test_exif_orientation_is_ignored_or_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    made = Image.fromarray(RNG.integers(0, 256, (2, 4, 3), np.uint8))
    assert one(tmp_path, lambda p: made.save(p, exif=exif)).shape == (2, 4, 3)
    assert one(tmp_path, lambda p: made.save(p, exif=exif), exif="apply").shape == (4, 2, 3)


def test_the_first_frame_of_an_animation_is_its_picture(tmp_path):
    first, second = (Image.new("P", (4, 4), color) for color in (3, 200))
    found = one(
        tmp_path, lambda p: first.save(p, save_all=True, append_images=[second]), ending="gif"
    )
    np.testing.assert_array_equal(found, np.asarray(first.convert("RGB")))


def test_damaged_pictures_are_named_or_left_out_by_option(tmp_path):
    folder(tmp_path, ("a", "b"), 6, ".jpg")
    whole = (tmp_path / "a" / "3.jpg").read_bytes()
    (tmp_path / "a" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "1.jpg").write_bytes(b"")
    split = datasets.find_pictures(tmp_path, layout="class-folders")
    damaged = [i for i, name in enumerate(split.train.source.names) if name == "a/3.jpg"]
    with pytest.raises(ValueError, match=r"a/3\.jpg is not a picture that can be read"):
        datasets.decode_pictures(split.train, datasets.PictureRecipe(8), np.array(damaged))
    split = datasets.find_pictures(tmp_path, broken="skip")
    assert len(split.train) + len(split.test) == 10
    assert split.notes[1] == "left out 2 files (damaged): a/3.jpg, b/1.jpg"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every picture of 1 classes is damaged, .*c/x\.png"):
        datasets.find_pictures(tmp_path, broken="skip")


def test_a_picture_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"c/.\.png is not a picture .*decompression bomb"):
        one(tmp_path, Image.new("L", (10, 10)).save)


# Recipes.


def by_hand(path, box=None, size=8, short=8):
    with Image.open(path) as stored:
        stored = stored.convert("RGB")
        if box is not None:
            return np.asarray(stored.crop(box).resize((size, size), Image.Resampling.BILINEAR))
        scale = [max(short, int(short * side / min(stored.size))) for side in stored.size]
        stored = stored.resize(tuple(scale), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in scale)
        return np.asarray(stored.crop((left, top, left + size, top + size)))


RECIPE = datasets.PictureRecipe(8, area=(0.05, 1.0), short_side=10)


def test_a_whole_split_is_no_pictures_to_train_on(tmp_path, bad_input):
    folder(tmp_path, count=6)
    with pytest.raises(TypeError, match=r"pictures must be Pictures, .* got PictureSplit"):
        datasets.picture_batches(datasets.find_pictures(tmp_path), RECIPE, batch_size=4, seed=5)


def test_pixels_are_those_of_pillow_by_hand(tmp_path):
    folder(tmp_path, count=6)
    split = datasets.find_pictures(tmp_path)
    names = split.test.source.names
    tests = datasets.decode_pictures(split.test, RECIPE)
    for pixels, name in zip(tests, names, strict=True):
        np.testing.assert_array_equal(pixels, by_hand(tmp_path / name, short=10))
    batch = next(datasets.picture_batches(split.train, RECIPE, batch_size=4, seed=5, shuffle=False))
    for i in range(4):
        box = RECIPE.draw(5, 0, i, (20, 16)).box
        np.testing.assert_array_equal(
            batch["images"][i], by_hand(tmp_path / split.train.source.names[i], box)
        )


def test_boxes_follow_the_published_rule():
    stats = pytest.importorskip("scipy.stats")
    area, ratio = np.array(
        [
            ((box[2] - box[0]) * (box[3] - box[1]) / 1e6, (box[2] - box[0]) / (box[3] - box[1]))
            for box in (RECIPE.draw(0, 0, i, (1000, 1000)).box for i in range(10_000))
        ]
    ).T
    # Drawn anew, by the rule as it is written: until the box fits.
    rng = np.random.default_rng(1)
    areas = rng.uniform(0.05, 1, 40_000)
    ratios = np.exp(rng.uniform(*np.log([3 / 4, 4 / 3]), 40_000))
    fits = (areas * ratios <= 1) & (areas / ratios <= 1)
    assert stats.ks_2samp(area, areas[fits]).pvalue > 1e-3
    assert stats.ks_2samp(np.log(ratio), np.log(ratios[fits])).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 10), (493, 0, 506, 10)),
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_a_box_that_never_fits_is_the_largest_in_the_middle(size, expected):
    recipe = datasets.PictureRecipe(8, area=(1.0, 1.0))
    left, top, right, bottom = recipe.draw(0, 0, 0, size).box
    assert (left, top, right, bottom) == expected


def seen(train, steps, batch_size=6, start=0, **options):
    """Bytes and flips by place in the stream."""
    batches = datasets.picture_batches(train, RECIPE, batch_size=batch_size, seed=2, **options)
    batches.set_state({**batches.get_state(), "step": start})
    found = [next(batches) for _ in range(steps)]
    batches.close()
    return {
        int(b["index"][i]): (b["images"][i].tobytes(), bool(b["flip"][i]))
        for b in found
        for i in range(len(b["index"]))
    }


def test_crops_are_the_same_for_any_threads_batches_processes_and_after_a_stop(tmp_path):
    folder(tmp_path, count=16, ending=".jpg")
    train = datasets.find_pictures(tmp_path, test_fraction=0.01).train  # 15 a class
    whole = seen(train, 10)
    assert whole == seen(train, 10, num_threads=1)
    assert whole == seen(train, 4, batch_size=15)
    assert whole == seen(train, 7) | seen(train, 3, start=7)
    halves = [seen(train, 10, process_index=p, process_count=2) for p in (0, 1)]
    assert whole == halves[0] | halves[1]
    first, second = (set(list(whole.values())[at : at + 30]) for at in (0, 30))
    assert len(first) == len(second) == 30
    assert not first & second


@pytest.mark.slow
def test_crops_are_the_same_in_worker_processes(tmp_path):
    folder(tmp_path, count=41, ending=".jpg")
    train = datasets.find_pictures(tmp_path, test_fraction=0.01).train
    whole = seen(train, 5, batch_size=32)
    assert whole == seen(train, 10, batch_size=16, num_workers=2)
    assert {i: whole[i] for i in range(32, 96)} == seen(train, 2, 32, 1, num_workers=4)


@pytest.mark.slow
def test_20000_pictures_take_little_memory_and_none_is_decoded_before_its_batch(tmp_path):
    for i in range(8):
        picture(tmp_path / "kept" / f"{i}.jpg", (500, 375), seed=i, quality=85)
    for i in range(20_000):
        inside = tmp_path / "data" / f"class{i % 100:02d}"
        inside.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "kept" / f"{i % 8}.jpg", inside / f"{i}.jpg")
    program = """
import itertools, pathlib, sys
from jaxkit import datasets
opened, load = itertools.count(), datasets.PictureFiles.open
datasets.PictureFiles.open = lambda files, i: (next(opened), load(files, i))[1]
train = datasets.find_pictures(sys.argv[1]).train
recipe = datasets.picture_recipe("sema")
batches = datasets.picture_batches(train, recipe, batch_size=32, seed=0)
next(batches)
decoded = next(opened)
for _ in range(20):
    next(batches)
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(train), decoded, int(peak.split()[1]) / 1024)
"""
    # Its own high-water mark: that of rusage begins with the memory of the process that started it.
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    count, decoded, peak = map(float, found)
    assert count == 16_000
    assert decoded < 1000
    assert peak < 1000  # MB


def test_pictures_are_decoded_once_and_read_as_they_were(tmp_path, monkeypatch):
    folder(tmp_path / "data", count=6, ending=".png")
    train = datasets.find_pictures(tmp_path / "data", test_fraction=0.2).train
    short = min(min(train.open(i).size) for i in range(len(train)))
    recipe = datasets.PictureRecipe(short - 2, area=(0.2, 1.0), short_side=short)
    keep = functools.partial(datasets.keep_decoded, train, tmp_path / "cache", recipe)

    def crops(pictures):
        stream = datasets.picture_batches(pictures, recipe, batch_size=4, seed=1)
        images = next(stream)["images"]
        stream.close()
        return images

    plain, kept = crops(train), keep(400)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)  # no file is decoded any more
        np.testing.assert_array_equal(crops(kept), plain)
        np.testing.assert_array_equal(crops(pickle.loads(pickle.dumps(keep(400)))), plain)
    # Reduced to the recipe's own shorter side, what is tested on is the same to the pixel.
    small = keep(short)
    np.testing.assert_array_equal(
        datasets.decode_pictures(small, recipe), datasets.decode_pictures(train, recipe)
    )
    (tmp_path / "data" / train.source.names[0]).write_bytes(
        (tmp_path / "data" / train.source.names[1]).read_bytes()
    )
    keep(400)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3  # another picture, another cache
    with pytest.raises(ValueError, match="must have at most 1,000 bytes, 10 have"):
        keep(500, max_bytes=1000)
    with pytest.raises(ValueError, match="short_side must be at least"):
        keep(short - 1)


def test_pad_and_flip_on_the_device_are_those_of_the_simulator():
    images = RNG.integers(0, 256, (64, 32, 32, 3), np.uint8)
    pictures = datasets.Pictures(images, np.arange(64, dtype=np.int32))
    recipe = datasets.picture_recipe("cifar10")
    batch = next(datasets.picture_batches(pictures, recipe, batch_size=64, seed=0))
    found = np.asarray(recipe.prepare(batch))
    mean, std = np.float32([0.491, 0.482, 0.447]), np.float32([0.247, 0.243, 0.262])
    for i, label in enumerate(batch["labels"]):
        x = (images[label].astype(np.float32) / 255 - mean) / std
        x = x[:, ::-1] if batch["flip"][i] else x
        top, left = batch["offset"][i]
        x = np.pad(x, ((4, 4), (4, 4), (0, 0)))[top : top + 32, left : left + 32]
        np.testing.assert_allclose(found[i], x, atol=1e-5)
    shifted = (batch["offset"] != 4).any(1).mean()
    assert 0.3 < shifted < 0.7
    assert 0.3 < batch["flip"].mean() < 0.7
    plain = recipe.prepare({"images": images})
    np.testing.assert_allclose(plain, (images / np.float32(255) - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("half", (0.5,), (0.5,)),
        ("0.1/0.3", (0.1,), (0.3,)),
        ("0.1,0.2,0.3/1,2,3", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    ],
)
def test_normalization_is_a_name_or_numbers(text, mean, std):
    recipe = datasets.picture_recipe("sema", image_size=112, normalization=text)
    assert (recipe.mean, recipe.std, recipe.short_side) == (mean, std, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("halve", "did you mean 'half'"),
        ("a/b", "must be a name or numbers"),
        ("1/2/3", "must be a name or numbers"),
        ("0.5,0.5/1", "mean must be one number or three"),
        ("0.5/0", "std must be one number or three above 0"),
        ("nan/1", "mean must be finite"),
        (".5", "must be a name or numbers like 0.5/0.5"),
        ("123.7/58.4", "divide numbers for bytes by 255"),
    ],
)
def test_a_normalization_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        datasets.picture_recipe("plain", normalization=text)


@pytest.mark.parametrize(
    ("source", "labels", "error", "message"),
    [
        (np.zeros((2, 8, 8, 3)), np.zeros(2, int), TypeError, "array of uint8, got float64"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, int), ValueError, r"with C of 1 or 3, got"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, int), ValueError, r"got \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.array(["a", "b"]), TypeError, "labels must be int"),
    ],
)
def test_arrays_that_are_no_labelled_bytes_are_refused(bad_input, source, labels, error, message):
    with pytest.raises(error, match=message):
        datasets.Pictures(source, labels)


def test_three_numbers_do_not_normalize_grey_pictures():
    pictures = datasets.Pictures(np.zeros((4, 32, 32, 1), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="the pictures have one channel"):
        datasets.picture_batches(pictures, datasets.picture_recipe("cifar10"), batch_size=2, seed=0)


def test_draws_on_the_device_are_distributed_as_those_on_the_host():
    recipe = datasets.PictureRecipe(8, pad=2, pad_probability=0.5, flip=0.25)
    drawn = jax.tree.map(np.asarray, recipe.draw_on_device(jax.random.key(0), 4000))
    host = [recipe.draw(0, 0, i, (8, 8)) for i in range(4000)]
    assert drawn["flip"].mean() == pytest.approx(0.25, abs=0.03)
    for axis in (0, 1):
        ours = np.bincount(drawn["offset"][:, axis], minlength=5) / 4000
        theirs = np.bincount([one.offset[axis] for one in host], minlength=5) / 4000
        np.testing.assert_allclose(ours, theirs, atol=0.03)
    with pytest.raises(ValueError, match="area must be None"):
        datasets.PictureRecipe(8, area=(0.5, 1.0)).draw_on_device(jax.random.key(0), 1)
