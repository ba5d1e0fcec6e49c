"""What programs cost on a pod, read from what the TPU's own compiler makes of them.

No TPU is needed: each program is compiled for a topology that is not here (extra `tpu`), and what
crosses devices is counted in the compiled program and held against the closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import (
    continual,
    federated,
    losscurves,
    models,
    privacy,
    schedules,
    submodular,
    subrl,
    training,
    width,
)
from jaxkit.experiments.evidence import Table


class RoomProgram(NamedTuple):
    """A program of a room, split over all devices.

    Attributes:
        program: what it is.
        lowered: ready to compile.
        mesh: its mesh.
        expected: bytes that a device should receive when it runs once.
        why: what these bytes are.
    """

    program: str
    lowered: jax.stages.Lowered
    mesh: Mesh
    expected: float
    why: str


def line(devices: list[Any], axis: str) -> Mesh:
    """All devices along one axis."""
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def placed(tree: Any, mesh: Mesh, *axes: str | None) -> Any:
    """Shapes of a tree, split over the axes of the mesh, or on every device."""
    sharding = NamedSharding(mesh, P(*axes))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh, *axes: str | None) -> Any:
    """An array split over the axes of the mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def size(tree: Any) -> int:
    """Bytes of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def summed(tree: Any, mesh: Mesh) -> float:
    """Bytes that a ring sum of a tree brings to each device."""
    return 2 * size(tree) * (1 - 1 / mesh.devices.size)


class MLP(nn.Module):
    """Dense layers with ReLU between."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for features in self.widths[:-1]:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.widths[-1])(x)


def mlp(inputs: int, *widths: int):
    """A network, its parameters as shapes, and its mean loss."""
    model = MLP(widths)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, inputs)))["params"]

    def loss(params, batch, key):
        del key
        logits: Any = model.apply({"params": params}, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean()

    return model, params, loss


def federated_round(devices: list[Any]) -> RoomProgram:
    """A round of FedSpeed: clients, their data and their state split."""
    mesh = line(devices, "clients")
    count = 4 * len(devices)
    _, params, loss = mlp(784, 320, 62)
    method = federated.fedspeed()
    client_training = federated.local_training(loss, batch_size=8, num_epochs=2)
    state = jax.eval_shape(
        lambda p: federated.init_state(method, p, count, jax.random.key(0)), params
    )
    clients = placed(state.clients, mesh, "clients")
    state = placed(state, mesh)._replace(clients=clients)
    data = jax.eval_shape(
        federated.stack_clients,
        {
            "x": jax.ShapeDtypeStruct((count, 32, 784), jnp.float32),
            "y": jax.ShapeDtypeStruct((count, 32), jnp.int32),
        },
    )
    sampler = federated.stratified_sampler(count, len(devices), len(devices))
    step = jax.jit(
        lambda s, d: federated.federated_round(
            method, client_training, s, d, sampler, federated.shard_clients(mesh)
        ),
        donate_argnums=0,
    )
    lowered = step.lower(state, placed(data, mesh, "clients"))
    return RoomProgram(
        "FedSpeed round, one of 4 clients a device", lowered, mesh, summed(params, mesh),
        "a message: 2 P (D - 1) / D",
    )  # fmt: skip


def _private_sum(devices: list[Any], make: Callable[..., Any], what: str) -> RoomProgram:
    mesh = line(devices, "data")
    model, params, loss = mlp(1024, 2048, 2048, 2048, 10)
    batch = {
        "x": rows((4096, 1024), jnp.float32, mesh, "data"),
        "y": rows((4096,), jnp.int32, mesh, "data"),
    }
    step = jax.jit(make(model, loss), out_shardings=NamedSharding(mesh, P()))
    lowered = step.lower(placed(params, mesh), batch)
    expected = summed(params, mesh)
    return RoomProgram(what, lowered, mesh, expected, "the clipped sum, once: 2 P (D - 1) / D")


def clipped_sum(devices: list[Any]) -> RoomProgram:
    """Per-example clipping of any loss, rows split."""
    return _private_sum(
        devices,
        lambda model, loss: privacy.clipped_grad_sum(loss, clip_norm=1.0),
        "clipped sum, 4096 rows, 10.5M parameters",
    )


def ghost_sum(devices: list[Any]) -> RoomProgram:
    """Ghost clipping, rows split."""

    def losses(apply, batch, key):
        del key
        return optax.softmax_cross_entropy_with_integer_labels(apply(batch["x"]), batch["y"])

    return _private_sum(
        devices,
        lambda model, loss: privacy.ghost_clipped_grad_sum(model, losses, clip_norm=1.0),
        "ghost clipping of the same",
    )


def sema_step(devices: list[Any]) -> RoomProgram:
    """Steps of SEMA on ViT-B/16 in bfloat16, images split."""
    mesh = line(devices, "data")
    steps, batch = 4, 32 * len(devices)
    model = models.VisionTransformer(num_classes=0, dtype=jnp.bfloat16, remat=True)
    config, rule = continual.SEMAConfig(model, 200), continual.sgd()
    backbone = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    learning = jax.eval_shape(
        lambda: continual.init_learning(continual.init_sema(jax.random.key(0), config), rule)
    )
    slots = jnp.zeros((3, 20), bool).at[:, 0].set(True)
    trainable = continual.Trainable(jnp.array(True), slots, jnp.array(True))
    numbers = placed(jnp.zeros(steps, jnp.int32), mesh)
    batches = continual.StepBatches(
        rows((steps, batch, 224, 224, 3), jnp.float32, mesh, None, "data"),
        rows((steps, batch), jnp.int32, mesh, None, "data"),
        numbers,
        placed(jnp.zeros(steps), mesh),
        numbers,
        placed(jnp.zeros((), jnp.int32), mesh),
    )
    programs = continual.sema_programs(config, rule)
    lowered = programs.train_images.lower(
        placed(backbone, mesh),
        placed(learning, mesh),
        placed(trainable, mesh),
        placed(jnp.zeros(200, bool), mesh),
        batches,
        placed(jax.random.key(0), mesh),
    )
    # One adapter a block of the last three, one router a block, and the head.
    adapters = jax.tree.map(lambda leaf: leaf, learning.sema.params)
    return RoomProgram(
        "SEMA on ViT-B/16, bfloat16, 32 images a device", lowered, mesh, summed(adapters, mesh),
        "at most all adapters and the head, once a step",
    )  # fmt: skip


def greedy_selection(devices: list[Any]) -> RoomProgram:
    """Greedy facility location, candidates split."""
    mesh = line(devices, "candidates")
    items, k = 4096, 64
    matrix = jax.ShapeDtypeStruct((items, items), jnp.float32)
    function = jax.eval_shape(submodular.facility_location, matrix)
    split = jax.tree.map(
        lambda leaf: rows(leaf.shape, leaf.dtype, mesh, "candidates" if leaf.ndim == 2 else None),
        function,
    )
    lowered = jax.jit(lambda f: submodular.greedy(f, k)).lower(split)
    return RoomProgram(
        f"greedy facility location, n = {items}, k = {k}", lowered, mesh,
        k * summed(jax.ShapeDtypeStruct((items,), jnp.float32), mesh),
        "the row chosen, a step",
    )  # fmt: skip


def policy_training(devices: list[Any]) -> RoomProgram:
    """Epochs of SubPO, episodes split."""
    mesh, epochs, batch = line(devices, "data"), 20, 32 * len(devices)
    world = subrl.named_world("two-rooms", jax.random.key(0), horizon=40, features="visited")
    run = subrl.make_training(
        world, subrl.CategoricalPolicy(5), subrl.subpo_optimizer(5e-3), batch_size=batch,
        epochs=epochs, mesh=mesh,
    )  # fmt: skip
    key = jax.random.key(0)
    params = jax.eval_shape(run.init, key).params
    lowered = jax.jit(run.run).lower(placed(key, mesh))
    return RoomProgram(
        f"SubPO, {epochs} epochs of {batch} episodes", lowered, mesh,
        epochs * (summed(params, mesh) + 2 * 40 * 4 * 2),
        "the policy's gradient and means of the batch, an epoch",
    )  # fmt: skip


def _sharded_matrices(mesh: Mesh) -> Any:
    return {
        f"layer_{i}": {"kernel": rows((1024, 4096), jnp.float32, mesh, "fsdp")} for i in range(4)
    }


def width_update(devices: list[Any]) -> RoomProgram:
    """Width-scaled AdamW, its matrices split."""
    mesh = line(devices, "fsdp")
    params = _sharded_matrices(mesh)
    shapes = lambda n: {  # noqa: E731
        name: {"kernel": jax.ShapeDtypeStruct((n, 4 * n), jnp.float32)} for name in params
    }
    scaling = width.width_scaling(shapes(256), shapes(1024), delta=shapes(512))
    optimizer = width.adamw_width_scaled(1e-3, 0.1, scaling)
    state = jax.eval_shape(optimizer.init, params)
    state = optax.tree.map_params(
        optimizer, lambda leaf, like: like, state, params,
        transform_non_params=lambda leaf: placed(leaf, mesh),
    )  # fmt: skip
    lowered = jax.jit(optimizer.update).lower(params, state, params)
    return RoomProgram("AdamW at its width, 4 x 4.2M", lowered, mesh, 0, "nothing")


def recorded_norms(devices: list[Any]) -> RoomProgram:
    """The recorder of gradient norms, gradients split."""
    mesh = line(devices, "fsdp")
    params = _sharded_matrices(mesh)
    recorder = schedules.record_gradient_norms(1000, 500, norm="l1")
    state = placed(jax.eval_shape(recorder.init, params), mesh)
    lowered = jax.jit(recorder.update).lower(params, state, params)
    return RoomProgram("recorder of norms, the same", lowered, mesh, 64, "one number")


def law_predictions(devices: list[Any]) -> RoomProgram:
    """The losses that a law predicts, schedules split."""
    mesh = line(devices, "data")
    law = losscurves.AnnealingLaw(*(np.float32(x) for x in (2.5, 0.5, 0.5, 2.0)))

    def losses(rates):
        areas = jax.vmap(lambda r: losscurves.annealing_areas(r, 0.999))(rates)
        return losscurves.annealing_loss(law, areas)

    split = rows((len(devices), 16_385), jnp.float32, mesh, "data")
    return RoomProgram(
        "losses of a schedule a device, 16,384 steps", jax.jit(losses).lower(split), mesh, 0,
        "nothing",
    )  # fmt: skip


#: One program or two of each room.
ROOMS: dict[str, tuple[Callable[[list[Any]], RoomProgram], ...]] = {
    "federated": (federated_round,),
    "privacy": (clipped_sum, ghost_sum),
    "continual": (sema_step,),
    "submodular": (greedy_selection,),
    "subrl": (policy_training,),
    "width": (width_update,),
    "schedules": (recorded_norms,),
    "losscurves": (law_predictions,),
}
