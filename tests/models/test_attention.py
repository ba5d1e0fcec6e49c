import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import training
from jaxkit.models import attention


def arrays(batch=1, length=128, heads=2, groups=1, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, heads, 128), *[(batch, length, groups, 128)] * 2]
    query, key, value = (
        jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=False)
    )
    return query * 128**-0.5, key, value, jax.random.normal(keys[3], query.shape, dtype)


def output_and_gradients(program, query, key, value, cotangent):
    output, pullback = jax.vjp(program, query, key, value)
    return output, *pullback(cotangent)


def assert_same(program, given, reference=None):
    plain = functools.partial(attention.attend, bias=None, mask=None, name="einsum")
    found = jax.jit(functools.partial(output_and_gradients, program))(*given)
    expected = jax.jit(functools.partial(output_and_gradients, reference or plain))(*given)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_splash_attention_is_plain_attention_and_its_gradients():
    assert_same(functools.partial(attention.splash, interpret=True), arrays())


@pytest.mark.slow
def test_devices_attend_over_their_rows_and_heads(devices):
    given = arrays(batch=4, heads=4, groups=2)
    with jax.set_mesh(training.make_mesh("data=2,fsdp=2,tensor=2")):
        assert_same(functools.partial(attention.splash, interpret=True), given)


def test_grouped_queries_are_heads_that_share_keys_and_values():
    *given, cotangent = arrays(length=6, heads=4, groups=2)
    plain = functools.partial(attention.attend, bias=None, mask=None, name="einsum")

    def repeated(query, key, value):
        return plain(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2))

    assert_same(plain, (*given, cotangent), repeated)
    assert_same(
        functools.partial(attention.attend, bias=None, mask=None, name="xla"), (*given, cotangent)
    )
    bias = jax.random.normal(jax.random.key(5), (1, 4, 6, 6))
    biased = functools.partial(attention.attend, bias=bias, mask=None, name="einsum")

    def repeated_biased(query, key, value):
        return biased(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2))

    assert_same(biased, (*given, cotangent), repeated_biased)


def test_the_platform_that_is_compiled_for_chooses_the_program():
    *given, cotangent = arrays()
    auto = functools.partial(attention.attend, bias=None, mask=None, name="auto")
    assert_same(auto, (*given, cotangent))
    traced = jax.jit(functools.partial(output_and_gradients, auto)).trace(*given, cotangent)
    kernels = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")
        for platform in ("tpu", "cpu")
    }
    assert kernels["cpu"] == 0
    assert kernels["tpu"] > 0
    # The kernel is taken for blocks of 128 alone.
    *short, cotangent = arrays(length=96)
    traced = jax.jit(functools.partial(output_and_gradients, auto)).trace(*short, cotangent)
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.usefixtures("bad_input")
def test_splash_attention_refuses_lengths_that_it_cannot_block():
    query, key, value, _ = arrays(length=96)
    with pytest.raises(ValueError, match="multiples of 128, got 96 and 128"):
        attention.splash(query, key, value)
