"""Candidates spread over the devices of a mesh."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

#: Leaves of the set functions whose first axis is the items (or, for neighbours, the clients).
_SPLIT = ("rows", "kernel", "neighbors", "similarity")

F = TypeVar("F")


def shard_candidates(function: F, mesh: Mesh, *, axis: str = "candidates") -> F:
    """Spread the items of a set function over a mesh axis; maximisers then run on all its devices.

    Each device holds and scores its share of the items. In a step of `greedy`, what crosses devices
    is each device's best gain and the row of the winner, from which all update the same state.

    Args:
        function: a set function of this room.
        mesh: the mesh.
        axis: name of its axis.

    Returns:
        The set function with its matrices split and everything else on every device.

    Raises:
        ValueError: if the mesh has no such axis, or the number of items does not divide by its
            size (add rows of zeros and leave them out by `mask`).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.submodular import facility_location, greedy
        >>> mesh = jax.make_mesh((1,), ("candidates",), devices=jax.devices()[:1])
        >>> f = shard_candidates(facility_location(jnp.eye(4)), mesh)
        >>> greedy(f, 2).indices.tolist()
        [0, 1]
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of {mesh.axis_names}, got {axis!r}")
    size = mesh.shape[axis]
    # XLA places the reductions: no maximiser is written for a sharding.
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)

    def place(path, leaf):
        name = getattr(path[-1], "name", None)
        if name not in _SPLIT:
            return jax.device_put(leaf, NamedSharding(mesh, P()))
        if leaf.shape[0] % size:
            raise ValueError(
                f"the {leaf.shape[0]} rows of {name} must divide by the {size} devices of axis "
                f"{axis!r}: add rows of zeros and mask them"
            )
        return jax.device_put(leaf, NamedSharding(mesh, P(axis)))

    return jax.tree_util.tree_map_with_path(place, function)
