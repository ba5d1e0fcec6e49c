"""Initial scale, readout and attention multipliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import width


def test_logits_of_an_aligned_readout_keep_their_size():
    # After training, h and a readout row point the same way: h @ w grows like the width.
    logits = [
        float(jnp.ones(d) @ jnp.ones(d)) * width.readout_multiplier(d, 64) for d in (64, 256, 1024)
    ]
    assert logits == [64, 64, 64]


def test_attention_scores_of_aligned_queries_and_keys_keep_their_size():
    scores = [k * width.attention_scale(k, base_head_dim=16) for k in (16, 64, 256)]
    assert scores == [4, 4, 4]
    assert width.attention_scale(16) == width.attention_scale(16, base_head_dim=16) == 0.25


def test_fresh_parameters_match_the_base_whatever_the_initialiser():
    def fresh(d, seed):
        keys = jax.random.split(jax.random.key(seed), 2)
        lecun = jax.nn.initializers.lecun_normal()
        return {
            "up": 0.02 * jax.random.normal(keys[0], (d, 2 * d), jnp.bfloat16),
            "readout": lecun(keys[1], (d, 50)),
            "gain": jnp.ones(d),
            "bias": jnp.zeros(d),
            "count": jnp.arange(3),
        }

    base, target = fresh(64, 0), fresh(256, 1)
    scaling = width.width_scaling(base, target)
    params = width.match_initial_scale(target, base, scaling.init_std)
    std = {name: float(jnp.std(leaf.astype(jnp.float32))) for name, leaf in params.items()}
    assert std["up"] == pytest.approx(0.02 / 2, rel=0.05)
    assert std["readout"] == pytest.approx(64**-0.5, rel=0.05)  # not 256**-0.5
    np.testing.assert_allclose(params["gain"], 1, rtol=1e-6)
    assert not params["bias"].any()
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, target)
    np.testing.assert_array_equal(params["count"], target["count"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: width.readout_multiplier(0, 64), ValueError, "width must be an integer >= 1"),
        (lambda: width.readout_multiplier(64, 6.4), TypeError, "base_width must be an integer"),
        (lambda: width.attention_scale(-1), ValueError, "head_dim"),
        (lambda: width.attention_scale(8, 0), ValueError, "base_head_dim"),
        (
            lambda: width.match_initial_scale(
                {"up": jnp.ones(1)}, {"uq": jnp.ones(1)}, {"up": 1.0}
            ),
            ValueError,
            "base_params: no entry for the parameter 'up': did you mean 'uq'",
        ),
    ],
)
def test_bad_scales_are_refused_by_name(call, error, message, bad_input):
    with pytest.raises(error, match=message):
        call()
