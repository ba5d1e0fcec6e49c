"""The decoder with a LLaMA's options against the LLaMA of `transformers`, weights copied."""

import math

import jax
import numpy as np
import pytest

from jaxkit import models

torch = pytest.importorskip("torch", reason="the extra benchmark is not installed")
transformers = pytest.importorskip("transformers", reason="the extra benchmark is not installed")


def decoder(peer) -> tuple[models.DecoderLM, dict]:
    """The decoder with the options and the weights of a `LlamaForCausalLM`."""
    its = peer.config
    config = models.DecoderConfig(
        its.vocab_size,
        d_model=its.hidden_size,
        num_layers=its.num_hidden_layers,
        num_heads=its.num_attention_heads,
        num_kv_heads=its.num_key_value_heads,
        head_dim=its.head_dim,
        d_ff=its.intermediate_size,
        position="rope",
        rotary_base=its.rope_parameters["rope_theta"],
        activation="silu",
        gated_mlp=True,
        norm_epsilon=its.rms_norm_eps,
        embedding_affine=False,
        tied_readout=its.tie_word_embeddings,
        readout_multiplier=math.sqrt(its.hidden_size),
    )
    weights = {name: value.detach().numpy() for name, value in peer.state_dict().items()}

    def stacked(name: str, *shape: int) -> np.ndarray:
        """Weights of all layers, transposed to ``[in, out]``."""
        layers = range(config.num_layers)
        found = np.stack([weights[f"model.layers.{i}.{name}.weight"].T for i in layers])
        return found.reshape(config.num_layers, *shape) if shape else found

    width, head = config.d_model, config.head_dim
    params = {
        "embedding": weights["model.embed_tokens.weight"],
        "final_norm": {"scale": weights["model.norm.weight"]},
        "layers": {
            "attention_norm": {"scale": stacked("input_layernorm")},
            "mlp_norm": {"scale": stacked("post_attention_layernorm")},
            "query": stacked("self_attn.q_proj", width, config.num_heads, head),
            "key": stacked("self_attn.k_proj", width, config.kv_heads, head),
            "value": stacked("self_attn.v_proj", width, config.kv_heads, head),
            "out": stacked("self_attn.o_proj", config.num_heads, head, width),
            "gate": stacked("mlp.gate_proj"),
            "up": stacked("mlp.up_proj"),
            "down": stacked("mlp.down_proj"),
        },
    }
    if not config.tied_readout:
        params["unembedding"] = weights["lm_head.weight"]
    return models.DecoderLM(config), {"params": params}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kv_heads", "theta"), [(6, 10_000.0), (2, 500_000.0), (1, 10_000.0)])
def test_logits_are_those_of_a_llama_with_the_same_weights(kv_heads, theta, tied):
    torch.manual_seed(kv_heads)
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=kv_heads,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
    ).eval()
    # Norms start at one: others tell whether they are read where they belong.
    for name, value in peer.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    tokens = np.random.default_rng(kv_heads).integers(0, 97, (2, 33))
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()
    model, variables = decoder(peer)
    logits = jax.jit(model.apply)(variables, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
