"""The coordinate check tells muP from the standard parametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import width

WIDTHS = [32, 256]


def shapes(d):
    return {
        "read": jax.ShapeDtypeStruct((6, d), "float32"),
        "hidden": jax.ShapeDtypeStruct((d, d), "float32"),
        "write": jax.ShapeDtypeStruct((d, 3), "float32"),
    }


def activations(params, batch, readout):
    x, _ = batch
    first = jnp.tanh(x @ params["read"])
    second = jnp.tanh(first @ params["hidden"])
    return {"first": first, "second": second, "logits": readout * second @ params["write"]}


def build(rule):
    def at_width(d):
        rng = np.random.default_rng(d)
        std = {"read": 0.4, "hidden": d**-0.5, "write": 1.0 if rule == "robust" else d**-0.5}
        params = {
            name: jnp.asarray(std[name] * rng.normal(size=leaf.shape), jnp.float32)
            for name, leaf in shapes(d).items()
        }
        readout = width.readout_multiplier(d, 32) if rule == "robust" else 1.0
        scaling = width.width_scaling(shapes(32), shapes(d), delta=shapes(64), rule=rule)

        def loss_fn(params, batch, key):
            return jnp.mean((activations(params, batch, readout)["logits"] - batch[1]) ** 2)

        return width.Probe(
            params,
            width.adamw_width_scaled(0.02, 0.1, scaling),
            loss_fn,
            lambda params, batch: activations(params, batch, readout),
        )

    return at_width


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 32, 6)), rng.normal(size=(4, 32, 3))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


@pytest.mark.slow
def test_logits_change_alike_at_all_widths_under_mup_and_blow_up_without(batches):
    key = jax.random.key(0)
    robust = width.coordinate_check(WIDTHS, build("robust"), batches, key=key)
    standard = width.coordinate_check(WIDTHS, build("standard"), batches, key=key)
    assert robust.rms["logits"].shape == robust.change["logits"].shape == (2, 5)
    assert abs(float(robust.change_slope["logits"][1])) < 0.25
    assert float(standard.change_slope["logits"][1]) > 0.6
    assert abs(float(robust.rms_slope["second"][0])) < 0.1
    assert np.isnan(robust.change_slope["second"][0])  # nothing has changed before training
    np.testing.assert_array_equal(robust.change["second"][:, 0], 0)
    # After four steps the spectrum is still that of the start, which is the same at every width.
    assert list(robust.gain_ratio) == ["hidden"]
    np.testing.assert_allclose(robust.gain_ratio["hidden"], 1.0, atol=0.1)
    assert robust.singular_values["hidden"].shape == (2,)
    figure = width.coordinate_figure(robust, "robust")
    assert [len(panel.lines) for panel in figure.axes] == [3, 3, 1]


def test_one_width_is_refused(batches, bad_input):
    with pytest.raises(ValueError, match="at least two different widths"):
        width.coordinate_check([32, 32], build("robust"), batches, key=jax.random.key(0))
