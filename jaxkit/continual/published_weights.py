"""Parameters of published vision transformers: one table of names, read both ways."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree

from jaxkit import models, validation
from jaxkit.datasets.extras import require


class Name(NamedTuple):
    """One parameter in three tongues; `{i}` stands for the block.

    Attributes:
        flax: path in the variables of `VisionTransformer`, below `"params"`.
        timm: tensor in timm's layout; `"name[0]"` is the first third of its rows.
        huggingface: tensor in Hugging Face's layout, as written to disk.
        shape: how a tensor becomes the parameter, one of `_SHAPES`.
    """

    flax: str
    timm: str
    huggingface: str
    shape: str


_LAYER = "vit.encoder.layer.{i}."
_SELF = _LAYER + "attention.attention."

# fmt: off
NAMES: tuple[Name, ...] = (
    Name("cls_token", "cls_token", "vit.embeddings.cls_token", "same"),
    Name("pos_embed", "pos_embed", "vit.embeddings.position_embeddings", "same"),
    Name("patch_embed/kernel", "patch_embed.proj.weight",
         "vit.embeddings.patch_embeddings.projection.weight", "convolution"),
    Name("patch_embed/bias", "patch_embed.proj.bias",
         "vit.embeddings.patch_embeddings.projection.bias", "same"),
    Name("block_{i}/norm1/scale", "blocks.{i}.norm1.weight",
         _LAYER + "layernorm_before.weight", "same"),
    Name("block_{i}/norm1/bias", "blocks.{i}.norm1.bias", _LAYER + "layernorm_before.bias", "same"),
    Name("block_{i}/attn/query/kernel", "blocks.{i}.attn.qkv.weight[0]",
         _SELF + "query.weight", "to_heads"),
    Name("block_{i}/attn/query/bias", "blocks.{i}.attn.qkv.bias[0]", _SELF + "query.bias", "heads"),
    Name("block_{i}/attn/key/kernel", "blocks.{i}.attn.qkv.weight[1]",
         _SELF + "key.weight", "to_heads"),
    Name("block_{i}/attn/key/bias", "blocks.{i}.attn.qkv.bias[1]", _SELF + "key.bias", "heads"),
    Name("block_{i}/attn/value/kernel", "blocks.{i}.attn.qkv.weight[2]",
         _SELF + "value.weight", "to_heads"),
    Name("block_{i}/attn/value/bias", "blocks.{i}.attn.qkv.bias[2]", _SELF + "value.bias", "heads"),
    Name("block_{i}/attn/out/kernel", "blocks.{i}.attn.proj.weight",
         _LAYER + "attention.output.dense.weight", "from_heads"),
    Name("block_{i}/attn/out/bias", "blocks.{i}.attn.proj.bias",
         _LAYER + "attention.output.dense.bias", "same"),
    Name("block_{i}/norm2/scale", "blocks.{i}.norm2.weight",
         _LAYER + "layernorm_after.weight", "same"),
    Name("block_{i}/norm2/bias", "blocks.{i}.norm2.bias", _LAYER + "layernorm_after.bias", "same"),
    Name("block_{i}/mlp/fc1/kernel", "blocks.{i}.mlp.fc1.weight",
         _LAYER + "intermediate.dense.weight", "linear"),
    Name("block_{i}/mlp/fc1/bias", "blocks.{i}.mlp.fc1.bias",
         _LAYER + "intermediate.dense.bias", "same"),
    Name("block_{i}/mlp/fc2/kernel", "blocks.{i}.mlp.fc2.weight",
         _LAYER + "output.dense.weight", "linear"),
    Name("block_{i}/mlp/fc2/bias", "blocks.{i}.mlp.fc2.bias", _LAYER + "output.dense.bias", "same"),
    Name("norm/scale", "norm.weight", "vit.layernorm.weight", "same"),
    Name("norm/bias", "norm.bias", "vit.layernorm.bias", "same"),
    Name("head/kernel", "head.weight", "classifier.weight", "linear"),
    Name("head/bias", "head.bias", "classifier.bias", "same"),
)
# fmt: on

#: A torch linear layer is [out, in], heads major within a row; a convolution [out, in, h, w].
_SHAPES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "same": lambda x, heads: x,
    "linear": lambda x, heads: x.T,
    "convolution": lambda x, heads: x.transpose(2, 3, 1, 0),
    "heads": lambda x, heads: x.reshape(heads, -1),
    "to_heads": lambda x, heads: x.T.reshape(x.shape[1], heads, -1),
    "from_heads": lambda x, heads: x.T.reshape(heads, -1, x.shape[0]),
}


class WeightReport(NamedTuple):
    """How tensors fit a model.

    Attributes:
        missing: tensors that the model needs and the file lacks.
        unexpected: tensors that the model has no place for.
        misshaped: tensors of another shape, as `name: shape found, shape needed`.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong.

        Example:
            >>> WeightReport((), (), ()).fits
            True
        """
        return not any(self)

    def __str__(self) -> str:
        lines = [f"{name}: {', '.join(names)}" for name, names in self._asdict().items() if names]
        return "; ".join(lines) or "all tensors fit"


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Args:
        path: the file.

    Returns:
        Tensors by name; bfloat16 and float16 become float32.

    Raises:
        ImportError: without the `vision` extra.
        ValueError: if the file is missing or damaged.

    Example:
        >>> read_safetensors("no/such.safetensors")
        Traceback (most recent call last):
        ValueError: no/such.safetensors does not exist
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    reader = require("safetensors.flax", "vision")
    error_type = require("safetensors", "vision").SafetensorError
    try:
        # Through JAX arrays, which know bfloat16.
        tensors = reader.load_file(path)
    except (error_type, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        # The last two are the package's, for a type of numbers that it cannot read.
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from None
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def compare_weights(tensors: Mapping[str, Any], model: models.VisionTransformer) -> WeightReport:
    """Compare the names and shapes of tensors with what a model needs.

    The layout, timm's or Hugging Face's (with or without the prefix `vit.`), is recognised by its
    names. A `pooler` is ignored, and so is a head if the model has none.

    Args:
        tensors: arrays, or anything with a `shape`, by name.
        model: the model.

    Returns:
        The report.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16,
        ...                           num_classes=0)
        >>> len(compare_weights({"norm.weight": np.ones(8)}, model).missing)
        17
    """
    layout, tensors = _recognised(tensors, model)
    needed: dict[str, tuple[int, ...]] = {}
    for name in _names(model):
        tensor, _ = _third(getattr(name, layout))
        needed[tensor] = _tensor_shape(name, model, layout)
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    return WeightReport(
        tuple(name for name in needed if name not in found),
        tuple(name for name in found if name not in needed),
        tuple(
            f"{name}: {list(found[name])} found, {list(shape)} needed"
            for name, shape in needed.items()
            if name in found and found[name] != shape
        ),
    )


def convert_weights(tensors: Mapping[str, np.ndarray], model: models.VisionTransformer) -> PyTree:
    """Turn tensors of a published checkpoint into the variables of a model.

    Args:
        tensors: arrays by name, in timm's or Hugging Face's layout (`NAMES`).
        model: the model; set `epsilon=1e-12` for Hugging Face's, and `num_classes=0` to leave a
            head out.

    Returns:
        Variables for `model.apply`, float32.

    Raises:
        ValueError: if tensors are missing, unexpected, of another shape or not finite; all of them
            are named at once.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> convert_weights({"norm.weigth": np.ones(8)}, model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: tensors must fit the model, got missing: cls_token, ...
    """
    report = compare_weights(tensors, model)
    if not report.fits:
        raise ValueError(f"tensors must fit the model, got {report}")
    layout, tensors = _recognised(tensors, model)
    broken = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if broken:
        raise ValueError(f"tensors must be finite, these are not: {', '.join(broken)}")
    params = {}
    for name in _names(model):
        tensor, part = _third(getattr(name, layout))
        value = np.asarray(tensors[tensor])
        if part is not None:
            value = np.split(value, 3)[part]
        shaped = _SHAPES[name.shape](value, model.num_heads)
        # A dtype that JAX would hold anyway: float32, or float64 where the caller enabled it.
        params[name.flax] = jnp.asarray(shaped)
    return {"params": traverse_util.unflatten_dict(params, sep="/")}


def load_vision_transformer(
    path: str | os.PathLike[str], model: models.VisionTransformer, *, resize_positions: bool = False
) -> PyTree:
    """Load a safetensors file of timm or Hugging Face into a model.

    Args:
        path: the file.
        model: the model.
        resize_positions: whether position embeddings of another image size may be resized.

    Returns:
        Variables for `model.apply`.

    Raises:
        ImportError: without the `vision` extra.
        ValueError: as `read_safetensors` and `convert_weights`.

    Example:
        >>> load_vision_transformer("no/such.safetensors", models.VisionTransformer())
        Traceback (most recent call last):
        ValueError: no/such.safetensors does not exist
    """
    tensors = read_safetensors(path)
    if resize_positions:
        layout, tensors = _recognised(tensors, model)
        name = next(getattr(n, layout) for n in NAMES if n.flax == "pos_embed")
        if name in tensors:
            tensors[name] = resize_position_embedding(tensors[name], model.num_tokens)
    return convert_weights(tensors, model)


def resize_position_embedding(
    embedding: Float[np.ndarray, "1 N d"], num_tokens: int
) -> Float[np.ndarray, "1 M d"]:
    """Resize position embeddings to another image size: bicubic, the class token's row kept.

    Args:
        embedding: of the class token and a square grid of patches.
        num_tokens: tokens wanted, a square and one.

    Returns:
        The embedding of `num_tokens` tokens, as timm computes it (antialiased).

    Raises:
        ValueError: if either number of patches is no square.

    Example:
        >>> resize_position_embedding(np.ones((1, 5, 8), np.float32), 10).shape
        (1, 10, 8)
    """
    sides = [round((n - 1) ** 0.5) for n in (embedding.shape[1], num_tokens)]
    if [s * s + 1 for s in sides] != [embedding.shape[1], num_tokens]:
        raise ValueError(
            "position embeddings must be a class token and a square of patches, got "
            f"{embedding.shape[1]} to be resized to {num_tokens}"
        )
    old, new = sides
    width = embedding.shape[-1]
    grid = np.asarray(embedding)[:, 1:].reshape(1, old, old, width)
    grid = jax.image.resize(grid, (1, new, new, width), "cubic")
    return np.concatenate([embedding[:, :1], np.asarray(grid).reshape(1, -1, width)], axis=1)


def _names(model: models.VisionTransformer) -> list[Name]:
    names = []
    for name in NAMES:
        if name.flax.startswith("head") and not model.num_classes:
            continue
        blocks = range(model.depth) if "{i}" in name.flax else (0,)
        names += [Name(*(text.format(i=i) for text in name)) for i in blocks]
    return names


def _recognised(
    tensors: Mapping[str, Any], model: models.VisionTransformer
) -> tuple[str, dict[str, Any]]:
    validation.integer("number of tensors", len(tensors), minimum=1)
    bare = ("embeddings.", "encoder.", "layernorm.", "pooler.")
    huggingface = any(name.startswith(("vit.", *bare)) for name in tensors)
    layout = "huggingface" if huggingface else "timm"
    kept = {}
    for name, x in tensors.items():
        full = f"vit.{name}" if huggingface and name.startswith(bare) else name
        head = full.startswith(("head.", "classifier.")) and not model.num_classes
        if not head and not full.startswith("vit.pooler."):
            kept[full] = x
    return layout, kept


def _third(tensor: str) -> tuple[str, int | None]:
    name, bracket, part = tensor.partition("[")
    return name, int(part[:-1]) if bracket else None


def _tensor_shape(name: Name, model: models.VisionTransformer, layout: str) -> tuple[int, ...]:
    d, hidden, patch = model.width, model.mlp_dim, model.patch_size
    leaf = name.flax.split("/", 1)[-1] if name.flax.startswith("block_") else name.flax
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, model.num_tokens, d),
        "patch_embed/kernel": (d, model.channels, patch, patch),
        "mlp/fc1/kernel": (hidden, d),
        "mlp/fc1/bias": (hidden,),
        "mlp/fc2/kernel": (d, hidden),
        "head/kernel": (model.num_classes, d),
        "head/bias": (model.num_classes,),
    }
    shape = shapes.get(leaf, (d, d) if leaf.endswith("kernel") else (d,))
    fused = _third(getattr(name, layout))[1] is not None
    return (3 * shape[0], *shape[1:]) if fused else shape
