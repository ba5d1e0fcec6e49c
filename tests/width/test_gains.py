"""Sublayer gain and the comparison of two widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import width


def test_golden_gains(golden):
    for case in golden("width_scaling")["sublayer_gain"]:
        x64, kernel = np.asarray(case["x"]), np.asarray(case["kernel"])
        y64 = x64 @ kernel
        reference = np.sqrt(np.mean(y64**2) / np.mean(x64**2))
        assert reference == pytest.approx(case["gain_all"], rel=1e-12)
        x, y = jnp.asarray(x64, jnp.float32), jnp.asarray(y64, jnp.float32)
        np.testing.assert_allclose(width.sublayer_gain(x, y), case["gain_all"], rtol=2e-6)
        each = width.sublayer_gain(x, y, per_example=True)
        np.testing.assert_allclose(each, case["gain_per_example"], rtol=2e-6)
        assert float(each.max()) <= case["upper_bound"]


@given(st.integers(0, 10_000), st.floats(-8, 8).filter(lambda c: abs(c) > 1e-3))
def test_gain_is_one_under_rotation_and_homogeneous_in_the_kernel(seed, factor):
    rng = np.random.default_rng(seed)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 8), (8, 8)))
    rotation = jnp.asarray(np.linalg.qr(w)[0])
    np.testing.assert_allclose(width.sublayer_gain(x, x @ rotation, per_example=True), 1, rtol=3e-6)
    gain = float(width.sublayer_gain(x, x @ w))
    scaled = float(width.sublayer_gain(x, x @ (factor * w)))
    assert scaled == pytest.approx(abs(factor) * gain, rel=1e-5)


def test_zero_input_needs_eps():
    zero = jnp.zeros((2, 4))
    assert np.isnan(width.sublayer_gain(zero, zero))
    assert float(width.sublayer_gain(zero, zero, eps=1e-6)) == 1


def test_ratio_averages_over_layers_and_corrects_for_unequal_sides():
    def shapes(d, d_ff):
        return {"up": jax.ShapeDtypeStruct((2, d, d_ff), "float32"), "b": jnp.ones(d)}

    scaling = width.width_scaling(shapes(4, 8), shapes(8, 64))
    base = {"up": jnp.array([[1.0, 9.0], [3.0, 9.0]]), "b": None}
    target = {"up": jnp.array([[2.0, 9.0], [4.0, 9.0]]), "b": None}
    assert float(width.gain_invariance(base, target)["up"]) == 1.5
    ratio = width.gain_invariance(base, target, scaling=scaling)
    assert float(ratio["up"]) == pytest.approx(1.5 * (2 / 8) ** 0.5)
    assert ratio["b"] is None


def test_corrected_decay_undoes_the_predicted_drift_of_another_rule():
    m, base_decay = 8.0, 0.1
    for name, rule in width.RULES.items():
        if rule.learning_rate_exponent != -1:
            continue
        ratio = width.predicted_singular_value_ratio(m, rule=name)
        used = base_decay * m**rule.weight_decay_exponent
        corrected = float(width.corrected_weight_decay(used, ratio))
        assert corrected == pytest.approx(base_decay * m**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: width.sublayer_gain(jnp.ones((2, 3)), jnp.ones((4, 3))), "same leading axes"),
        (lambda: width.sublayer_gain(jnp.ones((2, 3)), jnp.ones((2, 3)), eps=-1.0), "eps"),
        (
            lambda: width.gain_invariance({"up": jnp.ones(1)}, {"upp": jnp.ones(1)}),
            "did you mean 'upp'",
        ),
        (lambda: width.corrected_weight_decay(-0.1, 1.0), "weight_decay"),
        (lambda: width.corrected_weight_decay(0.1, 0.0), "ratio"),
    ],
)
def test_bad_gains_are_refused_by_name(call, message, bad_input):
    with pytest.raises(ValueError, match=message):
        call()
