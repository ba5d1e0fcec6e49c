"""The decoder whose weights and outputs stand in the golden vectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx


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
    return lx.DecoderConfig(
        vocab_size=5,
        d_model=8,
        num_layers=2,
        num_heads=2,
        head_dim=4,
        d_ff=12,
        num_buckets=8,
        max_distance=6,
        embedding="lexinvariant",
    )
