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


def at(name, z, **options):
    return profiles.profile_by_name(name, **options)(z)


def test_rex_equals_30_digit_values_for_every_d(golden):
    rex = golden("schedules")["rex_profile"]
    for d, expected in rex["values"].items():
        values = at("rex", jnp.asarray(rex["z"], jnp.float32), d=float(d))
        np.testing.assert_allclose(values, expected, atol=2e-6, rtol=0)
        with jax.enable_x64(True):
            values = at("rex", jnp.asarray(rex["z"], jnp.float64), d=float(d))
            np.testing.assert_allclose(values, expected, atol=1e-15, rtol=1e-12)


@given(z=fraction, d=st.floats(0, 0.9))
def test_rex_is_its_own_inverse(z, d):
    again = at("rex", at("rex", z, d=d), d=d)
    # The slope of the outer reading is up to 1/(1 - d).
    assert abs(float(again) - z) <= 2e-7 / (1 - d)


def test_rex_fixed_point_and_end_slopes_are_those_of_the_formula():
    for d in (0.1, 0.5, 0.9):
        fixed = (1 - (1 - d) ** 0.5) / d
        assert float(at("rex", fixed, d=d)) == pytest.approx(fixed, abs=1e-6)
        slope = jax.grad(profiles.profile_by_name("rex", d=d))
        assert float(slope(0.0)) == pytest.approx(-(1 - d), rel=1e-6)
        assert float(slope(1.0)) == pytest.approx(-1 / (1 - d), rel=1e-6)


def test_rex_is_concave_above_linear_and_rises_with_d():
    curves = [np.asarray(at("rex", GRID, d=d), np.float64) for d in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(curves[0], 1 - GRID.astype(np.float64), atol=2e-7)
    for low, high in itertools.pairwise(curves):
        assert (high[1:-1] > low[1:-1]).all()
        assert (np.diff(high, 2) < 1e-6).all()
    assert np.max(curves[2] - curves[0]) == pytest.approx(3 - 2 * 2**0.5, abs=1e-4)


def test_means_over_the_budget_equal_the_integrals(golden):
    means = golden("schedules")["continuous_bound_constants"]["mean_of_profile"]
    z = jnp.asarray((np.arange(10_000) + 0.5) / 10_000, jnp.float32)
    found = {
        "linear": at("linear", z),
        "cosine": at("cosine", z),
        "rex_d0.5": at("rex", z),
        "rex_d0.9": at("rex", z, d=0.9),
        "exp_-3": at("exponential", z),
    }
    assert set(found) == set(means)
    for name, values in found.items():
        assert np.mean(np.asarray(values, np.float64)) == pytest.approx(means[name], abs=1e-5)
    assert np.mean(np.asarray(at("step", z), np.float64)) == pytest.approx(0.5275)


@pytest.mark.parametrize("name", DECREASING)
def test_each_profile_starts_at_one_and_never_rises(name):
    values = np.asarray(at(name, GRID))
    assert values[0] == 1
    assert (np.diff(values) <= 1e-7).all()
    assert (values >= 0).all()


@pytest.mark.parametrize("name", sorted(profiles.PROFILES))
def test_each_profile_is_the_same_alone_vmapped_and_compiled(name):
    profile = profiles.profile_by_name(name)
    whole = np.asarray(profile(GRID))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(jax.vmap(profile)(GRID), whole, atol=2e-7)
    np.testing.assert_allclose(jax.jit(profile)(GRID), whole, atol=2e-7)


@pytest.mark.parametrize("name", sorted(set(profiles.PROFILES) - {"constant", "step"}))
def test_each_smooth_profile_has_the_slope_of_its_differences(name):
    profile = profiles.profile_by_name(name)
    z = 0.9  # inside a smooth piece of every profile
    with jax.enable_x64(True):
        slope = float(jax.grad(lambda z: profile(z))(jnp.float64(z)))
        rise = float(profile(jnp.float64(z + 1e-6)) - profile(jnp.float64(z - 1e-6)))
    assert slope == pytest.approx(rise / 2e-6, rel=1e-6)
    assert slope < 0


@pytest.mark.parametrize("shape", profiles.COOLDOWNS)
def test_wsd_stays_at_one_until_the_cooldown_and_ends_at_zero(shape):
    values = np.asarray(at("wsd", GRID, cooldown=0.25, shape=shape))
    assert (values[:75] == 1).all()
    assert values[-1] == pytest.approx(0.1 if shape == "exponential" else 0)
    assert (np.diff(values[76:]) < 0).all()


def test_parameters_may_be_swept_by_vmap():
    d = jnp.array([0.0, 0.5, 0.9])
    swept = jax.vmap(lambda d: at("rex", 0.5, d=d))(d)
    np.testing.assert_allclose(swept, [0.5, 2 / 3, 1 / 1.1], rtol=1e-6)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rex", {"d": 1.0}, r"d must be finite and in \[0, 1\), got 1.0"),
        ("rex", {"d": -0.1}, r"d must be finite and in \[0, 1\)"),
        ("polynomial", {"power": 0.0}, r"power must be finite and in \(0, inf\)"),
        ("exponential", {"rate": float("nan")}, "rate must be finite"),
        ("step", {"boundaries": (0.75, 0.5)}, "boundaries must increase strictly"),
        ("step", {"boundaries": (0.0,)}, r"boundaries must be finite and in \(0, 1\)"),
        ("step", {"factor": 2.0}, r"factor must be finite and in \[0, 1\]"),
        ("delayed", {"delay": 1.0}, "delay must be finite"),
        ("onecycle", {"min_ratio": 1.5}, r"min_ratio must be finite and in \[0, 1\]"),
        ("wsd", {"cooldown": 0.0}, r"cooldown must be finite and in \(0, 1\]"),
        ("wsd", {"shape": "sqr"}, r"shape must be .* did you mean 'sqrt'"),
        ("wsd", {"ratio": 0.0}, r"ratio must be finite and in \(0, 1\]"),
        ("rexx", {}, r"profile must be one of .* did you mean 'rex'"),
        ("rex", {"delay": 0.5}, "profile 'rex' has no option 'delay': its options are d"),
        ("cosine", {"power": 2.0}, "profile 'cosine' has no option 'power': it has none"),
    ],
)
def test_bad_options_are_refused_at_the_call_by_name(name, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        profiles.profile_by_name(name, **options)
