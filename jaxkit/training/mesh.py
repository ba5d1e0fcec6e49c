"""Devices as a mesh, and processes as one run."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxkit import validation

#: Axes of every training mesh: replicas, shards of parameters and batch, shards inside a layer.
AXES = ("data", "fsdp", "tensor")


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
    if not isinstance(text, str):
        raise TypeError(f"mesh must be text such as 'fsdp=2,data=-1', got {text!r}")
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

    Raises:
        ValueError: as `parse_mesh`.

    Example:
        >>> make_mesh().axis_names
        ('data', 'fsdp', 'tensor')
    """
    sizes = parse_mesh(text, jax.device_count() if devices is None else len(devices))
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)


def mesh_in_use() -> AbstractMesh | None:
    """The mesh that programs are traced under: of `jax.set_mesh`, or of the step that calls.

    Returns:
        None where there is none, or it has a single device, so that nothing is to be split.

    Example:
        >>> with jax.set_mesh(make_mesh()):
        ...     found = mesh_in_use()
        >>> found is None if jax.device_count() == 1 else found.axis_names == AXES
        True
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


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
    """Join the other processes of this run, if there are any, for the length of a `with` block.

    Reads what JAX reads: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; on a
    TPU pod or under Slurm, set `JAXKIT_DISTRIBUTED=1` and JAX finds them itself. Enter it before
    anything else touches a device. Processes on CPU speak over gloo.

    Example:
        >>> with distributed_run():  # alone: nobody to join
        ...     jax.process_count()
        1
    """
    number = int(os.environ.get("JAX_NUM_PROCESSES", "1"))
    if number > 1 or os.environ.get("JAXKIT_DISTRIBUTED") == "1":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if number > 1:
        address, index = (
            os.environ[f"JAX_{name}"] for name in ("COORDINATOR_ADDRESS", "PROCESS_ID")
        )
        jax.distributed.initialize(address, number, int(index))
    elif os.environ.get("JAXKIT_DISTRIBUTED") == "1":
        jax.distributed.initialize()
    try:
        yield
    finally:
        if jax.process_count() > 1:
            jax.distributed.shutdown()
