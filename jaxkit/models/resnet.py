"""Residual networks for pictures: ResNet-18 with GroupNorm, ResNet-20, wide residual networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxkit import validation

#: PyTorch's first weights: of a convolution as torchvision's ResNets draw it, of a linear layer.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        num_classes: number of logits.
        widths: channels of each stage; each stage after the first halves height and width.
        blocks: blocks of each stage.
        stem: `"imagenet"` is a 7 x 7 convolution with stride 2 and a pooling, `"cifar"` a 3 x 3
            convolution.
        stem_width: channels of the stem; None for those of the first stage.
        block: `"basic"` (He et al., arXiv 1512.03385) or `"preactivation"`, which normalizes before
            it convolves (arXiv 1603.05027).
        shortcut: where the shape changes, `"convolution"` is 1 x 1 (and normalized in a basic
            block); `"padding"` takes every other pixel and adds channels of zeros.
        norm: `"group"`, or `"batch"`, which keeps running statistics in the collection
            `batch_stats`: pass `mutable=["batch_stats"]` and `train=True` in training.
        groups: groups of `"group"`.
        dtype: of convolutions and activations, `jnp.bfloat16` say; parameters, the statistics of
            normalizations and the logits stay float32.

    Raises:
        ValueError: if widths and blocks are not of one length, or a name is unknown.

    Source: arXiv 1512.03385; with two groups of GroupNorm as in the official program of FedSpeed
    (arXiv 2302.10429).

    Example:
        >>> model = resnet20(num_classes=10)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        269722
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_width: int | None = None
    block: Literal["basic", "preactivation"] = "basic"
    shortcut: Literal["convolution", "padding"] = "convolution"
    norm: Literal["group", "batch"] = "group"
    groups: int = 2
    dtype: Any = None

    def __post_init__(self):
        validation.integer("num_classes", self.num_classes, minimum=1)
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"blocks must be {len(self.widths)} like widths, got {self.blocks}")
        validation.choice("stem", self.stem, ["imagenet", "cifar"])
        validation.choice("block", self.block, ["basic", "preactivation"])
        validation.choice("shortcut", self.shortcut, ["convolution", "padding"])
        validation.choice("norm", self.norm, ["group", "batch"])
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], *, train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Return the logits of normalized images."""
        if self.norm == "group":
            norm = functools.partial(nn.GroupNorm, self.groups, epsilon=1e-5, dtype=self.dtype)
        else:
            norm = functools.partial(
                nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5,
                dtype=self.dtype,
            )  # fmt: skip
        imagenet, width = self.stem == "imagenet", self.stem_width or self.widths[0]
        x = pixels(images, 1)
        x = x if self.dtype is None else x.astype(self.dtype)
        x = _convolution(x, width, 7 if imagenet else 3, 2 if imagenet else 1, name="stem")
        if self.block == "basic":
            x = nn.relu(norm(name="stem_norm")(x))
        if imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # type: ignore[arg-type]
        block = _basic if self.block == "basic" else _preactivation
        for s, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for b in range(count):
                stride = 2 if s and not b else 1
                x = block(x, width, stride, norm, self.shortcut, f"stage{s + 1}_block{b + 1}")
        if self.block == "preactivation":
            x = nn.relu(norm(name="last_norm")(x))
        x = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return linear(self.num_classes, name="head")(x)


def resnet18(num_classes: int, *, stem: Literal["imagenet", "cifar"] = "imagenet") -> ResNet:
    """ResNet-18 with two groups of GroupNorm, as FedSpeed's official program trains it.

    Args:
        num_classes: number of logits; 11,181,642 parameters with 10.
        stem: as in `ResNet`; `"cifar"` costs 15 times as much on 32 x 32 pixels.

    Example:
        >>> resnet18(10).groups
        2
    """
    return ResNet(num_classes, stem=stem)


def resnet20(num_classes: int, *, norm: Literal["group", "batch"] = "batch") -> ResNet:
    """ResNet-20 for 32 x 32 pixels, 0.27 million parameters.

    Args:
        num_classes: number of logits.
        norm: as in `ResNet`.

    Source: arXiv 1512.03385 §4.2.

    Example:
        >>> resnet20(10).blocks
        (3, 3, 3)
    """
    return ResNet(num_classes, (16, 32, 64), (3, 3, 3), "cifar", shortcut="padding", norm=norm)


def wide_resnet(
    num_classes: int, *, depth: int = 16, width: int = 8, norm: Literal["group", "batch"] = "batch"
) -> ResNet:
    """A wide residual network, WRN-depth-width; WRN-16-8 by default.

    Args:
        num_classes: number of logits.
        depth: layers, 6 n + 4.
        width: times the channels of the narrow network.
        norm: as in `ResNet`.

    Raises:
        ValueError: if the depth is not 6 n + 4.

    Source: arXiv 1605.07146.

    Example:
        >>> wide_resnet(10).widths
        (128, 256, 512)
    """
    blocks, rest = divmod(validation.integer("depth", depth) - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6 n + 4 for a positive n, got {depth}")
    widths = tuple(c * validation.integer("width", width, minimum=1) for c in (16, 32, 64))
    return ResNet(
        num_classes, widths, (blocks,) * 3, "cifar", stem_width=16, block="preactivation",
        norm=norm, groups=16,
    )  # fmt: skip


def pixels(images: jax.Array, side: int) -> jax.Array:
    """Return `images` if they are `[B, H, W, C]` with at least `side` pixels a side, or raise."""
    if images.ndim != 4 or min(images.shape[1:3]) < side:
        raise ValueError(
            f"images must be [B, H, W, C] with H and W of at least {side}, got {images.shape}"
        )
    return images


def linear(features: int, name: str) -> nn.Dense:
    """A linear layer with PyTorch's first weights; the bias starts at 0."""
    return nn.Dense(features, kernel_init=uniform_fan_in, name=name)


def _convolution(x: jax.Array, width: int, size: int, stride: int = 1, name: str = "") -> jax.Array:
    # Padding is the same on both sides, also with a stride of 2, where Flax's "SAME" is not.
    return nn.Conv(
        width, (size, size), (stride, stride), padding=size // 2, use_bias=False,
        kernel_init=kaiming_normal, name=name, dtype=x.dtype if x.dtype.itemsize < 4 else None,
    )(x)  # fmt: skip


def _shortcut(
    x: jax.Array, width: int, stride: int, kind: str, norm: Callable[..., Any] | None, name: str
) -> jax.Array:
    if stride == 1 and x.shape[-1] == width:
        return x
    if kind == "padding":
        return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
    x = _convolution(x, width, 1, stride, f"{name}_shortcut")
    return x if norm is None else norm(name=f"{name}_shortcut_norm")(x)


def _basic(x, width: int, stride: int, norm, shortcut: str, name: str) -> jax.Array:
    y = _convolution(x, width, 3, stride, f"{name}_conv1")
    y = nn.relu(norm(name=f"{name}_norm1")(y))
    y = norm(name=f"{name}_norm2")(_convolution(y, width, 3, 1, f"{name}_conv2"))
    return nn.relu(y + _shortcut(x, width, stride, shortcut, norm, name))


def _preactivation(x, width: int, stride: int, norm, shortcut: str, name: str) -> jax.Array:
    y = nn.relu(norm(name=f"{name}_norm1")(x))
    # The shortcut starts after the activation where the shape changes (arXiv 1605.07146's code).
    changes = stride != 1 or x.shape[-1] != width
    side = _shortcut(y if changes else x, width, stride, shortcut, None, name)
    y = _convolution(y, width, 3, stride, f"{name}_conv1")
    y = nn.relu(norm(name=f"{name}_norm2")(y))
    return side + _convolution(y, width, 3, 1, f"{name}_conv2")
