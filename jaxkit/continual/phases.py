"""The phases of a task as compiled programs: classification, description, scoring, evaluation.

A program runs any number of steps up to a fixed size, and every choice that changes between tasks
(slots, classes, rates) is an argument: a stream compiles each once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit.continual import forward_pass
from jaxkit.continual.descriptors import representation_error
from jaxkit.continual.error_records import record_errors
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState, add_adapter
from jaxkit.continual.freezing import Trainable, trainable_mask, where_trainable

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


class StepBatches(NamedTuple):
    """Up to S steps of a phase.

    Attributes:
        inputs: `[S, B, ...]`.
        labels: `[S, B]`.
        num_valid: rows that count in each batch; the rest is padding, int32 `[S]`.
        learning_rate: `[S]`.
        step: number of each step within the phase, for random routings and augmentation, `[S]`.
        num_steps: steps to run, at most S.
    """

    inputs: Float[Array, "S B ..."]
    labels: Int[Array, "S B"]
    num_valid: Int[Array, " S"]
    learning_rate: Float[Array, " S"]
    step: Int[Array, " S"]
    num_steps: Int[Array, ""]


class Programs(NamedTuple):
    """The compiled programs of a stream.

    All take `backbone`, the variables of the model, as an argument, so that streams with other
    weights share them.

    Attributes:
        train_images: `(backbone, learning, trainable, classes, batches, key)` to learning and
            losses `[S]`: classification from images.
        train_tokens: the same from tokens at block `expand_from`.
        train_head: the same from features; only the head can change.
        describe: `(learning, slots, batches)` to learning and losses `[S]`: descriptors, from
            pooled features `[S, B, E, d]`.
        describe_images: `(backbone, learning, slots, batches, key)`, the same from images.
        prefix: `(backbone, sema, images)` to tokens at block `expand_from`.
        observe: `(backbone, sema, tokens)` to `Forward`.
        score: `(backbone, sema, tokens, num_valid)` to scores `[E]`.
        predict: `(backbone, sema, images, key)` to features, logits and weights.
        add: `(key, sema, block)` to the state with one more adapter.
    """

    train_images: Any
    train_tokens: Any
    train_head: Any
    describe: Any
    describe_images: Any
    prefix: Any
    observe: Any
    score: Any
    predict: Any
    add: Any


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
        >>> from jaxkit.continual import SEMAConfig, VisionTransformer, init_sema
        >>> model = VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
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
        >>> from jaxkit.continual import SEMAConfig, VisionTransformer, init_sema
        >>> model = VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> state = init_sema(jax.random.key(0), config)
        >>> slots = jnp.array([[True, False]])
        >>> record_newest(state, jnp.ones((5, 1, 8)), slots, 4).records.count.tolist()
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
        source: what the inputs are: `"images"`, `"tokens"` or `"features"`.
        augment: for images.
        backbone: variables of the model; they get no gradient.
        learning: what to advance.
        trainable: what may change.
        classes: classes of the task.
        batch: of one step, without the leading axis.
        key: of the phase.

    Returns:
        The advanced learning, and the loss before the update.
    """
    sema = learning.sema
    step_key = jax.random.fold_in(key, batch.step)
    inputs = batch.inputs
    if augment is not None and source == "images":
        inputs = augment(jax.random.fold_in(step_key, 0), inputs)
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


@functools.lru_cache(maxsize=16)
def sema_programs(
    config: SEMAConfig, optimizer: optax.GradientTransformation, augment: Augment | None = None
) -> Programs:
    """The programs of a configuration, made once and compiled at their first call.

    Args:
        config: shapes and modes.
        optimizer: before the learning rate; the same object gives the same programs.
        augment: for training from images.

    Returns:
        The programs.

    Example:
        >>> from jaxkit.continual import SEMAConfig, VisionTransformer
        >>> model = VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> rule = sgd()
        >>> sema_programs(config, rule) is sema_programs(config, rule)
        True
    """

    def train(source: str) -> Any:
        def program(backbone, learning, trainable, classes, batches, key):
            def step(learning, batch):
                return classification_step(
                    config, optimizer, source, augment,
                    backbone, learning, trainable, classes, batch, key,
                )  # fmt: skip

            return _run_steps(step, learning, batches)

        return jax.jit(program)

    def describe(learning, slots, batches):
        return _run_steps(
            lambda learning, batch: description_step(
                optimizer, learning, slots, batch.inputs, batch
            ),
            learning,
            batches,
        )

    def describe_images(backbone, learning, slots, batches, key):
        def step(learning, batch):
            step_key, images = jax.random.fold_in(key, batch.step), batch.inputs
            if augment is not None:
                images = augment(jax.random.fold_in(step_key, 0), images)
            pooled = forward_pass.adapted_forward(
                config, backbone, learning.sema, images, key=jax.random.fold_in(step_key, 1)
            ).pooled
            return description_step(optimizer, learning, slots, pooled, batch)

        return _run_steps(step, learning, batches)

    def score(backbone, sema, tokens, num_valid, key):
        seen = forward_pass.adapted_forward(
            config, backbone, sema, tokens, from_tokens=True, key=key
        )
        return forward_pass.expansion_scores(config, sema, seen.pooled, num_valid)

    def predict(backbone, sema, images, key):
        seen = forward_pass.adapted_forward(config, backbone, sema, images, key=key)
        logits = forward_pass.class_logits(sema.params.head, seen.features)
        return seen.features, logits, seen.weights

    return Programs(
        train("images"),
        train("tokens"),
        train("features"),
        jax.jit(describe),
        jax.jit(describe_images),
        jax.jit(functools.partial(forward_pass.frozen_prefix, config)),
        jax.jit(functools.partial(forward_pass.adapted_forward, config, from_tokens=True)),
        jax.jit(score),
        jax.jit(predict),
        jax.jit(lambda key, sema, block: add_adapter(key, config, sema, block)),
    )


def _run_steps(
    step: Callable[[Learning, StepBatches], tuple[Learning, Array]],
    learning: Learning,
    batches: StepBatches,
) -> tuple[Learning, Float[Array, " S"]]:
    """Advance by `num_steps` steps; losses of steps not run are 0."""
    per_step = batches._replace(num_steps=batches.step)

    def body(index: Array, carry: tuple[Learning, Array]) -> tuple[Learning, Array]:
        learning, losses = carry
        learning, loss = step(learning, jax.tree.map(lambda leaf: leaf[index], per_step))
        return learning, losses.at[index].set(loss)

    losses = jnp.zeros(batches.learning_rate.shape, batches.learning_rate.dtype)
    return lax.fori_loop(0, batches.num_steps, body, (learning, losses))
