"""Functional adapters beside the frozen MLP, and the router that weighs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxkit import validation


class Adapter(NamedTuple):
    """Parameters of one adapter, or of many stacked along leading axes."""

    down_kernel: Float[Array, "*stack d r"]
    down_bias: Float[Array, "*stack r"]
    up_kernel: Float[Array, "*stack r d"]
    up_bias: Float[Array, "*stack d"]


def init_adapter(key: Key[Array, ""], width: int, adapter_dim: int = 16) -> Adapter:
    r"""Draw an adapter that outputs 0: $W_{down} \sim U(\pm 1/\sqrt d)$, all else 0."""
    bound = width**-0.5
    return Adapter(
        jax.random.uniform(key, (width, adapter_dim), minval=-bound, maxval=bound),
        jnp.zeros(adapter_dim),
        jnp.zeros((adapter_dim, width)),
        jnp.zeros(width),
    )


def functional_adapter(adapter: Adapter, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    r"""Apply one adapter: $f(x) = \mathrm{ReLU}(x W_{down} + b_{down}) W_{up} + b_{up}$.

    `x` is the residual stream after attention, not its LayerNorm. No inner residual, no dropout, no
    output scale, as the official program computes it.

    Source: arXiv 2403.18886 eq. (1), with the biases of the official program.
    """
    hidden = jax.nn.relu(x @ adapter.down_kernel + adapter.down_bias)
    return hidden @ adapter.up_kernel + adapter.up_bias


def mixture_of_adapters(
    adapters: Adapter, x: Float[Array, "B N d"], weights: Float[Array, "B K"]
) -> Float[Array, "B N d"]:
    r"""Mix K adapters with one weight vector a sample: $y(x) = \sum_k w_k f_k(x)$.

    Two matrix products whatever K is: all bottlenecks side by side, scaled by their weights, then
    all up-projections at once.

    Source: arXiv 2403.18886 eq. (3).
    """
    slots, width, bottleneck = adapters.down_kernel.shape
    down = adapters.down_kernel.transpose(1, 0, 2).reshape(width, slots * bottleneck)
    hidden = jax.nn.relu(x @ down + adapters.down_bias.reshape(-1))
    scaled = hidden.reshape(*x.shape[:2], slots, bottleneck) * weights[:, None, :, None]
    up = adapters.up_kernel.reshape(slots * bottleneck, width)
    return scaled.reshape(*x.shape[:2], -1) @ up + (weights @ adapters.up_bias)[:, None]


#: How the mixture is weighed: by the router's softmax, by its largest logit, equally, by the
#: descriptor with the smallest error, by a softmax of random logits, by one random adapter.
ROUTINGS = ("soft", "top1", "average", "descriptor", "random_weights", "random_choice")


class Router(NamedTuple):
    """Parameters of one router, one column an adapter, or of many stacked along leading axes."""

    kernel: Float[Array, "*stack d K"]
    bias: Float[Array, "*stack K"]


def router_weights(
    router: Router,
    pooled: Float[Array, "B d"],
    active: Bool[Array, " K"],
    *,
    routing: str = "soft",
    errors: Float[Array, "K B"] | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B K"]:
    r"""Weights of the adapters for each sample: $w = \mathrm{softmax}(p W + b)$ over active slots.

    `pooled` is averaged over all tokens; `errors` are those of the descriptors, for `"descriptor"`;
    `key` is for the random routings. Unused slots weigh exactly 0.

    Source: arXiv 2403.18886 section 3.4, tables 2, 3 and 7; the bias and the pooling are the
    official program's.
    """
    validation.choice("routing", routing, ROUTINGS)
    slots = len(active)
    logits = pooled @ router.kernel + router.bias
    if routing == "average":
        logits = jnp.zeros_like(logits)
    elif routing == "descriptor":
        if errors is None:
            raise ValueError("errors must be given for routing='descriptor', got None")
        logits = -errors.T
    elif routing.startswith("random"):
        if key is None:
            raise ValueError(f"key must be given for routing={routing!r}, got None")
        # One draw a sample: a categorical choice is the largest of Gumbel-perturbed logits.
        draw: Any = jax.random.normal if routing == "random_weights" else jax.random.gumbel
        logits = draw(key, logits.shape, logits.dtype)
    logits = jnp.where(active, logits, -jnp.inf)
    if routing in ("top1", "descriptor", "random_choice"):
        return jax.nn.one_hot(jnp.argmax(logits, -1), slots, dtype=logits.dtype)
    return jax.nn.softmax(logits, axis=-1)
