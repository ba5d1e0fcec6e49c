"""The worlds of the golden file, made once."""

import jax.numpy as jnp
import pytest

from jaxkit import subrl


@pytest.fixture(scope="session")
def vectors(golden):
    return golden("subrl")


@pytest.fixture(scope="session")
def gp_world(vectors):
    return subrl.coverage_world(weights=jnp.array(vectors["coverage_gp_30x30"]["weights"]))
