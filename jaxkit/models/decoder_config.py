"""Shape and options of the decoder."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxkit import validation

EMBEDDINGS = ("fixed", "given")
POSITIONS = ("t5", "rope", "alibi", "none")
ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh")
ATTENTIONS = ("auto", "einsum", "xla", "cudnn", "splash")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and options of a `DecoderLM`.

    Attributes:
        vocab_size: number of token ids ``V``.
        d_model: width ``D`` of the residual stream.
        num_layers: number of blocks ``L``.
        num_heads: attention heads ``H``.
        num_kv_heads: heads of keys and values ``J``, each shared by ``H / J`` heads of queries
            (grouped-query attention); None for as many as queries have.
        head_dim: width ``K`` of a head.
        d_ff: width ``F`` of the MLP.
        embedding: `"fixed"` learns one token table; with `"given"` the model has none, and every
            call must bring its own.
        max_length: longest context accepted; None for no limit, which relative positions allow.
        position: T5 relative bias, rotary, ALiBi or nothing.
        rotary_base: wavelength base of rotary positions.
        num_buckets: buckets of the T5 bias, even.
        max_distance: distance from which on the T5 bias uses the last bucket.
        share_relative_bias: one T5 table for all layers instead of one a layer.
        recency_heads: start every second head's T5 bias as a slope that favours the tokens just
            before; without it a model with random embeddings hardly leaves the unigram plateau.
        qk_norm: scale queries and keys to unit length and learn one logit scale a head.
        attention_scale: `"inverse_sqrt"` multiplies the logits by ``K^-1/2``, `"none"` leaves them.
        activation: of the MLP: ``relu``, ``silu``, ``gelu`` (by the error function) or
            ``gelu_tanh``.
        gated_mlp: ``activation(x W_gate) * (x W_up)`` instead of ``activation(x W_up)``: with
            ``silu`` SwiGLU, with ``gelu`` GEGLU.
        norm_epsilon: added to the mean square in every RMSNorm.
        embedding_affine: learn a scale and a bias after the token table (arXiv 2305.16349
            appendix B).
        tied_readout: score tokens against the table that was read; otherwise against a second one.
        dtype: type of activations and matmul inputs, float32 or narrower, in any form that JAX
            takes; parameters and statistics stay float32.
        dropout: chance that an element of a branch is left out in training, where `apply` is given
            a key `"dropout"`.
        remat: recompute each block in the backward pass instead of storing its activations.
        unroll_layers: unroll the scan over layers: longer to compile, somewhat faster on CPU; the
            parameters are the same either way.
        attention: program of the attention. `"einsum"`: two plain contractions; `"xla"`,
            `"cudnn"`: `jax.nn.dot_product_attention`; `"splash"`: JAX's kernel for TPU. `"auto"`
            chooses for the platform that is compiled for, where the last two apply: without bias
            (rotary positions or none), on TPU for contexts and heads in multiples of 128, on GPU in
            bfloat16. They need no memory that grows with the square of the context. Decoding uses
            plain contractions.
        readout_multiplier: factor on the logits, for transfer across width; ``sqrt(D)`` undoes the
            model's own factor.

    Raises:
        TypeError: if a size is not an integer or `dtype` not a type.
        ValueError: if a size is not positive, a name is unknown, `num_buckets` is odd, `head_dim`
            is odd with rotary positions, heads do not divide, or options exclude each other.

    Example:
        >>> llama = DecoderConfig(
        ...     32_000, d_model=64, num_heads=8, num_kv_heads=2, head_dim=8, d_ff=172,
        ...     position="rope", activation="silu", gated_mlp=True, norm_epsilon=1e-5,
        ...     embedding_affine=False, tied_readout=False, dtype="bfloat16", remat=True)
        >>> llama.kv_heads
        2
    """

    vocab_size: int
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int = 32
    d_ff: int = 512
    embedding: Literal["fixed", "given"] = "fixed"
    max_length: int | None = None
    position: Literal["t5", "rope", "alibi", "none"] = "t5"
    rotary_base: float = 10_000.0
    num_buckets: int = 32
    max_distance: int = 128
    share_relative_bias: bool = False
    recency_heads: bool = False
    qk_norm: bool = False
    attention_scale: Literal["inverse_sqrt", "none"] = "inverse_sqrt"
    activation: Literal["relu", "silu", "gelu", "gelu_tanh"] = "relu"
    gated_mlp: bool = False
    norm_epsilon: float = 1e-6
    embedding_affine: bool = True
    tied_readout: bool = True
    dtype: DTypeLike = "float32"
    dropout: float = 0.0
    remat: bool = False
    unroll_layers: bool = False
    attention: Literal["auto", "einsum", "xla", "cudnn", "splash"] = "auto"
    readout_multiplier: float = 1.0

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            validation.integer(name, getattr(self, name), minimum=1)
        validation.choice("embedding", self.embedding, EMBEDDINGS)
        validation.choice("position", self.position, POSITIONS)
        validation.choice("attention_scale", self.attention_scale, ("inverse_sqrt", "none"))
        validation.choice("activation", self.activation, ACTIVATIONS)
        validation.choice("attention", self.attention, ATTENTIONS)
        for name in ("readout_multiplier", "rotary_base", "norm_epsilon"):
            validation.number(name, getattr(self, name), minimum=0, open_minimum=True)
        # One form of each type, so that equal configurations are equal and can be written.
        validation.number("dropout", self.dropout, minimum=0, maximum=1, open_maximum=True)
        object.__setattr__(self, "dtype", _floating(self.dtype))
        validation.integer("num_buckets", self.num_buckets, minimum=2)
        validation.integer("max_distance", self.max_distance, minimum=self.num_buckets // 2 + 1)
        if self.max_length is not None:
            validation.integer("max_length", self.max_length, minimum=1)
        if self.num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {self.num_buckets}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even with rotary positions, got {self.head_dim}")
        if self.num_kv_heads is not None:
            validation.integer("num_kv_heads", self.num_kv_heads, minimum=1)
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads={self.num_heads}, got {self.num_kv_heads}"
            )
        if not self.tied_readout and self.embedding == "given":
            raise ValueError("tied_readout must be True with embedding='given', got False")
        if self.attention == "splash" and self.position not in ("rope", "none"):
            raise ValueError(
                "attention='splash' takes no bias: position must be 'rope' or 'none', got "
                f"{self.position!r}"
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values ``J``."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


def _floating(dtype: DTypeLike) -> str:
    try:
        found = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be a type such as 'bfloat16', got {dtype!r}") from error
    if not jnp.issubdtype(found, jnp.floating) or found.itemsize > 4:
        raise ValueError(f"dtype must be a floating type of at most 32 bits, got {found.name!r}")
    return found.name
