"""How examples are divided over clients."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxkit import federated as fl
from jaxkit.federated import partitions

LABELS = np.arange(2000) % 10


@pytest.mark.parametrize("concentration", [0.1, 1.0])
def test_refilled_splits_give_equal_clients_and_the_remainder_to_the_first(concentration):
    parts = fl.dirichlet_partition(LABELS[:1003], 20, concentration)
    assert [len(p) for p in parts] == [53, *[50] * 19]


@hypothesis.given(st.integers(1, 10), st.integers(0, 2**16))
def test_pathological_clients_hold_at_most_c_classes(count, seed):
    parts = fl.pathological_partition(LABELS[:300], 20, count, seed=seed)
    held = (fl.label_counts(LABELS[:300], parts) > 0).sum(axis=1)
    assert held.max() <= count
    assert {len(p) for p in parts} == {15}


def test_a_class_is_used_up_before_any_of_it_is_used_again():
    labels = np.array([0] * 5 + [1] * 95)
    parts = partitions.refilled_partition(labels, np.tile([1.0, 0.0], (4, 1)), samples_per_client=3)
    used = np.bincount(np.concatenate(parts), minlength=100)
    assert used[:5].sum() == 12
    assert set(used[:5].tolist()) == {2, 3}
    assert used[5:].sum() == 0


def test_mean_class_prior_is_even_and_large_concentration_is_iid():
    spread = [
        fl.label_counts(LABELS, fl.dirichlet_partition(LABELS, 100, a, seed=1)) / 20
        for a in (0.3, 1e5)
    ]
    np.testing.assert_allclose(spread[0].mean(axis=0), 0.1, atol=0.07)
    # 20 draws of 10 even classes: variance 0.09/20 a cell, as an IID client has.
    assert spread[1].var() == pytest.approx(0.09 / 20, rel=0.1)


def distance(split):
    """Mean total variation between the clients' classes and those of all examples."""
    counts = fl.label_counts(LABELS, split)
    whole = np.bincount(LABELS) / len(LABELS)
    return np.abs(counts / counts.sum(1, keepdims=True) - whole).sum(1).mean() / 2


@pytest.mark.parametrize("split", [fl.dirichlet_partition, fl.class_dirichlet_partition])
def test_heterogeneity_falls_with_concentration(split):
    means = [distance(split(LABELS, 20, a, seed=2)) for a in (0.1, 1, 100)]
    assert means[0] > means[1] > means[2]


def test_per_class_split_divides_every_example_once_into_unequal_clients():
    parts = fl.class_dirichlet_partition(LABELS, 15, 0.3, min_examples=5)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(2000))
    sizes = [len(p) for p in parts]
    assert min(sizes) >= 5
    assert len(set(sizes)) > 5


def test_iid_split_covers_everything_in_almost_equal_parts():
    parts = fl.iid_partition(103, 10)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(103))
    assert {len(p) for p in parts} == {10, 11}


@pytest.mark.parametrize(
    "split",
    [
        lambda seed: fl.dirichlet_partition(LABELS, 7, 0.5, seed=seed),
        lambda seed: fl.pathological_partition(LABELS, 7, 3, seed=seed),
        lambda seed: fl.class_dirichlet_partition(LABELS, 7, 0.5, seed=seed),
        lambda seed: fl.iid_partition(2000, 7, seed=seed),
    ],
)
def test_a_split_is_its_seed(split):
    same = [a.tolist() == b.tolist() for a, b in zip(split(1), split(1), strict=True)]
    other = [a.tolist() == b.tolist() for a, b in zip(split(1), split(2), strict=True)]
    assert all(same)
    assert not all(other)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: fl.dirichlet_partition(LABELS, 5, 0.0),
            ValueError,
            r"concentration must be finite and in \(0, 1e\+300\], got 0.0",
        ),
        (lambda: fl.class_dirichlet_partition(LABELS, 5, -1), ValueError, "concentration"),
        (lambda: fl.dirichlet_partition(LABELS, 5, 1e308), ValueError, r"in \(0, 1e\+300\]"),
        (
            lambda: fl.class_dirichlet_partition(LABELS, 5, np.ones(10)),
            TypeError,
            "concentration must be one number",
        ),
        (lambda: fl.iid_partition(10, 2, seed=-1), ValueError, "seed must be an integer >= 0"),
        (lambda: fl.iid_partition(10.5, 2), TypeError, "num_examples must be an integer"),
        (lambda: fl.label_counts([0, 1], [np.array([5])]), ValueError, "the 2 labels, got 5"),
        (
            lambda: fl.pathological_partition(LABELS, 5, 0),
            ValueError,
            "classes_per_client must be an integer >= 1, got 0",
        ),
        (
            lambda: fl.pathological_partition(LABELS, 5, 11),
            ValueError,
            r"classes_per_client must be in \[1, 10\], got 11",
        ),
        (
            lambda: fl.pathological_partition(LABELS, 5, 2.5),
            TypeError,
            "classes_per_client must be an integer, got 2.5",
        ),
        (
            lambda: fl.dirichlet_partition([0, -1], 1, 1.0),
            ValueError,
            r"labels must be in \[0, 1\), got -1..0",
        ),
        (
            lambda: fl.dirichlet_partition([0, 2], 1, 1.0),
            ValueError,
            r"every class below 3, got none of \[1\]",
        ),
        (lambda: fl.label_counts([0, 5], [np.array([0])], 3), ValueError, r"in \[0, 3\), got 0..5"),
        (lambda: fl.iid_partition(3, 5), ValueError, "at most 3 clients, got 5"),
        (lambda: fl.iid_partition(3, 0), ValueError, "num_clients must be an integer >= 1"),
        (
            lambda: fl.class_dirichlet_partition(LABELS[:20], 10, 1e-3),
            ValueError,
            "left a client with fewer than 1 examples",
        ),
    ],
)
def test_bad_splits_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
