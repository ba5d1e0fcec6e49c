import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import lexinvariant as lx
from jaxkit import models
from jaxkit.models import generation

CONFIG = models.DecoderConfig(
    vocab_size=6, d_model=16, num_layers=1, num_heads=2, head_dim=8, d_ff=16, num_buckets=8
)
MODEL = models.DecoderLM(CONFIG)
PROMPT = np.array([[1, 2, 3], [5, 0, 0]])


@functools.cache
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), PROMPT)


generate = jax.jit(functools.partial(models.generate, MODEL), static_argnums=2)


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_temperature_zero_repeats_the_most_probable_next_token(given):
    table = None
    if given:
        keys = lx.sequence_keys(jax.random.key(1), jnp.arange(2))
        table = lx.draw_embedding(keys, 6, 16)
    found = generate(params(), PROMPT, 5, jax.random.key(2), temperature=0.0, embedding=table)
    text = jnp.concatenate([PROMPT, found], axis=1)
    logits = jax.jit(MODEL.apply)(params(), text[:, :-1], table)
    assert np.array_equal(jnp.argmax(logits[:, 2:], axis=-1), found)


@pytest.mark.slow
def test_samples_follow_the_models_distribution():
    many = jnp.broadcast_to(PROMPT[:1], (4000, 3))
    found = generate(params(), many, 1, jax.random.key(3), temperature=0.5)
    logits = jax.jit(MODEL.apply)(params(), PROMPT[:1])[0, -1]
    expected = 4000 * np.asarray(jax.nn.softmax(logits / 0.5))
    counts = np.bincount(np.asarray(found)[:, 0], minlength=6)
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand.
    assert np.sum((counts - expected) ** 2 / expected) < 20.5


def test_bad_input_is_refused(bad_input):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_tokens"):
        models.generate(MODEL, params(), PROMPT, 0, key)
    with pytest.raises(ValueError, match="at least one token"):
        models.generate(MODEL, params(), PROMPT[:, :0], 1, key)
    with pytest.raises(ValueError, match=r"prompt must be ids \[B, T\]"):
        models.generate(MODEL, params(), PROMPT[0], 1, key)
    with pytest.raises(ValueError, match="temperature"):
        models.generate(MODEL, params(), PROMPT, 1, key, temperature=-1.0)


@hypothesis.given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=6), st.integers(1, 6), st.floats(0.01, 1.0)
)
def test_only_the_likeliest_tokens_may_be_drawn(logits, top_k, top_p):
    """Against the definition: tokens in order, until k, or until p is reached."""
    found = np.isfinite(generation.likeliest(jnp.array([logits], jnp.float32), top_k, top_p)[0])
    order = np.sort(np.array(logits, np.float64))[::-1]
    among = order[order >= order[min(top_k, len(order)) - 1]]
    mass = np.cumsum(np.exp(among)) / np.exp(among).sum()
    hypothesis.assume(np.abs(mass - top_p).min() > 1e-5 or top_p == 1)
    last = among[min(np.searchsorted(mass, top_p), len(among) - 1)]
    np.testing.assert_array_equal(found, np.array(logits) >= last)
