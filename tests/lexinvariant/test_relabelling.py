import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import lexinvariant as lx

permute = jax.jit(lx.permute_tokens, static_argnums=2, static_argnames=("per", "closed"))
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 7, (300, 40), np.int32))


@functools.cache
def keys():
    return lx.sequence_keys(jax.random.key(0), jnp.arange(300))


@pytest.mark.parametrize("closed", [False, True])
def test_renaming_everything_is_one_to_one_and_its_inverse_restores_the_text(closed):
    renamed, mapping = permute(keys(), TOKENS, 7, 1.0, closed=closed)
    assert np.array_equal(np.sort(mapping, axis=1), np.broadcast_to(np.arange(7), (300, 7)))
    restored = np.take_along_axis(np.argsort(mapping, axis=1), renamed, axis=1)
    assert np.array_equal(restored, TOKENS)


def test_every_permutation_is_equally_likely():
    keys = lx.sequence_keys(jax.random.key(2), jnp.arange(6000))
    _, mapping = permute(keys, jnp.zeros((6000, 1), int), 3, 1.0)
    _, counts = np.unique(mapping, axis=0, return_counts=True)
    assert len(counts) == 6
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand.
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5


@pytest.mark.parametrize("per", ["type", "position"])
def test_probability_zero_changes_nothing(per):
    renamed, _ = permute(keys(), TOKENS, 7, 0.0, per=per)
    assert np.array_equal(renamed, TOKENS)


@hypothesis.given(p=st.floats(0, 1), seed=st.integers(0, 1000))
def test_closed_renaming_is_one_to_one_at_any_probability(p, seed):
    keys = lx.sequence_keys(jax.random.key(seed), jnp.arange(300))
    renamed, mapping = permute(keys, TOKENS, 7, p, closed=True)
    assert np.array_equal(np.sort(mapping, axis=1), np.broadcast_to(np.arange(7), (300, 7)))
    assert np.array_equal(renamed, np.take_along_axis(np.asarray(mapping), TOKENS, axis=1))


def test_open_renaming_collides_sometimes():
    _, mapping = permute(keys(), TOKENS, 7, 0.5)
    assert any(len(set(row)) < 7 for row in np.asarray(mapping).tolist())


def test_types_are_renamed_with_probability_p_as_a_whole():
    renamed, mapping = permute(keys(), TOKENS, 7, 0.3)
    assert np.array_equal(renamed, np.take_along_axis(np.asarray(mapping), TOKENS, axis=1))
    changed = np.mean(np.asarray(mapping) != np.arange(7))
    # A chosen type keeps its name by chance once in seven.
    assert changed == pytest.approx(0.3 * 6 / 7, abs=4 * np.sqrt(0.25 / 2100))


def test_positions_are_renamed_with_probability_p_each():
    renamed, mapping = permute(keys(), TOKENS, 7, 0.3, per="position")
    image = np.take_along_axis(np.asarray(mapping), TOKENS, axis=1)
    assert np.all((renamed == image) | (renamed == TOKENS))
    differ = image != TOKENS
    share = np.mean(np.asarray(renamed)[differ] == image[differ])
    assert share == pytest.approx(0.3, abs=4 * float(np.sqrt(0.21 / differ.sum())))


def test_a_sequence_is_renamed_alike_in_any_batch():
    whole, _ = permute(keys(), TOKENS, 7, 0.5)
    part, _ = permute(keys()[5:7], TOKENS[5:7], 7, 0.5)
    assert np.array_equal(whole[5:7], part)


def test_the_schedule_rises_to_one_and_stays():
    p = lx.relabelling_schedule(1000, fraction=0.5)
    assert [float(p(t)) for t in (0, 250, 500, 1000, 10**6)] == [0.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lx.permute_tokens(keys(), TOKENS, 7, 1.1), ValueError, "p must be finite"),
        (
            lambda: lx.permute_tokens(keys(), TOKENS, 7, per="word"),
            ValueError,
            "per must be one of",
        ),
        (lambda: lx.permute_tokens(keys()[:2], TOKENS, 7), ValueError, r"shape \(300,\)"),
        (lambda: lx.permute_tokens(keys()[0], TOKENS, 7), ValueError, "one a sequence"),
        (lambda: lx.permute_tokens(keys(), TOKENS * 1.0, 7), TypeError, "must be integers"),
        (lambda: lx.permute_tokens(keys(), TOKENS + 7, 7), ValueError, r"must be in \[0, 7\), got"),
        (lambda: lx.sequence_keys(keys()[0], 3), ValueError, r"index must have shape \[B\]"),
        (
            lambda: lx.permute_tokens(keys(), TOKENS, 7, per="position", closed=True),
            ValueError,
            "closed=True needs per='type'",
        ),
        (lambda: lx.relabelling_schedule(0), ValueError, "total_steps"),
        (lambda: lx.relabelling_schedule(10, 0.0), ValueError, "fraction"),
    ],
)
def test_bad_input_is_refused(call, error, message, bad_input):
    with pytest.raises(error, match=message):
        call()
