"""Schedules given by values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxkit.schedules import schedule_from_values


@pytest.mark.parametrize("n", [2, 100, 1001])
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_a_straight_table_is_optax_linear_decay(n, total):
    table = np.linspace(1, 0, n).astype(np.float32)
    steps = jnp.arange(1002)
    found = schedule_from_values(table, total, 0.3)(steps)
    expected = optax.linear_schedule(0.3, 0.0, total)(steps)
    np.testing.assert_allclose(found, expected, atol=3e-7 * 0.3, rtol=0)


def test_one_value_an_update_and_one_more_is_read_as_it_stands():
    table = np.random.default_rng(0).uniform(size=301).astype(np.float32)
    found = np.asarray(schedule_from_values(table, 300)(jnp.arange(300)))
    np.testing.assert_array_equal(found, table[:300])


def test_equals_interpolation_in_double_precision_and_holds_its_last_value():
    table = np.random.default_rng(1).uniform(size=57).astype(np.float32)
    steps = np.arange(400)
    expected = 0.2 * np.interp(steps * 56 / 333, np.arange(57), table.astype(np.float64))
    expected[333:] = 0.2 * table[-1]
    schedule = schedule_from_values(table, 333, 0.2)
    np.testing.assert_allclose(schedule(steps), expected, atol=2e-6, rtol=0)
    np.testing.assert_allclose(jax.jit(schedule)(steps), expected, atol=2e-6, rtol=0)
    scanned = lax.scan(lambda c, i: (c, schedule(i)), None, jnp.asarray(steps))[1]
    np.testing.assert_allclose(scanned, expected, atol=2e-6, rtol=0)
    assert float(schedule(-3)) == float(schedule(0))


def test_table_peak_and_budget_may_be_traced_and_vmapped():
    table = jnp.array([1.0, 0.5, 0.0])

    def curve(total, peak):
        return schedule_from_values(table, total, peak)(jnp.arange(8))

    swept = jax.vmap(curve)(jnp.array([4, 8]), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept[0], curve(4, 1.0), atol=1e-6)
    np.testing.assert_allclose(swept[1], curve(8, 2.0), atol=1e-6)
    tables = jax.vmap(lambda v: schedule_from_values(v, 4)(1))(jnp.stack([table, 2 * table]))
    np.testing.assert_allclose(tables, [0.75, 1.5])


@pytest.mark.parametrize("total", [10**8, 2**31 - 1])
def test_six_digits_are_kept_at_every_update_of_a_long_run(total):
    table = np.append(np.random.default_rng(2).uniform(0.5, 1, 1000), 0.0).astype(np.float32)
    steps = [1, 12_345_678, total // 2 + 17, total - 1000, total - 2, total - 1]
    exact = []
    for step in steps:
        entry, rest = divmod(step * 1000, total)
        share = rest / total
        exact.append(float(table[entry]) * (1 - share) + float(table[entry + 1]) * share)
    at = jnp.asarray(steps)
    np.testing.assert_allclose(schedule_from_values(table, total)(at), exact, rtol=1e-6)
    traced = jax.jit(lambda n, i: schedule_from_values(table, n)(i))
    np.testing.assert_allclose(traced(total, at), exact, rtol=1e-6)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("values", "total", "peak", "error", "message"),
    [
        ([1.0], 4, 1.0, ValueError, "values must be one series of at least 2, got shape"),
        ([[1.0, 0.0]], 4, 1.0, ValueError, "values must be one series of at least 2"),
        ([1.0, -0.5], 4, 1.0, ValueError, "values must be finite and in"),
        ([1.0, float("nan")], 4, 1.0, ValueError, "values must be finite and in"),
        (["a", "b"], 4, 1.0, TypeError, "values must be a real number"),
        ([1.0, 0.0], 0, 1.0, ValueError, "total_steps must be an integer >= 1, got 0"),
        ([1.0, 0.0], 4.0, 1.0, TypeError, "total_steps must be an integer, got 4.0"),
        ([1.0, 0.0], 4, -1.0, ValueError, "peak_value must be finite and in"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(values, total, peak, error, message):
    with pytest.raises(error, match=message):
        schedule_from_values(values, total, peak)
