"""Language models without fixed token embeddings, and the decoder they share with ordinary ones.

`DecoderLM` is a decoder-only transformer that reads its token table as an argument: a learned one
(`embedding="fixed"`, an ordinary language model) or a random one drawn anew for every sequence
(`embedding="lexinvariant"`, arXiv 2305.16349), so that a symbol means only what its context says.

How to choose: a lexinvariant model needs relative positions (T5, the default, or ALiBi) and
`recency_heads=True`; with rotary positions it stays at the in-context unigram plateau. Sharp edges:
derive the keys of the tables with `sequence_keys` from global indices, never one key for a batch;
under `jit` a token id out of range is clamped, so check with `validate_tokens` before.
"""

from jaxkit.lexinvariant.blocks import Block, RMSNorm
from jaxkit.lexinvariant.configuration import DecoderConfig
from jaxkit.lexinvariant.cost import matmul_parameters, train_flops_per_token
from jaxkit.lexinvariant.decoder import DecoderLM, KeyValueCache, empty_cache, validate_tokens
from jaxkit.lexinvariant.embeddings import (
    draw_embedding,
    embedding_rows,
    mix_embedding,
    random_rows,
    sequence_keys,
)
from jaxkit.lexinvariant.generation import generate
from jaxkit.lexinvariant.objective import anonymised, next_token_loss, token_losses
from jaxkit.lexinvariant.positions import alibi_slopes, rotate, t5_bucket
from jaxkit.lexinvariant.readout import chunked_cross_entropy
from jaxkit.lexinvariant.relabelling import (
    invert_mapping,
    permute_tokens,
    relabelling_schedule,
)

__all__ = [
    "Block",
    "DecoderConfig",
    "DecoderLM",
    "KeyValueCache",
    "RMSNorm",
    "alibi_slopes",
    "anonymised",
    "chunked_cross_entropy",
    "draw_embedding",
    "embedding_rows",
    "empty_cache",
    "generate",
    "invert_mapping",
    "matmul_parameters",
    "mix_embedding",
    "next_token_loss",
    "permute_tokens",
    "random_rows",
    "relabelling_schedule",
    "rotate",
    "sequence_keys",
    "t5_bucket",
    "token_losses",
    "train_flops_per_token",
    "validate_tokens",
]
