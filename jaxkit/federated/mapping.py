"""Running one function for every client of a cohort: four backends, one result.

A backend maps `fn(shared, row) -> (row_out, message)` over the leading axis of `rows`, stacks the
first output and sums the second. They agree to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxkit import validation

#: Name of the mesh axis that clients are split over.
AXIS = "clients"

ClientFunction = Callable[[Any, Any], tuple[Any, Any]]


class ClientMap(NamedTuple):
    """A backend.

    Attributes:
        name: `"vmap"`, `"map"`, `"shard_map"` or `"pmap"`.
        multiple: number that must divide the places of a cohort.
        pad: whether a cohort is padded to it; otherwise another size is refused.
        run: `(fn, shared, rows) -> (stacked row outputs, summed messages)`.
        mesh: mesh with an axis `"clients"` that client state lives on, or None.
    """

    name: str
    multiple: int
    pad: bool
    run: Callable[[ClientFunction, Any, Any], tuple[Any, Any]]
    mesh: Mesh | None = None


def vmap_clients() -> ClientMap:
    """All clients at once, by `jax.vmap`: small or dense models on one device.

    Memory: cohort x (parameters + activations).

    Returns:
        The backend.

    Example:
        >>> rows, total = vmap_clients().run(lambda s, x: (x + s, x), 1.0, jnp.arange(3.0))
        >>> rows.tolist(), float(total)
        ([1.0, 2.0, 3.0], 3.0)
    """
    return ClientMap("vmap", 1, True, _vmap_and_sum)


def chunked_clients(chunk_size: int = 1, *, pad: bool = True) -> ClientMap:
    """`chunk_size` clients at a time, one chunk after another: large or convolutional models.

    Memory: chunk x (parameters + activations), plus the rows of stateful algorithms.

    Args:
        chunk_size: clients at a time; 1 runs them strictly one by one.
        pad: whether to pad a cohort that `chunk_size` does not divide.

    Returns:
        The backend.

    Raises:
        ValueError: if `chunk_size` is not positive.

    Example:
        >>> rows, total = chunked_clients(2).run(lambda s, x: (x + s, x), 1.0, jnp.arange(4.0))
        >>> rows.tolist(), float(total)
        ([1.0, 2.0, 3.0, 4.0], 6.0)
    """
    validation.integer("chunk_size", chunk_size, minimum=1)
    return ClientMap(
        "map", chunk_size, pad, functools.partial(_chunk_and_sum, chunk_size=chunk_size)
    )


def shard_clients(
    mesh: Mesh | None = None, *, chunk_size: int | None = None, pad: bool = True
) -> ClientMap:
    """An equal part of the cohort on each device of a mesh axis, by `jax.shard_map`.

    The main parallel path: several devices, pods, several hosts. Memory: as the inner backend, with
    the cohort divided by the devices.

    Args:
        mesh: mesh with an axis `"clients"` of type Auto, by default `clients_mesh()`.
        chunk_size: clients at a time on a device, or None for all of them.
        pad: whether to pad a cohort that the devices do not divide.

    Returns:
        The backend.

    Raises:
        ValueError: if the mesh has no such axis or `chunk_size` is not positive.

    Example:
        >>> rows, total = shard_clients().run(lambda s, x: (x + s, x), 1.0, jnp.arange(8.0))
        >>> float(total)
        28.0
    """
    mesh = clients_mesh() if mesh is None else mesh
    if AXIS not in mesh.axis_names:
        raise ValueError(f"mesh must have an axis {AXIS!r}, got {mesh.axis_names}")
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"mesh axes must be of type Auto, got {mesh.axis_types}")
    part_of_device = _part_of_device(chunk_size)

    def run(fn, shared, rows):
        # Replication of user code (losses with their own scans) is not ours to type-check.
        return jax.shard_map(
            functools.partial(part_of_device, fn),
            mesh=mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=(P(AXIS), P()),
            check_vma=False,
        )(shared, rows)

    return ClientMap("shard_map", mesh.shape[AXIS] * (chunk_size or 1), pad, run, mesh)


def pmap_clients(*, chunk_size: int | None = None, pad: bool = True) -> ClientMap:
    """A block of clients on each local device, by `jax.pmap`: the compatibility backend.

    For one host only; prefer `shard_clients`, which keeps client state where it is used.

    Args:
        chunk_size: clients at a time on a device, or None for all of them.
        pad: whether to pad a cohort that the devices do not divide.

    Returns:
        The backend.

    Raises:
        ValueError: if `chunk_size` is not positive, or there are several processes.

    Example:
        >>> rows, total = pmap_clients().run(lambda s, x: (x + s, x), 1.0, jnp.arange(8.0))
        >>> float(total)
        28.0
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"pmap_clients is for one process, got {jax.process_count()}: use shard_clients"
        )
    part_of_device, num_devices = _part_of_device(chunk_size), jax.local_device_count()

    def run(fn, shared, rows):
        blocks = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), rows)
        stacked, total = jax.pmap(
            functools.partial(part_of_device, fn), AXIS, in_axes=(None, 0), out_axes=(0, None)
        )(shared, blocks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked), total

    return ClientMap("pmap", num_devices * (chunk_size or 1), pad, run)


def clients_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, `"clients"`, over all devices of all processes.

    Args:
        devices: which devices, by default all.

    Returns:
        The mesh.

    Example:
        >>> clients_mesh().axis_names
        ('clients',)
    """
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def place(tree: PyTree, mesh: Mesh, *, by_client: bool) -> PyTree:
    """Put arrays on a mesh: rows split over `"clients"`, or a copy on every device.

    Every process passes the same values; each keeps only its own rows.

    Args:
        tree: arrays.
        mesh: with an axis `"clients"`.
        by_client: whether the leading axis is split over it.

    Returns:
        Global arrays.

    Raises:
        ValueError: if the axis does not divide a leading axis.

    Example:
        >>> place(jnp.zeros(8), clients_mesh(), by_client=True).sharding.spec == P("clients")
        True
    """
    sharding = NamedSharding(mesh, P(AXIS) if by_client else P())

    def put(leaf):
        if by_client and leaf.shape[0] % mesh.shape[AXIS]:
            raise ValueError(
                f"mesh axis {AXIS!r} of size {mesh.shape[AXIS]} must divide the rows, got "
                f"{leaf.shape[0]}: pad them"
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def gather_rows(tree: PyTree, clients: jax.Array, mesh: Mesh | None = None) -> PyTree:
    """Rows of the cohort's clients.

    Args:
        tree: arrays [rows, ...].
        clients: int32[cohort]; `PADDING` reads some row.
        mesh: if given, each device reads only its own rows, and the places of the cohort must name
            clients of the device that they fall to (a stratified cohort): nothing is moved.

    Returns:
        Arrays [cohort, ...].

    Example:
        >>> gather_rows(jnp.array([5.0, 6.0, 7.0]), jnp.array([2, 0])).tolist()
        [7.0, 5.0]
    """
    if mesh is None:
        return jax.tree.map(lambda leaf: leaf.at[clients].get(mode="clip"), tree)

    def on_device(block, clients):
        return jax.tree.map(lambda leaf: leaf.at[_local(leaf, clients)].get(mode="clip"), block)

    return _on_devices(mesh, on_device)(tree, clients)


def scatter_rows(
    tree: PyTree, clients: jax.Array, rows: PyTree, mesh: Mesh | None = None
) -> PyTree:
    """Write the rows of the cohort's clients back; places of `PADDING` are dropped.

    Args:
        tree: arrays [rows, ...].
        clients: int32[cohort], distinct.
        rows: arrays [cohort, ...].
        mesh: as `gather_rows`.

    Returns:
        Arrays [rows, ...].

    Example:
        >>> scatter_rows(jnp.zeros(3), jnp.array([2, 9]), jnp.ones(2)).tolist()
        [0.0, 0.0, 1.0]
    """
    if mesh is None:
        return jax.tree.map(
            lambda leaf, row: leaf.at[clients].set(row, mode="drop", unique_indices=False),
            tree,
            rows,
        )

    def on_device(block, clients, rows):
        return jax.tree.map(
            lambda leaf, row: leaf.at[_local(leaf, clients)].set(row, mode="drop"), block, rows
        )

    return _on_devices(mesh, on_device)(tree, clients, rows)


def _on_devices(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.shard_map(function, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)


def _local(block: jax.Array, clients: jax.Array) -> jax.Array:
    rows = block.shape[0]
    local = clients - lax.axis_index(AXIS) * rows
    # A negative index would count from the end.
    return jnp.where((local >= 0) & (local < rows), local, rows)


def _part_of_device(chunk_size: int | None) -> Callable[..., tuple[Any, Any]]:
    """What a device does under `AXIS`: its own clients, and the sum over those of all devices."""
    inner = _vmap_and_sum
    if chunk_size is not None:
        inner = functools.partial(
            _chunk_and_sum, chunk_size=validation.integer("chunk_size", chunk_size, minimum=1)
        )

    def run(fn, shared, rows):
        stacked, total = inner(fn, shared, rows)
        return stacked, lax.psum(total, AXIS)

    return run


def _vmap_and_sum(fn: ClientFunction, shared: Any, rows: Any) -> tuple[Any, Any]:
    stacked, messages = jax.vmap(fn, in_axes=(None, 0))(shared, rows)
    return stacked, jax.tree.map(lambda x: x.sum(axis=0), messages)


def _chunk_and_sum(
    fn: ClientFunction, shared: Any, rows: Any, *, chunk_size: int
) -> tuple[Any, Any]:
    def run_chunk(rows):
        if chunk_size > 1:
            return _vmap_and_sum(fn, shared, rows)
        stacked, message = fn(shared, jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: x[None], stacked), message

    def body(total, rows):
        stacked, part = run_chunk(rows)
        return jax.tree.map(jnp.add, total, part), stacked

    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), rows)
    like = jax.eval_shape(run_chunk, jax.tree.map(lambda x: x[0], chunks))[1]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, stacked = lax.scan(body, zero, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked), total
