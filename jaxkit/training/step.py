"""The training state and the one function that advances it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.convolutions import channels_last
from jaxkit.training import sharding

LossFunction = Callable[[Any, Any, Key[Array, ""]], Float[Array, ""]]
GradientFunction = Callable[[Any, Any, Key[Array, ""]], tuple[Float[Array, ""], Any]]


class TrainState(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
        step: number of updates made, int32 scalar.
        params: parameters, any pytree.
        opt_state: state of the optimizer.
        key: typed key of the run; step ``t`` uses ``fold_in(key, t)``, so that a resumed run draws
            what the uninterrupted one would have drawn.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]


class StepMetrics(NamedTuple):
    """What one step measured, before its update.

    Attributes:
        loss: mean loss of the batch.
        gradient_norm: global l2 norm of the gradient, before any clipping.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def init_state(
    init_params: Callable[[Key[Array, ""]], PyTree],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    mesh: Mesh,
) -> TrainState:
    """Make the first state, each array created where it will live.

    Args:
        init_params: from a typed key to parameters; may carry Linen's partitioning metadata.
        optimizer: the optimizer whose state to make.
        key: typed key of the run.
        mesh: from `make_mesh`.

    Returns:
        The state, sharded over the mesh; the numbers do not depend on the mesh.

    Raises:
        ValueError: if the mesh does not divide a named axis of a parameter.

    Example:
        >>> from jaxkit.training import make_mesh
        >>> init, mesh = lambda key: {"w": jnp.ones(3)}, make_mesh()
        >>> state = init_state(init, optax.sgd(0.1), jax.random.key(0), mesh)
        >>> int(state.step)
        0
    """
    params_key, run_key = jax.random.split(key)
    shardings = state_shardings(init_params, optimizer, key, mesh)

    first = functools.partial(_first_state, init_params, optimizer)
    return jax.jit(first, out_shardings=shardings)(params_key, run_key)


def _first_state(
    init_params: Callable[[Key[Array, ""]], PyTree],
    optimizer: optax.GradientTransformation,
    params_key: Key[Array, ""],
    run_key: Key[Array, ""],
) -> TrainState:
    params = nn.meta.unbox(init_params(params_key))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), run_key)
    # Weakly typed numbers, such as that of a line search, would be traced again after a step.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def abstract_state(
    init_params: Callable[[Key[Array, ""]], PyTree],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """The state that `init_state` would make, as shapes, types and shardings: nothing allocated.

    Example:
        >>> from jaxkit.training import make_mesh
        >>> init, mesh = lambda key: {"w": jnp.ones(3)}, make_mesh()
        >>> abstract_state(init, optax.sgd(0.1), jax.random.key(0), mesh).params["w"].shape
        (3,)
    """
    first = functools.partial(_first_state, init_params, optimizer)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(first, key, key),
        state_shardings(init_params, optimizer, key, mesh),
    )


def state_shardings(
    init_params: Callable[[Key[Array, ""]], PyTree],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """The sharding of every array of the state: what is shaped like a parameter is split like it.

    An array of the optimizer's state belongs to the parameter whose path its own path ends with; if
    it has the same shape, or one more axis before (a history), it is split like it. Everything else
    is on every device.

    Example:
        >>> from jaxkit.training import make_mesh
        >>> mesh = make_mesh()
        >>> optimizer = optax.adam(0.1)
        >>> tree = state_shardings(lambda k: {"w": jnp.ones(3)}, optimizer, jax.random.key(0), mesh)
        >>> tree.params["w"].is_fully_replicated
        True
    """
    everywhere = sharding.replicated(mesh)
    boxed = jax.eval_shape(init_params, key)
    params = sharding.parameter_shardings(boxed, mesh)
    unboxed = nn.meta.unbox(boxed)
    leaves = jax.tree_util.tree_leaves_with_path(unboxed)
    like = {
        path: (leaf.shape, place.spec)
        for (path, leaf), place in zip(leaves, jax.tree.leaves(params), strict=True)
    }

    def moment(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        ends = (path[start:] for start in range(len(path) + 1))
        shape, spec = next((like[end] for end in ends if end in like), (None, P()))
        if leaf.shape == shape:
            return NamedSharding(mesh, spec)
        if leaf.shape[1:] == shape and leaf.ndim:
            return NamedSharding(mesh, P(None, *spec))
        return everywhere

    abstract = jax.eval_shape(optimizer.init, unboxed)
    opt_state = jax.tree_util.tree_map_with_path(moment, abstract)
    return TrainState(everywhere, params, opt_state, everywhere)  # type: ignore[arg-type]


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    gradient_fn: GradientFunction | None = None,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Compile one update: gradient, optimizer, new parameters.

    Args:
        loss_fn: `loss_fn(params, batch, key)`, the mean loss over the rows of the batch.
        optimizer: any optax transformation; it is told `value`, `grad` and `value_fn` if it takes
            extra arguments (line searches, `optax.contrib.reduce_on_plateau`, Polyak steps), but
            nothing beside its updates with a `gradient_fn`, whose noise a loss would go around.
        accumulation_steps: split the batch into this many microbatches, whose gradients are
            averaged one after the other, in float32 at least; the update sees one gradient.
        gradient_fn: `(params, batch, key) -> (loss, gradient)` in place of
            `jax.value_and_grad(loss_fn)`: clipped per example, say.
        shardings: from `state_shardings`, so that the new state stays where the old one was, and
            the modules of `jaxkit.models` split their activations over the same mesh.

    Returns:
        A jitted `step(state, batch) -> (state, StepMetrics)` that consumes (donates) its state.

    Raises:
        ValueError: if `accumulation_steps` is not positive, or at the first call does not divide
            the batch.

    Example:
        >>> loss = lambda params, batch, key: jnp.mean((params["w"] - batch) ** 2)
        >>> from jaxkit.training import make_mesh
        >>> optimizer, mesh = optax.sgd(0.1), make_mesh()
        >>> state = init_state(lambda k: {"w": jnp.ones(())}, optimizer, jax.random.key(0), mesh)
        >>> state, metrics = make_train_step(loss, optimizer)(state, jnp.zeros(4))
        >>> float(metrics.loss), round(float(state.params["w"]), 3)
        (1.0, 0.8)
    """
    validation.integer("accumulation_steps", accumulation_steps, minimum=1)
    gradient = channels_last(gradient_fn or jax.value_and_grad(loss_fn))
    optimizer = optax.with_extra_args_support(optimizer)

    def accumulate(params: PyTree, batch: Any, key: Key[Array, ""]) -> tuple[Array, PyTree]:
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % accumulation_steps:
            raise ValueError(
                f"accumulation_steps must divide the batch of {size} rows, got {accumulation_steps}"
            )
        if accumulation_steps == 1:
            return gradient(params, batch, key)

        def wide(*arguments: Any) -> tuple[Array, PyTree]:
            loss, gradients = gradient(*arguments)
            return loss, jax.tree.map(_at_least_float32, gradients)

        mean = optax.microbatching.AccumulationType.MEAN
        microbatch_size = size // accumulation_steps
        loss, gradients = optax.microbatching.microbatch(wide, 1, microbatch_size, mean)(
            params, batch, key
        )
        return loss, jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        loss, gradients = accumulate(state.params, batch, key)
        told: dict[str, Any] = {}
        if gradient_fn is None:
            told = {
                "value": loss,
                "grad": gradients,
                "value_fn": lambda params: loss_fn(params, batch, key),
            }
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, **told)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(gradients))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    everywhere: Any = shardings.step
    out_shardings = (shardings, StepMetrics(everywhere, everywhere))

    def step_on_mesh(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        with jax.sharding.use_abstract_mesh(everywhere.mesh.abstract_mesh):
            return sharding.automatic_axes(step, out_shardings)(state, batch)

    return jax.jit(step_on_mesh, donate_argnums=0, out_shardings=out_shardings)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
