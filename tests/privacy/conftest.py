import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def vectors(golden):
    return golden("dp_stationary")


@pytest.fixture(scope="session")
def close():
    """Relative agreement of float32 results with float64 ones, in units of the largest entry."""

    def check(measured, expected, tolerance=2e-5):
        expected = np.asarray(expected, np.float64)
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(measured, expected, atol=tolerance * scale, rtol=tolerance)

    return check


@pytest.fixture(scope="session")
def replay():
    """A `draw` that takes recorded normals by the number of the release."""

    def make(table):
        table = jnp.asarray(np.asarray(table, np.float32))
        return lambda key, index, like: table[index]

    return make
