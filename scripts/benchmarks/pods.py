"""What programs cost on a pod, read from what the TPU's own compiler makes of them.

No TPU is needed: each program is compiled for a topology that is not here (extra `tpu`), and what
crosses devices is counted in the compiled program and held against the closed form.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
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
from jaxkit.continual import batches, sema_programs
from jaxkit.experiments.evidence import Table
from jaxkit.jobs import compilation
from jaxkit.jobs.config import TrainConfig


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
        """Logits of rows."""
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
    client_training = federated.LocalTraining(loss, batch_size=8, num_epochs=2)
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


def _private_sum(devices: list[Any], method: Any, what: str) -> RoomProgram:
    mesh = line(devices, "data")
    _, params, loss = mlp(1024, 2048, 2048, 2048, 10)
    batch = {
        "x": rows((4096, 1024), jnp.float32, mesh, "data"),
        "y": rows((4096,), jnp.int32, mesh, "data"),
    }
    gradient = privacy.clipped_grad_sum(loss, clip_norm=1.0, method=method, mesh=mesh)
    step = jax.jit(gradient, out_shardings=NamedSharding(mesh, P()))
    lowered = step.lower(placed(params, mesh), batch)
    expected = summed(params, mesh)
    return RoomProgram(what, lowered, mesh, expected, "the clipped sum, once: 2 P (D - 1) / D")


def clipped_sum(devices: list[Any]) -> RoomProgram:
    """Per-example clipping, each gradient made; rows split."""
    return _private_sum(devices, "vmap", "clipped sum, 4,096 rows, 10.5M parameters")


def ghost_sum(devices: list[Any]) -> RoomProgram:
    """Ghost clipping, rows split."""
    return _private_sum(devices, "ghost", "ghost clipping of the same")


def sema_step(devices: list[Any]) -> RoomProgram:
    """Steps of SEMA on ViT-B/16 in bfloat16, images split."""
    mesh = line(devices, "data")
    steps, batch = 4, 32 * len(devices)
    model = models.VisionTransformer(num_classes=0, dtype=jnp.bfloat16, remat=True)
    config = continual.SEMAConfig(model, 200, activation_bytes=2**33 * len(devices))
    backbone = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    backbone = nn.meta.unbox(backbone)
    learning = jax.eval_shape(
        lambda: sema_programs.begin_phase(config, continual.init_sema(jax.random.key(0), config))
    )
    trainable = sema_programs.Trainable(jnp.array(True), jnp.ones(3, bool))
    numbers = placed(jnp.zeros(steps, jnp.int32), mesh)
    steps_of_images = batches.StepBatches(
        rows((steps, batch, 224, 224, 3), jnp.float32, mesh, None, "data"),
        rows((steps, batch), jnp.int32, mesh, None, "data"),
        numbers,
        placed(jnp.zeros(steps), mesh),
        numbers,
        placed(jnp.zeros((), jnp.int32), mesh),
    )
    lowered = sema_programs.train_steps.lower(
        config,
        "images",
        placed(backbone, mesh),
        placed(learning, mesh),
        placed(trainable, mesh),
        placed(jnp.zeros(200, bool), mesh),
        steps_of_images,
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


def greedy_from_features(devices: list[Any]) -> RoomProgram:
    """Greedy facility location of a million candidates, no matrix, candidates split."""
    mesh = line(devices, "candidates")
    items, clients, width, k = 1 << 20, 1 << 14, 64, 16
    shapes = [jax.ShapeDtypeStruct((count, width), jnp.float32) for count in (items, clients)]
    function = placed(jax.eval_shape(submodular.facility_location_from_features, *shapes), mesh)
    split = dataclasses.replace(
        function, rows=rows((items, width), jnp.float32, mesh, "candidates")
    )
    lowered = jax.jit(lambda f: submodular.greedy(f, k)).lower(split)
    chosen = jax.ShapeDtypeStruct((width + 4 * len(devices),), jnp.float32)
    return RoomProgram(
        f"greedy facility location from features, n = {items:,}, k = {k}", lowered, mesh,
        k * summed(chosen, mesh), "the best gains and the features chosen, a step",
    )  # fmt: skip


def policy_training(devices: list[Any]) -> RoomProgram:
    """Steps of SubPO, episodes split."""
    mesh, steps, batch = line(devices, "data"), 20, 32 * len(devices)
    world = subrl.named_world("two-rooms", jax.random.key(0), horizon=40, features="visited")
    run = subrl.make_training(
        world, subrl.CategoricalPolicy(5), optax.adam(5e-3), batch_size=batch,
        num_steps=steps, mesh=mesh,
    )  # fmt: skip
    key = jax.random.key(0)
    params = jax.eval_shape(run.init, key).params
    lowered = jax.jit(run.run).lower(placed(key, mesh))
    return RoomProgram(
        f"SubPO, {steps} steps of {batch} episodes", lowered, mesh,
        steps * (summed(params, mesh) + 2 * 40 * 4 * 2),
        "the policy's gradient and means of the batch, a step",
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


def schedule_areas(devices: list[Any]) -> RoomProgram:
    """The areas of schedules that a law reads, schedules split."""
    mesh = line(devices, "data")
    areas = jax.jit(jax.vmap(lambda rates: losscurves.annealing_areas(rates, 0.999)))
    split = rows((len(devices), 16_385), jnp.float32, mesh, "data")
    what = "areas of a schedule a device, 16,384 steps"
    return RoomProgram(what, areas.lower(split), mesh, 0, "nothing")


#: One program or two of each room.
ROOMS: dict[str, tuple[Callable[[list[Any]], RoomProgram], ...]] = {
    "federated": (federated_round,),
    "privacy": (clipped_sum, ghost_sum),
    "continual": (sema_step,),
    "submodular": (greedy_selection, greedy_from_features),
    "subrl": (policy_training,),
    "width": (width_update,),
    "schedules": (recorded_norms,),
    "losscurves": (schedule_areas,),
}


def room_table(devices: list[Any]) -> Table:
    """What a device receives in one run of a program of each room, at low compile effort."""
    found = []
    for room, programs in ROOMS.items():
        for make in programs:
            program = make(devices)
            cost = training.program_cost(program.lowered.compile(), program.mesh)
            found.append(
                (
                    room,
                    program.program,
                    f"{cost.received() / 1e6:,.2f} MB",
                    f"{program.expected / 1e6:,.2f} MB",
                    program.why,
                    f"{cost.temporary_bytes / 2**20:,.1f} MiB",
                )
            )
    columns = ("room", "program", "received", "closed form", "which is", "temporaries")
    return Table(f"A program of each room on {len(devices)} chips of v5e", columns, found)


PAPER = TrainConfig(
    d_model=1024,
    num_layers=12,
    num_heads=8,
    head_dim=128,
    d_ff=4096,
    dtype="bfloat16",
    remat=True,
    sequence_length=512,
)
LLAMA = TrainConfig(
    d_model=2048,
    num_layers=24,
    num_heads=16,
    head_dim=128,
    d_ff=5632,  # 8 d / 3 in multiples of 256, by which the compiler scatters gradients
    gated_mlp=True,
    activation="silu",
    position="rope",
    embedding_affine=False,
    tied_readout=False,
    dtype="bfloat16",
    remat=True,
    sequence_length=2048,
)
#: Model, its vocabulary, sequences a chip, and meshes `data x fsdp x tensor` on 16 and 256 chips.
LANGUAGE_MODELS = {
    "151M, V = 32,000": (
        PAPER, 32_000, 8, ((16, 1, 1), (2, 8, 1), (1, 16, 1), (2, 4, 2), (1, 2, 8)),
        ((32, 8, 1), (16, 8, 2)),
    ),
    "151M lexinvariant, V = 128": (
        dataclasses.replace(PAPER, embedding="lexinvariant"), 128, 8,
        ((16, 1, 1), (2, 8, 1), (1, 16, 1), (2, 4, 2), (1, 2, 8)), ((32, 8, 1), (16, 8, 2)),
    ),
    "1.3B LLaMA-style, V = 32,000": (
        LLAMA, 32_000, 4, ((1, 16, 1), (2, 4, 2)),
        ((16, 16, 1), (4, 64, 1), (1, 256, 1), (8, 16, 2)),
    ),
}  # fmt: skip


def compiled_step(
    config: TrainConfig, vocab_size: int, sizes: tuple[int, ...], rows: int, effort: Any = "low"
) -> compilation.Compilation:
    """A model's step on a mesh of v5e, with so many sequences a chip."""
    chips = math.prod(sizes)
    mesh = ",".join(f"{axis}={n}" for axis, n in zip(training.AXES, sizes, strict=True))
    return compilation.compile_program(
        dataclasses.replace(config, mesh=mesh, batch_size=rows * chips),
        {16: "v5e:4x4", 256: "v5e:16x16"}[chips],
        vocab_size=vocab_size,
        effort=effort,
    )


def moved_activations(found: compilation.Compilation) -> int:
    """Bytes received over `fsdp` in arrays of whole sequences, but for the rows of the table."""
    assert found.cost is not None
    length = found.config.sequence_length
    rows = found.config.batch_size // (found.mesh.shape["data"] * found.mesh.shape["fsdp"])
    config, parts = found.config, found.mesh.size
    weights = {config.d_model, config.d_ff, config.num_heads, config.head_dim}

    def split(n: int, share: int) -> bool:
        return n % share == 0 and parts % (n // share) == 0

    total = 0
    for one in found.cost.collectives:
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", one.shape):
            dims = [int(n) for n in sizes.split(",") if n]
            pairs = itertools.pairwise(dims) if len(dims) > 2 else ()
            whole = any(
                split(n, rows) and n not in weights and t == length for n, t in pairs
            ) or any(split(n, rows * length) and n not in weights for n in dims)
            ids = dtype == "s32"
            if whole and not ids and "fsdp" in one.axes and one.kind != "all-to-all":
                total += one.received
                break
    return total


def language_model_table() -> Table:
    """Exchange and memory of language models at low effort, beside the closed forms."""
    table = []
    for name, (config, vocab_size, rows, *meshes) in LANGUAGE_MODELS.items():
        for sizes in itertools.chain(*meshes):
            found = compiled_step(config, vocab_size, sizes, rows)
            table.append((name, " x ".join(map(str, sizes)), *language_model_cells(found)))
    columns = (
        "model", "data x fsdp x tensor", "received", "over closed form", "activations over fsdp",
        "temporaries", "over closed form", "limit", "utilization: bound", "expected",
    )  # fmt: skip
    return Table("A training step on v5e, compiled at low effort", columns, table)


def language_model_cells(found: compilation.Compilation) -> tuple[str, ...]:
    """What a table says of a compilation."""
    cost, closed, roof = found.cost, found.closed_form, found.roofline
    if cost is None or roof is None:
        return (f"does not fit: {found.refusal}",)
    bound = found.utilization(roof.seconds)
    return (
        f"{cost.received() / 1e6:,.0f} MB",
        f"{cost.received() / closed.exchange_bytes:.2f}",
        f"{moved_activations(found) / 1e6:,.0f} MB",
        f"{cost.temporary_bytes / 2**20:,.0f} MiB",
        f"{cost.temporary_bytes / closed.temporary_bytes:.2f}",
        roof.limit,
        f"{100 * bound:.0f} %",
        f"{100 * compilation.REACHED * bound:.0f} %",
    )


def long_context_table() -> Table:
    """Memory of the 151M model as its context grows, one sequence a chip, rotary positions."""
    table = []
    for length in (4096, 8192, 16_384, 32_768):
        config = dataclasses.replace(PAPER, position="rope", sequence_length=length)
        found = compiled_step(config, 32_000, (1, 16, 1), 1)
        if found.cost is None:
            table.append((length, f"does not fit: {found.refusal}", "", ""))
            continue
        cost = found.cost
        table.append(
            (
                f"{length:,}",
                f"{cost.temporary_bytes / 2**20:,.0f} MiB",
                f"{cost.temporary_bytes / 2**20 / length * 1024:,.0f} MiB",
                f"{cost.received() / 1e6:,.0f} MB",
            )
        )
    columns = ("context", "temporaries", "per 1,024 tokens", "received")
    return Table("151M on 16 chips, one sequence a chip", columns, table)


def utilization_table() -> Table:
    """The 1.3B model on 256 chips, compiled as for a run."""
    table = []
    for rows in (4,):
        found = compiled_step(LLAMA, 32_000, (16, 16, 1), rows, "default")
        roof = found.roofline
        if roof is None or found.cost is None:
            table.append((rows, f"does not fit: {found.refusal}", *[""] * 6))
            continue
        bound, serial = (found.utilization(s) for s in (roof.seconds, roof.serial_seconds))
        table.append(
            (
                f"{rows} x 2,048",
                *(f"{1e3 * seconds:.0f} ms" for seconds in roof),
                roof.limit,
                f"{100 * bound:.0f} %",
                f"{100 * serial:.0f} %",
                f"{100 * compilation.REACHED * bound:.0f} %",
            )
        )
    columns = (
        "tokens a chip", "compute", "memory", "exchange", "limit", "utilization: all overlaps",
        "no exchange overlaps", "expected",
    )  # fmt: skip
    return Table("1.3B LLaMA-style on v5e 16x16, data=16, fsdp=16, default effort", columns, table)


def run() -> list[Table]:
    """Compile everything: about half an hour on two cores."""
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    rooms = room_table(training.topology_devices("v5e:4x4"))
    return [rooms, language_model_table(), long_context_table(), utilization_table()]
