"""Gradients of kernels of which each device keeps few rows are scattered, not summed everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import training
from jaxkit.models import products

NAMES = {
    "up": (("embed", "mlp"), (16,), (24,)),
    "down": (("mlp", "embed"), (24,), (16,)),
    "heads": (("embed", "heads", "head_dim"), (16,), (4, 3)),
    "one key head": (("embed", "kv_heads", "head_dim"), (16,), (1, 6)),
}


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
@pytest.mark.parametrize("kernel", NAMES)
def test_few_rows_are_scattered_in_two_stages(kernel, mesh, devices):
    names, inputs, outputs = NAMES[kernel]
    rng = np.random.default_rng(0)
    x, g, w = (  # whole numbers: every order sums alike
        jnp.asarray(rng.integers(-4, 5, shape), jnp.bfloat16)
        for shape in ((8, 3, *inputs), (8, 3, *outputs), (*inputs, *outputs))
    )

    def gradient(x, g, w):
        return jax.vjp(lambda w: products.project(x, w, names), w)[1](g)[0]

    expected = jax.jit(gradient)(x, g, w)
    made = training.make_mesh(mesh)
    with jax.set_mesh(made):
        x, g = jax.device_put((x, g), training.batch_sharding(made))
        compiled = jax.jit(gradient).lower(x, g, w).compile()
        np.testing.assert_array_equal(compiled(x, g, w), expected)
    assert training.program_cost(compiled, made).received(["fsdp"], "reduce-scatter") > 0
