import gzip
import importlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from jaxkit import datasets
from jaxkit.datasets import array_files, splits

IMAGES = np.arange(10 * 4 * 3, dtype=np.uint8).reshape(10, 4, 3)
LABELS = np.arange(10, dtype=np.uint8)


def idx(array, code=0x08):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("iris", (150, 4)),
        ("wine", (178, 13)),
        ("breast_cancer", (569, 30)),
        ("digits", (1797, 64)),
        ("diabetes", (442, 10)),
    ],
)
def test_tables_are_standardised_on_training_and_hold_every_example_once(name, shape):
    split = datasets.load_table(name, test_fraction=0.25, seed=4)
    inputs = np.concatenate([split.train_inputs, split.test_inputs])
    assert inputs.shape == shape
    assert len(split.test_inputs) == round(shape[0] * 0.25)
    assert inputs.dtype == np.float32
    mean, deviation = split.train_inputs.mean(0), split.train_inputs.std(0)
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    np.testing.assert_allclose(deviation[deviation > 0], 1, atol=1e-5)
    source = getattr(importlib.import_module("sklearn.datasets"), f"load_{name}")()
    labels = np.concatenate([split.train_labels, split.test_labels])
    np.testing.assert_allclose(np.sort(labels), np.sort(source.target))
    assert labels.dtype == (np.float32 if name == "diabetes" else np.int32)
    assert len(split.label_names) == (0 if name == "diabetes" else len(set(source.target)))


def test_the_split_is_the_same_every_time_and_another_for_another_seed():
    first, again, other = (datasets.load_table("wine", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test_inputs, again.test_inputs)
    assert not np.array_equal(first.test_labels, other.test_labels)


def test_digits_are_pictures_between_zero_and_one():
    split = datasets.load_digits()
    assert split.train_inputs.shape == (1438, 8, 8, 1)
    assert (split.train_inputs.min(), split.train_inputs.max()) == (0, 1)
    assert set(split.test_labels.tolist()) == set(range(10))


def test_an_unknown_table_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'breast_cancer'"):
        datasets.load_table("breast-cancer")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"sklearn .* pip install 'jaxkit\[datasets\]'"):
        datasets.load_digits()


def test_the_room_loads_no_optional_package():
    code = (
        "import sys, jaxkit.datasets; print([m for m in ('sklearn', 'grain', 'tokenizers',"
        " 'matplotlib', 'flax') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("u1", 0x08), ("i1", 0x09), ("i2", 0x0B), ("i4", 0x0C), ("f4", 0x0D), ("f8", 0x0E)],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx_files_keep_shape_type_and_values(tmp_path, dtype, code, compress):
    array = np.array([[1, -2, 3], [4, 5, 127]]).astype(dtype)
    (tmp_path / "a").write_bytes(compress(idx(array, code)))
    np.testing.assert_array_equal(array_files.read_idx(tmp_path / "a"), array, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: a first line must name the columns"),
        ("x,y\n", "has no data: 0 lines of 2 features"),
        ("label\n3\n", "has no data: 1 lines of 0 features"),
        ("x,y\n1,2\n\n3\n", "line 4: 2 columns expected, got 1"),
        ("x,y\n1,2\n3,four\n", "line 3: column 'y' must be a finite number, got 'four'"),
        ("x,y\nnan,2\n", "line 2: column 'x' must be a finite number, got 'nan'"),
        ("x,y\n1,inf\n", "line 2: column 'y' must be a finite number, got 'inf'"),
        ("x,y\n1,1e39\n", "line 2: column 'y' must be a finite number, got '1e39'"),
        ("x,label\n1,\n", "line 2: the label is empty"),
        ("x,y\n1,2\n3,\xe9\n", "after line"),
    ],
)
def test_csv_errors_name_the_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        array_files.read_csv(tmp_path / "a.csv")
    assert "a.csv" in str(error.value)


GOOD = idx(IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG1234", "is not an IDX file: it starts with 0x89504e47"),
        (b"", "is not an IDX file"),
        (GOOD[:9], "truncated inside its header of 16 bytes"),
        (GOOD[:-1], r"is truncated: shape \(10, 4, 3\) needs 136 bytes, got 135"),
        (GOOD + b"x", "is too long: .* needs 136 bytes, got 137"),
        (gzip.compress(GOOD, mtime=0)[:-9], "is truncated or damaged gzip"),
        (gzip.compress(GOOD, mtime=0)[:20] + b"\xff" * 20, "is truncated or damaged gzip"),
    ],
)
def test_idx_errors_name_the_file(tmp_path, content, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        array_files.read_idx(tmp_path / "train-images-idx3-ubyte")
    assert "train-images-idx3-ubyte" in str(error.value)


def test_a_truncated_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match="is truncated or not an NPZ file"):
        array_files.read_npz(tmp_path / "a.npz")


def test_a_table_of_the_user_is_standardised_and_its_labels_numbered(tmp_path):
    (tmp_path / "a.csv").write_text('x,label\n1,"cat, old"\n3,ant\n5,dog\n')
    split = datasets.load_table(str(tmp_path / "a.csv"), test_fraction=0.3)
    assert split.label_names == ("ant", "cat, old", "dog")
    np.testing.assert_allclose(split.train_inputs.mean(), 0, atol=1e-6)
    (tmp_path / "a.csv").write_text("x,label,y\n1,7,2\n\n3,8,4\n5,9,6\n")
    split = datasets.load_table(tmp_path / "a.csv")
    assert (split.train_labels.dtype, split.label_names) == (np.int32, ())
    (tmp_path / "a.csv").write_text("x,label\n1,1.5\n2,2.5\n")
    with pytest.raises(ValueError, match=r"integers or names, got numbers such as '1\.5'"):
        datasets.load_table(tmp_path / "a.csv")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_a_test_fraction_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(ValueError, match="test_fraction must be finite and in"):
        datasets.load_table("iris", test_fraction=fraction)


def test_a_constant_feature_is_only_shifted():
    split = splits.standardise(splits.split_arrays(np.full((10, 2), 7.1), None))
    np.testing.assert_allclose(split.train_inputs, 0, atol=1e-6)
    np.testing.assert_allclose(split.test_inputs, 0, atol=1e-6)


def test_labels_must_be_as_many_as_inputs(bad_input):
    with pytest.raises(ValueError, match="test_labels must be as many as the inputs, got 1"):
        datasets.ArraySplit(IMAGES, LABELS, IMAGES, LABELS[:1])
    with pytest.raises(ValueError, match="labels must be 10 like the inputs, got 3"):
        splits.split_arrays(IMAGES, LABELS[:3])
