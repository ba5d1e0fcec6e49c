"""The vision transformer, its parameters laid out for published weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import dtypes
from jaxtyping import Array, Float

from jaxkit import training, validation

#: What a block may add beside its MLP: from the residual stream after attention `[B, N, d]` to an
#: addition of the same shape and anything else worth returning. A `jax.tree_util.Partial`.
Branch = Callable[[Array], tuple[Array, Any]]
#: Further keys and values that every token of a block attends to, `[B, P, d]` each.
Prefix = tuple[Float[Array, "B P d"], Float[Array, "B P d"]]


def _split(
    kernel: tuple[str | None, ...], bias: tuple[str | None, ...] = (None,)
) -> dict[str, Any]:
    """Initializers of a dense layer, its axes named as in `training.RULES`."""
    return {
        "kernel_init": nn.with_logical_partitioning(nn.linear.default_kernel_init, kernel),
        "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, bias),
    }


class Attention(nn.Module):
    """Multi-head self-attention with the parameter layout of published checkpoints."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N d"], prefix: Prefix | None = None
    ) -> Float[Array, "B N d"]:
        """Attend over all tokens, and over the keys and values of a prefix."""
        width = x.shape[-1]
        shape = (self.num_heads, width // self.num_heads)
        axes = _split(("embed", "heads", "head_dim"), ("heads", "head_dim"))
        query, key, value = (
            training.constrain(
                nn.DenseGeneral(shape, dtype=self.dtype, name=name, **axes)(x),
                *("batch", None, "heads", None),
            )
            for name in ("query", "key", "value")
        )
        if prefix is not None:
            before = (p.astype(key.dtype).reshape(*p.shape[:2], *shape) for p in prefix)
            key, value = (
                jnp.concatenate(pair, axis=1) for pair in zip(before, (key, value), strict=True)
            )
        # Flax's, because jax.nn's takes the softmax of float64 logits in float32.
        narrow = query.dtype.itemsize < 4
        mixed = nn.dot_product_attention(query, key, value, force_fp32_for_softmax=narrow)
        axes = _split(("heads", "head_dim", "embed"))
        return nn.DenseGeneral(width, (-2, -1), dtype=self.dtype, name="out", **axes)(mixed)


class MLP(nn.Module):
    """Two layers around the exact (erf) GELU."""

    hidden: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
        """Transform each token."""
        axes = _split(("embed", "mlp"), ("mlp",))
        hidden = nn.Dense(self.hidden, dtype=self.dtype, name="fc1", **axes)(x)
        hidden = nn.gelu(training.constrain(hidden, "batch", None, "mlp"), approximate=False)
        axes = _split(("mlp", "embed"))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2", **axes)(hidden)


class Block(nn.Module):
    """Pre-norm block with an optional branch beside its MLP."""

    num_heads: int
    mlp_dim: int
    epsilon: float
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N d"], branch: Branch | None = None, prefix: Prefix | None = None
    ) -> tuple[Float[Array, "B N d"], Any]:
        """Apply attention, then the MLP and the branch side by side."""
        x = training.constrain(x, "batch", None, None)
        x = x + Attention(self.num_heads, self.dtype, name="attn")(self._norm("norm1")(x), prefix)
        added, seen = (0, None) if branch is None else branch(x)
        return x + MLP(self.mlp_dim, self.dtype, name="mlp")(self._norm("norm2")(x)) + added, seen

    def _norm(self, name: str) -> nn.LayerNorm:
        # Residual streams of trained transformers have large outliers: E[x^2] - E[x]^2 cancels.
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)


class VisionTransformer(nn.Module):
    r"""Vision transformer ViT-B/16 by default (arXiv 2010.11929).

    $h \leftarrow h + \mathrm{MHSA}(\mathrm{LN}_1 h)$, then
    $h \leftarrow h + \mathrm{MLP}(\mathrm{LN}_2 h) + \mathrm{branch}(h)$ in each block. What `init`
    makes carries the names of its axes, which `training.RULES` lays on a mesh; without a mesh
    `nn.meta.unbox` takes them off.

    Attributes:
        image_size: height and width of the images, in pixels.
        patch_size: height and width of a patch; divides `image_size`.
        channels: channels of the images.
        width: `d`, width of the residual stream.
        depth: number of blocks.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLPs.
        num_classes: outputs of the linear head; 0 for no head.
        epsilon: of every LayerNorm; 1e-6 in timm, 1e-12 in Hugging Face checkpoints.
        input_mean: subtracted from the images, which are in [0, 1]; one number or one a channel.
        input_std: divides them then; likewise. timm's augreg weights were trained with 0.5 and
            0.5; the official SEMA program feeds images as they are (0 and 1).
        dtype: of the matrix products, `jnp.bfloat16` say; parameters stay float32.
        remat: whether to recompute each block in the backward pass, to save memory.

    Raises:
        ValueError: if a size is not positive, or one does not divide the other.

    Example:
        >>> import jax
        >>> model = VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16,
        ...                           num_classes=3)
        >>> images = jnp.zeros((2, 8, 8, 1))
        >>> seen = jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0]
        >>> {name: seen[name].shape for name in ("tokens", "features", "logits")}
        {'tokens': (2, 5, 8), 'features': (2, 8), 'logits': (2, 3)}
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    epsilon: float = 1e-6
    input_mean: float | tuple[float, ...] = 0.0
    input_std: float | tuple[float, ...] = 1.0
    dtype: Any = None
    remat: bool = False

    def __post_init__(self):
        sizes = ("image_size", "patch_size", "channels", "width", "depth", "num_heads", "mlp_dim")
        for name in sizes:
            validation.integer(name, getattr(self, name), minimum=1)
        validation.integer("num_classes", self.num_classes, minimum=0)
        validation.number("epsilon", self.epsilon, minimum=0, open_minimum=True)
        mean, std = np.asarray(self.input_mean), np.asarray(self.input_std)
        validation.number("input_mean", mean)
        validation.number("input_std", std, minimum=0, open_minimum=True)
        if not {mean.size, std.size} <= {1, self.channels}:
            raise ValueError(
                f"input_mean and input_std must be one number or {self.channels}, one a channel, "
                f"got {self.input_mean} and {self.input_std}"
            )
        for part, whole in (("patch_size", "image_size"), ("num_heads", "width")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part} must divide {whole}={getattr(self, whole)}, got {getattr(self, part)}"
                )
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @nn.nowrap
    def activation_bytes(self, num_images: int, num_blocks: int | None = None) -> int:
        """Memory of what a gradient through the last blocks (by default all) keeps of images."""
        tokens, num_blocks = self.num_tokens, self.depth if num_blocks is None else num_blocks
        # Of a block: norms, queries, keys, values, both products, the MLP's layers, the attention.
        block = tokens * (14 * self.width + 2 * self.mlp_dim) + 2 * self.num_heads * tokens**2
        kept = block + num_blocks * tokens * self.width if self.remat else block * num_blocks
        return jnp.dtype(self.dtype or jnp.float32).itemsize * num_images * kept

    @nn.nowrap
    def images_at_once(
        self, batch_size: int, num_blocks: int | None = None, limit: int | None = None
    ) -> int:
        """Images of a batch whose `activation_bytes` fit a limit: a divisor of the batch size.

        The limit is that of a device by default, `activation_limit`.
        """
        limit = activation_limit() if limit is None else limit
        sizes = (n for n in range(batch_size, 1, -1) if batch_size % n == 0)
        return next((n for n in sizes if self.activation_bytes(n, num_blocks) <= limit), 1)

    def setup(self):
        """Make the parts; the names of the attributes are those of the parameters."""
        patch = self.patch_size
        shape = (patch, patch, self.channels, self.width)
        self.patch_embed = _PatchEmbedding(shape, self.dtype)
        self.cls_token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
        self.pos_embed = self.param(
            "pos_embed", nn.initializers.normal(0.02), (1, self.num_tokens, self.width)
        )
        block = nn.remat(Block) if self.remat else Block
        self.block = [
            block(self.num_heads, self.mlp_dim, self.epsilon, self.dtype) for _ in range(self.depth)
        ]
        self.norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False)
        if self.num_classes:
            self.head = nn.Dense(self.num_classes, **_split(("embed", "vocab"), ("vocab",)))

    def embed(self, images: Float[Array, "B H W C"]) -> Float[Array, "B N d"]:
        """Turn images in [0, 1] into tokens, the class token first.

        Raises:
            ValueError: if the images have another size than `image_size` and `channels`.
        """
        expected = (self.image_size, self.image_size, self.channels)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images must have shape [B, {', '.join(map(str, expected))}] like the model's "
                f"image_size and channels, got {list(images.shape)}"
            )
        mean, std = jnp.asarray(self.input_mean), jnp.asarray(self.input_std)
        patches = self.patch_embed((images - mean) / std)
        first = jnp.broadcast_to(self.cls_token, (len(images), 1, self.width))
        tokens = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        return tokens + self.pos_embed.astype(tokens.dtype)

    def encode(
        self,
        tokens: Float[Array, "B N d"],
        start: int = 0,
        branches: Mapping[int, Branch] | None = None,
        stop: int | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> tuple[Float[Array, "B N d"], dict[str, Any]]:
        """Run blocks `start` to `stop` (not included; None for the last).

        Args:
            tokens: input of block `start`.
            start: first block.
            branches: what blocks add beside their MLP, by block.
            stop: block to stop before.
            prefixes: keys and values before those of the tokens, by block.

        Returns:
            The residual stream after them, and by `"block_{i}"` and `"branch_{i}"` each block's
            output and what its branch returned.
        """
        seen = {}
        for index in range(start, self.depth if stop is None else stop):
            branch, prefix = (branches or {}).get(index), (prefixes or {}).get(index)
            tokens, seen[f"branch_{index}"] = self.block[index](tokens, branch, prefix)
            seen[f"block_{index}"] = tokens
        return tokens, seen

    def finish(self, tokens: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
        """Apply the final LayerNorm."""
        return self.norm(tokens)

    def __call__(
        self, images: Float[Array, "B H W C"], branches: Mapping[int, Branch] | None = None
    ) -> dict[str, Any]:
        """Return every named intermediate of a forward pass.

        Args:
            images: `[B, H, W, C]` in [0, 1].
            branches: what blocks add beside their MLP, by block.

        Returns:
            `"embedding"`, `"block_{i}"` (residual streams `[B, N, d]`), `"branch_{i}"`, `"tokens"`
            (after the final norm), `"features"` (its class token, `[B, d]`) and, with a head,
            `"logits"` `[B, num_classes]`.
        """
        embedding = self.embed(images)
        stream, seen = self.encode(embedding, 0, branches)
        tokens = self.finish(stream)
        seen |= {"embedding": embedding, "tokens": tokens, "features": tokens[:, 0]}
        if self.num_classes:
            seen["logits"] = self.head(tokens[:, 0])
        return seen


def activation_limit() -> int:
    """Memory that activations may take on a device: 256 MiB, or 8 GiB on an accelerator.

    On a CPU parts of this size are faster than larger ones; an accelerator is idle on small ones.
    """
    return 2**28 if jax.default_backend() == "cpu" else 2**33


class _PatchEmbedding(nn.Module):
    """The patch convolution as one matrix product: kernel `[patch, patch, C, d]`."""

    shape: tuple[int, int, int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B M d"]:
        init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal((0, 1, 2)), (None, None, None, "embed")
        )
        kernel: Any = self.param("kernel", init, self.shape)
        bias = self.param("bias", nn.initializers.zeros, self.shape[-1:])
        images, kernel, bias = dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        patch, _, channels, width = self.shape
        rows, columns = images.shape[1] // patch, images.shape[2] // patch
        patches = images.reshape(-1, rows, patch, columns, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), rows * columns, -1)
        return patches @ kernel.reshape(-1, width) + bias
