"""One step of each phase of a task: classification, and description of what was seen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit.continual import forward_pass
from jaxkit.continual.descriptors import representation_error
from jaxkit.continual.error_records import record_errors
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState
from jaxkit.continual.freezing import Trainable, trainable_mask, where_trainable
from jaxkit.continual.step_batches import StepBatches

#: From a typed key and images to images, for training only.
Augment = Callable[[Key[Array, ""], Float[Array, "B H W C"]], Float[Array, "B H W C"]]


class Learning(NamedTuple):
    """What training carries from step to step.

    Attributes:
        sema: adapters, descriptors, records.
        functional_opt: optimizer state of the classification phase.
        descriptor_opt: optimizer state of the description phase.
    """

    sema: SEMAState
    functional_opt: PyTree
    descriptor_opt: PyTree


def local_cross_entropy(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    classes: Bool[Array, " C"],
    num_valid: Int[Array, ""] | int,
) -> Float[Array, ""]:
    """Mean cross-entropy over the classes of the present task only.

    Args:
        logits: of all classes.
        labels: each one of `classes`; of another the loss is infinite.
        classes: which classes compete.
        num_valid: rows that count; the rest is padding.

    Returns:
        The mean over the rows that count. Its gradient is exactly 0 for other classes.

    Source: the official trainer.

    Example:
        >>> logits, labels = jnp.zeros((1, 3)), jnp.array([2])
        >>> round(float(local_cross_entropy(logits, labels, jnp.array([False, True, True]), 1)), 4)
        0.6931
    """
    masked = jnp.where(classes, logits, -jnp.inf)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(masked, labels)
    return _valid_mean(losses, num_valid)


@functools.lru_cache(maxsize=64)
def sgd(momentum: float = 0.9, weight_decay: float = 5e-4) -> optax.GradientTransformation:
    r"""PyTorch's SGD before its learning rate: $v \leftarrow \mu v + g + \lambda\theta$.

    Args:
        momentum: $\mu$.
        weight_decay: $\lambda$, coupled.

    Returns:
        A transformation whose updates are to be subtracted, times the learning rate; the same
        arguments give the same object, so that programs are shared.

    Example:
        >>> rule = sgd()
        >>> float(rule.update(jnp.array(1.0), rule.init(jnp.array(0.0)), jnp.array(2.0))[0])
        1.0010000467300415
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def init_learning(sema: SEMAState, optimizer: optax.GradientTransformation) -> Learning:
    """Start a phase: fresh optimizer states, as the official program has them.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learning = init_learning(init_sema(jax.random.key(0), config), sgd())
        >>> learning.sema.num_active.tolist()
        [1]
    """
    masked = where_trainable(optimizer)
    return Learning(sema, masked.init(sema.params), masked.init(sema.descriptors))


def _valid_mean(values: Float[Array, " B"], num_valid: Int[Array, ""] | int) -> Float[Array, ""]:
    return jnp.sum(jnp.where(jnp.arange(len(values)) < num_valid, values, 0)) / num_valid


def _at(tree: PyTree, blocks: Array, slots: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[blocks, slots], tree)


def record_newest(
    state: SEMAState, pooled: Float[Array, "B E d"], slots: Bool[Array, "E K"], num_valid: Any
) -> SEMAState:
    """Put the errors of the newest descriptor of each block on record, where its slot is marked.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> state = init_sema(jax.random.key(0), config)
        >>> slots = jnp.array([[True, False]])
        >>> jax.jit(record_newest)(state, jnp.ones((5, 1, 8)), slots, 4).records.count.tolist()
        [[4, 0]]
    """
    blocks = jnp.arange(len(state.num_active))
    newest = state.num_active - 1
    errors = jax.vmap(representation_error, in_axes=(0, 1))(
        _at(state.descriptors, blocks, newest), pooled
    )
    grown = jax.vmap(record_errors, in_axes=(0, 0, None))(
        _at(state.records, blocks, newest), errors, num_valid
    )
    wanted = slots[blocks, newest]

    def write(leaf: Array, new: Array) -> Array:
        mask = wanted.reshape(-1, *(1,) * (new.ndim - 1))
        return leaf.at[blocks, newest].set(jnp.where(mask, new, leaf[blocks, newest]))

    return state._replace(records=jax.tree.map(write, state.records, grown))


def classification_step(
    config: SEMAConfig,
    optimizer: optax.GradientTransformation,
    source: str,
    augment: Augment | None,
    backbone: PyTree,
    learning: Learning,
    trainable: Trainable,
    classes: Bool[Array, " C"],
    batch: StepBatches,
    key: Key[Array, ""],
) -> tuple[Learning, Float[Array, ""]]:
    """One step of the classification phase.

    Args:
        config: shapes.
        optimizer: before the learning rate.
        source: what the inputs are: `"images"`; `"images_above"`, of which only what lies above
            the frozen prefix may train, so that no gradient passes through it; `"tokens"` or
            `"features"`.
        augment: for images.
        backbone: variables of the model; they get no gradient.
        learning: what to advance.
        trainable: what may change.
        classes: classes of the task.
        batch: of one step, without the leading axis.
        key: of the phase.

    Returns:
        The advanced learning, and the loss before the update.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, StepBatches, init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learning = init_learning(init_sema(jax.random.key(0), config), sgd())
        >>> batch = StepBatches(jnp.ones((2, 8)), jnp.array([0, 1]), 2, 0.1, 0, None)
        >>> frozen, classes = jnp.zeros((1, 2), bool), jnp.ones(3, bool)
        >>> head_only = Trainable(jnp.array(False), frozen, jnp.array(True))
        >>> step = lambda l: classification_step(config, sgd(), "features", None, {}, l, head_only,
        ...                                      classes, batch, jax.random.key(1))
        >>> jax.eval_shape(step, learning)[1].shape
        ()
    """
    sema = learning.sema
    step_key = jax.random.fold_in(key, batch.step)
    inputs = batch.inputs
    if augment is not None and source in ("images", "images_above"):
        inputs = augment(jax.random.fold_in(step_key, 0), inputs)
    if source == "images_above":
        inputs, source = forward_pass.frozen_prefix(config, backbone, sema, inputs), "tokens"
    routing_key = jax.random.fold_in(step_key, 1)

    def loss_fn(params: Any) -> tuple[Array, Any]:
        if source == "features":
            features, pooled = inputs, None
        else:
            seen = forward_pass.adapted_forward(
                config, backbone, sema._replace(params=params), inputs,
                from_tokens=source == "tokens", key=routing_key,
            )  # fmt: skip
            features, pooled = seen.features, seen.pooled
        logits = forward_pass.class_logits(params.head, features)
        return local_cross_entropy(logits, batch.labels, classes, batch.num_valid), pooled

    (loss, pooled), gradient = jax.value_and_grad(loss_fn, has_aux=True)(sema.params)
    updates, opt_state = where_trainable(optimizer).update(
        gradient, learning.functional_opt, sema.params, trainable=trainable_mask(trainable)
    )
    params = optax.apply_updates(sema.params, optax.tree.scale(-batch.learning_rate, updates))
    if pooled is not None:
        sema = record_newest(sema, pooled, trainable.slots, batch.num_valid)
    advanced = learning._replace(sema=sema._replace(params=params), functional_opt=opt_state)
    return advanced, loss


def description_step(
    optimizer: optax.GradientTransformation,
    learning: Learning,
    slots: Bool[Array, "E K"],
    pooled: Float[Array, "B E d"],
    batch: StepBatches,
) -> tuple[Learning, Float[Array, ""]]:
    """One step of the description phase: descriptors learn the inputs of their adapters.

    Args:
        optimizer: before the learning rate.
        learning: what to advance.
        slots: newest slots whose descriptors train.
        pooled: pooled features of the batch.
        batch: of one step; its rate and number of valid rows are read.

    Returns:
        The advanced learning, and the loss before the update, summed over blocks.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SEMAConfig, StepBatches, init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learning = init_learning(init_sema(jax.random.key(0), config), sgd())
        >>> batch = StepBatches(None, None, 2, 0.1, 0, None)
        >>> slots, pooled = jnp.array([[True, False]]), jnp.ones((2, 1, 8))
        >>> step = lambda l: description_step(sgd(), l, slots, pooled, batch)
        >>> jax.eval_shape(step, learning)[1].shape
        ()
    """
    sema = record_newest(learning.sema, pooled, slots, batch.num_valid)

    def loss_fn(descriptors: Any) -> Array:
        blocks = jnp.arange(len(sema.num_active))
        newest = _at(descriptors, blocks, sema.num_active - 1)
        errors = jax.vmap(representation_error, in_axes=(0, 1))(newest, pooled)
        means = jax.vmap(_valid_mean, in_axes=(0, None))(errors, batch.num_valid)
        return jnp.sum(jnp.where(slots.any(1), means, 0))

    loss, gradient = jax.value_and_grad(loss_fn)(sema.descriptors)
    mask = jax.tree.map(lambda x: slots.reshape(*slots.shape, *(1,) * (x.ndim - 2)), gradient)
    updates, opt_state = where_trainable(optimizer).update(
        gradient, learning.descriptor_opt, sema.descriptors, trainable=mask
    )
    descriptors = optax.apply_updates(
        sema.descriptors, optax.tree.scale(-batch.learning_rate, updates)
    )
    advanced = learning._replace(
        sema=sema._replace(descriptors=descriptors), descriptor_opt=opt_state
    )
    return advanced, loss
