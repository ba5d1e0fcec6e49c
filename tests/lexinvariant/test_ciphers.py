import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx


@pytest.mark.parametrize("window", range(3))
def test_votes_and_precision_are_those_of_the_reference(window, vectors):
    case = vectors["cipher_key_vote"]
    expected = case["windows"][window]
    cipher, deciphered = jnp.asarray(case["cipher"]), jnp.asarray(case["deciphered"])
    vote = jax.jit(lx.cipher_key_vote, static_argnums=2)
    found = vote(cipher, deciphered, 6, expected["start"], expected["size"])
    key = {str(c): int(p) for c, p in enumerate(found) if p >= 0}
    assert key == expected["key"]
    true_cipher = np.zeros(6, int)
    for symbol, plain in case["truth"].items():
        true_cipher[plain] = int(symbol)
    precision = float(lx.key_precision(found, jnp.asarray(true_cipher)))
    assert precision == pytest.approx(expected["precision"])


def test_a_random_cipher_is_one_to_one_on_its_symbols_and_leaves_the_others():
    plain, images = np.arange(3, 8), np.arange(10, 20)
    seen = set()
    for seed in range(40):
        cipher = np.asarray(lx.random_cipher(jax.random.key(seed), 20, plain, images))
        assert len(set(cipher[plain])) == 5
        assert set(cipher[plain]) <= set(images)
        rest = np.setdiff1d(np.arange(20), plain)
        assert np.array_equal(cipher[rest], rest)
        seen |= set(cipher[plain])
    assert seen == set(images)


def test_the_assigned_key_is_the_best_of_all_one_to_one_keys():
    rng = np.random.default_rng(0)
    assign = jax.jit(lx.cipher_key_assignment)
    for _ in range(5):
        log_probs = jnp.asarray(np.log(rng.dirichlet(np.full(5, 0.3), 12) + 1e-3), jnp.float32)
        cipher = jnp.asarray(rng.integers(0, 4, 12))  # the symbol 4 does not occur
        found = np.asarray(assign(cipher, log_probs, 1, 9))
        part, guesses = np.asarray(cipher)[1:10], np.asarray(log_probs, np.float64)[1:10]

        def total(key, part=part, guesses=guesses):
            return sum(guesses[t, key[c]] for t, c in enumerate(part))

        best = max(total(key) for key in itertools.permutations(range(5)))
        occurring = np.isin(np.arange(5), part)
        assert np.array_equal(found >= 0, occurring)
        assert len(set(found[occurring])) == occurring.sum()
        assert total(found) == pytest.approx(best, abs=1e-4)


def test_precision_counts_only_the_symbols_asked_for():
    found, cipher = jnp.array([1, 0, 2]), jnp.array([1, 0, 2])
    assert float(lx.key_precision(found.at[2].set(0), cipher, jnp.array([0, 1]))) == 1.0
    assert np.isnan(float(lx.key_precision(jnp.full(3, -1), cipher)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: lx.random_cipher(k, 5, [1, 1]), "plain must be different ids"),
        (lambda k: lx.random_cipher(k, 5, [1, 5]), r"ids in \[0, 5\)"),
        (lambda k: lx.random_cipher(k, 5, [1, 2], [3]), "images must be at least the 2 symbols"),
        (lambda k: lx.cipher_key_vote(jnp.zeros(3, int), jnp.zeros(3, int), 2, -1), "start"),
        (lambda k: lx.cipher_key_vote(jnp.zeros(3, int), jnp.zeros(3, int), 2, 0, 0), "size"),
        (lambda k: lx.cipher_key_vote(jnp.zeros(3, int), jnp.zeros(2, int), 2), "deciphered must"),
        (lambda k: lx.key_precision(jnp.arange(3), jnp.arange(4)), "found must have shape"),
    ],
)
def test_bad_input_is_refused(call, message, bad_input):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
