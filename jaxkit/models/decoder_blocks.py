"""The layers of the decoder: RMSNorm and the pre-norm transformer block."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit.models import positions
from jaxkit.models.decoder_config import DecoderConfig
from jaxkit.models.products import project

#: Logit of a key that must not be seen: its weight is exactly 0, and the gradient stays finite.
_MASKED = -1e30


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


def _recency_bias(config: DecoderConfig) -> np.ndarray:
    table = np.zeros((config.num_heads, config.num_buckets), np.float32)
    if config.recency_heads:
        slope = -1.5 * np.arange(config.num_buckets)
        slope[0] = -6.0  # the token itself is already in the residual stream
        table[::2] = slope
    return table


def relative_bias(module: nn.Module, config: DecoderConfig) -> Float[Array, "H N"]:
    """Declare the table of T5 biases: one learned number a head and bucket."""
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


def _attend(query, key, value, bias, mask, implementation):
    if implementation == "einsum":
        logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        logits = logits if mask is None else jnp.where(mask, logits, _MASKED)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bhts,bshd->bthd", weights, value)
    attend: Any = jax.nn.dot_product_attention
    mask = None if mask is None else mask[None, None]
    return attend(query, key, value, bias=bias, mask=mask, scale=1.0, implementation=implementation)


class Block(nn.Module):
    """One layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Example:
        >>> config = DecoderConfig(vocab_size=8, d_model=16, num_layers=1, position="none")
        >>> block, x = Block(config), jnp.ones((1, 3, 16))
        >>> params = jax.eval_shape(block.init, jax.random.key(0), x, None, 0, None)
        >>> jax.eval_shape(block.apply, params, x, None, 0, None)[0].shape
        (1, 3, 16)
    """

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
        kernels = [
            self._kernel(name, ("embed", "heads", "head_dim")) for name in ("query", "key", "value")
        ]
        # One product for all three; side by side in each head, so that heads may be sharded.
        query, key, value = jnp.split(project(x, jnp.concatenate(kernels, axis=-1)), 3, axis=-1)
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
        if c.attention_scale == "inverse_sqrt" and not c.qk_norm:
            query = query * c.head_dim**-0.5
        if c.qk_norm:
            # One learned scale a head multiplies content and bias alike.
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
            gain: Any = self.param("logit_scale", ones, (c.num_heads,))
            query = query * gain[:, None].astype(query.dtype)
            bias = None if bias is None else bias * gain[:, None, None]
        mask = distance >= 0
        if bias is not None:
            # The mask rides in the bias: one pass over the logits less, forward and backward.
            bias = jnp.where(mask, bias, _MASKED).astype(query.dtype)
            bias, mask = _broadcast_over_batch(bias, batch), None
        attended = _attend(query, key, value, bias, mask, c.attention_implementation)
        out = self._kernel("out", ("heads", "head_dim", "embed"))
        return project(attended, out), cache

    def _bias(self, distance, shared_bias):
        c = self.config
        if c.position == "alibi":
            slopes = jnp.asarray(positions.alibi_slopes(c.num_heads))
            return -slopes[:, None, None] * jnp.maximum(distance, 0)
        if c.position != "t5":
            return None
        table = relative_bias(self, c) if shared_bias is None else shared_bias
        return table[:, positions.t5_bucket(distance, c.num_buckets, c.max_distance)]

    def _mlp(self, x):
        up = project(x, self._kernel("up", ("embed", "mlp")))
        if self.config.gated_mlp:
            gate = project(x, self._kernel("gate", ("embed", "mlp")))
            hidden = jax.nn.relu(gate) * up
        else:
            hidden = jax.nn.relu(up)
        return project(hidden, self._kernel("down", ("mlp", "embed")))

    def _kernel(self, name: str, axes: tuple[str, ...]) -> Array:
        c = self.config
        sizes = {"embed": c.d_model, "heads": c.num_heads, "head_dim": c.head_dim, "mlp": c.d_ff}
        shape = tuple(sizes[axis] for axis in axes)
        fan_in = {"out": c.num_heads * c.head_dim, "down": c.d_ff}.get(name, c.d_model)
        return _weight(self, name, shape, axes, fan_in).astype(c.dtype)
