"""Functional adapters: small bottlenecks beside the frozen MLP, mixed by the router's weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxkit import validation


class Adapter(NamedTuple):
    """Parameters of one adapter, or of many stacked along leading axes.

    Attributes:
        down_kernel: `[..., d, r]`.
        down_bias: `[..., r]`.
        up_kernel: `[..., r, d]`.
        up_bias: `[..., d]`.
    """

    down_kernel: Float[Array, "*stack d r"]
    down_bias: Float[Array, "*stack r"]
    up_kernel: Float[Array, "*stack r d"]
    up_bias: Float[Array, "*stack d"]


def init_adapter(key: Key[Array, ""], width: int, adapter_dim: int = 16) -> Adapter:
    r"""Draw a fresh adapter; it outputs exactly 0 until it is trained.

    $W_{down} \sim U(-1/\sqrt d, 1/\sqrt d)$, all else 0.

    Args:
        key: typed key.
        width: `d`, width of the residual stream.
        adapter_dim: `r`, width of the bottleneck.

    Returns:
        The adapter.

    Raises:
        ValueError: if a width is not positive.

    Example:
        >>> adapter = init_adapter(jax.random.key(0), 8, 2)
        >>> float(abs(functional_adapter(adapter, jnp.ones((1, 5, 8)))).max())
        0.0
    """
    validation.integer("width", width, minimum=1)
    validation.integer("adapter_dim", adapter_dim, minimum=1)
    bound = width**-0.5
    return Adapter(
        jax.random.uniform(key, (width, adapter_dim), minval=-bound, maxval=bound),
        jnp.zeros(adapter_dim),
        jnp.zeros((adapter_dim, width)),
        jnp.zeros(width),
    )


def functional_adapter(adapter: Adapter, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    r"""Apply one adapter: $f(x) = \mathrm{ReLU}(x W_{down} + b_{down}) W_{up} + b_{up}$.

    No inner residual, no dropout, no output scale, as the official program computes it.

    Args:
        adapter: parameters without leading axes.
        x: residual stream after attention (not its LayerNorm), `[..., d]`.

    Returns:
        What is added to the residual stream, `[..., d]`.

    Source: arXiv 2403.18886 eq. (1), with the biases of the official program.

    Example:
        >>> adapter = Adapter(jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.ones(2))
        >>> functional_adapter(adapter, jnp.array([3.0, -3.0])).tolist()
        [4.0, 1.0]
    """
    hidden = jax.nn.relu(x @ adapter.down_kernel + adapter.down_bias)
    return hidden @ adapter.up_kernel + adapter.up_bias


def mixture_of_adapters(
    adapters: Adapter, x: Float[Array, "B N d"], weights: Float[Array, "B K"]
) -> Float[Array, "B N d"]:
    r"""Mix K adapters with one weight vector a sample: $y(x) = \sum_k w_k f_k(x)$.

    Two matrix products whatever K is: all bottlenecks side by side, scaled by their weights, then
    all up-projections at once.

    Args:
        adapters: K adapters, leading axis K.
        x: residual stream after attention, `[B, N, d]`.
        weights: of each sample, `[B, K]`; 0 for a slot that is not in use.

    Returns:
        The mixture, `[B, N, d]`.

    Source: arXiv 2403.18886 eq. (3).

    Example:
        >>> adapters = jax.tree.map(lambda leaf: leaf[None], Adapter(
        ...     jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)))
        >>> mixture_of_adapters(adapters, jnp.ones((1, 1, 2)), jnp.array([[0.5]])).tolist()
        [[[0.5, 0.5]]]
    """
    slots, width, bottleneck = adapters.down_kernel.shape
    down = adapters.down_kernel.transpose(1, 0, 2).reshape(width, slots * bottleneck)
    hidden = jax.nn.relu(x @ down + adapters.down_bias.reshape(-1))
    scaled = hidden.reshape(*x.shape[:2], slots, bottleneck) * weights[:, None, :, None]
    up = adapters.up_kernel.reshape(slots * bottleneck, width)
    return scaled.reshape(*x.shape[:2], -1) @ up + (weights @ adapters.up_bias)[:, None]
