"""Shape and options of the decoder."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxkit import validation

EMBEDDINGS = ("fixed", "given")
POSITIONS = ("t5", "rope", "alibi", "none")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("einsum", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and options of a `DecoderLM`.

    Attributes:
        vocab_size: number of token ids ``V``.
        d_model: width ``D`` of the residual stream.
        num_layers: number of blocks ``L``.
        num_heads: attention heads ``H``.
        head_dim: width ``K`` of a head.
        d_ff: width ``F`` of the MLP.
        embedding: `"fixed"` learns one token table; with `"given"` the model has none, and every
            call must bring its own.
        max_length: longest context accepted; None for no limit, which relative positions allow.
        position: T5 relative bias, rotary, ALiBi or nothing.
        num_buckets: buckets of the T5 bias, even.
        max_distance: distance from which on the T5 bias uses the last bucket.
        share_relative_bias: one T5 table for all layers instead of one a layer.
        recency_heads: start every second head's T5 bias as a slope that favours the tokens just
            before; without it a model with random embeddings hardly leaves the unigram plateau.
        qk_norm: scale queries and keys to unit length and learn one logit scale a head.
        attention_scale: `"inverse_sqrt"` multiplies the logits by ``K^-1/2``, `"none"` leaves them.
        gated_mlp: ``relu(x W_gate) * (x W_up)`` instead of ``relu(x W_up)``.
        dtype: type of activations and matmul inputs; parameters and statistics stay float32.
        remat: recompute each block in the backward pass instead of storing its activations.
        unroll_layers: unroll the scan over layers: longer to compile, somewhat faster on CPU; the
            parameters are the same either way.
        attention_implementation: passed to `jax.nn.dot_product_attention`; or "einsum" for the same
            sums as two plain contractions, the fastest on CPU.
        readout_multiplier: factor on the logits, for transfer across width.

    Raises:
        ValueError: if a size is not positive, a name is unknown, `num_buckets` is odd, or
            `head_dim` is odd with rotary positions.

    Example:
        >>> DecoderConfig(vocab_size=96).d_model
        128
    """

    vocab_size: int
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int = 32
    d_ff: int = 512
    embedding: Literal["fixed", "given"] = "fixed"
    max_length: int | None = None
    position: Literal["t5", "rope", "alibi", "none"] = "t5"
    num_buckets: int = 32
    max_distance: int = 128
    share_relative_bias: bool = False
    recency_heads: bool = False
    qk_norm: bool = False
    attention_scale: Literal["inverse_sqrt", "none"] = "inverse_sqrt"
    gated_mlp: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    unroll_layers: bool = False
    attention_implementation: Literal["einsum", "xla", "cudnn"] | None = None
    readout_multiplier: float = 1.0

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            validation.integer(name, getattr(self, name), minimum=1)
        validation.choice("embedding", self.embedding, EMBEDDINGS)
        validation.choice("position", self.position, POSITIONS)
        validation.choice("attention_scale", self.attention_scale, ("inverse_sqrt", "none"))
        validation.choice("dtype", self.dtype, DTYPES)
        if self.attention_implementation is not None:
            validation.choice("attention_implementation", self.attention_implementation, ATTENTIONS)
        validation.number(
            "readout_multiplier", self.readout_multiplier, minimum=0, open_minimum=True
        )
        validation.integer("num_buckets", self.num_buckets, minimum=2)
        validation.integer("max_distance", self.max_distance, minimum=self.num_buckets // 2 + 1)
        if self.max_length is not None:
            validation.integer("max_length", self.max_length, minimum=1)
        if self.num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {self.num_buckets}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even with rotary positions, got {self.head_dim}")
