import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx


def test_smoothed_perplexity_is_that_of_the_reference(vectors):
    case = vectors["smoothed_perplexity"]
    found = lx.smoothed_perplexity(jnp.asarray(case["nll"]), case["window"])
    np.testing.assert_allclose(found, case["per_sequence"], rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=0), case["mean"], rtol=1e-5)


@pytest.mark.parametrize("window", [0, 21])
def test_windows_outside_the_sequence_are_refused(window, bad_input):
    with pytest.raises(ValueError, match="window must be"):
        lx.smoothed_perplexity(jnp.zeros((2, 20)), window)
    with pytest.raises(ValueError, match=r"losses must have shape \[B, T\], got \(20,\)"):
        lx.smoothed_perplexity(jnp.zeros(20), 2)
