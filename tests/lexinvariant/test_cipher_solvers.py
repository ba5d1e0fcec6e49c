import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import datasets
from jaxkit import lexinvariant as lx
from jaxkit.lexinvariant import cipher_solvers


def letters(text):
    kept = np.frombuffer(text.lower().encode("ascii", "replace"), np.uint8).astype(int)
    ids = np.where((kept >= 97) & (kept <= 122), kept - 96, 0)
    return ids[(ids > 0) | (np.roll(ids, 1) > 0)]


@pytest.fixture(scope="module")
def prose():
    split = datasets.embedded_prose()
    return letters(split.train.text()), letters(split.validation.text())


def test_the_table_backs_off_as_counting_in_dictionaries_does():
    tokens = [0, 1, 2, 0, 1, 0, 0, 2, 1, 0, 1, 2, 2, 0]
    table = np.exp(np.asarray(lx.backoff_table(np.array(tokens), 4, 2)))

    def q(context, v):
        shorter = 1 / 4 if context is None else q(context[1:] if context else None, v)
        if context is None:
            return shorter
        n = len(context)
        seen = [tokens[s] for s in range(n, len(tokens)) if tokens[s - n : s] == list(context)]
        if not seen:
            return shorter
        return (seen.count(v) + len(set(seen)) * shorter) / (len(seen) + len(set(seen)))

    for far, near, v in itertools.product(range(4), repeat=3):
        assert table[far, near, v] == pytest.approx(q((far, near), v), rel=1e-5)
        assert table[4, near, v] == pytest.approx(q((near,), v), rel=1e-5)
        assert table[4, 4, v] == pytest.approx(q((), v), rel=1e-5)
    np.testing.assert_allclose(table[:4, :4].sum(axis=-1), 1, atol=1e-5)


def test_a_key_scores_the_log_probability_of_the_text_it_gives():
    tokens = np.array([0, 1, 2, 0, 1, 0, 0, 2, 1, 0, 1, 2, 2, 0])
    table = lx.backoff_table(tokens, 3, 2)
    cipher, key = jnp.array([2, 0, 1, 2, 0]), jnp.array([1, 2, 0])
    plain = np.asarray(key[cipher])
    expected = sum(
        float(table[tuple(plain[t - b] if t >= b else 3 for b in (2, 1))][plain[t]])
        for t in range(5)
    )
    assert float(cipher_solvers.key_score(key, cipher, table)) == pytest.approx(expected, rel=1e-5)
    # Without the symbol 0, positions 1 and 4 score nothing and cut the context of what follows.
    partial = table[3, 3, plain[0]] + table[3, 3, plain[2]] + table[3, plain[2], plain[3]]
    found = float(cipher_solvers.key_score(key.at[0].set(-1), cipher, table))
    assert found == pytest.approx(float(partial), rel=1e-5)


def test_frequency_matching_inverts_a_cipher_whose_counts_are_exact():
    unigram = jnp.array([0.1, 0.4, 0.2, 0.3])
    cipher = lx.random_cipher(jax.random.key(0), 4)
    text = jnp.repeat(jnp.arange(4), jnp.array([1, 4, 2, 3]), total_repeat_length=10)
    found = lx.match_frequencies(cipher[text], unigram)
    assert np.array_equal(found[cipher], np.arange(4))


@pytest.mark.parametrize("solver", [pytest.param("climb", marks=pytest.mark.slow), "beam"])
def test_solvers_read_a_cipher_of_real_prose(solver, prose):
    train, validation = prose
    table = lx.backoff_table(train, 27, 2)
    cipher = lx.random_cipher(jax.random.key(1), 27)
    text = jnp.asarray(validation[1000:1256])
    hidden = cipher[text]
    if solver == "climb":
        solve = jax.jit(lambda c, k: lx.climb_key(c, table, k, num_restarts=4, num_steps=4000))
        key = solve(hidden, jax.random.key(0))
    else:
        key = jax.jit(lambda c: lx.beam_search_key(c, table, 64))(hidden)
    assert np.array_equal(np.sort(key), np.arange(27))
    error = float(jnp.mean(key[hidden] != text))
    by_frequency = lx.match_frequencies(hidden, table[27, 27])
    assert error < 0.1 < 0.5 < float(jnp.mean(by_frequency[hidden] != text))


def test_a_ciphertext_of_one_symbol_is_solved_without_error():
    table = lx.backoff_table(np.array([0, 0, 1, 0]), 2, 1)
    assert lx.beam_search_key(jnp.array([1, 1]), table, 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: lx.backoff_table(np.array([0, 3]), 3, 1), r"ids in \[0, 3\)"),
        (lambda t: lx.backoff_table(np.array([], int), 3, 1), "non-empty"),
        (lambda t: lx.backoff_table(np.array([0]), 128, 4), "more than 2\\^26"),
        (lambda t: lx.backoff_table(np.array([0]), 3, 0), "order"),
        (lambda t: lx.beam_search_key(jnp.zeros(2, int), t, 0), "beam_width"),
        (lambda t: lx.beam_search_key(jnp.array([0, 2]), t), r"ids in \[0, 2\).*got 0 to 2"),
        (lambda t: lx.climb_key(jnp.array([-1, 0]), t, jax.random.key(0)), "got -1 to 0"),
        (lambda t: lx.match_frequencies(jnp.zeros(0, int), t[0]), "at least one, got none"),
        (
            lambda t: lx.climb_key(jnp.zeros(2, int), t, jax.random.key(0), num_restarts=0),
            "num_restarts",
        ),
        (
            lambda t: lx.climb_key(jnp.zeros(2, int), t, jax.random.key(0), temperature=-1.0),
            "temperature",
        ),
    ],
)
def test_bad_input_is_refused(call, message, bad_input):
    table = cipher_solvers.backoff_table(np.array([0, 1, 0]), 2, 1)
    with pytest.raises(ValueError, match=message):
        call(table)
