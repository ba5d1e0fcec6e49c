"""The data of all clients as one pytree of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxkit import pytrees, validation
from jaxkit.federated import mapping


@pytrees.dataclass
class ClientData:
    """Examples of every client, padded to the largest.

    Attributes:
        examples: pytree of arrays [clients, examples, ...].
        num_examples: int32[clients], how many of a client's examples are real; 0 marks a row that
            is no client and is never sampled.
        num_clients: how many rows are clients (static); they come first.
        smallest: examples of the smallest client (static).

    Example:
        >>> data = client_data(np.arange(5.0), [[0, 1], [2, 3, 4]])
        >>> data.num_clients, data.examples_per_client, data.num_examples.tolist()
        (2, 3, [2, 3])
    """

    examples: Any
    num_examples: Any
    num_clients: int = flax.struct.field(pytree_node=False)
    smallest: int = flax.struct.field(pytree_node=False)

    @property
    def rows(self) -> int:
        """Rows of the leading axis: the clients and any padding."""
        return self.num_examples.shape[0]

    @property
    def examples_per_client(self) -> int:
        """Examples of the largest client."""
        return jax.tree.leaves(self.examples)[0].shape[1]

    @property
    def equal(self) -> bool:
        """Whether all clients have as many examples, so that no place is padding."""
        return self.smallest == self.examples_per_client


def client_data(examples: PyTree, indices: Sequence[Any]) -> ClientData:
    """Give each client its examples of a common pool.

    Args:
        examples: pytree of arrays [pool, ...].
        indices: for each client, the integer indices of its examples (a partition, say).

    Returns:
        The data, padded by the clients' own first example to the largest client.

    Raises:
        TypeError: if indices are no integers.
        ValueError: if there is no client, a client is empty, leading axes differ, or an index is
            out of range.

    Example:
        >>> data = client_data({"x": np.arange(5.0)}, [[0, 1], [2, 3, 4]])
        >>> data.examples["x"].tolist(), data.equal
        ([[0.0, 1.0, 0.0], [2.0, 3.0, 4.0]], False)
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(examples)]
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"examples must share one leading axis, got leading axes {sizes}")
    (pool,) = sizes
    chosen = [np.asarray(rows) for rows in indices]
    if not chosen:
        raise ValueError("indices must hold at least one client, got none")
    for client, rows in enumerate(chosen):
        if rows.size == 0:
            raise ValueError(f"every client needs an example, got none for client {client}")
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(f"indices of client {client} must be integers [n], got {rows!r}")
        if rows.min() < 0 or rows.max() >= pool:
            raise ValueError(
                f"indices of client {client} must be in [0, {pool}), got {rows.min()}..{rows.max()}"
            )
    largest = max(map(len, chosen))
    table = np.stack([np.append(rows, np.full(largest - len(rows), rows[0])) for rows in chosen])
    counts = np.array([len(rows) for rows in chosen], np.int32)
    return ClientData(
        examples=jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[table]), examples),
        num_examples=jnp.asarray(counts),
        num_clients=len(counts),
        smallest=int(counts.min()),
    )


def stack_clients(examples: PyTree, num_examples: Any = None) -> ClientData:
    """Wrap arrays that are laid out by client already.

    Args:
        examples: pytree of arrays [clients, examples, ...].
        num_examples: int[clients] in [1, examples], or None if all examples are real.

    Returns:
        The data.

    Raises:
        ValueError: if leading axes differ, there is no client, or a client is empty.

    Example:
        >>> stack_clients({"x": np.zeros((3, 4, 2))}).num_examples.tolist()
        [4, 4, 4]
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(examples)]
    shapes = {leaf.shape[:2] for leaf in leaves}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2:
        raise ValueError(
            f"examples must share their leading axes [clients, examples], got {sorted(shapes)}"
        )
    clients, most = shape
    if clients < 1 or most < 1:
        raise ValueError(f"examples must hold a client with an example, got axes {shape}")
    counts = np.full(clients, most) if num_examples is None else np.asarray(num_examples)
    if counts.shape != (clients,):
        raise ValueError(f"num_examples must have shape ({clients},), got {counts.shape}")
    for count in counts:
        validation.integer("num_examples", count, minimum=1)
    if counts.max() > most:
        raise ValueError(f"num_examples must not exceed {most}, got {counts.max()}")
    return ClientData(
        examples=jax.tree.map(jnp.asarray, examples),
        num_examples=jnp.asarray(counts, jnp.int32),
        num_clients=len(counts),
        smallest=int(counts.min()),
    )


def place_data(data: ClientData, mesh: Mesh) -> ClientData:
    """Put the clients' examples on a mesh: each device holds an equal part of the clients.

    Args:
        data: of all clients; every process passes the same.
        mesh: with an axis `"clients"`.

    Returns:
        The data, with rows of 0 examples at the end so that the axis divides them.

    Example:
        >>> mesh = mapping.clients_mesh()
        >>> place_data(stack_clients({"x": np.zeros((3, 4))}), mesh).rows % mesh.size
        0
    """
    padded = pad_rows(data, mesh.shape[mapping.AXIS])
    return mapping.place(padded, mesh, by_client=True)


def pad_rows(data: ClientData, multiple: int) -> ClientData:
    """Add rows that are no clients, so that a mesh axis divides the leading axis.

    Args:
        data: of m clients.
        multiple: what shall divide the number of rows.

    Returns:
        The data with rows of 0 examples at the end.

    Example:
        >>> pad_rows(stack_clients({"x": np.zeros((3, 4))}), 2).num_examples.tolist()
        [4, 4, 4, 0]
    """
    extra = -data.rows % validation.integer("multiple", multiple, minimum=1)
    if not extra:
        return data

    def pad(leaf):
        return jnp.concatenate([leaf, jnp.zeros((extra, *leaf.shape[1:]), leaf.dtype)])

    return dataclasses.replace(
        data, examples=jax.tree.map(pad, data.examples), num_examples=pad(data.num_examples)
    )
