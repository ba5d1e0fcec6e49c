import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import lexinvariant as lx

losses = jax.jit(lx.adaptive_ngram_losses, static_argnums=(1, 2))


@pytest.mark.parametrize("case", range(3))
def test_losses_are_those_of_the_reference(case, vectors):
    case = vectors["witten_bell"]["cases"][case]
    found = losses(jnp.asarray([case["tokens"]]), case["vocab"], case["order"])
    np.testing.assert_allclose(found[0], case["nll"], rtol=1e-5)


def by_counting(tokens, vocab_size, order):
    """The definition, with dictionaries."""
    out = []
    for t in range(1, len(tokens)):
        q = 1 / vocab_size
        for context in range(min(order, t) + 1):
            key = tokens[t - context : t]
            following = [tokens[s] for s in range(context, t) if tokens[s - context : s] == key]
            if following:
                n, u = len(following), len(set(following))
                q = (following.count(tokens[t]) + u * q) / (n + u)
        out.append(-np.log(q))
    return out


@hypothesis.given(
    tokens=st.lists(st.integers(0, 3), min_size=30, max_size=30), order=st.sampled_from([1, 3])
)
def test_losses_agree_with_counting_in_dictionaries_and_ignore_names(tokens, order):
    found = losses(jnp.asarray([tokens]), 5, order)[0]
    np.testing.assert_allclose(found, by_counting(tokens, 5, order), rtol=2e-5, atol=2e-7)
    renamed = np.array([4, 2, 0, 3, 1])[np.array(tokens)]
    assert np.array_equal(losses(jnp.asarray([renamed]), 5, order)[0], found)


def test_bad_input_is_refused(bad_input):
    with pytest.raises(ValueError, match="order must be an integer >= 0, got -1"):
        lx.adaptive_ngram_losses(jnp.zeros((1, 3), int), 4, -1)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 4\), got 4"):
        lx.adaptive_ngram_losses(jnp.array([[0, 4]]), 4, 1)
    with pytest.raises(ValueError, match=r"tokens must have shape \[B, T\], got \(3,\)"):
        lx.adaptive_ngram_losses(jnp.zeros(3, int), 4, 1)
