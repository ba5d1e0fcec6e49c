"""The steady state of AdamW under noise: closed form, simulation and the fitted law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import width


def test_golden_steady_states(golden):
    for case in golden("width_scaling")["steady_state"]:
        eta, decay = case["learning_rate"], case["weight_decay"]
        reference = np.sqrt(eta / (decay * (2 - eta * decay)))
        assert reference == pytest.approx(case["rms"], rel=1e-12)
        time = width.steady_state_time(eta, decay)
        np.testing.assert_allclose(time, case["timescale_steps"], rtol=2e-6)


def test_golden_predicted_ratios(golden):
    for case in golden("width_scaling")["predicted_top_singular_value_ratio"]:
        found = width.predicted_singular_value_ratio(
            case["width_mult"],
            rule=width.WidthRule(weight_decay_exponent=case["weight_decay_exponent"]),
            singular_value_exponent=case["singular_value_exponent"],
        )
        assert found == pytest.approx(case["ratio"], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decay", "expected", "expected_top"), [(0.25, 0.7035, 1.40), (0.5, 0.696, 1.36)]
)
def test_adamw_fed_with_noise_reaches_the_predicted_scale(decay, expected, expected_top):
    # The finite memory of the second moment keeps it a little below sqrt(1/2) = 0.707.
    shapes = [{"w": jax.ShapeDtypeStruct((d, d), "float32")} for d in (64, 128)]
    scaling = width.width_scaling(shapes[0], shapes[0], delta=shapes[1])
    eta = 0.01
    tx = width.adamw_width_scaled(eta, decay, scaling)

    @jax.jit
    def run(key):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update({"w": jax.random.normal(key, (64, 64))}, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = {"w": jnp.zeros((64, 64))}
        keys = jax.random.split(key, 3000)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]["w"]

    weights = run(jax.random.key(0))
    rms = float(jnp.sqrt(jnp.mean(weights**2))) / (eta / decay) ** 0.5
    assert rms == pytest.approx(expected, rel=0.03)
    predicted = (2 - eta * decay) ** -0.5
    assert rms == pytest.approx(predicted, rel=0.03)
    top = float(width.top_singular_values(weights, key=jax.random.key(1))[0])
    assert top / ((eta / decay) ** 0.5 * 8) == pytest.approx(expected_top, rel=0.05)


@given(
    st.floats(0.2, 1.5),
    st.floats(0.01, 10),
    st.lists(st.integers(1, 4096), min_size=2, max_size=6, unique=True),
    st.floats(1e-4, 0.1),
    st.floats(1e-3, 1),
)
def test_fit_recovers_the_law_it_was_made_from(a, constant, widths, eta, decay):
    d = np.asarray(widths, float)
    rates, decays = eta / d, decay * d**0.3
    values = constant * np.sqrt(rates / decays) * d**a
    law = width.fit_singular_value_exponent(widths, values, rates, decays)
    assert law.exponent == pytest.approx(a, abs=1e-6)
    assert law.constant == pytest.approx(constant, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: width.steady_state_time(0.0, 1.0), "learning_rate"),
        (lambda: width.steady_state_time(0.1, -1.0), "weight_decay"),
        (lambda: width.steady_state_time(1.0, 2.5), r"learning_rate \* weight_decay"),
        (lambda: width.predicted_singular_value_ratio(0.0), "width_mult"),
        (lambda: width.predicted_singular_value_ratio(2.0, rule="rubust"), "did you mean 'robust'"),
        (lambda: width.fit_singular_value_exponent([4, 4], [1, 2], 0.1, 0.1), "two different"),
        (lambda: width.fit_singular_value_exponent([4, 8], [1, 2, 3], 0.1, 0.1), "as many"),
        (lambda: width.fit_singular_value_exponent([4, 8], [1, 0], 0.1, 0.1), "singular_values"),
        (lambda: width.fit_singular_value_exponent([4, 8], [1, 2], [0.1] * 3, 1), "one or 2 val"),
    ],
)
def test_bad_steady_states_are_refused_by_name(call, message, bad_input):
    with pytest.raises(ValueError, match=message):
        call()
