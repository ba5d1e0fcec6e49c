"""Networks that several rooms use: a decoder language model, a vision transformer, ResNets.

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
from jaxkit.models.plain_networks import MLP, VGG11, LeNet
from jaxkit.models.readout import TokenTable, chunked_cross_entropy
from jaxkit.models.resnet import ResNet, resnet18, resnet20, wide_resnet
from jaxkit.models.vision_transformer import VisionTransformer

__all__ = [
    "MLP",
    "VGG11",
    "DecoderConfig",
    "DecoderLM",
    "KeyValueCache",
    "LeNet",
    "ParameterCounts",
    "ResNet",
    "StepCost",
    "TokenTable",
    "VisionTransformer",
    "chunked_cross_entropy",
    "empty_cache",
    "generate",
    "initializer",
    "parameter_counts",
    "resnet18",
    "resnet20",
    "step_cost",
    "train_flops_per_token",
    "validate_tokens",
    "wide_resnet",
]
