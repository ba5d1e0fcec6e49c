"""One small problem for the tests of this room, and a jit that does not optimise."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl


def softmax_loss(params, batch, key):
    del key
    logits = batch["x"] @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` at the lowest optimisation: these programs run for milliseconds."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def problem():
    """Softmax regression of 3 classes over 10 clients of 8 examples."""
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.normal(size=(10, 8, 4)).astype(np.float32),
        "y": rng.integers(0, 3, size=(10, 8)).astype(np.int32),
    }
    return types.SimpleNamespace(
        loss=softmax_loss,
        examples=examples,
        data=fl.stack_clients(examples),
        params={"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)},
        training=fl.LocalTraining(softmax_loss, batch_size=4, num_epochs=2),
        num_clients=10,
    )
