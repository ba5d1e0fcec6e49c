"""The backbone with its mixtures of adapters: features, and what routers and descriptors see."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxkit.continual.adapters import (
    Adapter,
    Router,
    functional_adapter,
    mixture_of_adapters,
    router_weights,
)
from jaxkit.continual.descriptors import (
    Descriptor,
    representation_error,
    shift_score,
    z_scores,
)
from jaxkit.continual.expandable_state import (
    Head,
    SEMAConfig,
    SEMAState,
    active_slots,
    without_unused,
)


class Forward(NamedTuple):
    """A forward pass.

    Attributes:
        features: class token after the final norm, `[B, d]`.
        pooled: input of routers and descriptors in the expandable blocks, `[B, E, d]`.
        weights: weights of the adapters there, `[B, E, K]`.
    """

    features: Float[Array, "B d"]
    pooled: Float[Array, "B E d"]
    weights: Float[Array, "B E K"]


def adapted_forward(
    config: SEMAConfig,
    backbone: PyTree,
    state: SEMAState,
    inputs: Float[Array, "B ..."],
    *,
    from_tokens: bool = False,
    key: Key[Array, ""] | None = None,
) -> Forward:
    r"""Run the backbone with the adapters.

    In block l with residual stream $x$ after attention: $x + \mathrm{MLP}(\mathrm{LN}_2 x) + y(x)$,
    $y$ the mixture in expandable blocks and the single adapter elsewhere.

    Args:
        config: shapes.
        backbone: variables of `config.model`.
        state: adapters, routers, descriptors.
        inputs: images `[B, H, W, C]` in [0, 1], or tokens.
        from_tokens: whether `inputs` are the tokens that enter block `expand_from`
            (`frozen_prefix`).
        key: for the random routings.

    Source: the official program, `vit_sema.py`; "the input of the MLP" in arXiv 2403.18886
    section 3.3 is the stream before LayerNorm there.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> images = jnp.zeros((2, 8, 8, 1))
        >>> backbone = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> state = init_sema(jax.random.key(1), config)
        >>> run = lambda b, s: adapted_forward(config, b, s, images)
        >>> jax.eval_shape(run, backbone, state).weights.shape
        (2, 1, 2)
    """
    branches = _branches(config, without_unused(state), key)
    model: Any = config.model
    tokens = inputs if from_tokens else model.apply(backbone, inputs, method="embed")
    start = config.expand_from if from_tokens else 0
    stream, seen = model.apply(backbone, tokens, start, branches, method="encode")
    features = class_features(model.apply(backbone, stream, method="finish"))
    pooled, weights = zip(*(seen[f"branch_{i}"] for i in config.expandable), strict=True)
    return Forward(features, jnp.stack(pooled, 1), jnp.stack(weights, 1))


def frozen_prefix(
    config: SEMAConfig, backbone: PyTree, state: SEMAState, images: Float[Array, "B H W C"]
) -> Float[Array, "B N d"]:
    """Tokens that enter block `expand_from`: the same for ever after the first task.

    Keeping them for a task's images saves the blocks below in every later pass over them. Of the
    state only single adapters are read.
    """
    model: Any = config.model
    tokens = model.apply(backbone, images, method="embed")
    branches = {i: b for i, b in _branches(config, state, None).items() if i < config.expand_from}
    stream, _ = model.apply(backbone, tokens, 0, branches, config.expand_from, method="encode")
    return stream


def descriptor_scores(state: SEMAState, pooled: Float[Array, "B E d"]) -> Float[Array, "E K B"]:
    """How strange each sample is to every descriptor: z-scores of its reconstruction error."""
    of_slots = jax.vmap(representation_error, in_axes=(0, None))
    errors = jax.vmap(of_slots, in_axes=(0, 1))(without_unused(state).descriptors, pooled)
    return jax.vmap(jax.vmap(z_scores))(state.records, errors)


def sample_scores(state: SEMAState, pooled: Float[Array, "B E d"]) -> Float[Array, "B E"]:
    """How strange each sample is to a block: its least |z|, over the block's descriptors."""
    distances = jnp.abs(descriptor_scores(state, pooled))
    return jnp.min(jnp.where(active_slots(state)[..., None], distances, jnp.inf), 1).T


def expansion_scores(
    config: SEMAConfig, state: SEMAState, pooled: Float[Array, "B E d"], num_valid: Any
) -> Float[Array, " E"]:
    """Score of a batch in each expandable block; a block grows if its score is above a threshold.

    Args:
        config: shapes, and the rule of the score.
        state: descriptors and their records.
        pooled: from `adapted_forward`.
        num_valid: how many samples count; the rest is padding.

    Source: arXiv 2403.18886 section 3.6; `shift_score` has both readings.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> state = init_sema(jax.random.key(1), config)  # nothing on record, so no surprise
        >>> expansion_scores(config, state, jnp.ones((5, 1, 8)), 5).tolist()
        [0.0]
    """
    rule = functools.partial(shift_score, num_valid=num_valid, rule=config.score)
    return jax.vmap(rule)(descriptor_scores(state, pooled), active_slots(state))


def class_features(tokens: Float[Array, "B N d"]) -> Float[Array, "B d"]:
    """The class token of the final tokens in at least float32: what heads and prototypes read."""
    return tokens[:, 0].astype(jnp.promote_types(tokens.dtype, jnp.float32))


def class_logits(head: Head, features: Float[Array, "B d"]) -> Float[Array, "B C"]:
    """Linear scores of all classes."""
    return features @ head.kernel + head.bias


def _branches(
    config: SEMAConfig, state: SEMAState, key: Key[Array, ""] | None
) -> dict[int, jax.tree_util.Partial]:
    params, active = state.params, active_slots(state)
    mixture = functools.partial(_mixture_branch, config.routing)
    branches = {}
    for e, block in enumerate(config.expandable):
        adapters, router, descriptors = jax.tree.map(
            lambda leaf, e=e: leaf[e], (params.adapters, params.router, state.descriptors)
        )
        block_key = None if key is None else jax.random.fold_in(key, block)
        branches[block] = jax.tree_util.Partial(
            mixture, adapters, router, descriptors, active[e], block_key
        )
    for p, block in enumerate(config.single):
        adapter = jax.tree.map(lambda leaf, p=p: leaf[p], params.single)
        branches[block] = jax.tree_util.Partial(_single_branch, adapter)
    return branches


def _mixture_branch(
    routing: str,
    adapters: Adapter,
    router: Router,
    descriptors: Descriptor,
    active: Array,
    key: Key[Array, ""] | None,
    x: Float[Array, "B N d"],
) -> tuple[Float[Array, "B N d"], tuple[Array, Array]]:
    # Pooled features, router and descriptors stay in float32 under a bfloat16 backbone.
    pooled = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=1)
    errors = None
    if routing == "descriptor":
        errors = jax.vmap(representation_error, in_axes=(0, None))(descriptors, pooled)
    weights = router_weights(router, pooled, active, routing=routing, errors=errors, key=key)
    adapters = jax.tree.map(lambda leaf: leaf.astype(x.dtype), adapters)
    return mixture_of_adapters(adapters, x, weights.astype(x.dtype)), (pooled, weights)


def _single_branch(adapter: Adapter, x: Float[Array, "B N d"]) -> tuple[Array, None]:
    adapter = jax.tree.map(lambda leaf: leaf.astype(x.dtype), adapter)
    return functional_adapter(adapter, x), None
