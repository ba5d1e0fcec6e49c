import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from jaxkit import datasets

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
    source = getattr(sklearn_datasets, f"load_{name}")()
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
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "a"), array, strict=True)


def write_pair(folder, part, images, labels, *, dot="-", end=""):
    pack = gzip.compress if end else bytes
    (folder / f"{part}-images{dot}idx3-ubyte{end}").write_bytes(pack(idx(images)))
    (folder / f"{part}-labels{dot}idx1-ubyte{end}").write_bytes(pack(idx(labels)))


@pytest.mark.parametrize("style", [{}, {"end": ".gz"}, {"dot": "."}])
def test_a_folder_of_idx_files_keeps_its_published_split(tmp_path, style):
    write_pair(tmp_path, "train", IMAGES, LABELS, **style)
    write_pair(tmp_path, "t10k", IMAGES[:2], LABELS[:2], **style)
    split = datasets.load_images(tmp_path)
    np.testing.assert_allclose(split.train_inputs, IMAGES[..., None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(split.train_labels, LABELS)
    assert split.test_inputs.shape == (2, 4, 3, 1)
    assert (split.train_inputs.dtype, split.train_labels.dtype) == (np.float32, np.int32)


def test_one_pair_of_idx_files_is_split(tmp_path):
    write_pair(tmp_path, "t10k", IMAGES, LABELS)
    by_folder = datasets.load_images(tmp_path, test_fraction=0.3)
    by_file = datasets.load_images(tmp_path / "t10k-images-idx3-ubyte", test_fraction=0.3)
    assert len(by_folder.test_labels) == 3
    np.testing.assert_array_equal(by_folder.test_labels, by_file.test_labels)
    (tmp_path / "other").write_bytes(idx(LABELS[::-1]))
    named = datasets.load_images(
        tmp_path / "t10k-images-idx3-ubyte", labels_path=tmp_path / "other", test_fraction=0.3
    )
    np.testing.assert_array_equal(named.test_labels, 9 - by_file.test_labels)


def test_real_digits_are_read(shared_data):
    split = datasets.load_images(shared_data("mnist10k"))
    assert split.train_inputs.shape == (8000, 28, 28, 1)
    assert np.bincount(split.test_labels).min() > 150


@pytest.mark.parametrize(
    "names",
    [
        ("train_inputs", "train_labels", "test_inputs", "test_labels"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_npz_files_keep_their_split(tmp_path, names):
    np.savez(
        tmp_path / "a.npz",
        **dict(zip(names, (IMAGES, LABELS[:, None], IMAGES, LABELS), strict=True)),
    )
    split = datasets.load_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(split.train_labels, LABELS)
    np.testing.assert_array_equal(split.train_inputs, split.test_inputs)


def test_npz_features_need_no_labels_and_are_not_scaled(tmp_path):
    features = np.random.default_rng(0).normal(size=(10, 3)) * 1000
    np.savez_compressed(tmp_path / "a.npz", inputs=features)
    split = datasets.load_images(tmp_path / "a.npz", test_fraction=0.5)
    assert split.train_labels is None
    assert split.test_labels is None
    both = np.concatenate([split.train_inputs, split.test_inputs])
    np.testing.assert_array_equal(np.sort(both[:, 0]), np.sort(features[:, 0].astype(np.float32)))


def test_csv_labels_are_integers_or_names_in_alphabetical_order(tmp_path):
    (tmp_path / "a.csv").write_text("x,label,y\n1,7,2\n\n3,8,4\n5,9,6\n")
    split = datasets.load_images(tmp_path / "a.csv")
    assert (split.train_labels.dtype, split.label_names) == (np.int32, ())
    (tmp_path / "b.csv").write_text('x,label\n1,"cat, old"\n3,ant\n5,dog\n')
    split = datasets.load_images(tmp_path / "b.csv")
    assert split.label_names == ("ant", "cat, old", "dog")
    pairs = {1: 1, 3: 0, 5: 2}
    for inputs, labels in (
        (split.train_inputs, split.train_labels),
        (split.test_inputs, split.test_labels),
    ):
        assert [pairs[x] for x in inputs[:, 0]] == labels.tolist()
    (tmp_path / "c.csv").write_text("x,y\n1,2\n3,4\n")
    assert datasets.load_images(tmp_path / "c.csv").train_labels is None


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
        datasets.load_images(tmp_path / "a.csv")
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
        (idx(IMAGES[:9]), r"has 9 inputs, but labels of shape \(10,\)"),
    ],
)
def test_idx_errors_name_the_file(tmp_path, content, message):
    write_pair(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        datasets.load_images(tmp_path)
    assert "train-images-idx3-ubyte" in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES}, r"must hold arrays named like .* got \['a'\]"),
        ({"x": IMAGES, "y": LABELS[:3]}, r"\(x\) has 10 inputs, but labels of shape \(3,\)"),
        ({"x": IMAGES, "y": LABELS / 2}, "must have integer labels, got float64"),
        ({"x": IMAGES, "y": LABELS + np.int64(2**40)}, "has labels beyond int32"),
        ({"x": np.full((3, 2), np.nan)}, "has numbers that are not finite float32"),
        ({"x": np.full((3, 2), 1e300)}, "has numbers that are not finite float32"),
        ({"x": np.array(["a", "b"])}, "must be numbers"),
        ({"x": np.zeros((0, 4))}, r"must be numbers \[examples, ...\], got float64\[0, 4\]"),
        ({"x": np.zeros((1, 4))}, "inputs must be at least 2 examples to split, got 1"),
        ({"x": np.array([{}], object)}, "array 'x' cannot be read: Object arrays"),
    ],
)
def test_npz_errors_name_the_array(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.load_images(tmp_path / "a.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match="is truncated or not an NPZ file"):
        datasets.load_images(tmp_path / "a.npz")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        datasets.load_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no images: a folder must hold"):
        datasets.load_images(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"needs a label file: .*train-labels-idx1-ubyte"):
        datasets.load_images(tmp_path)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_a_test_fraction_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(ValueError, match="test_fraction must be finite and in"):
        datasets.load_table("iris", test_fraction=fraction)


def test_a_constant_feature_is_only_shifted():
    split = datasets.standardise(datasets.split_arrays(np.full((10, 2), 7.1), None))
    np.testing.assert_allclose(split.train_inputs, 0, atol=1e-6)
    np.testing.assert_allclose(split.test_inputs, 0, atol=1e-6)


def test_labels_must_be_as_many_as_inputs(bad_input):
    with pytest.raises(ValueError, match="test_labels must be as many as the inputs, got 1"):
        datasets.ArraySplit(IMAGES, LABELS, IMAGES, LABELS[:1])
    with pytest.raises(ValueError, match="labels must be 10 like the inputs, got 3"):
        datasets.split_arrays(IMAGES, LABELS[:3])
