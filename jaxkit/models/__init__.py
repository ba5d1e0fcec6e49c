"""Networks that several rooms use: a decoder language model and a vision transformer.

Nothing of a method is in them: `DecoderLM` reads its token table as an argument if asked to, and
`VisionTransformer` takes branches beside its MLPs.
"""

from jaxkit.models.decoder import (
    DecoderLM,
    KeyValueCache,
    empty_cache,
    initializer,
    validate_tokens,
)
from jaxkit.models.decoder_config import DecoderConfig
from jaxkit.models.decoder_cost import (
    ParameterCounts,
    StepCost,
    parameter_counts,
    step_cost,
    train_flops_per_token,
)
from jaxkit.models.generation import generate
from jaxkit.models.readout import TokenTable, chunked_cross_entropy
from jaxkit.models.vision_transformer import VisionTransformer

__all__ = [
    "DecoderConfig",
    "DecoderLM",
    "KeyValueCache",
    "ParameterCounts",
    "StepCost",
    "TokenTable",
    "VisionTransformer",
    "chunked_cross_entropy",
    "empty_cache",
    "generate",
    "initializer",
    "parameter_counts",
    "step_cost",
    "train_flops_per_token",
    "validate_tokens",
]
