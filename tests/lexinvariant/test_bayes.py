"""The exact predictor against golden values, the theory's bounds and its invariances."""

import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import lexinvariant as lx


def language(case):
    fractions = {name: np.array(case[name], np.float64) for name in ("init", "trans")}
    initial, transition = (f[..., 0] / f[..., 1] for f in fractions.values())
    return np.log(initial), np.log(transition)


@pytest.mark.parametrize("case", range(4))
def test_predictions_are_those_of_exact_enumeration(case, vectors):
    case = vectors["bayes_markov"]["cases"][case]
    with jax.enable_x64(True):
        log_initial, log_transition = (jnp.asarray(a) for a in language(case))
        seen = jax.jit(lx.bayes_lexinvariant)(
            log_initial, log_transition, jnp.asarray(case["tokens"])
        )
        assert seen.log_prob.dtype == jnp.float64
        np.testing.assert_allclose(seen.log_prob, case["log_p_prime"], atol=1e-12)
        np.testing.assert_allclose(np.exp(seen.log_predictive), case["predictive"], atol=1e-12)
        np.testing.assert_allclose(seen.decipher, case["decipher"], atol=1e-12)
        assert np.all(seen.possible)
        numerator, denominator = map(int, case["log_p_prime_fraction"])
        assert float(seen.log_prob) == pytest.approx(math.log(numerator / denominator), abs=1e-10)


def test_predictions_in_float32_are_those_of_exact_enumeration_to_rounding(vectors):
    case = vectors["bayes_markov"]["cases"][0]
    found = predict(
        *(jnp.asarray(a, jnp.float32) for a in language(case)), jnp.asarray(case["tokens"])
    )
    np.testing.assert_allclose(np.exp(found.log_predictive), case["predictive"], atol=1e-5)


def random_language(rng, vocab_size, concentration=0.3):
    rows = rng.dirichlet(np.full(vocab_size, concentration), vocab_size)
    rows = 0.98 * rows + 0.02 / vocab_size
    return np.log(rng.dirichlet(np.full(vocab_size, 2.0))), np.log(rows)


def chain_log_prob(log_initial, log_transition, tokens):
    return log_initial[tokens[0]] + log_transition[tokens[:-1], tokens[1:]].sum()


def test_the_regret_bound_holds_on_a_thousand_random_chains_and_is_nearly_reached():
    rng = np.random.default_rng(0)
    largest = 0.0
    for vocab_size, chains in ((3, 500), (5, 500)):
        languages = [random_language(rng, vocab_size, 0.2) for _ in range(chains)]
        # Half of the texts come from the language, half from anywhere.
        texts = rng.integers(0, vocab_size, (chains, 24))
        for i in range(0, chains, 2):
            for t in range(24):
                row = languages[i][1][texts[i, t - 1]] if t else languages[i][0]
                texts[i, t] = rng.choice(vocab_size, p=np.exp(row) / np.exp(row).sum())
        with jax.enable_x64(True):
            stacked = [jnp.asarray(np.stack(a)) for a in zip(*languages, strict=True)]
            exact = jax.jit(jax.vmap(lx.bayes_lexinvariant))(*stacked, jnp.asarray(texts))
            exact = np.asarray(exact.log_prob)
        for i in range(chains):
            regret = chain_log_prob(*languages[i], texts[i]) - exact[i]
            bound = lx.regret_bound(vocab_size, len(set(texts[i].tolist())))
            assert regret <= bound + 1e-9
            largest = max(largest, regret / bound)
    assert largest > 0.99


def test_expected_divergence_and_mean_l1_stay_below_their_bounds():
    """Six symbols over 128 steps, by when every text has given its key away.

    At 64 steps a text or two in a hundred still hides it, which is worth several nats each: the
    mean regret is then 6.55 +- 0.03, and tells little.
    """
    rng = np.random.default_rng(1)
    log_initial, log_transition = (jnp.asarray(a, jnp.float32) for a in random_language(rng, 6))
    chain = lx.MarkovLanguage(log_initial, log_transition)
    texts = lx.sample_markov(jax.random.key(0), chain, 128, 128)

    @jax.jit
    def measure(texts):
        seen = jax.vmap(lx.bayes_lexinvariant, in_axes=(None, None, 0))(
            log_initial, log_transition, texts
        )
        first = jnp.broadcast_to(log_initial, (texts.shape[0], 1, 6))
        truth = jnp.concatenate([first, log_transition[texts[:, :-1]]], axis=1)
        divergence = jnp.sum(jnp.exp(truth) * (truth - seen.log_predictive), axis=-1)
        distance = jnp.sum(jnp.abs(jnp.exp(truth) - jnp.exp(seen.log_predictive)), axis=-1)
        return divergence, distance, seen.log_prob

    divergence, distance, log_prob = measure(texts)
    total = np.asarray(divergence.sum(axis=1))
    assert total.mean() - 4 * total.std() / np.sqrt(128) <= lx.regret_bound(6)
    for length in (16, 32, 64):
        mean = float(distance[:, :length].mean())
        assert mean <= lx.expected_l1_bound(6, length)
    by_position = np.asarray(distance.mean(axis=0))
    assert by_position[48:].mean() < 0.05 < 0.5 < by_position[:2].mean()
    regret = np.array([chain_log_prob(*chain, t) for t in np.asarray(texts)]) - log_prob
    assert regret.mean() == pytest.approx(lx.regret_bound(6), abs=5e-3)


@hypothesis.given(seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=10)
def test_probability_is_a_function_of_the_pattern_alone(seed):
    rng = np.random.default_rng(seed)
    log_initial, log_transition = (jnp.asarray(a, jnp.float32) for a in random_language(rng, 4))
    text = rng.integers(0, 4, 10)
    first_seen = {v: i for i, v in enumerate(dict.fromkeys(text.tolist()))}
    renamed = rng.permutation(4)[text]
    pattern = np.array([first_seen[v] for v in text])
    values = [
        float(predict(log_initial, log_transition, jnp.asarray(t)).log_prob)
        for t in (text, renamed, pattern)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert values[0] == pytest.approx(values[2], abs=1e-4)


predict = jax.jit(lx.bayes_lexinvariant)
predict_all = jax.jit(jax.vmap(lx.bayes_lexinvariant, in_axes=(None, None, 0)))


def test_probabilities_of_all_texts_sum_to_one_and_are_products_of_predictions():
    rng = np.random.default_rng(2)
    log_initial, log_transition = (jnp.asarray(a, jnp.float32) for a in random_language(rng, 3))
    texts = jnp.asarray(list(itertools.product(range(3), repeat=5)))
    seen = predict_all(log_initial, log_transition, texts)
    assert float(jnp.sum(jnp.exp(seen.log_prob))) == pytest.approx(1, abs=1e-5)
    picked = jnp.take_along_axis(seen.log_predictive, texts[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(picked.sum(axis=1), seen.log_prob, atol=1e-5)
    # Before anything is seen all symbols are equal, and so are those not seen later.
    np.testing.assert_allclose(np.exp(seen.log_predictive[:, 0]), 1 / 3, atol=1e-6)
    after_zero = np.exp(seen.log_predictive[np.asarray(texts[:, 0]) == 0, 1])
    np.testing.assert_allclose(after_zero[:, 1], after_zero[:, 2], atol=1e-6)


@pytest.mark.parametrize(("group", "limit"), [("cyclic", math.log(2)), ("uniform", 0.0)])
def test_a_language_with_symmetries_costs_only_what_they_leave_unknown(group, limit):
    if group == "cyclic":
        transition = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
    else:
        transition = np.full((3, 3), 1 / 3)
    log_initial = jnp.log(jnp.full(3, 1 / 3))
    log_transition = jnp.log(jnp.asarray(transition, jnp.float32))
    chain = lx.MarkovLanguage(log_initial, log_transition)
    texts = lx.sample_markov(jax.random.key(3), chain, 32, 200)
    seen = predict_all(*chain, texts)
    regret = np.array([chain_log_prob(*chain, t) for t in np.asarray(texts)]) - seen.log_prob
    # log(d! / |A|): six renamings, three (cyclic) or all six of which leave the language alone.
    assert float(np.mean(regret)) == pytest.approx(limit, abs=0.02)


def test_averaging_any_model_agrees_with_the_recursion():
    rng = np.random.default_rng(4)
    chain = tuple(jnp.asarray(a, jnp.float32) for a in random_language(rng, 5))
    text = jnp.asarray(rng.integers(0, 5, 12))
    inverses = jnp.asarray(list(itertools.permutations(range(5))))
    each = jax.jit(jax.vmap(lambda x: chain_log_prob(*chain, x)))(inverses[:, text])
    average = jax.nn.logsumexp(each) - math.log(120)
    assert float(average) == pytest.approx(float(predict(*chain, text).log_prob), abs=1e-4)


def test_log_factorials_are_those_of_the_theory():
    known = {2: 0.6931, 3: 1.7918, 4: 3.1781, 5: 4.7875, 6: 6.5793, 26: 61.2617, 128: 496.4055}
    for vocab_size, value in known.items():
        assert lx.regret_bound(vocab_size) == pytest.approx(value, abs=5e-5)
    assert lx.regret_bound(32_000) == pytest.approx(299_957.8, abs=0.05)


UNIFORM = np.log(np.full((3, 3), 1 / 3, np.float32))


def test_an_impossible_text_is_refused_or_marked(bad_input):
    cycle = jnp.log(jnp.asarray(np.roll(np.eye(3), 1, axis=1)))
    text = jnp.array([0, 1, 1, 2])
    with pytest.raises(ValueError, match="probability 0 at position 2"):
        lx.bayes_lexinvariant(UNIFORM[0], cycle, text)
    seen = predict(UNIFORM[0], cycle, text)
    assert float(seen.log_prob) == -math.inf
    assert seen.possible.tolist() == [True, True, True, False]
    assert not np.isnan(seen.log_predictive).any()
    assert not np.isnan(seen.decipher).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(10), np.zeros((10, 10)), np.zeros(2, int)), "10! = 3628800 weights"),
        ((UNIFORM[0], UNIFORM[:2], np.zeros(2, int)), r"got \(3,\) and \(2, 3\)"),
        ((UNIFORM[0] + 0.1, UNIFORM, np.zeros(2, int)), "log_initial must hold"),
        ((UNIFORM[0], UNIFORM * np.nan, np.zeros(2, int)), "log_transition must hold"),
        ((UNIFORM[0], UNIFORM, np.zeros(0, int)), "T >= 1"),
        ((UNIFORM[0], UNIFORM, np.array([0, 3])), r"tokens must be in \[0, 3\)"),
    ],
)
def test_bad_input_is_refused(arguments, message, bad_input):
    with pytest.raises(ValueError, match=message):
        lx.bayes_lexinvariant(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lx.regret_bound(0), "vocab_size"),
        (lambda: lx.regret_bound(3, 4), "num_distinct must be at most vocab_size=3, got 4"),
        (lambda: lx.expected_l1_bound(3, 0), "length"),
    ],
)
def test_bounds_out_of_range_are_refused(call, message, bad_input):
    with pytest.raises(ValueError, match=message):
        call()
