"""The decoder-only language model: a pre-norm transformer, its token table an argument."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit import validation
from jaxkit.lexinvariant import positions

EMBEDDINGS = ("fixed", "lexinvariant")
POSITIONS = ("t5", "rope", "alibi", "none")
DTYPES = ("float32", "bfloat16")


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
        embedding: `"fixed"` learns one token table; `"lexinvariant"` has none, and every call must
            bring its own (arXiv 2305.16349 §2.3).
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
        attention_implementation: passed to `jax.nn.dot_product_attention`.

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
    embedding: Literal["fixed", "lexinvariant"] = "fixed"
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
    attention_implementation: Literal["xla", "cudnn"] | None = None

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            validation.integer(name, getattr(self, name), minimum=1)
        validation.choice("embedding", self.embedding, EMBEDDINGS)
        validation.choice("position", self.position, POSITIONS)
        validation.choice("attention_scale", self.attention_scale, ("inverse_sqrt", "none"))
        validation.choice("dtype", self.dtype, DTYPES)
        validation.integer("num_buckets", self.num_buckets, minimum=2)
        validation.integer("max_distance", self.max_distance, minimum=self.num_buckets // 2 + 1)
        if self.num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {self.num_buckets}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even with rotary positions, got {self.head_dim}")


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far.

    Attributes:
        keys: ``[L, B, S, H, K]``.
        values: ``[L, B, S, H, K]``.
        position: number of tokens read, int32 scalar.
    """

    keys: Float[Array, "L B S H K"]
    values: Float[Array, "L B S H K"]
    position: Int[Array, ""]


def empty_cache(config: DecoderConfig, batch_size: int, length: int) -> KeyValueCache:
    """Make the cache that `DecoderLM.decode_step` starts from.

    Args:
        config: the model's configuration.
        batch_size: number of sequences ``B``.
        length: number of tokens ``S`` it can hold, prompt included.

    Returns:
        An empty cache.

    Example:
        >>> empty_cache(DecoderConfig(vocab_size=8), 2, 16).keys.shape
        (4, 2, 16, 4, 32)
    """
    shape = (config.num_layers, batch_size, length, config.num_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return KeyValueCache(zeros, zeros, jnp.zeros((), jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _broadcast_over_batch(bias: Float[Array, "H T S"], batch_size: int) -> Array:
    return jnp.broadcast_to(bias, (batch_size, *bias.shape))


def _broadcast_forward(bias: Array, batch_size: int) -> tuple[Array, None]:
    return _broadcast_over_batch(bias, batch_size), None


def _sum_over_batch(batch_size: int, _: None, gradient: Array) -> tuple[Array]:
    # A sum over the leading axis, written as a matmul: XLA's CPU backend fuses the plain sum into
    # a strided loop that costs as much as the rest of the attention.
    return (jnp.einsum("b,bhts->hts", jnp.ones((batch_size,), gradient.dtype), gradient),)


_broadcast_over_batch.defvjp(_broadcast_forward, _sum_over_batch)


def _project(x: Array, kernel: Array, **options: Any) -> Array:
    """Contract ``[B, T, *inputs]`` with ``[*inputs, *outputs]`` to ``[B, T, *outputs]``."""
    # As one flat matrix product: XLA's CPU backend is slower on the same contraction in 3-D.
    batch, length, *inputs = x.shape
    outputs = kernel.shape[len(inputs) :]
    size = math.prod(inputs)
    flat = jnp.matmul(x.reshape(batch * length, size), kernel.reshape(size, -1), **options)
    return flat.reshape(batch, length, *outputs)


def _recency_bias(config: DecoderConfig) -> np.ndarray:
    table = np.zeros((config.num_heads, config.num_buckets), np.float32)
    if config.recency_heads:
        slope = -1.5 * np.arange(config.num_buckets)
        slope[0] = -6.0  # the token itself is already in the residual stream
        table[::2] = slope
    return table


def _relative_bias(module: nn.Module, config: DecoderConfig) -> Float[Array, "H N"]:
    return module.param(
        "relative_bias",
        nn.with_logical_partitioning(
            lambda *_: jnp.asarray(_recency_bias(config)), ("heads", None)
        ),
    )  # type: ignore[return-value]


def _weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple, fan_in: int) -> Any:
    init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
    return module.param(name, init, shape)


class RMSNorm(nn.Module):
    r"""Root-mean-square normalisation, statistics in float32: ``s * x / sqrt(mean(x^2) + 1e-6)``.

    Example:
        >>> module = RMSNorm()
        >>> y, _ = module.init_with_output(jax.random.key(0), jnp.full((1, 4), 3.0))
        >>> y.round(3).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        scale: Any = self.param("scale", ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
        return (wide * inverse * scale).astype(x.dtype)


class Block(nn.Module):
    """One layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple[Array, Array] | None,
        position: Int[Array, ""] | int,
        shared_bias: Float[Array, "H N"] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        """Apply the layer to tokens `position .. position + T`, reading and extending the cache."""
        attended, cache = self._attention(
            RMSNorm(name="attention_norm")(x), cache, position, shared_bias
        )
        x = x + attended
        return x + self._mlp(RMSNorm(name="mlp_norm")(x)), cache

    def _attention(self, x, cache, position, shared_bias):
        c = self.config
        batch, length = x.shape[:2]
        query, key, value = (
            _project(x, self._kernel(name, ("embed", "heads", "head_dim")))
            for name in ("query", "key", "value")
        )
        if c.position == "rope":
            here = position + jnp.arange(length)
            query, key = positions.rotate(query, here), positions.rotate(key, here)
        if c.qk_norm:
            query, key = (
                a * jax.lax.rsqrt(jnp.sum(jnp.square(a), -1, keepdims=True) + 1e-6)
                for a in (query, key)
            )
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache[0], key, position, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache[1], value, position, axis=1)
            cache = (key, value)
        distance = position + jnp.arange(length)[:, None] - jnp.arange(key.shape[1])
        bias = self._bias(distance, shared_bias)
        scale = c.head_dim**-0.5 if c.attention_scale == "inverse_sqrt" else 1.0
        if c.qk_norm:
            # One learned scale a head multiplies content and bias alike.
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
            gain: Any = self.param("logit_scale", ones, (c.num_heads,))
            query, scale = query * gain[:, None].astype(query.dtype), 1.0
            bias = None if bias is None else bias * gain[:, None, None]
        if bias is not None:
            bias = _broadcast_over_batch(bias.astype(query.dtype), batch)
        attend: Any = jax.nn.dot_product_attention
        attended = attend(
            query,
            key,
            value,
            bias=bias,
            mask=None if cache is None else (distance >= 0)[None, None],
            scale=scale,
            is_causal=cache is None,
            implementation=c.attention_implementation,
        )
        out = self._kernel("out", ("heads", "head_dim", "embed"))
        return _project(attended, out), cache

    def _bias(self, distance, shared_bias):
        c = self.config
        if c.position == "alibi":
            slopes = jnp.asarray(positions.alibi_slopes(c.num_heads))
            return -slopes[:, None, None] * jnp.maximum(distance, 0)
        if c.position != "t5":
            return None
        table = _relative_bias(self, c) if shared_bias is None else shared_bias
        return table[:, positions.t5_bucket(distance, c.num_buckets, c.max_distance)]

    def _mlp(self, x):
        up = _project(x, self._kernel("up", ("embed", "mlp")))
        if self.config.gated_mlp:
            gate = _project(x, self._kernel("gate", ("embed", "mlp")))
            hidden = jax.nn.relu(gate) * up
        else:
            hidden = jax.nn.relu(up)
        return _project(hidden, self._kernel("down", ("mlp", "embed")))

    def _kernel(self, name: str, axes: tuple[str, ...]) -> Array:
        c = self.config
        sizes = {"embed": c.d_model, "heads": c.num_heads, "head_dim": c.head_dim, "mlp": c.d_ff}
        shape = tuple(sizes[axis] for axis in axes)
        fan_in = {"out": c.num_heads * c.head_dim, "down": c.d_ff}.get(name, c.d_model)
        return _weight(self, name, shape, axes, fan_in).astype(c.dtype)


class DecoderLM(nn.Module):
    r"""Decoder-only language model whose token table may come from outside.

    .. math::
        x^0_t = g \odot E[\mathrm{tok}_t] + c, \qquad
        \mathrm{logits}_{t,v} = \langle \mathrm{norm}(x^L_t), E[v] \rangle / \sqrt{D}

    with pre-RMSNorm blocks between. `E` is the learned table (`embedding="fixed"`) or the array
    given with the call: ``[V, D]`` for all sequences or ``[B, V, D]``, one table a sequence. The
    model draws nothing itself, so that prefill, decoding and probes see the same table.

    Example:
        >>> model = DecoderLM(DecoderConfig(vocab_size=8, d_model=16, num_layers=1))
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> logits, variables = model.init_with_output(jax.random.key(0), tokens)
        >>> logits.shape
        (1, 3, 8)

    Source: arXiv 2305.16349 §2.3 eqs. 4-6 and appendix B (scale and bias of the embedding).
    """

    config: DecoderConfig

    def setup(self):
        """Declare the parameters."""
        c = self.config
        if c.embedding == "fixed":
            self.embedding: Any = self.param(
                "embedding",
                nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed")),
                (c.vocab_size, c.d_model),
            )
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        self.embedding_scale: Any = self.param("embedding_scale", ones, (c.d_model,))
        self.embedding_bias: Any = self.param("embedding_bias", zeros, (c.d_model,))
        if c.position == "t5" and c.share_relative_bias:
            self.relative_bias = _relative_bias(self, c)
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        scan: Any = nn.scan
        self.layers: Any = scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            unroll=c.num_layers if c.unroll_layers else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = RMSNorm()

    def __call__(
        self, tokens: Int[Array, "B T"], embedding: Array | None = None
    ) -> Float[Array, "B T V"]:
        """Next-token logits at every position.

        Args:
            tokens: token ids ``[B, T]`` in ``[0, V)``; `validate_tokens` checks concrete ones.
            embedding: token table ``[V, D]`` or ``[B, V, D]``; the learned one if None.

        Returns:
            Float32 logits ``[B, T, V]``.

        Raises:
            TypeError: if tokens are not integers.
            ValueError: if a shape is wrong, or no table is given to a lexinvariant model.
        """
        return self.readout(self.hidden_states(tokens, embedding), embedding)

    def hidden_states(
        self, tokens: Int[Array, "B T"], embedding: Array | None = None
    ) -> Float[Array, "B T D"]:
        """What `readout` reads: the residual stream after the final norm, ``[B, T, D]``."""
        return self._run(tokens, embedding, None)[0]

    def readout(
        self, hidden: Float[Array, "B T D"], embedding: Array | None = None
    ) -> Float[Array, "B T V"]:
        """Score hidden states against every row of the table: ``<h, E[v]> / sqrt(D)``, float32."""
        table = self._table(embedding, hidden.shape[0]).astype(hidden.dtype)
        if table.ndim == 2:
            logits = _project(hidden, table.T, preferred_element_type=jnp.float32)
        else:
            logits = jnp.einsum("btd,bvd->btv", hidden, table, preferred_element_type=jnp.float32)
        return logits * self.config.d_model**-0.5

    def decode_step(
        self, cache: KeyValueCache, tokens: Int[Array, "B T"], embedding: Array | None = None
    ) -> tuple[Float[Array, "B T V"], KeyValueCache]:
        """Read `tokens` after those in `cache` (a prompt, or one token at a time).

        Args:
            cache: what was read before, from `empty_cache` or an earlier call.
            tokens: the next token ids ``[B, T]``.
            embedding: the same table as in the earlier calls.

        Returns:
            Logits ``[B, T, V]`` and the cache with the tokens added. A cache that is full is not
            noticed under `jit`: make it long enough.
        """
        hidden, extended = self._run(tokens, embedding, cache)
        return self.readout(hidden, embedding), extended

    def _run(self, tokens: Array, embedding: Array | None, cache: Any) -> tuple[Array, Any]:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape [B, T] with T >= 1, got {tokens.shape}")
        table = self._table(embedding, tokens.shape[0])
        if table.ndim == 2:
            rows = table[tokens]
        else:
            rows = jnp.take_along_axis(table, tokens[..., None], axis=1)
        x = (rows * self.embedding_scale + self.embedding_bias).astype(self.config.dtype)
        shared = self.config.position == "t5" and self.config.share_relative_bias
        keys_values = None if cache is None else (cache.keys, cache.values)
        position = 0 if cache is None else cache.position
        x, keys_values = self.layers(
            x, keys_values, position, self.relative_bias if shared else None
        )
        if cache is not None:
            cache = KeyValueCache(*keys_values, position + tokens.shape[1])
        return self.final_norm(x), cache

    def _table(self, embedding: Array | None, batch_size: int) -> Array:
        c: DecoderConfig = self.config
        if embedding is None:
            if c.embedding != "fixed":
                raise ValueError(
                    "embedding must be given to a model with config.embedding='lexinvariant': "
                    "draw one table a sequence with draw_embedding"
                )
            return self.embedding
        rows = (c.vocab_size, c.d_model)
        if embedding.shape not in (rows, (batch_size, *rows)):
            raise ValueError(
                f"embedding must have shape {rows} or {(batch_size, *rows)}, got {embedding.shape}"
            )
        return embedding


def validate_tokens(tokens: Any, vocab_size: int) -> None:
    """Check concrete token ids on the host; under `jit` an index out of range would be clamped.

    Args:
        tokens: integer array of any shape.
        vocab_size: number of ids ``V``.

    Raises:
        TypeError: if tokens are not integers.
        ValueError: if an id is outside ``[0, V)``, naming the first such position.

    Example:
        >>> validate_tokens(np.array([[0, 9]]), 8)
        Traceback (most recent call last):
        ValueError: tokens must be in [0, 8), got 9 at position (0, 1)
    """
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    outside = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        where = tuple(int(i) for i in outside[0])
        raise ValueError(
            f"tokens must be in [0, {vocab_size}), got {tokens[where]} at position {where}"
        )
