"""The data of all clients: arrays by client, or one pool of examples and a table of indices."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxkit import pytrees, validation
from jaxkit.federated import backends


@pytrees.dataclass
class ClientData:
    """Examples of every client; places beyond a client's number of them are padding.

    Attributes:
        examples: pytree of arrays: a pool [examples, ...], or [clients, examples, ...] without
            `index`.
        index: int32[clients, examples], places in the pool, or None.
        num_examples: int32[clients], how many of a client's examples are real; 0 marks a row that
            is no client and is never sampled.
        num_clients: how many rows are clients (static); they come first.
        smallest: examples of the smallest client (static).
        divisor: greatest common divisor of the clients' numbers of examples (static).
        on_host: whether `simulate` leaves examples and client state in host memory and moves the
            cohort's part of them each round (static).

    Example:
        >>> data = client_data(np.arange(5.0), [[0, 1], [2, 3, 4]])
        >>> data.num_clients, data.examples_per_client, data.num_examples.tolist()
        (2, 3, [2, 3])
    """

    examples: Any
    index: Any
    num_examples: Any
    num_clients: int = flax.struct.field(pytree_node=False)
    smallest: int = flax.struct.field(pytree_node=False)
    divisor: int = flax.struct.field(pytree_node=False)
    on_host: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def rows(self) -> int:
        """Rows of the leading axis: the clients and any padding."""
        return self.num_examples.shape[0]

    @property
    def examples_per_client(self) -> int:
        """Examples of the largest client."""
        table = jax.tree.leaves(self.examples)[0] if self.index is None else self.index
        return table.shape[1]

    @property
    def equal(self) -> bool:
        """Whether all clients have as many examples, so that no place is padding."""
        return self.smallest == self.examples_per_client

    def batch_shape(self, size: int) -> PyTree:
        """Shapes and types of a batch of `size` examples."""
        own = 2 if self.index is None else 1
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[own:]), leaf.dtype), self.examples
        )

    def of(self, clients: np.ndarray) -> ClientData:
        """The examples of some clients alone, as arrays by client."""
        places = clients if self.index is None else np.asarray(self.index)[clients]

        def take(leaf):
            return (leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf))[places]

        return dataclasses.replace(
            self,
            examples=jax.tree.map(take, self.examples),
            index=None,
            num_examples=np.asarray(self.num_examples)[clients],
        )

    def placed(self, mesh: Mesh) -> ClientData:
        """Split the clients over a mesh axis `"clients"`; a pool is copied to every device.

        Rows of 0 examples are added at the end so that the axis divides them; every process passes
        the same data.
        """
        by_client = (self.examples if self.index is None else (), self.index, self.num_examples)
        extra = -self.rows % mesh.shape[backends.AXIS]
        padded = jax.tree.map(
            lambda leaf: jnp.pad(leaf, [(0, extra)] + [(0, 0)] * (leaf.ndim - 1)), by_client
        )
        examples, index, counts = backends.place(padded, mesh, by_client=True)
        if self.index is not None:
            examples = backends.place(self.examples, mesh, by_client=False)
        return dataclasses.replace(self, examples=examples, index=index, num_examples=counts)


def client_data(examples: PyTree, indices: Sequence[Any], *, on_host: bool = False) -> ClientData:
    """Give each client its examples of a common pool: an example costs an index, not a copy.

    Args:
        examples: pytree of arrays [pool, ...]; bytes stay bytes.
        indices: for each client, the integer indices of its examples (a partition, say).
        on_host: leave the examples where they are, in memory or mapped from a file, and move only
            the cohort's to the device, and its state; for `simulate`.

    Raises:
        TypeError: if indices are no integers.
        ValueError: if there is no client, a client is empty, leading axes differ, or an index is
            out of range.

    Example:
        >>> data = client_data({"x": np.arange(5.0)}, [[0, 1], [2, 3, 4]])
        >>> data.index.tolist(), data.equal
        ([[0, 1, 0], [2, 3, 4]], False)
    """
    sizes = {leaf.shape[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves(examples)}
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
    # Padding repeats a real example, so that no loss of it can be an infinity.
    table = np.stack([np.append(rows, np.full(largest - len(rows), rows[0])) for rows in chosen])
    made = _data(examples, table.astype(np.int32), list(map(len, chosen)))
    if on_host:
        return dataclasses.replace(made, on_host=True)
    return jax.tree.map(jnp.asarray, made)


def stack_clients(examples: PyTree, num_examples: Any = None) -> ClientData:
    """Wrap examples that are laid out by client already.

    Args:
        examples: pytree of arrays [clients, examples, ...], or a list of pytrees of arrays
            [examples of the client, ...], one a client and of any lengths.
        num_examples: int[clients] in [1, examples], or None if all examples are real; not with a
            list.

    Raises:
        ValueError: if leading axes differ, there is no client, or a client is empty.

    Example:
        >>> stack_clients([{"x": np.zeros((3, 2))}, {"x": np.ones((1, 2))}]).num_examples.tolist()
        [3, 1]
    """
    if isinstance(examples, list):
        if num_examples is not None:
            raise ValueError("num_examples must be None for a list of clients, which have lengths")
        return _joined(examples)
    examples = jax.tree.map(lambda x: x if hasattr(x, "shape") else np.asarray(x), examples)
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(examples)}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2:
        raise ValueError(
            f"examples must share their leading axes [clients, examples], got {sorted(shapes)}: "
            "clients of different lengths go into a list"
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
    made = _data(examples, None, counts.tolist())
    return dataclasses.replace(made, examples=jax.tree.map(jnp.asarray, examples))


def _joined(clients: list[PyTree]) -> ClientData:
    if not clients:
        raise ValueError("examples must hold at least one client, got none")
    trees = [jax.tree.map(np.asarray, client) for client in clients]
    kinds, sizes = [], []
    for number, tree in enumerate(trees):
        leaves = jax.tree.leaves(tree)
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(lengths) != 1 or None in lengths:
            raise ValueError(
                f"examples of client {number} must be arrays that share one leading axis, got "
                f"{tree!r:.200}"
            )
        sizes.append(lengths.pop())
        kinds.append((jax.tree.structure(tree), [(leaf.shape[1:], leaf.dtype) for leaf in leaves]))
        if kinds[-1] != kinds[0]:
            raise ValueError(
                f"examples of client {number} must be like those of client 0, {kinds[0]}, got "
                f"{kinds[-1]}"
            )
    pool = jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
    edges = np.cumsum([0, *sizes])
    rows = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    return client_data(pool, rows)


def _data(examples: PyTree, index: Any, counts: list[int]) -> ClientData:
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
            place = f"examples{jax.tree_util.keystr(path)}"
            raise TypeError(f"{place} must be numbers, got {dtype}")
    return ClientData(
        examples,
        index,
        jnp.asarray(counts, jnp.int32),
        num_clients=len(counts),
        smallest=min(counts),
        divisor=math.gcd(*counts),
    )
