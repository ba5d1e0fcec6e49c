"""Who takes part: distributions of cohorts."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from jaxkit import federated as fl
from jaxkit.federated import cohorts


def draws(sampler, count=2000):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.jit(jax.vmap(lambda key: sampler.sample(key, 0)))(keys)


def test_uniform_cohorts_are_distinct_and_all_clients_alike():
    drawn = np.asarray(draws(fl.uniform_sampler(7, 3)).clients)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=7)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    pairs = collections.Counter(tuple(sorted(row)) for row in drawn.tolist())
    assert len(pairs) == 35


def test_stratified_cohorts_draw_alike_within_each_block_in_order():
    drawn = np.asarray(draws(fl.stratified_sampler(11, 6, 3)).clients)  # blocks of 4, 4, 3
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    np.testing.assert_array_equal(drawn // 4, np.tile([0, 0, 1, 1, 2, 2], (len(drawn), 1)))
    for block in range(3):
        inside = np.bincount(drawn.ravel(), minlength=11)[4 * block : 4 * block + 4]
        assert scipy.stats.chisquare(inside).pvalue > 1e-3


def test_bernoulli_cohorts_are_binomial_and_never_empty():
    sampler = fl.bernoulli_sampler(20, 0.1)
    cohort = draws(sampler, 4000)
    sizes = np.asarray(cohort.active.sum(axis=1))
    assert sizes.min() == 1
    expected = scipy.stats.binom.pmf(np.arange(1, 6), 20, 0.1) / (
        1 - scipy.stats.binom.pmf(0, 20, 0.1)
    )
    observed = np.bincount(sizes, minlength=7)[1:6]
    rest = len(sizes) - observed.sum()
    result = scipy.stats.chisquare(
        [*observed, rest], np.array([*expected, 1 - expected.sum()]) * len(sizes)
    )
    assert result.pvalue > 1e-3
    padded = np.asarray(cohort.clients)[~np.asarray(cohort.active)]
    assert set(padded.tolist()) == {cohorts.PADDING}
    counts = np.bincount(np.asarray(cohort.clients)[np.asarray(cohort.active)], minlength=20)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_bernoulli_cohorts_may_be_empty_where_that_is_asked_for():
    sampler = fl.bernoulli_sampler(20, 0.05, allow_empty=True)
    assert int(draws(sampler).active.sum(axis=1).min()) == 0


@pytest.mark.slow
def test_the_rate_of_a_bernoulli_cohort_is_never_rounded_up():
    sampler = fl.bernoulli_sampler(100_000, 2.0**-31, max_size=50, allow_empty=True)
    keys = jax.random.split(jax.random.key(0), 600)
    drawn = jax.jit(lambda k: jax.lax.map(lambda k: sampler.sample(k, 0).active.sum(), k))(keys)
    assert drawn.sum() <= 1  # 7 are expected where the ratio is compared as a float32


def test_cohorts_of_what_is_not_known_are_refused_in_one_line(bad_input):
    def draw(ratio):
        return fl.bernoulli_sampler(4, ratio).sample(jax.random.key(0), 0).clients

    with pytest.raises(TypeError, match="active_ratio must be a number that is known"):
        jax.jit(draw)(0.5)
    with pytest.raises(TypeError, match="the list of clients of each round, got 0"):
        cohorts.fixed_sampler([0, 1], 4)


def test_a_bernoulli_cohort_of_everyone_has_everyone():
    sampler = fl.bernoulli_sampler(5, 1.0)
    assert sampler.cohort_size == 5
    assert sampler.sample(jax.random.key(0), 0).clients.tolist() == [0, 1, 2, 3, 4]


def test_overflow_bounds_the_binomial_tail():
    sampler = fl.bernoulli_sampler(100, 0.1, max_size=20)
    assert sampler.overflow == pytest.approx(scipy.stats.binom.sf(20, 100, 0.1), rel=1e-9)
    default = fl.bernoulli_sampler(100, 0.1)
    assert default.overflow <= 1e-6 < scipy.stats.binom.sf(default.cohort_size - 1, 100, 0.1)


def test_fixed_cohorts_follow_the_round_and_then_repeat():
    sampler = fl.cohorts.fixed_sampler([[4], [1, 2]], 5)
    key = jax.random.key(0)
    assert [sampler.sample(key, jnp.int32(t)).active.tolist() for t in (0, 1, 9)] == [
        [True, False],
        [True, True],
        [True, True],
    ]


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.uniform_sampler(0, 1), "num_clients must be an integer >= 1, got 0"),
        (lambda: fl.uniform_sampler(5, 0), "cohort_size must be an integer >= 1, got 0"),
        (lambda: fl.uniform_sampler(5, 6), "cohort_size must not exceed num_clients = 5, got 6"),
        (lambda: fl.bernoulli_sampler(5, 0.0), "active_ratio must be finite and in"),
        (lambda: fl.bernoulli_sampler(5, 1.5), r"active_ratio .* got 1.5"),
        (lambda: fl.bernoulli_sampler(5, float("nan")), "active_ratio .* got nan"),
        (lambda: fl.bernoulli_sampler(5, 0.5, max_size=9), "max_size must not exceed"),
        (lambda: fl.stratified_sampler(8, 3, 2), "multiple of num_strata = 2, got 3"),
        (lambda: fl.stratified_sampler(9, 8, 4), "at least 2 clients, got 0"),
        (lambda: cohorts.fixed_sampler([[]], 3), "at least one client, got none"),
        (lambda: cohorts.fixed_sampler([[1, 2, 1]], 3), r"distinct, got \[1\] more than once"),
        (lambda: cohorts.fixed_sampler([[3]], 3), "below num_clients = 3, got 3"),
        (lambda: cohorts.fixed_sampler([[-1]], 3), "clients must be an integer >= 0, got -1"),
        (lambda: fl.cohorts.fixed_sampler([], 3), "at least one round"),
    ],
)
def test_bad_cohorts_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
