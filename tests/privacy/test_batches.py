"""Random batches: their law, their padding, and what happens when they overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from jaxkit import privacy
from jaxkit.privacy import batches


@pytest.fixture(scope="module")
def many():
    """4000 Poisson batches of 12 examples at rate 0.3, of which 5 fit."""
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: batches.poisson_batch(key, 12, 0.3, 5)))
    return jax.tree.map(np.asarray, draw(keys))


def test_poisson_batches_have_binomial_sizes(many):
    sizes = many.mask.sum(1)
    law = scipy.stats.binom(12, 0.3)
    expected = [*law.pmf(range(5)), law.sf(4)]
    counts = np.bincount(sizes, minlength=6)
    assert scipy.stats.chisquare(counts, 4000 * np.array(expected)).pvalue > 1e-3
    np.testing.assert_allclose(many.overflow.mean(), law.sf(5), atol=0.02)


def test_batches_hold_distinct_examples_and_overflow_keeps_a_random_part(many):
    for batch in zip(*many, strict=True):
        chosen = batch[0][batch[1]]
        assert len(set(chosen)) == len(chosen)
        assert not np.any(batch[0][~batch[1]])
    kept = np.bincount(many.indices[many.overflow].ravel(), minlength=12)
    assert scipy.stats.chisquare(kept).pvalue > 1e-3


def test_a_rate_of_one_takes_everyone_and_batches_may_be_empty():
    everyone = batches.poisson_batch(jax.random.key(0), 5, 1.0, 5)
    assert everyone.indices.tolist() == [0, 1, 2, 3, 4]
    assert bool(jnp.all(everyone.mask))
    nobody = batches.poisson_batch(jax.random.key(0), 5, 1e-9, 5)
    assert not np.any(nobody.mask)


def test_padded_size_is_the_smallest_with_an_affordable_overflow():
    settings = {"num_steps": 1000, "delta": 1e-6, "epsilon": 3.0}
    size = batches.padded_batch_size(50_000, 0.01, **settings)
    allowed = 0.01 * 1e-6 / ((1 + np.exp(3.0)) * 1000)
    assert (
        scipy.stats.binom.sf(size, 50_000, 0.01)
        <= allowed
        < scipy.stats.binom.sf(size - 1, 50_000, 0.01)
    )
    sampling = privacy.poisson_sampling(50_000, 0.01, multiple=8, **settings)
    assert sampling.padded_size % 8 == 0
    assert 0 <= sampling.padded_size - size < 8
    assert sampling.expected_size == 500
    assert batches.padded_batch_size(10, 0.9, **settings) == 10  # everyone fits


@pytest.mark.slow
def test_fixed_batches_are_sets_of_their_size_and_all_examples_are_equally_likely():
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = jax.jit(jax.vmap(privacy.fixed_sampling(10, 3).draw))(keys)
    indices = np.asarray(drawn.indices)
    assert all(len(set(row)) == 3 for row in indices)
    assert scipy.stats.chisquare(np.bincount(indices.ravel(), minlength=10)).pvalue > 1e-3


def test_sampling_carries_what_accounting_needs():
    assert batches.full_batches(7).draw(jax.random.key(0)).indices.tolist() == list(range(7))
    assert privacy.poisson_sampling(100, 1.0, num_steps=1, delta=0.1).kind == "all"
    assert privacy.fixed_sampling(100, 25).rate == 0.25
