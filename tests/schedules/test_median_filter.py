"""The compiled sliding median against SciPy, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.schedules.median_filter import sliding_median

#: Few lengths and widths, since each pair compiles; no subnormals, which XLA sorts as 0.
values = st.integers(-3, 3) | st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
series = st.sampled_from([1, 2, 9, 24]).flatmap(lambda n: st.lists(values, min_size=n, max_size=n))
odd = st.sampled_from([3, 7, 61])


def scipy_median(x, width):
    """The published recipe: mirror on the right, hold the first value on the left."""
    right = np.pad(x, (0, 2 * width), mode="reflect") if len(x) > 1 else np.repeat(x, 1 + 2 * width)
    return scipy.ndimage.median_filter(right, size=width, mode="nearest")[: len(x)]


def test_equals_the_published_pipeline_exactly(golden):
    for case in golden("schedules")["median_smoothing_and_pipeline"]["cases"]:
        found = sliding_median(jnp.asarray(case["norms"], jnp.float32), case["width"])
        assert found.tolist() == np.asarray(case["smoothed"], np.float32).tolist()


@given(values=series, width=odd)
def test_equals_scipy_bit_for_bit_at_any_width(values, width):
    x = np.asarray(values, np.float32)
    np.testing.assert_array_equal(sliding_median(x, width), scipy_median(x, width))


def test_equals_scipy_on_a_long_noisy_series_with_ties():
    rng = np.random.default_rng(0)
    for x in (rng.lognormal(size=5000), rng.integers(0, 40, 5000)):
        x = x.astype(np.float32)
        np.testing.assert_array_equal(sliding_median(x, 501), scipy_median(x, 501))


@given(values=series, width=odd)
def test_commutes_with_increasing_maps(values, width):
    # Ranks decide, so distinct values may be replaced by anything of the same order.
    x = np.asarray(values, np.float32)
    _, ranks = np.unique(x, return_inverse=True)
    mapped = sliding_median(ranks.astype(np.float32), width)
    np.testing.assert_array_equal(np.unique(x)[np.asarray(mapped, int)], sliding_median(x, width))


def test_width_one_is_the_identity():
    x = jnp.array([3.0, 1.0, 2.0])
    assert sliding_median(x, 1).tolist() == [3.0, 1.0, 2.0]


def test_batches_equal_rows_one_by_one():
    x = np.random.default_rng(1).normal(size=(2, 3, 50)).astype(np.float32)
    batched = np.asarray(sliding_median(x, 7))
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(batched[i, j], scipy_median(x[i, j], 7))
    np.testing.assert_array_equal(jax.vmap(lambda r: sliding_median(r, 7))(x[0]), batched[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_the_dtype(dtype):
    assert sliding_median(jnp.ones(4, dtype), 3).dtype == dtype


def test_a_nan_makes_its_series_nan_and_no_other():
    x = jnp.array([[1.0, jnp.nan, 3.0], [1.0, 2.0, 3.0]])
    found = np.asarray(sliding_median(x, 3))
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [1.0, 2.0, 2.0]


def test_compiles_without_an_array_of_n_times_width():
    n, width = 4000, 401
    compiled = jax.jit(lambda x: sliding_median(x, width)).lower(jnp.zeros(n)).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 4 * n * width / 20


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("x", "width", "error", "message"),
    [
        (np.ones(4), 2, ValueError, "width must be odd, got 2"),
        (np.ones(4), 0, ValueError, "width must be an integer >= 1, got 0"),
        (np.ones(4), 1.0, TypeError, "width must be an integer, got 1.0"),
        (np.ones(4, np.int32), 3, ValueError, "x must be floating, got dtype int32"),
        (np.ones((2, 0)), 3, ValueError, "x must have at least one entry"),
        (np.float32(1.0), 3, ValueError, "x must have at least one entry"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(x, width, error, message):
    with pytest.raises(error, match=message):
        sliding_median(x, width)
