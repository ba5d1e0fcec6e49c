"""Profiles against closed forms and independent values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit.schedules import profiles

GRID = np.linspace(0, 1, 101).astype(np.float32)
DECREASING = sorted(set(profiles.PROFILES) - {"onecycle"})
fraction = st.floats(0, 1, width=32)


def test_rex_equals_30_digit_values_for_every_d(golden):
    rex = golden("schedules")["rex_profile"]
    for d, expected in rex["values"].items():
        values = profiles.rex_profile(jnp.asarray(rex["z"], jnp.float32), float(d))
        np.testing.assert_allclose(values, expected, atol=2e-6, rtol=0)
        with jax.enable_x64(True):
            values = profiles.rex_profile(jnp.asarray(rex["z"], jnp.float64), float(d))
            np.testing.assert_allclose(values, expected, atol=1e-15, rtol=1e-12)


@given(z=fraction, d=st.floats(0, 0.9))
def test_rex_is_its_own_inverse(z, d):
    again = profiles.rex_profile(profiles.rex_profile(z, d), d)
    # The slope of the outer reading is up to 1/(1 - d).
    assert abs(float(again) - z) <= 2e-7 / (1 - d)


def test_rex_fixed_point_and_end_slopes_are_those_of_the_formula():
    for d in (0.1, 0.5, 0.9):
        fixed = (1 - (1 - d) ** 0.5) / d
        assert float(profiles.rex_profile(fixed, d)) == pytest.approx(fixed, abs=1e-6)
        slope = jax.grad(lambda z, d=d: profiles.rex_profile(z, d))
        assert float(slope(0.0)) == pytest.approx(-(1 - d), rel=1e-6)
        assert float(slope(1.0)) == pytest.approx(-1 / (1 - d), rel=1e-6)


def test_rex_is_concave_above_linear_and_rises_with_d():
    curves = [np.asarray(profiles.rex_profile(GRID, d), np.float64) for d in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(curves[0], 1 - GRID.astype(np.float64), atol=2e-7)
    for low, high in itertools.pairwise(curves):
        assert (high[1:-1] > low[1:-1]).all()
        assert (np.diff(high, 2) < 1e-6).all()
    assert np.max(curves[2] - curves[0]) == pytest.approx(3 - 2 * 2**0.5, abs=1e-4)


def test_means_over_the_budget_equal_the_integrals(golden):
    means = golden("schedules")["continuous_bound_constants"]["mean_of_profile"]
    z = jnp.asarray((np.arange(10_000) + 0.5) / 10_000, jnp.float32)
    found = {
        "linear": profiles.linear_profile(z),
        "cosine": profiles.cosine_profile(z),
        "rex_d0.5": profiles.rex_profile(z),
        "rex_d0.9": profiles.rex_profile(z, 0.9),
        "exp_-3": profiles.exponential_profile(z),
    }
    assert set(found) == set(means)
    for name, values in found.items():
        assert np.mean(np.asarray(values, np.float64)) == pytest.approx(means[name], abs=1e-5)
    assert np.mean(np.asarray(profiles.step_profile(z), np.float64)) == pytest.approx(0.5275)


@pytest.mark.parametrize("name", DECREASING)
def test_each_profile_starts_at_one_and_never_rises(name):
    values = np.asarray(profiles.PROFILES[name](GRID))
    assert values[0] == 1
    assert (np.diff(values) <= 1e-7).all()
    assert (values >= 0).all()


@pytest.mark.parametrize("name", sorted(profiles.PROFILES))
def test_each_profile_is_the_same_alone_vmapped_and_compiled(name):
    profile = profiles.PROFILES[name]
    whole = np.asarray(profile(GRID))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(jax.vmap(profile)(GRID), whole, atol=2e-7)
    np.testing.assert_allclose(jax.jit(profile)(GRID), whole, atol=2e-7)


@pytest.mark.parametrize("name", sorted(set(profiles.PROFILES) - {"step"}))
def test_each_smooth_profile_has_the_slope_of_its_differences(name):
    profile = profiles.PROFILES[name]
    z = 0.9  # inside a smooth piece of every profile
    with jax.enable_x64(True):
        slope = float(jax.grad(lambda z: profile(z))(jnp.float64(z)))
        rise = float(profile(jnp.float64(z + 1e-6)) - profile(jnp.float64(z - 1e-6)))
    assert slope == pytest.approx(rise / 2e-6, rel=1e-6)
    assert slope < 0


@pytest.mark.parametrize("shape", profiles.COOLDOWN_SHAPES)
def test_wsd_stays_at_one_until_the_cooldown_and_ends_at_zero(shape):
    values = np.asarray(profiles.wsd_profile(GRID, 0.25, shape))
    assert (values[:75] == 1).all()
    assert values[-1] == pytest.approx(0, abs=1e-7)
    assert (np.diff(values[76:]) < 0).all()


def test_parameters_may_be_swept_by_vmap():
    d = jnp.array([0.0, 0.5, 0.9])
    swept = jax.vmap(profiles.rex_profile, in_axes=(None, 0))(0.5, d)
    np.testing.assert_allclose(swept, [0.5, 2 / 3, 1 / 1.1], rtol=1e-6)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: profiles.rex_profile(0.5, 1.0), r"d must be finite and in \[0, 1\), got 1.0"),
        (lambda: profiles.rex_profile(0.5, -0.1), r"d must be finite and in \[0, 1\)"),
        (lambda: profiles.polynomial_profile(0.5, 0.0), r"power must be finite and in \(0, inf\)"),
        (lambda: profiles.exponential_profile(0.5, float("nan")), "rate must be finite"),
        (lambda: profiles.step_profile(0.5, (0.75, 0.5)), "boundaries must increase strictly"),
        (lambda: profiles.step_profile(0.5, (0.0,)), r"boundaries must be finite and in \(0, 1\)"),
        (lambda: profiles.step_profile(0.5, factor=2.0), r"factor must be finite and in \[0, 1\]"),
        (lambda: profiles.delayed_profile(profiles.linear_profile, 1.0), r"delay must be finite"),
        (lambda: profiles.onecycle_profile(0.5, 1.5), r"min_ratio must be finite and in \[0, 1\]"),
        (lambda: profiles.wsd_profile(0.5, 0.0), r"cooldown must be finite and in \(0, 1\]"),
        (lambda: profiles.wsd_profile(0.5, 0.1, "sqr"), r"shape must be .* did you mean 'sqrt'"),
        (lambda: profiles.profile_by_name("rexx"), r"profile must be one of .* did you mean 'rex'"),
    ],
)
def test_bad_parameters_are_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
