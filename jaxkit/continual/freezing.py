"""Which parts a phase may change, down to single slots of a stacked array."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from jaxkit.continual.adapters import Adapter
from jaxkit.continual.expandable_state import FunctionalParams, Head, SEMAState
from jaxkit.continual.routers import Router


def where_trainable(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run a transformation on the trainable entries only; all others get an update of exactly 0.

    `optax.multi_transform` freezes whole leaves, and each choice of leaves is a program of its
    own. This one takes a mask of each leaf's entries as a traced argument: gradients are masked
    before `inner`, updates after it, because weight decay and old momentum would move what is
    frozen.

    Args:
        inner: any transformation.

    Returns:
        A transformation whose `update` takes `trainable=`, a tree like the parameters of boolean
        arrays that broadcast against them.

    Example:
        >>> optimizer = where_trainable(optax.add_decayed_weights(0.5))
        >>> params = {"w": jnp.array([2.0, 4.0])}
        >>> mask = {"w": jnp.array([True, False])}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params, trainable=mask)
        >>> updates["w"].tolist()
        [3.0, 0.0]
    """
    inner = optax.with_extra_args_support(inner)

    def masked(tree: PyTree, trainable: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), tree, trainable)

    def update(
        updates: PyTree, state: PyTree, params: Any = None, *, trainable: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(masked(updates, trainable), state, params, **extra)
        return masked(updates, trainable), state

    return optax.GradientTransformationExtraArgs(inner.init, update)  # type: ignore[arg-type]


class Trainable(NamedTuple):
    """What a phase may change.

    Attributes:
        single: whether the adapters of blocks that never grow, bool scalar.
        slots: which slots of the expandable blocks, bool `[E, K]`.
        head: whether the classifier, bool scalar.
    """

    single: Bool[Array, ""]
    slots: Bool[Array, "E K"]
    head: Bool[Array, ""]


def newest_slots(state: SEMAState, blocks: Bool[Array, " E"]) -> Bool[Array, "E K"]:
    """The slot added last, in each of some blocks.

    Args:
        state: what has been learnt.
        blocks: which expandable blocks.

    Returns:
        Bool `[E, K]`.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> newest_slots(init_sema(jax.random.key(0), config), jnp.array([True])).tolist()
        [[True, False]]
    """
    capacity = state.params.router.bias.shape[-1]
    newest = jnp.arange(capacity) == (state.num_active - 1)[:, None]
    return newest & blocks[:, None]


def trainable_mask(trainable: Trainable) -> FunctionalParams:
    """Spread `Trainable` over the parameters, as masks that broadcast against each leaf.

    Example:
        >>> everything = Trainable(jnp.array(True), jnp.ones((1, 2), bool), jnp.array(True))
        >>> trainable_mask(everything).router.kernel.shape
        (1, 1, 2)
    """
    single, slots, head = trainable
    kernel, bias = slots[..., None, None], slots[..., None]
    return FunctionalParams(
        Adapter(single, single, single, single),
        Adapter(kernel, bias, kernel, bias),
        Router(slots[:, None], slots),
        Head(head, head),
    )
