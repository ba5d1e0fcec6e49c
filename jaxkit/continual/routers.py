"""The expandable router: one softmax weight an adapter, and the ways to route instead."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxkit import validation

#: How the mixture is weighed: by the router's softmax, by its largest logit, equally, by the
#: descriptor with the smallest error, by a softmax of random logits, by one random adapter.
ROUTINGS = ("soft", "top1", "average", "descriptor", "random_weights", "random_choice")


class Router(NamedTuple):
    """Parameters of one router, or of many stacked along leading axes.

    Attributes:
        kernel: `[..., d, K]`, one column an adapter.
        bias: `[..., K]`.
    """

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

    Args:
        router: of one block.
        pooled: residual stream averaged over all tokens, `[B, d]`.
        active: slots in use; at least one.
        routing: `"soft"`, or an ablation of the paper: `"top1"`, `"average"`, `"descriptor"`
            (smallest reconstruction error), `"random_weights"`, `"random_choice"`.
        errors: reconstruction errors of the K descriptors, for `"descriptor"`.
        key: for the random routings.

    Returns:
        Weights `[B, K]` that sum to 1, exactly 0 in unused slots.

    Raises:
        ValueError: if there is no such routing, or what it needs is missing.

    Source: arXiv 2403.18886 section 3.4, tables 2, 3 and 7; the bias and the pooling are the
    official program's.

    Example:
        >>> router = Router(jnp.zeros((2, 3)), jnp.zeros(3))
        >>> router_weights(router, jnp.ones((1, 2)), jnp.array([True, True, False])).tolist()
        [[0.5, 0.5, 0.0]]
    """
    validation.choice("routing", routing, ROUTINGS)
    if routing == "descriptor" and errors is None:
        raise ValueError("errors must be given for routing='descriptor', got None")
    if routing.startswith("random") and key is None:
        raise ValueError(f"key must be given for routing={routing!r}, got None")
    slots = len(active)
    logits = pooled @ router.kernel + router.bias
    if routing == "average":
        logits = jnp.zeros_like(logits)
    elif routing == "descriptor":
        logits = -errors.T  # type: ignore[union-attr]
    elif routing.startswith("random"):
        # One draw a sample: a categorical choice is the largest of Gumbel-perturbed logits.
        draw = jax.random.normal if routing == "random_weights" else jax.random.gumbel
        logits = draw(key, logits.shape, logits.dtype)  # type: ignore[arg-type]
    logits = jnp.where(active, logits, -jnp.inf)
    if routing in ("top1", "descriptor", "random_choice"):
        return jax.nn.one_hot(jnp.argmax(logits, -1), slots, dtype=logits.dtype)
    return jax.nn.softmax(logits, axis=-1)
