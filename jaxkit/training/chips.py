"""What devices can do, also devices that are not here: rates, topologies, least times."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkit.training import programs


class Chip(NamedTuple):
    """Rates of one device, from the vendors' data sheets.

    Attributes:
        flops: dense bfloat16 operations a second.
        memory_bytes: main memory.
        memory_bandwidth: of it, bytes a second.
        link_bandwidth: of one link to a neighbour, one way, bytes a second; of a GPU, to all others
            of its host.
        wraps: in a torus, whether a dimension of this many devices closes to a ring: those that are
            multiples of it do.
    """

    flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    wraps: int = 1


#: By `device_kind`, of which some have two spellings. The links of TPUs are those of "How to Scale
#: Your Model" (Austin et al. 2025, chapter 2).
CHIPS = {
    "TPU v3": Chip(61.5e12, 17.2e9, 450e9, 100e9, 16),  # a device is one of the two cores
    "TPU v4": Chip(275e12, 34.4e9, 1.23e12, 45e9, 4),
    "TPU v5 lite": Chip(197e12, 17.2e9, 820e9, 50e9, 16),
    "TPU v5": Chip(459e12, 103e9, 2.77e12, 100e9, 4),
    "TPU v6 lite": Chip(918e12, 34.4e9, 1.64e12, 100e9, 16),
    "TPU7x": Chip(1153e12, 103e9, 3.69e12, 100e9, 4),  # one of the two cores
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1.56e12, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2.04e12, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3.35e12, 450e9),
    "NVIDIA H100 PCIe": Chip(756e12, 80e9, 2.0e12, 64e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4.8e12, 450e9),
}
CHIPS |= {
    "TPU v5e": CHIPS["TPU v5 lite"],
    "TPU v5p": CHIPS["TPU v5"],
    "TPU v6e": CHIPS["TPU v6 lite"],
}


def model_flops_utilization(flops_per_second: float) -> float | None:
    """Model FLOPs per second over the peak of all devices, or None where the peak is not known.

    Args:
        flops_per_second: model FLOP/s of the whole run (see `train_flops_per_token`).

    Example:
        >>> model_flops_utilization(1e9) is None  # a CPU has no entry in CHIPS
        True
    """
    chip = CHIPS.get(jax.devices()[0].device_kind)
    return None if chip is None else flops_per_second / (chip.flops * jax.device_count())


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology, to compile for: they need not exist.

    A program whose shardings are over a mesh of them (`make_mesh`) can be lowered and compiled,
    by the compiler that would compile it there, but not run.

    Args:
        topology: a TPU's kind and shape, `"v5e:16x16"`, `"v5p:4x4x8"`, `"v6e:4x4"`; `"cpu:16"` for
            simulated devices, which must be asked for before JAX first uses a device; or `"local"`
            for the devices that are here.

    Raises:
        ValueError: if there is no such topology.
        ImportError: for a TPU without the `tpu` extra.

    Example:
        >>> len(topology_devices("local")) == jax.device_count()
        True
    """
    if topology == "local":
        return jax.devices()
    found = re.fullmatch(r"(cpu|v[2-9][a-z]?|tpu7x):([1-9]\d*(?:x[1-9]\d*){0,2})", topology)
    if not found:
        raise ValueError(
            "topology must be a TPU's such as 'v5e:16x16', 'v5p:4x4x4' or 'v6e:4x4', 'cpu:8', or "
            f"'local', got {topology!r}"
        )
    kind, shape = found[1], tuple(int(n) for n in found[2].split("x"))
    return _simulated(int(np.prod(shape))) if kind == "cpu" else _tpu(topology, kind, shape)


def _simulated(count: int) -> list[Any]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX is in use: what it has must be enough.
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology 'cpu:{count}' needs {count} simulated devices, got {len(devices)}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def _tpu(topology: str, kind: str, shape: tuple[int, ...]) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"topology {topology!r} needs the TPU's compiler: pip install 'jaxkit[tpu]'",
            name="libtpu",
        )
    if jax.default_backend() != "tpu":
        # Without a TPU to guard, several processes may compile, and there is nobody to ask: about
        # the last two libtpu would complain on the standard error. Any type serves.
        for name, value in (
            ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ):
            os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"
    if set(shape) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology {topology!r} is not one of the TPU's: {str(error).splitlines()[0]}"
        ) from None


def exchange_bandwidth(mesh: Mesh, axes: Iterable[str]) -> float | None:
    """Bytes a second that a device can receive along some axes of a mesh.

    In a torus: two links for each of its dimensions that the devices along these axes fill to a
    ring; two where they lie in a block, through which a ring can be laid; one on a line. Devices
    that are not neighbours share the links between them with those in between.

    Args:
        mesh: over devices of one kind, in `CHIPS`.
        axes: axes of it.

    Returns:
        The rate, or None for devices that are not in `CHIPS`.
    """
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    if not hasattr(mesh.devices.flat[0], "coords"):
        return chip.link_bandwidth
    index = tuple(slice(None) if axis in set(axes) else 0 for axis in mesh.axis_names)
    joined = np.array([device.coords for device in mesh.devices[index].flat])
    whole = np.max([device.coords for device in mesh.devices.flat], axis=0) + 1
    places = [np.unique(along) for along in joined.T]
    spanned = [d for d, along in enumerate(places) if len(along) > 1]
    rings = [d for d in spanned if len(places[d]) == whole[d] and whole[d] % chip.wraps == 0]
    links = 2 * len(rings) or min(2, len(spanned))
    distance = max((int(np.diff(places[d]).min()) for d in spanned), default=1)
    # Two cores of one chip need no link.
    return links * chip.link_bandwidth / distance if spanned else chip.memory_bandwidth


class Roofline(NamedTuple):
    """The least time of a program: how long each of its resources is needed, in seconds.

    Attributes:
        compute: matrix products at the peak rate.
        memory: reading and writing main memory.
        exchange: receiving from other devices, axis after axis.
    """

    compute: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """If everything overlaps: the largest."""
        return max(self)

    @property
    def serial_seconds(self) -> float:
        """If nothing overlaps with the exchange."""
        return max(self.compute, self.memory) + self.exchange

    @property
    def limit(self) -> str:
        """What the time is spent on."""
        return self._fields[int(np.argmax(self))]


def roofline(cost: programs.ProgramCost, mesh: Mesh) -> Roofline | None:
    """The least time of a program on devices of the mesh, or None if they are not in `CHIPS`.

    Args:
        cost: from `program_cost`.
        mesh: the program's.

    Example:
        >>> from jaxkit import training
        >>> cost = programs.ProgramCost(0, 0, 0, 10**9, 10**9, (), 0)
        >>> roofline(cost, training.make_mesh()) is None  # CPUs
        True
    """
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    exchange = 0.0
    for moved in cost.collectives:
        exchange += moved.received / (exchange_bandwidth(mesh, moved.axes) or 1.0)
    return Roofline(cost.flops / chip.flops, cost.memory_bytes / chip.memory_bandwidth, exchange)
