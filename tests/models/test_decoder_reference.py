"""The decoder against golden vectors and a float64 version written from the block equations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import lexinvariant as lx
from jaxkit import models

SMALL = models.DecoderConfig(
    vocab_size=7, d_model=16, num_layers=2, num_heads=2, head_dim=8, d_ff=24, num_buckets=8
)
RANDOM = dataclasses.replace(SMALL, embedding="given", max_distance=12)

OPTIONS = {
    "default": {},
    "gated": {"gated_mlp": True},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "no position": {"position": "none"},
    "qk norm": {"qk_norm": True},
    "qk norm rope": {"qk_norm": True, "position": "rope"},
    "unscaled": {"attention_scale": "none"},
    "shared bias": {"share_relative_bias": True},
    "recency": {"recency_heads": True},
    "remat": {"remat": True},
    "unrolled": {"unroll_layers": True},
    "multiplied": {"readout_multiplier": 0.5},
    "plain contractions": {"attention": "einsum"},
    "plain contractions without bias": {"attention": "einsum", "position": "none"},
    "swiglu": {"activation": "silu", "gated_mlp": True},
    "gelu": {"activation": "gelu"},
    "geglu by tanh": {"activation": "gelu_tanh", "gated_mlp": True},
    "grouped queries": {"num_heads": 4, "head_dim": 4, "num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1, "position": "alibi"},
    "rotary base": {"position": "rope", "rotary_base": 100.0},
    "epsilon": {"norm_epsilon": 0.1},
    "no affine": {"embedding_affine": False},
    "untied": {"embedding": "fixed", "tied_readout": False},
}
LLAMA = {
    "num_heads": 4,
    "head_dim": 4,
    "num_kv_heads": 2,
    "position": "rope",
    "rotary_base": 50.0,
    "activation": "silu",
    "gated_mlp": True,
    "norm_epsilon": 1e-3,
    "embedding": "fixed",
    "embedding_affine": False,
    "tied_readout": False,
}
#: Every option above at least once, in three programs.
TOGETHER = {
    "gated, alibi, unscaled, multiplied": {
        "gated_mlp": True,
        "position": "alibi",
        "attention_scale": "none",
        "readout_multiplier": 0.5,
    },
    "qk norm, rope, remat": {"qk_norm": True, "position": "rope", "remat": True},
    "shared bias, qk norm, unrolled": {
        "share_relative_bias": True,
        "qk_norm": True,
        "unroll_layers": True,
        "attention": "einsum",
    },
    "llama": LLAMA,
    "gelu, one key head, t5": {"activation": "gelu", "num_kv_heads": 1},
}
ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + ERF(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
}


def norm(x, scale, config):
    return scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)


def bucket(distance, num_buckets, max_distance):
    half = num_buckets // 2
    if distance < half:
        return distance
    steps = half * np.log(distance / half) / np.log(max_distance / half)
    return min(num_buckets - 1, half + int(steps + 1e-12))


def rotated(x, t, base):
    half = x.shape[-1] // 2
    angle = t * base ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


def unit(x):
    return x / np.sqrt(np.sum(x**2) + 1e-6)


def attend(x, w, layer, config):
    """One sequence, one position and head at a time: `[T, D] -> [T, D]`."""
    length = len(x)
    out = np.zeros_like(x)
    for h in range(config.num_heads):
        shared = h * config.kv_heads // config.num_heads
        q = x @ w["query"][layer, :, h]
        k, v = (x @ w[name][layer, :, shared] for name in ("key", "value"))
        if config.position == "rope":
            q = np.stack([rotated(q[t], t, config.rotary_base) for t in range(length)])
            k = np.stack([rotated(k[t], t, config.rotary_base) for t in range(length)])
        scale = 1 / np.sqrt(config.head_dim) if config.attention_scale == "inverse_sqrt" else 1.0
        gain = 1.0
        if config.qk_norm:
            q, k = np.stack([unit(a) for a in q]), np.stack([unit(a) for a in k])
            scale, gain = 1.0, w["logit_scale"][layer, h]
        for t in range(length):
            logits = np.zeros(t + 1)
            for s in range(t + 1):
                bias = 0.0
                if config.position == "t5":
                    table = w["relative_bias"]
                    table = table if config.share_relative_bias else table[layer]
                    bias = table[h, bucket(t - s, config.num_buckets, config.max_distance)]
                if config.position == "alibi":
                    bias = -(2.0 ** (-8 * (h + 1) / config.num_heads)) * (t - s)
                logits[s] = gain * (scale * q[t] @ k[s] + bias)
            weights = np.exp(logits - logits.max())
            out[t] += (weights / weights.sum()) @ v[: t + 1] @ w["out"][layer, h]
    return out


def mlp(x, w, layer, config):
    up, activation = x @ w["up"][layer], ACTIVATIONS[config.activation]
    if config.gated_mlp:
        return (activation(x @ w["gate"][layer]) * up) @ w["down"][layer]
    return activation(up) @ w["down"][layer]


def exact_logits(params, config, table, tokens):
    """`params` as `DecoderLM` keeps them, `table` `[V, D]`, `tokens` `[T]`: `[T, V]`."""
    layers = dict(params["layers"])
    if config.share_relative_bias and config.position == "t5":
        layers["relative_bias"] = params["relative_bias"]
    x = table[tokens]
    if config.embedding_affine:
        x = params["embedding_scale"] * x + params["embedding_bias"]
    for layer in range(config.num_layers):
        normed = norm(x, layers["attention_norm"]["scale"][layer], config)
        x = x + attend(normed, layers, layer, config)
        x = x + mlp(norm(x, layers["mlp_norm"]["scale"][layer], config), layers, layer, config)
    scale = config.readout_multiplier / np.sqrt(config.d_model)
    table = table if config.tied_readout else params["unembedding"]
    return norm(x, params["final_norm"]["scale"], config) @ table.T * scale


@pytest.mark.parametrize("run", range(3))
def test_logits_match_an_independent_float64_implementation(
    run, vectors, reference, reference_variables, reference_config
):
    case = vectors["decoder"]["runs"][run]
    config = dataclasses.replace(
        reference_config,
        position=case["position"],
        attention_scale="none" if case["attn_scale"] == 1.0 else "inverse_sqrt",
    )
    variables = jax.tree.map(lambda x: x, reference_variables)
    if config.position != "t5":
        del variables["params"]["layers"]["relative_bias"]
    _, table, tokens = reference
    apply = jax.jit(models.DecoderLM(config).apply)
    logits = apply(variables, tokens, jnp.asarray(table, jnp.float32))
    np.testing.assert_allclose(logits, case["logits"], atol=1e-5)
    # The float64 reference of the option tests below is itself held to the golden vectors.
    params = jax.tree.map(np.float64, variables["params"])
    for b in range(2):
        exact = exact_logits(params, config, table[b], tokens[b])
        np.testing.assert_allclose(exact, case["logits"][b], atol=1e-6)


@pytest.mark.parametrize(
    "name", [*TOGETHER, *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS)]
)
def test_every_option_matches_its_equation_in_float64(name, seeded):
    config = dataclasses.replace(RANDOM, **(TOGETHER | OPTIONS)[name])
    model, variables, tokens, table = seeded(config)
    own = config.embedding == "fixed"
    logits = jax.jit(model.apply)(variables, tokens, None if own else table)
    params = jax.tree.map(np.float64, variables["params"])
    for b in range(3):
        rows = params["embedding"] if own else np.float64(table[b])
        exact = exact_logits(params, config, rows, np.asarray(tokens[b]))
        np.testing.assert_allclose(logits[b], exact, atol=2e-5)


def test_logits_with_partly_random_tables_match_the_golden_vectors(
    vectors, reference, reference_variables, reference_config
):
    case = vectors["decoder"]["mixed"]
    _, table, tokens = reference
    mixed = lx.mix_embedding(
        jnp.asarray(case["mask"]),
        jnp.asarray(case["fixed_embedding"]),
        jnp.asarray(table, jnp.float32),
    )
    logits = jax.jit(models.DecoderLM(reference_config).apply)(reference_variables, tokens, mixed)
    np.testing.assert_allclose(logits, case["logits_t5"], atol=1e-5)


def test_moving_rows_with_their_ids_permutes_the_logits(
    vectors, reference, reference_variables, reference_config
):
    case = vectors["decoder"]["relabel"]
    _, table, tokens = reference
    perm, renamed = np.array(case["perm"]), jnp.array(case["tokens"])
    assert np.array_equal(np.take_along_axis(perm, tokens, 1), renamed)
    moved = np.take_along_axis(table, np.argsort(perm, axis=1)[..., None], axis=1)
    model = models.DecoderLM(reference_config)
    apply = jax.jit(model.apply, static_argnames="method")
    before = apply(reference_variables, tokens, jnp.asarray(table, jnp.float32))
    after = apply(reference_variables, renamed, jnp.asarray(moved, jnp.float32))
    np.testing.assert_allclose(after, case["logits_t5"], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(after, perm[:, None], 2), before, atol=1e-6)
    hidden = [
        apply(reference_variables, t, jnp.asarray(e, jnp.float32), method="hidden_states")
        for t, e in ((tokens, table), (renamed, moved))
    ]
    assert np.array_equal(hidden[0], hidden[1])


def test_losses_and_gradients_match_an_independent_float64_autograd(
    vectors, reference, reference_variables, reference_config
):
    _, table, tokens = reference
    model = models.DecoderLM(reference_config)
    expected = vectors["decoder_gradient"]

    def loss(variables):
        logits = model.apply(variables, tokens[:, :-1], jnp.asarray(table, jnp.float32))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(picked), -picked[..., 0]

    (value, losses), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(reference_variables)
    np.testing.assert_allclose(value, expected["loss"], atol=1e-5)
    np.testing.assert_allclose(losses, vectors["decoder"]["next_token_nll_t5"], atol=1e-5)
    params, layers = gradient["params"], gradient["params"]["layers"]
    exact = expected["grad"]
    np.testing.assert_allclose(params["embedding_scale"], exact["embed_scale"], atol=1e-5)
    np.testing.assert_allclose(params["embedding_bias"], exact["embed_bias"], atol=1e-5)
    np.testing.assert_allclose(params["final_norm"]["scale"], exact["final_norm"], atol=1e-5)
    bias = np.array(exact["rel_bias"]).transpose(0, 2, 1)
    np.testing.assert_allclose(layers["relative_bias"], bias, atol=1e-5)
    names = {
        "wq": layers["query"],
        "wk": layers["key"],
        "wv": layers["value"],
        "wo": layers["out"],
        "w_in": layers["up"],
        "w_out": layers["down"],
        "attn_norm": layers["attention_norm"]["scale"],
        "mlp_norm": layers["mlp_norm"]["scale"],
    }
    for name, array in names.items():
        np.testing.assert_allclose(
            np.sum(np.square(array)), exact["squared_norm"][name], rtol=2e-5, err_msg=name
        )


def test_log_probs_under_given_tables_are_those_of_the_reference(
    vectors, reference, reference_variables, reference_config
):
    case = vectors["multi_draw"]
    tables = jnp.asarray(case["embeddings"])
    tokens = jnp.broadcast_to(reference[2][:1], (4, 7))
    logits = models.DecoderLM(reference_config).apply(reference_variables, tokens[:, :-1], tables)
    log_p = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    picked = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)
    np.testing.assert_allclose(picked.sum(axis=(1, 2)), case["log_probs"], atol=2e-5)
