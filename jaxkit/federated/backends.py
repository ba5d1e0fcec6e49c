"""Running one function for every client of a cohort: two backends, one result.

A backend maps `fn(shared, held, row) -> ((held, local), message, Spread)` over the leading axis of
`held`, which it writes in place, and of `rows`; it stacks `local`, sums the messages and merges the
spreads. They agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from jaxkit import validation

#: Name of the mesh axis that clients are split over.
AXIS = "clients"

ClientFunction = Callable[[Any, Any, Any], tuple[tuple[Any, Any], Any, "Spread"]]


class Spread(NamedTuple):
    """How far points lie from their mean, without differences of large squares.

    A backend returns one of each device, along a leading axis: no mean crosses devices.

    Attributes:
        count: number of points, or their weight.
        mean: pytree.
        square: sum of squared distances from `mean`.
    """

    count: Float[Array, ...]
    mean: PyTree
    square: Float[Array, ...]

    def around(self, point: PyTree) -> Float[Array, ""]:
        """Mean squared distance from a point, over the points of all devices."""
        away = jax.vmap(_distance, in_axes=(0, None))(self.mean, point)
        return jnp.sum(self.square + self.count * away) / self.count.sum()


class ClientMap(NamedTuple):
    """A backend.

    Attributes:
        multiple: number that cohorts are padded to a multiple of.
        run: `(fn, shared, held, rows) -> ((held, stacked local), summed messages, spread of each
            device)`.
        mesh: mesh with an axis `"clients"` that client state lives on, or None.
    """

    multiple: int
    run: Callable[[ClientFunction, Any, Any, Any], tuple[tuple[Any, Any], Any, Spread]]
    mesh: Mesh | None = None


def vmap_clients(chunk_size: int | None = None) -> ClientMap:
    """Clients of one device, by `jax.vmap`: all at once, or some at a time.

    All at once is for small or dense models; memory: cohort x (parameters + activations). One chunk
    after another is for large or convolutional ones; memory: chunk x (parameters + activations),
    plus the rows of stateful algorithms.

    Args:
        chunk_size: clients at a time, or None for all of them; 1 runs them strictly one by one.

    Raises:
        ValueError: if `chunk_size` is not positive.

    Example:
        >>> vmap_clients(chunk_size=4).multiple
        4
    """
    return ClientMap(chunk_size or 1, _on_one_device(chunk_size))


def shard_clients(mesh: Mesh | None = None, *, chunk_size: int | None = None) -> ClientMap:
    """An equal part of the cohort on each device of a mesh axis, by `jax.shard_map`.

    The main parallel path: several devices, pods, several hosts. Memory: as `vmap_clients`, with
    the cohort divided by the devices.

    Args:
        mesh: mesh with an axis `"clients"` of type Auto, by default `clients_mesh()`.
        chunk_size: clients at a time on a device, or None for all of them.

    Raises:
        ValueError: if the mesh has no such axis or `chunk_size` is not positive.

    Example:
        >>> shard_clients(chunk_size=2).multiple == 2 * jax.device_count()
        True
    """
    mesh = clients_mesh() if mesh is None else mesh
    if AXIS not in mesh.axis_names:
        raise ValueError(f"mesh must have an axis {AXIS!r}, got {mesh.axis_names}")
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"mesh axes must be of type Auto, got {mesh.axis_types}")
    own_clients = _on_one_device(chunk_size)

    def run(fn, shared, held, rows):
        def on_device(shared, held, rows):
            stacked, total, spread = own_clients(fn, shared, held, rows)
            return stacked, lax.psum(total, AXIS), spread

        # Replication of user code (losses with their own scans) is not ours to type-check.
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=(P(AXIS), P(), P(AXIS)),
            check_vma=False,
        )(shared, held, rows)

    return ClientMap(mesh.shape[AXIS] * (chunk_size or 1), run, mesh)


def clients_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, `"clients"`, over these devices, by default all of all processes.

    Example:
        >>> clients_mesh().axis_names
        ('clients',)
    """
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def place(tree: PyTree, mesh: Mesh, *, by_client: bool) -> PyTree:
    """Put arrays on a mesh: rows split over `"clients"`, or a copy on every device.

    Every process passes the same values; each keeps only its own rows.
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
    """Rows of the cohort's clients; `PADDING` reads some row.

    With a mesh each device reads only its own rows, and the places of the cohort must name clients
    of the device that they fall to (a stratified cohort): nothing is moved.
    """

    def gather(tree, clients):
        return jax.tree.map(
            lambda leaf: leaf.at[_rows_of(clients, leaf, mesh)].get(mode="clip"), tree
        )

    return _on_devices(mesh, gather)(tree, clients)


def scatter_rows(
    tree: PyTree, clients: jax.Array, rows: PyTree, mesh: Mesh | None = None
) -> PyTree:
    """Write the rows of the cohort's clients back; places of `PADDING` are dropped."""

    def scatter(tree, clients, rows):
        return jax.tree.map(
            lambda leaf, row: leaf.at[_rows_of(clients, leaf, mesh)].set(row, mode="drop"),
            tree,
            rows,
        )

    return _on_devices(mesh, scatter)(tree, clients, rows)


def _on_devices(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)


def _rows_of(clients: jax.Array, leaf: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Where clients stand in a leaf, of which a device of a mesh holds its own part."""
    if mesh is None:
        return clients
    rows = leaf.shape[0]
    local = clients - lax.axis_index(AXIS) * rows
    # A negative index would count from the end.
    return jnp.where((local >= 0) & (local < rows), local, rows)


def _on_one_device(chunk_size: int | None) -> Callable[..., tuple[Any, Any, Spread]]:
    if chunk_size is not None:
        validation.integer("chunk_size", chunk_size, minimum=1)

    def run(fn, shared, held, rows):
        if chunk_size is None:
            stacked, total, spread = _all_at_once(fn, shared, held, rows)
        else:
            stacked, total, spread = _in_chunks(fn, shared, held, rows, chunk_size=chunk_size)
        return stacked, total, jax.tree.map(lambda x: x[None], spread)

    return run


def _all_at_once(
    fn: ClientFunction, shared: Any, held: Any, rows: Any
) -> tuple[tuple[Any, Any], Any, Spread]:
    stacked, messages, each = jax.vmap(fn, in_axes=(None, 0, 0))(shared, held, rows)
    count = each.count.sum()
    share = each.count / jnp.maximum(count, 1)
    mean = jax.tree.map(lambda x: jnp.tensordot(share, x, 1), each.mean)
    away = jax.vmap(_distance, in_axes=(0, None))(each.mean, mean)
    square = jnp.sum(each.square + each.count * away)
    return stacked, jax.tree.map(lambda x: x.sum(axis=0), messages), Spread(count, mean, square)


def _in_chunks(
    fn: ClientFunction, shared: Any, held: Any, rows: Any, *, chunk_size: int
) -> tuple[tuple[Any, Any], Any, Spread]:
    def run_chunk(held, rows):
        if chunk_size > 1:
            return _all_at_once(fn, shared, held, rows)
        stacked, *merged = fn(shared, *jax.tree.map(lambda x: x[0], (held, rows)))
        return jax.tree.map(lambda x: x[None], stacked), *merged

    def body(carry, chunk):
        # Carried, so that the rows are written where they are read and lie in memory once.
        held, total, spread = carry
        number, rows = chunk
        (own, local), part, more = run_chunk(jax.tree.map(lambda x: x[number], held), rows)
        held = jax.tree.map(lambda x, row: x.at[number].set(row), held, own)
        count = spread.count + more.count
        share = more.count / jnp.maximum(count, 1)
        mean = jax.tree.map(lambda a, b: a + share * (b - a), spread.mean, more.mean)
        between = spread.count * share * _distance(spread.mean, more.mean)
        merged = Spread(count, mean, spread.square + more.square + between)
        return (held, jax.tree.map(jnp.add, total, part), merged), local

    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), (held, rows))
    like = jax.eval_shape(run_chunk, *jax.tree.map(lambda x: x[0], chunks))[1:]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    held, rows = chunks
    numbers = jnp.arange(jax.tree.leaves(rows)[0].shape[0])
    (held, total, spread), local = lax.scan(body, (held, *zero), (numbers, rows))
    stacked = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (held, local))
    return stacked, total, spread


def _distance(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Squared distance of two pytrees."""
    return sum(
        (jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)),
        start=jnp.zeros(()),
    )
