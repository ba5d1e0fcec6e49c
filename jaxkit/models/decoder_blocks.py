"""The layers of the decoder: RMSNorm and the pre-norm transformer block."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkit import training
from jaxkit.models import positions
from jaxkit.models.attention import MASKED, attend
from jaxkit.models.decoder_config import DecoderConfig
from jaxkit.models.products import project

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _broadcast_over_batch(bias: Float[Array, "G H T S"], batch_size: int) -> Array:
    return jnp.repeat(bias, batch_size // bias.shape[0], axis=0)


def _broadcast_forward(bias: Array, batch_size: int) -> tuple[Array, int]:
    return _broadcast_over_batch(bias, batch_size), bias.shape[0]


def _sum_over_batch(batch_size: int, groups: int, gradient: Array) -> tuple[Array]:
    # A sum over the leading axis, written as a matmul: XLA's CPU backend fuses the plain sum into
    # a strided loop that costs as much as the rest of the attention.
    size = batch_size // groups
    grouped = gradient.reshape(groups, size, *gradient.shape[1:])
    return (jnp.einsum("b,gbhts->ghts", jnp.ones((size,), gradient.dtype), grouped),)


_broadcast_over_batch.defvjp(_broadcast_forward, _sum_over_batch)


def relative_bias(module: nn.Module, config: DecoderConfig) -> Float[Array, "H N"]:
    """Declare the table of T5 biases: one learned number a head and bucket."""
    table = np.zeros((config.num_heads, config.num_buckets), np.float32)
    if config.recency_heads:
        slope = -1.5 * np.arange(config.num_buckets)
        slope[0] = -6.0  # the token itself is already in the residual stream
        table[::2] = slope
    init = nn.with_logical_partitioning(lambda *_: jnp.asarray(table), ("heads", None))
    return module.param("relative_bias", init)  # type: ignore[return-value]


class RMSNorm(nn.Module):
    """``s x / sqrt(mean(x^2) + epsilon)``, statistics in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        scale: Any = self.param("scale", ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean + self.epsilon) * scale).astype(x.dtype)


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
        epsilon = self.config.norm_epsilon
        x = training.constrain(x, "batch", None, None)
        attended, cache = self._attention(
            RMSNorm(epsilon, name="attention_norm")(x), cache, position, shared_bias
        )
        # Active where `apply` is given a key for it, in training.
        drop = nn.Dropout(self.config.dropout, deterministic=not self.has_rng("dropout"))
        x = training.constrain(x + drop(attended), "batch", None, None)
        x = x + drop(self._mlp(RMSNorm(epsilon, name="mlp_norm")(x)))
        return training.constrain(x, "batch", None, None), cache

    def _attention(self, x, cache, position, shared_bias):
        c = self.config
        batch, length = x.shape[:2]
        query, key, value = self._queries_keys_values(x)
        if c.position == "rope":
            here = position + jnp.arange(length)
            query, key = (positions.rotate(a, here, c.rotary_base) for a in (query, key))
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
        bias = self._bias(distance, shared_bias, batch)
        if c.attention_scale == "inverse_sqrt" and not c.qk_norm:
            query = query * c.head_dim**-0.5
        if c.qk_norm:
            # One learned scale a head multiplies content and bias alike.
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
            gain: Any = self.param("logit_scale", ones, (c.num_heads,))
            query = query * gain[:, None].astype(query.dtype)
            bias = None if bias is None else bias * gain[:, None, None]
        if bias is not None:
            # The mask rides in the bias: one pass over the logits less, forward and backward.
            bias = jnp.where(distance >= 0, bias, MASKED).astype(query.dtype)
            bias: Any = _broadcast_over_batch(bias, batch)
        # A cache holds places not written yet; what reads one is short.
        mask = None if cache is None or bias is not None else distance >= 0
        name = c.attention if cache is None else "einsum"
        attended = training.constrain(
            attend(query, key, value, bias, mask, name), "batch", None, "heads", None
        )
        return self._project(attended, "out"), cache

    def _queries_keys_values(self, x):
        c = self.config
        # One product for what has the same heads; side by side in each, so that they may be split.
        alike: tuple[tuple[str, ...], ...] = (("query", "key", "value"),)
        if c.kv_heads != c.num_heads:
            alike = (("query",), ("key", "value"))
        found = []
        for names in alike:
            kernels = [self._kernel(name) for name in names]
            axes = kernels[0][1]
            joined = jnp.concatenate([kernel for kernel, _ in kernels], axis=-1)
            products = jnp.split(project(x, joined, axes), len(names), axis=-1)
            found += [training.constrain(p, "batch", None, *axes[1:]) for p in products]
        return found

    def _bias(self, distance, shared_bias, batch_size):
        """Bias ``[G, H, T, S]`` of `G` groups of sequences: one, or each device's own on a mesh."""
        c = self.config
        if c.position == "alibi":
            slopes = jnp.asarray(positions.alibi_slopes(c.num_heads))
            return (-slopes[:, None, None] * jnp.maximum(distance, 0))[None]
        if c.position != "t5":
            return None
        table = relative_bias(self, c) if shared_bias is None else shared_bias
        # So that gradients are summed to [H, N] on each device, and then over devices, not before.
        groups = training.partition_count("batch", training.mesh_in_use())
        groups = groups if batch_size % groups == 0 else 1
        tables = jnp.broadcast_to(table, (groups, *table.shape))
        tables = training.constrain(tables, "batch", "heads", None)
        return tables[:, :, positions.t5_bucket(distance, c.num_buckets, c.max_distance)]

    def _mlp(self, x):
        activation = ACTIVATIONS[self.config.activation]
        up = self._project(x, "up")
        if self.config.gated_mlp:
            hidden = activation(self._project(x, "gate")) * up
        else:
            hidden = activation(up)
        return self._project(training.constrain(hidden, "batch", None, "mlp"), "down")

    def _project(self, x: Array, name: str) -> Array:
        return project(x, *self._kernel(name))

    def _kernel(self, name: str) -> tuple[Array, tuple[str, ...]]:
        """A kernel and the logical names of its axes."""
        c = self.config
        axes = {
            "query": ("embed", "heads", "head_dim"),
            "key": ("embed", "kv_heads", "head_dim"),
            "value": ("embed", "kv_heads", "head_dim"),
            "out": ("heads", "head_dim", "embed"),
            "up": ("embed", "mlp"),
            "gate": ("embed", "mlp"),
            "down": ("mlp", "embed"),
        }[name]
        sizes = {"embed": c.d_model, "heads": c.num_heads, "kv_heads": c.kv_heads,
                 "head_dim": c.head_dim, "mlp": c.d_ff}  # fmt: skip
        fan_in = {"out": c.num_heads * c.head_dim, "down": c.d_ff}.get(name, c.d_model)
        init = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)
        return self.param(name, init, tuple(sizes[axis] for axis in axes)), axes  # type: ignore
