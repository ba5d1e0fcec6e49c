import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit.models import positions


@pytest.mark.parametrize("case", range(2))
def test_t5_buckets_are_those_of_the_reference_implementation(case, vectors):
    expected = vectors["t5_bucket"]["cases"][case]
    distance = np.arange(expected["length"])
    buckets = positions.t5_bucket(distance, expected["num_buckets"], expected["max_distance"])
    firsts = {int(b): int(n) for n, b in reversed(list(enumerate(buckets)))}
    assert sorted(firsts.items()) == [tuple(pair) for pair in expected["first_distance_of_bucket"]]


@hypothesis.given(half=st.sampled_from([1, 4, 16]), beyond=st.integers(1, 300))
def test_buckets_grow_with_distance_from_zero_to_the_last(half, beyond):
    distance = np.arange(-3, 700)
    buckets = np.asarray(positions.t5_bucket(distance, 2 * half, half + beyond))
    assert np.all(np.diff(buckets) >= 0)
    assert np.all(buckets[distance <= 0] == 0)
    assert np.all(buckets[distance >= half + beyond] == 2 * half - 1)


def test_rotated_inner_products_depend_on_the_difference_of_positions_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(i, j):
        turned = [positions.rotate(x, jnp.array([at])) for x, at in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-5)
    assert abs(product(7, 3) - product(7, 5)) > 1e-3


def test_alibi_slopes_are_the_published_geometric_sequence():
    assert positions.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
