import itertools
import json
import sys

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import datasets
from jaxkit.datasets import order

SIZES = st.fixed_dictionaries(
    {
        "num_tokens": st.integers(2, 90),
        "sequence_length": st.integers(1, 12),
        "batch_size": st.sampled_from([1, 2, 4, 6]),
        "seed": st.integers(0, 2**33),
    }
).filter(lambda sizes: sizes["num_tokens"] > sizes["sequence_length"])


def stream(num_tokens, **options):
    # Each token is its own position, so that a window shows where it was cut.
    return datasets.token_batches(np.arange(num_tokens, dtype=np.uint32), **options)


def table(examples, **options):
    inputs = np.arange(examples * 3, dtype=np.float32).reshape(examples, 3)
    return datasets.array_batches(inputs, np.arange(examples), **options)


def take(batches, count):
    found = list(itertools.islice(batches, count))
    return {name: np.concatenate([b[name] for b in found]) for name in found[0]}


def equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@hypothesis.given(SIZES, st.integers(0, 30), st.integers(0, 8), st.sampled_from([0, 2]))
def test_resuming_anywhere_continues_bit_for_bit(sizes, before, ahead, num_threads):
    straight = stream(**sizes)
    take(straight, before + 1)
    state = json.loads(json.dumps(straight.get_state()))
    resumed = stream(**sizes, num_threads=num_threads)
    take(resumed, ahead + 1)
    resumed.set_state(state)
    assert resumed.get_state() == straight.get_state()
    equal(take(resumed, 10), take(straight, 10))


@hypothesis.given(SIZES, st.sampled_from([1, 2, 3, 6]))
def test_the_global_batch_does_not_depend_on_the_number_of_processes(sizes, process_count):
    sizes["batch_size"] = 6
    alone = stream(**sizes)
    several = [
        stream(**sizes, process_index=i, process_count=process_count) for i in range(process_count)
    ]
    for number in range(8):
        batch = next(alone)
        equal(batch, take((next(process) for process in several), process_count))
        np.testing.assert_array_equal(batch["index"], number * 6 + np.arange(6))


@hypothesis.given(SIZES, st.integers(1, 20))
def test_a_state_moves_to_another_number_of_processes(sizes, steps):
    sizes["batch_size"] = 4
    alone, second = stream(**sizes), stream(**sizes, process_index=1, process_count=2)
    take(alone, steps)
    second.set_state(alone.get_state())
    equal({k: v[2:] for k, v in next(alone).items()}, next(second))


@hypothesis.given(SIZES, st.booleans())
def test_every_window_is_seen_once_an_epoch_and_each_target_at_most_once(sizes, shuffle):
    sizes["batch_size"] = 1
    length = sizes["sequence_length"]
    batches = stream(**sizes, shuffle=shuffle)
    for _ in range(3):
        tokens = take(batches, batches.examples_per_epoch)["tokens"]
        np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)
        starts = np.sort(tokens[:, 0])
        np.testing.assert_array_equal(np.diff(starts), length)
        assert tokens.max() < sizes["num_tokens"]
        # Fewer than two windows' targets are left out, in front and behind together.
        assert sizes["num_tokens"] - 1 - tokens[:, 1:].size < length * (2 if shuffle else 1)


@hypothesis.given(st.integers(0, 2**31))
def test_order_differs_by_epoch_and_by_seed(seed):
    batches = stream(1000, sequence_length=10, batch_size=1, seed=seed)
    epochs = [take(batches, batches.examples_per_epoch)["tokens"] // 10 for _ in range(3)]
    next_seed = stream(1000, sequence_length=10, batch_size=1, seed=seed + 1)
    epochs += [take(next_seed, next_seed.examples_per_epoch)["tokens"] // 10 for _ in range(2)]
    for left, right in itertools.combinations(epochs, 2):
        # A uniform permutation keeps one window in its place on average.
        assert np.sum(np.all(left == right, axis=1)) < 10


def test_offsets_reach_every_alignment_and_every_token():
    batches = stream(50, sequence_length=8, batch_size=(50 - 8) // 8, seed=0)  # one epoch a batch
    assert batches.examples_per_epoch == 5
    starts, seen = set(), set()
    for batch in itertools.islice(batches, 400):
        starts.add(int(batch["tokens"].min()) % 8)
        seen.update(batch["tokens"].ravel().tolist())
    assert starts == set(range(8))
    assert seen == set(range(50))


def test_first_places_of_an_epoch_are_uniform_over_windows():
    counts = np.zeros(5)
    for seed in range(2000):
        examples = order.ExampleOrder(5, seed=seed)
        counts[examples.locate(np.array([0]))[1][0]] += 1
    # Each count is binomial(2000, 1/5): standard deviation 17.9.
    assert np.abs(counts - 400).max() < 4 * 17.9


def test_without_shuffle_windows_come_in_order_again_and_again():
    batches = stream(13, sequence_length=4, batch_size=2, seed=0, shuffle=False)
    np.testing.assert_array_equal(take(batches, 3)["tokens"][:, 0], [0, 4, 8, 0, 4, 8])


def test_epochs_end_the_stream_after_the_last_full_batch():
    batches = stream(41, sequence_length=4, batch_size=4, seed=0, shuffle=False, num_epochs=3)
    assert batches.examples_per_epoch == 10
    assert len(list(batches)) == 30 // 4
    with pytest.raises(StopIteration):
        next(batches)


def test_batches_have_the_promised_types_and_reach_a_device_without_warning():
    batch = next(stream(99, sequence_length=8, batch_size=4, seed=0))
    assert (batch["tokens"].dtype, batch["tokens"].shape) == (np.int32, (4, 9))
    assert (batch["index"].dtype, batch["index"].shape) == (np.int64, (4,))
    assert jax.device_put(batch)["index"].tolist() == [0, 1, 2, 3]


def test_mapped_and_held_tokens_give_the_same_batches(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    np.save(tmp_path / "a.npy", tokens)
    options = {"sequence_length": 7, "batch_size": 5, "seed": 1}
    mapped = datasets.token_batches(np.load(tmp_path / "a.npy", mmap_mode="r"), **options)
    equal(take(mapped, 9), take(datasets.token_batches(tokens, **options), 9))


def test_the_state_stays_small_and_is_reached_without_replay(monkeypatch):
    batches = stream(10_000, sequence_length=10, batch_size=10, seed=0)
    state = batches.get_state()
    state["step"] = 10**15
    reads = []
    locate = order.ExampleOrder.locate
    monkeypatch.setattr(
        order.ExampleOrder, "locate", lambda self, i: reads.append(i) or locate(self, i)
    )
    batches.set_state(state)
    assert next(batches)["index"][0] == 10**16
    assert len(reads) == 1
    assert len(json.dumps(batches.get_state())) < 250


@pytest.mark.parametrize("name", ["num_tokens", "sequence_length", "batch_size", "seed"])
def test_a_state_of_another_stream_is_refused_by_name(name):
    sizes = {"num_tokens": 100, "sequence_length": 8, "batch_size": 4, "seed": 3}
    state = stream(**sizes).get_state()
    with pytest.raises(ValueError, match=f"another stream: {name} was {sizes[name]} there, is"):
        stream(**{**sizes, name: sizes[name] + 1}).set_state(state)


@pytest.mark.parametrize("state", [{}, {"step": -1, "stream": {}}])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ValueError, match="state must come from get_state"):
        stream(99, sequence_length=8, batch_size=4, seed=0).set_state(state)


@hypothesis.given(
    st.integers(1, 30),
    st.sampled_from([2, 4]),
    st.integers(0, 100),
    st.integers(0, 9),
    st.booleans(),
)
def test_arrays_keep_the_same_contract(examples, batch_size, seed, steps, shuffle):
    options = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    alone = table(examples, **options)
    halves = [table(examples, **options, process_index=i, process_count=2) for i in (0, 1)]
    epochs = take(alone, examples)  # batch_size whole epochs
    for epoch in epochs["labels"].reshape(batch_size, examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(examples))
    np.testing.assert_array_equal(epochs["inputs"][:, 0], 3 * epochs["labels"])
    resumed = table(examples, **options)
    take(resumed, steps + 1)
    for half in halves:
        half.set_state(resumed.get_state())
    for _ in range(4):
        equal(next(resumed), take((next(half) for half in halves), 2))


def test_arrays_without_labels_have_none():
    batch = next(datasets.array_batches(np.eye(4), batch_size=2, seed=0))
    assert set(batch) == {"inputs", "index"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_tokens": 8}, ValueError, "sequence_length = 8 needs at least 9 tokens, got 8"),
        ({"sequence_length": 0}, ValueError, "sequence_length must be an integer >= 1, got 0"),
        ({"sequence_length": 2.0}, TypeError, "sequence_length must be an integer, got 2.0"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"process_count": 3}, ValueError, "divisible by process_count = 3, got 4"),
        ({"process_index": 2, "process_count": 2}, ValueError, "below process_count = 2, got 2"),
        ({"num_epochs": 0}, ValueError, "num_epochs must be an integer >= 1"),
        ({"num_epochs": 1, "batch_size": 40}, ValueError, "at most the 11 examples .* got 40"),
        ({"num_threads": -1}, ValueError, "num_threads must be an integer >= 0"),
    ],
)
def test_bad_numbers_are_refused_by_name(bad_input, change, error, message):
    good = {"num_tokens": 100, "sequence_length": 8, "batch_size": 4, "seed": 0}
    with pytest.raises(error, match=message):
        stream(**{**good, **change})


@pytest.mark.parametrize("tokens", [np.zeros(99), np.zeros((9, 9), np.int32)])
def test_tokens_must_be_a_flat_integer_array(bad_input, tokens):
    for batches in (datasets.token_batches, datasets.evaluation_batches):
        options = {"seed": 0} if batches is datasets.token_batches else {}
        with pytest.raises(TypeError, match="tokens must be a flat integer array, got"):
            batches(tokens, sequence_length=4, batch_size=2, **options)


@pytest.mark.parametrize(
    "arrays", [(np.zeros((0, 3)),), (np.zeros((4, 3)), np.zeros(3)), (np.zeros(()),)]
)
def test_arrays_must_have_one_length(bad_input, arrays):
    with pytest.raises(ValueError, match="inputs and labels must have one length >= 1, got"):
        datasets.array_batches(*arrays, batch_size=2, seed=0)


def test_rows_that_make_no_array_are_refused_by_name(bad_input):
    with pytest.raises(TypeError, match="labels must be an array of one type, got objects"):
        datasets.array_batches(np.zeros((2, 1)), np.array([1, "a"], object), batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"inputs must be one array: .* inhomogeneous"):
        datasets.array_batches([(np.ones(3), 1), (np.ones(3), 0)], batch_size=2, seed=0)


def test_without_grain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"grain is not installed: pip install 'jaxkit\[train\]'"):
        stream(99, sequence_length=8, batch_size=4, seed=0)
