"""Decoders to test: one whose weights stand in the golden vectors, and seeded small ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx
from jaxkit import models


@pytest.fixture(scope="session")
def vectors(golden):
    return golden("lexinvariant")


@pytest.fixture(scope="session")
def reference(vectors):
    """Weights, table and tokens of the reference decoder as float64 NumPy arrays."""
    case = vectors["decoder"]
    weights = {name: np.array(value, np.float64) for name, value in case["params"].items()}
    return weights, np.array(case["embedding"], np.float64), jnp.array(case["tokens"])


@pytest.fixture(scope="session")
def reference_variables(reference):
    """The same weights in the tree of `DecoderLM`."""
    w = reference[0]
    layers, width, heads, head_dim = 2, 8, 2, 4
    split = (layers, width, heads, head_dim)
    tree = {
        "embedding_scale": w["embed_scale"],
        "embedding_bias": w["embed_bias"],
        "final_norm": {"scale": w["final_norm"]},
        "layers": {
            "attention_norm": {"scale": w["attn_norm"]},
            "mlp_norm": {"scale": w["mlp_norm"]},
            "query": w["wq"].reshape(split),
            "key": w["wk"].reshape(split),
            "value": w["wv"].reshape(split),
            "out": w["wo"].reshape(layers, heads, head_dim, width),
            "up": w["w_in"],
            "down": w["w_out"],
            "relative_bias": w["rel_bias"].transpose(0, 2, 1),
        },
    }

    def single(value):
        if isinstance(value, dict):
            return {name: single(v) for name, v in value.items()}
        return jnp.asarray(value, jnp.float32)

    return {"params": single(tree)}


@pytest.fixture(scope="session")
def reference_config():
    return models.DecoderConfig(
        vocab_size=5,
        d_model=8,
        num_layers=2,
        num_heads=2,
        head_dim=4,
        d_ff=12,
        num_buckets=8,
        max_distance=6,
        embedding="given",
    )


@pytest.fixture(scope="session")
def seeded():
    """`seeded(config)`: a model, parameters away from their initial values, and inputs."""

    @functools.cache
    def make(config):
        model = models.DecoderLM(config)
        keys = lx.sequence_keys(jax.random.key(0), jnp.arange(3))
        table = lx.draw_embedding(keys, config.vocab_size, config.d_model)
        rng = np.random.default_rng(0)
        tokens = jnp.asarray(rng.integers(0, config.vocab_size, (3, 9)))
        shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(2), tokens, table))

        def fill(path, shape):
            name = str(path[-1].key)
            # Norm scales and gains near 1, everything else near 0.
            centre = 1.0 if "scale" in name else 0.0
            return jnp.asarray(centre + 0.3 * rng.standard_normal(shape.shape), jnp.float32)

        return model, jax.tree_util.tree_map_with_path(fill, shapes), tokens, table

    return make
