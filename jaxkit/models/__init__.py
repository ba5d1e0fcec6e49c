"""Networks that several rooms use: a decoder language model, a vision transformer, ResNets.

Nothing of a method is in them: `DecoderLM` reads its token table as an argument if asked to, and
`VisionTransformer` takes branches beside its MLPs. They say how parameters and activations are
split, by the logical names of `training.RULES`, and need nothing more than a mesh in use
(`jax.set_mesh`, or the step of `training.make_train_step`), with automatic or explicit axes.

How to choose: the defaults of `DecoderConfig` are those of arXiv 2305.16349; its example is a
LLaMA. Set `remat` and `dtype="bfloat16"` on accelerators; for long contexts rotary positions, whose
attention needs no memory that grows with the square of the context, and
`chunked_cross_entropy`. Sharp edges: the logits are divided by ``sqrt(D)``, see
`readout_multiplier`; ids out of range are clamped under `jit`, see `validate_tokens`.

As modules of NNX, where parameters are not to be split at once:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = DecoderLM(DecoderConfig(vocab_size=8, d_model=16, num_layers=1))
    >>> with nnx.use_eager_sharding(False):
    ...     bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
    ...     bridged = nnx.bridge.lazy_init(bridged, jnp.zeros((1, 3), int))
    >>> bridged(jnp.zeros((1, 3), int)).shape
    (1, 3, 8)

and on a mesh inside ``with jax.set_mesh(mesh), nn.logical_axis_rules(training.RULES)``.
"""

from jaxkit.models.decoder import DecoderLM, empty_cache, initializer, validate_tokens
from jaxkit.models.decoder_config import DecoderConfig
from jaxkit.models.decoder_cost import parameter_counts, step_cost, train_flops_per_token
from jaxkit.models.generation import generate
from jaxkit.models.plain_networks import MLP, VGG11, LeNet
from jaxkit.models.published_weights import load_vision_transformer
from jaxkit.models.readout import chunked_cross_entropy
from jaxkit.models.resnet import ResNet, resnet18, resnet20, wide_resnet
from jaxkit.models.vision_transformer import VisionTransformer

__all__ = [
    "MLP",
    "VGG11",
    "DecoderConfig",
    "DecoderLM",
    "LeNet",
    "ResNet",
    "VisionTransformer",
    "chunked_cross_entropy",
    "empty_cache",
    "generate",
    "initializer",
    "load_vision_transformer",
    "parameter_counts",
    "resnet18",
    "resnet20",
    "step_cost",
    "train_flops_per_token",
    "validate_tokens",
    "wide_resnet",
]
