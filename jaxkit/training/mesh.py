"""Devices as a mesh, and which axis of it each array is split over."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import validation

#: Axes of every training mesh: replicas, shards of parameters and batch, shards inside a layer.
AXES = ("data", "fsdp", "tensor")

#: The axes that a batch is split over.
BATCH_AXES = ("data", "fsdp")

#: Mesh axis of each logical axis name that a module gives its parameters.
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def initialize_distributed() -> None:
    """Join the other processes of this run, if there are any.

    Reads what JAX reads: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; on a
    TPU pod or under Slurm, set `JAXKIT_DISTRIBUTED=1` and JAX finds them itself. Call it before
    anything else touches a device. Processes on CPU speak over gloo.

    Example:
        >>> initialize_distributed()  # alone: nothing to do
    """
    alone = int(os.environ.get("JAX_NUM_PROCESSES", "1")) == 1
    if alone and os.environ.get("JAXKIT_DISTRIBUTED") != "1":
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if alone:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )


def parse_mesh(text: str, num_devices: int) -> dict[str, int]:
    """Read a mesh from text such as `"data=2,fsdp=4"`.

    Args:
        text: comma-separated `axis=size`; one size may be -1 for "the rest", and axes not named
            have size 1. Empty text puts every device on `data`.
        num_devices: number of devices to divide.

    Returns:
        Sizes of `data`, `fsdp` and `tensor`.

    Raises:
        ValueError: if an axis is unknown or named twice, a size is not a number, or the sizes do
            not multiply to `num_devices`.

    Example:
        >>> parse_mesh("fsdp=2,data=-1", 8)
        {'data': 4, 'fsdp': 2, 'tensor': 1}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (text or "data=-1").replace(" ", "").split(",")):
        axis, _, size = part.partition("=")
        validation.choice("mesh axis", axis, AXES)
        if axis in sizes:
            raise ValueError(f"mesh must name each axis once, got {text!r}")
        if not size.lstrip("-").isdigit() or int(size) == 0 or int(size) < -1:
            raise ValueError(f"mesh sizes must be positive integers or -1, got {part!r}")
        sizes[axis] = int(size)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise ValueError(f"mesh may leave one size as -1, got {text!r}")
    if free:
        sizes[free[0]] = num_devices // fixed
    if math.prod(sizes.values()) != num_devices:
        raise ValueError(
            f"mesh {text!r} must multiply to the number of devices, {num_devices}, got "
            + " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        )
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(text: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """Make the `data` x `fsdp` x `tensor` mesh over all devices of all processes.

    Args:
        text: see `parse_mesh`.
        devices: other devices to make it over, such as `topology_devices`.

    Returns:
        The mesh.

    Raises:
        ValueError: as `parse_mesh`.

    Example:
        >>> make_mesh().axis_names
        ('data', 'fsdp', 'tensor')
    """
    sizes = parse_mesh(text, jax.device_count() if devices is None else len(devices))
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree from the logical axis names in its metadata.

    Args:
        boxed: abstract or concrete parameters as a Linen module's `init` makes them, with
            `nn.with_logical_partitioning` metadata; arrays without metadata are replicated.
        mesh: from `make_mesh`.

    Returns:
        A tree of `NamedSharding` like the unboxed parameters. A vocabulary that the mesh does not
        divide is replicated.

    Raises:
        ValueError: if another named axis is not divisible by its part of the mesh.

    Example:
        >>> mesh = make_mesh()
        >>> boxed = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), np.ones((1, 3)))
        >>> parameter_shardings(boxed, mesh)["params"]["bias"].is_fully_replicated
        True
    """

    def spec(path: Any, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, P())
        axes = []
        shape = jax.tree.leaves(leaf)[0].shape
        for size, name in zip(shape, leaf.names, strict=True):
            axis = RULES.get(name) if name else None
            if axis and size % mesh.shape[axis]:
                if name != "vocab":
                    raise ValueError(
                        f"{name} of {jax.tree_util.keystr(path)} has size {size}, which mesh axis "
                        f"{axis}={mesh.shape[axis]} does not divide"
                    )
                axis = None
            axes.append(axis)
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(
        spec, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds.

    Example:
        >>> replicated(make_mesh()).is_fully_replicated
        True
    """
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over `data` and `fsdp`.

    Example:
        >>> batch_sharding(make_mesh()).spec == P(("data", "fsdp"))
        True
    """
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Which part of the global batch this process must bring.

    Args:
        mesh: from `make_mesh`.
        batch_size: rows of the global batch.

    Returns:
        `(index, count)`: this process holds part `index` of `count` equal parts.

    Raises:
        ValueError: if `data` x `fsdp` does not divide `batch_size`, or if the mesh spreads the
            rows of a process so that they are not one block.

    Example:
        >>> local_rows(make_mesh(), 8)
        (0, 1)
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(
            f"batch_size must be divisible by data x fsdp = {parts} parts of the mesh, got "
            f"{batch_size}"
        )
    blocks = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    slices = {block[0].indices(batch_size)[:2] for block in blocks if block}
    start, stop = min(s for s, _ in slices), max(e for _, e in slices)
    size = sum(e - s for s, e in slices)
    if stop - start != size or start % size or batch_size % size:
        raise ValueError(
            "mesh must give each process one block of rows; put `tensor` inside a process, got "
            f"rows {sorted(slices)}"
        )
    return start // size, batch_size // size


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turn this process's rows into global arrays split over the mesh.

    Args:
        batch: arrays whose leading axis is this process's part of the rows (see `local_rows`).
        mesh: from `make_mesh`.

    Returns:
        Global arrays of the same names.

    Example:
        >>> place_batch({"x": np.arange(8)}, make_mesh())["x"].shape
        (8,)
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def any_process(flag: bool) -> bool:
    """Whether `flag` is set on any process; every process must call it at the same point.

    Example:
        >>> any_process(False)
        False
    """
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


@contextlib.contextmanager
def distributed_run():
    """Join the other processes for the length of a `with` block; see `initialize_distributed`.

    Example:
        >>> with distributed_run():  # alone: nobody to join
        ...     jax.process_count()
        1
    """
    initialize_distributed()
    try:
        yield
    finally:
        if jax.process_count() > 1:
            jax.distributed.shutdown()
