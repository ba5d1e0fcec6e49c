import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import datasets


@hypothesis.given(
    st.integers(2, 90), st.integers(1, 12), st.sampled_from([2, 4, 6]), st.sampled_from([1, 2])
)
def test_every_token_but_the_first_is_a_target_once(num_tokens, length, batch_size, processes):
    hypothesis.assume(num_tokens > length)
    tokens = np.arange(num_tokens, dtype=np.uint16)
    targets = []
    for index in range(processes):
        batches = datasets.evaluation_batches(
            tokens,
            sequence_length=length,
            batch_size=batch_size,
            process_index=index,
            process_count=processes,
        )
        for batch in batches:
            assert batch["tokens"].shape == (batch_size // processes, length + 1)
            assert batch["mask"].shape == (batch_size // processes, length)
            targets.append(batch["tokens"][:, 1:][batch["mask"]])
            inputs = batch["tokens"][:, :-1][batch["mask"]]
            np.testing.assert_array_equal(targets[-1], inputs + 1)
            np.testing.assert_array_equal(batch["tokens"][:, 1:][~batch["mask"]], 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(targets)), np.arange(1, num_tokens))


def test_batches_are_the_same_at_every_pass_and_by_slice():
    batches = datasets.evaluation_batches(np.arange(50), sequence_length=4, batch_size=4)
    first, second = list(batches), batches[:]
    assert len(batches) == len(first) == 4
    for left, right in zip(first, second, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    np.testing.assert_array_equal(batches[-1]["index"], first[3]["index"])
    with pytest.raises(IndexError, match="batch must be below 4, got 4"):
        batches[4]


@pytest.mark.parametrize("max_windows", [1, 3, 7, 12, 99])
def test_fewer_windows_are_spread_evenly(max_windows):
    batches = datasets.evaluation_batches(
        np.arange(49), sequence_length=4, batch_size=4, max_windows=max_windows
    )
    assert batches.num_windows == min(max_windows, 12)
    starts = np.concatenate([b["tokens"][b["mask"].any(1), 0] for b in batches])
    assert len(starts) == batches.num_windows
    gaps = np.diff(np.append(starts // 4, 12))
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 50}, "sequence_length = 50 needs at least 51 tokens, got 50"),
        ({"max_windows": 0}, "max_windows must be an integer >= 1, got 0"),
        ({"process_count": 3}, "batch_size must be divisible by process_count = 3, got 4"),
    ],
)
def test_bad_numbers_are_refused_by_name(change, message):
    good = {"sequence_length": 4, "batch_size": 4}
    with pytest.raises(ValueError, match=message):
        datasets.evaluation_batches(np.arange(50), **{**good, **change})
