"""The compiled programs of SEMA: steps of its two trainings, and what frozen parts make of images.

A program runs any number of steps up to a fixed size, and every choice that changes between tasks
(blocks, classes, rates) is an argument: a stream compiles each once. `backbone` is an argument too,
so that streams with other weights share them, and so do configurations with one `static`.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit.continual import forward_pass
from jaxkit.continual.adapters import Adapter, Router
from jaxkit.continual.batches import StepBatches, gradient_in_parts, in_parts, run_steps
from jaxkit.continual.descriptors import record_errors, representation_error
from jaxkit.continual.expandable_state import (
    FunctionalParams,
    Head,
    SEMAConfig,
    SEMAState,
)

#: What classification starts from: images; images, of which only what lies above the frozen blocks
#: may train, so that no gradient passes through those; tokens at block `expand_from`; features, so
#: that only the head can change.
Source = Literal["images", "images_above", "tokens", "features"]


class Learning(NamedTuple):
    """What is learnt, and optimizer states of the classification and the description phase."""

    sema: SEMAState
    functional_opt: PyTree
    descriptor_opt: PyTree


class Trainable(NamedTuple):
    """What a classification phase may change, besides the head.

    `single`: the adapters of blocks that never grow, bool; `blocks`: of which expandable blocks the
    newest adapter and its router column, `[E]`.
    """

    single: Any
    blocks: Any


def sgd(config: SEMAConfig) -> optax.GradientTransformationExtraArgs:
    r"""PyTorch's SGD before its rate, $v \leftarrow \mu v + g + \lambda\theta$, where trainable."""
    return where_trainable(
        optax.chain(optax.add_decayed_weights(config.weight_decay), optax.trace(config.momentum))
    )


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


@functools.partial(jax.jit, static_argnums=0)
def begin_phase(config: SEMAConfig, sema: SEMAState) -> Learning:
    """Fresh optimizer states, as the official program has them for every phase."""
    rule = sgd(config)
    return Learning(sema, rule.init(sema.params), rule.init(sema.descriptors))


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_steps(
    config: SEMAConfig,
    source: Source,
    backbone: PyTree,
    learning: Learning,
    trainable: Trainable,
    classes: Bool[Array, " C"],
    batches: StepBatches,
    key: Key[Array, ""],
) -> tuple[Learning, Float[Array, " S"]]:
    """Classification: adapters, router columns and the head learn the classes of a task.

    Returns the loss before each update too; the backbone gets no gradient.
    """
    mask = _functional_mask(config, learning.sema, trainable)

    def step(learning: Learning, batch: StepBatches) -> tuple[Learning, Array]:
        sema, inputs = learning.sema, batch.inputs
        step_key = jax.random.fold_in(key, batch.step)
        blocks = config.model.depth - (0 if source == "images" else config.expand_from)
        size = len(inputs) if source == "features" else _at_once(config, inputs, blocks)
        routing_key = jax.random.fold_in(step_key, 1)

        def loss_fn(params: FunctionalParams, inputs: Array, labels: Array, rows: Array) -> Any:
            features, pooled = inputs, None
            if source == "images_above":
                inputs = forward_pass.frozen_prefix(config, backbone, sema, inputs)
            if source != "features":
                features, pooled, _ = forward_pass.adapted_forward(
                    config, backbone, sema._replace(params=params), inputs,
                    from_tokens=source != "images",
                    key=_key_of(routing_key, rows, batch.labels),
                )  # fmt: skip
            logits = forward_pass.class_logits(params.head, features)
            return local_cross_entropy(logits, labels, classes), pooled

        loss, pooled, gradient = gradient_in_parts(
            loss_fn, sema.params, batch._replace(inputs=inputs), size
        )
        updates, opt_state = sgd(config).update(
            gradient, learning.functional_opt, sema.params, trainable=mask
        )
        params: Any = optax.apply_updates(
            sema.params, optax.tree.scale(-batch.learning_rate, updates)
        )
        if pooled is not None:
            sema = record_newest(sema, pooled, trainable.blocks, batch.num_valid)
        return learning._replace(sema=sema._replace(params=params), functional_opt=opt_state), loss

    return run_steps(step, learning, batches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def describe_steps(
    config: SEMAConfig,
    source: Literal["images", "pooled"],
    backbone: PyTree,
    learning: Learning,
    blocks: Bool[Array, " E"],
    batches: StepBatches,
    key: Key[Array, ""],
) -> tuple[Learning, Float[Array, " S"]]:
    """Description: the newest descriptors of some blocks learn what adapters are given.

    Inputs are images, or pooled features `[S, B, E, d]` of images that stay the same. Returns the
    loss before each update too, summed over blocks.
    """

    def step(learning: Learning, batch: StepBatches) -> tuple[Learning, Array]:
        pooled = batch.inputs
        if source == "images":
            step_key = jax.random.fold_in(key, batch.step)
            routing_key = jax.random.fold_in(step_key, 1)
            pooled = observe(config, backbone, learning.sema, pooled, key=routing_key).pooled
        sema = record_newest(learning.sema, pooled, blocks, batch.num_valid)

        def loss_fn(descriptors: Any) -> Array:
            errors = _newest_errors(sema, descriptors, pooled)
            means = jax.vmap(_valid_mean, in_axes=(0, None))(errors, batch.num_valid)
            return jnp.sum(jnp.where(blocks, means, 0))

        loss, gradient = jax.value_and_grad(loss_fn)(sema.descriptors)
        slots = _newest_slots(config, sema, blocks)
        mask = jax.tree.map(lambda x: slots.reshape(*slots.shape, *(1,) * (x.ndim - 2)), gradient)
        updates, opt_state = sgd(config).update(
            gradient, learning.descriptor_opt, sema.descriptors, trainable=mask
        )
        descriptors: Any = optax.apply_updates(
            sema.descriptors, optax.tree.scale(-batch.learning_rate, updates)
        )
        return Learning(
            sema._replace(descriptors=descriptors), learning.functional_opt, opt_state
        ), loss

    return run_steps(step, learning, batches)


@functools.partial(jax.jit, static_argnums=0)
def prefix_tokens(
    config: SEMAConfig, backbone: PyTree, sema: SEMAState, images: Float[Array, "B H W C"]
) -> Float[Array, "B N d"]:
    """`frozen_prefix`, compiled, in parts that fit memory."""
    return in_parts(
        lambda part, rows: forward_pass.frozen_prefix(config, backbone, sema, part),
        images, _at_once(config, images, 1),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0, static_argnames="from_tokens")
def observe(
    config: SEMAConfig,
    backbone: PyTree,
    sema: SEMAState,
    inputs: Float[Array, "B ..."],
    *,
    from_tokens: bool = False,
    key: Key[Array, ""],
) -> forward_pass.Forward:
    """`adapted_forward`, likewise."""

    def run(part: Array, rows: Array) -> forward_pass.Forward:
        return forward_pass.adapted_forward(
            config, backbone, sema, part, from_tokens=from_tokens, key=_key_of(key, rows, inputs)
        )

    return in_parts(run, inputs, _at_once(config, inputs, 1))


@functools.partial(jax.jit, static_argnums=0)
def score_tokens(
    config: SEMAConfig,
    backbone: PyTree,
    sema: SEMAState,
    tokens: Float[Array, "B N d"],
    num_valid: Int[Array, ""],
    key: Key[Array, ""],
) -> tuple[Float[Array, " E"], Float[Array, "B E"]]:
    """Scores of a batch, `expansion_scores`, and of its samples."""
    pooled = observe(config, backbone, sema, tokens, from_tokens=True, key=key).pooled
    scores = forward_pass.expansion_scores(config, sema, pooled, num_valid)
    return scores, forward_pass.sample_scores(sema, pooled)


@functools.partial(jax.jit, static_argnums=0)
def predict_images(
    config: SEMAConfig,
    backbone: PyTree,
    sema: SEMAState,
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "B d"], Float[Array, "B classes"], Float[Array, "B E K"]]:
    """Features, scores of all classes and weights of the adapters."""
    seen = observe(config, backbone, sema, images, key=key)
    logits = forward_pass.class_logits(sema.params.head, seen.features)
    return seen.features, logits, seen.weights


def local_cross_entropy(
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    classes: Bool[Array, " C"],
) -> Float[Array, " B"]:
    """Cross-entropy of each row over the classes of the present task only.

    Its gradient is exactly 0 for other classes; a label that is not among `classes` makes it
    infinite.

    Source: the official trainer.
    """
    masked = jnp.where(classes, logits, -jnp.inf)
    return optax.losses.softmax_cross_entropy_with_integer_labels(masked, labels)


def _at_once(config: SEMAConfig, inputs: Array, num_blocks: int) -> int:
    return config.model.images_at_once(len(inputs), num_blocks, config.activation_bytes)


def _key_of(key: Key[Array, ""], rows: Array, batch: Array) -> Key[Array, ""]:
    """A key for some rows of a batch: no two parts of it draw the same."""
    return key if len(rows) == len(batch) else jax.random.fold_in(key, rows[0])


def record_newest(
    state: SEMAState, pooled: Float[Array, "B E d"], blocks: Bool[Array, " E"], num_valid: Any
) -> SEMAState:
    """Put the errors of the newest descriptor of some blocks on record."""
    every, newest = jnp.arange(len(state.num_active)), state.num_active - 1
    errors = _newest_errors(state, state.descriptors, pooled)
    old = jax.tree.map(lambda leaf: leaf[every, newest], state.records)
    grown = jax.vmap(record_errors, in_axes=(0, 0, None))(old, errors, num_valid)

    def write(leaf: Array, before: Array, after: Array) -> Array:
        mask = blocks.reshape(-1, *(1,) * (after.ndim - 1))
        return leaf.at[every, newest].set(jnp.where(mask, after, before))

    return state._replace(records=jax.tree.map(write, state.records, old, grown))


def _newest_errors(state: SEMAState, descriptors: Any, pooled: Array) -> Float[Array, "E B"]:
    every, newest = jnp.arange(len(state.num_active)), state.num_active - 1
    newest = jax.tree.map(lambda leaf: leaf[every, newest], descriptors)
    return jax.vmap(representation_error, in_axes=(0, 1))(newest, pooled)


def _newest_slots(config: SEMAConfig, state: SEMAState, blocks: Array) -> Bool[Array, "E K"]:
    newest = jnp.arange(config.capacity) == (state.num_active - 1)[:, None]
    return newest & blocks[:, None]


def _functional_mask(
    config: SEMAConfig, state: SEMAState, trainable: Trainable
) -> FunctionalParams:
    """Masks that broadcast against each leaf of what a classification phase may change."""
    single, slots = trainable.single, _newest_slots(config, state, trainable.blocks)
    kernel, bias = slots[..., None, None], slots[..., None]
    return FunctionalParams(
        Adapter(single, single, single, single),
        Adapter(kernel, bias, kernel, bias),
        Router(slots[:, None], slots),
        Head(jnp.array(True), jnp.array(True)),
    )


def _valid_mean(values: Float[Array, " B"], num_valid: Int[Array, ""] | int) -> Float[Array, ""]:
    return jnp.sum(jnp.where(jnp.arange(len(values)) < num_valid, values, 0)) / num_valid
