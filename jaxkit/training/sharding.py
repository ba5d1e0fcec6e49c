"""Which axis of a mesh each array is split over: parameters, activations, batches."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import spmd
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxkit import validation
from jaxkit.training import mesh as meshes

#: The axes that a batch is split over.
BATCH_AXES = ("data", "fsdp")

#: Mesh axes of each logical axis name that a module gives its parameters and activations, in the
#: form of Flax (`nn.logical_to_mesh_sharding(tree, mesh, RULES)`). The first rule wins an axis: an
#: activation has its `batch` over `fsdp` and its `embed` whole, a parameter its `embed` split.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("replica", "data"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
)

#: Logical axes that stay whole on a mesh that does not divide them; of others that is an error.
_MAY_STAY_WHOLE = ("vocab", "kv_heads")


def constrain(x: Array, *names: str | None) -> Array:
    """Say how an activation is split over the mesh in use, by the logical names of its axes.

    Args:
        x: the activation.
        names: for each of its axes a name of `RULES`, or None for an axis that stays whole.

    Returns:
        The same numbers. An axis that its part of the mesh does not divide, or that the caller has
        split by hand (`jax.shard_map`), is left to the compiler. Arrays of a program that runs
        operation by operation are as they are.

    Raises:
        ValueError: if there is not one name an axis.

    Example:
        >>> with jax.set_mesh(meshes.make_mesh()):
        ...     x = jax.jit(lambda x: constrain(x, "batch", None))(np.ones((16, 2)))
        >>> x.sharding.is_equivalent_to(batch_sharding(meshes.make_mesh()), 2)
        True
    """
    mesh = meshes.mesh_in_use()
    if mesh is None or not mesh.auto_axes or not validation.is_traced(x):
        return x
    if len(names) != x.ndim:
        raise ValueError(f"names must be one an axis of x, {x.ndim} of them, got {names}")
    spec = []
    for size, axes in zip(x.shape, spmd.logical_to_mesh_axes(names, RULES) or (), strict=True):
        axes = tuple(axis for axis in _as_tuple(axes) if mesh.shape.get(axis, 1) > 1)
        mine = all(axis in mesh.auto_axes for axis in axes) and size % _parts(axes, mesh) == 0
        spec.append((axes or None) if mine else P.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, P(*spec))


def explicit_mesh(*trees: Any) -> AbstractMesh | None:
    """The mesh with explicit axes that is in use, or in the types of arrays; None without one.

    Example:
        >>> with jax.set_mesh(meshes.make_mesh()):
        ...     explicit_mesh(np.ones(2)) is None
        True
    """
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(trees)]
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def automatic_axes(function: Callable[..., Any], out_shardings: Any = None) -> Callable[..., Any]:
    """Let a function that says nothing of shardings run on a mesh whose axes are explicit.

    Args:
        function: of pytrees of arrays.
        out_shardings: of what it returns, a pytree of the same structure; None to split the first
            axis of each array as that of a batch, where the mesh can.

    Returns:
        The function with its inside compiled as on automatic axes. Where no axis is explicit, in
        the mesh in use or in the types of the arguments, it is the function itself.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])  # explicit
        >>> with jax.set_mesh(mesh):
        ...     automatic_axes(lambda x, i: x[i])(np.arange(3.0), np.array([2])).tolist()
        [2.0]
    """

    def split_rows(x: Array, mesh: AbstractMesh) -> NamedSharding:
        axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
        fits = x.ndim and x.shape[0] % _parts(axes, mesh) == 0
        return NamedSharding(mesh, P(axes) if fits and axes else P())

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        mesh = explicit_mesh(*arguments)
        if mesh is None:
            return function(*arguments)
        automatic = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))

        def inside(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(automatic):
                free = jax.tree.map(lambda x: jax.sharding.reshard(x, P()), arguments)
                return function(*free)

        with jax.sharding.use_abstract_mesh(mesh):
            found = jax.jit(inside)(*arguments)
            shardings = out_shardings
            if shardings is None:
                shardings = jax.tree.map(lambda x: split_rows(x, mesh), found)
            return jax.tree.map(jax.sharding.reshard, found, shardings)

    return run


def partition_count(name: str, mesh: AbstractMesh | None) -> int:
    """Into how many parts `constrain` splits an axis of this logical name; 1 without a mesh.

    Args:
        name: a name of `RULES`.
        mesh: from `mesh_in_use`.

    Example:
        >>> partition_count("batch", None)
        1
    """
    if mesh is None:
        return 1
    axes = _as_tuple(dict(RULES).get(name))
    return _parts(tuple(axis for axis in axes if axis in mesh.auto_axes), mesh)


def _as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _parts(axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a mesh splits an array axis; an axis that it lacks does not count."""
    return math.prod(mesh.shape.get(axis, 1) for axis in _as_tuple(axes))


def parameter_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of a parameter tree from the logical axis names in its metadata.

    Args:
        boxed: abstract or concrete parameters with the metadata of Flax: `nn.with_partitioning`,
            `nn.with_logical_partitioning`, or an `nnx.State`; arrays without are replicated.
        mesh: from `make_mesh`, or any other that has the axes named.

    Returns:
        A tree of `NamedSharding` like the unboxed parameters. A vocabulary, or a number of key and
        value heads, that the mesh does not divide stays whole.

    Raises:
        ValueError: if another named axis is not divisible by its part of the mesh.

    Example:
        >>> mesh = meshes.make_mesh()
        >>> boxed = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), np.ones((1, 3)))
        >>> parameter_shardings(boxed, mesh)["params"]["bias"].is_fully_replicated
        True
    """

    def sharding(path: Any, leaf: Any) -> Any:
        found = NamedSharding(mesh, _partition_spec(jax.tree_util.keystr(path), leaf, mesh))
        return leaf.replace(found) if _is_nnx(leaf) else found

    return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=_is_boxed)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned) or _is_nnx(leaf)


def _is_nnx(leaf: Any) -> bool:
    """Whether a leaf is an `nnx.Variable`: whoever made it imported NNX, which takes a while."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(leaf, nnx.Variable)


def _partition_spec(path: str, leaf: Any, mesh: Mesh | AbstractMesh) -> P:
    """How a parameter is split, from what Linen's boxes and NNX's variables say of its axes."""
    if _is_nnx(leaf):
        metadata = leaf.get_metadata()
        names, rules = metadata.get("out_sharding"), metadata.get("sharding_rules") or RULES
    elif isinstance(leaf, nn.LogicallyPartitioned):
        names, rules = leaf.names, leaf.rules or RULES
    else:
        names, rules = getattr(leaf, "names", None), ()
    if names is None:
        return P()
    array = jax.tree.leaves(leaf)[0]
    axes_of_names = spmd.logical_to_mesh_axes(tuple(names), tuple(rules)) or ()
    spec = []
    for size, name, axes in zip(array.shape, names, axes_of_names, strict=True):
        # `nn.Partitioned` names axes of the mesh themselves, and so may a logical name.
        axes = name if axes is None and name not in dict(rules) else axes
        parts = _parts(axes, mesh)
        if size % parts:
            if name not in _MAY_STAY_WHOLE:
                raise ValueError(
                    f"{name} of {path} has size {size}, which mesh axis {axes}={parts} does not "
                    "divide"
                )
            axes = None
        kept = tuple(axis for axis in _as_tuple(axes) if axis in mesh.axis_names)
        spec.append(kept[0] if len(kept) == 1 else kept or None)
    return P(*spec)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a value that every device holds.

    Example:
        >>> replicated(meshes.make_mesh()).is_fully_replicated
        True
    """
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over `data` and `fsdp`.

    Example:
        >>> batch_sharding(meshes.make_mesh()).spec == P(("data", "fsdp"))
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
        >>> local_rows(meshes.make_mesh(), 8)
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

    Example:
        >>> place_batch({"x": np.arange(8)}, meshes.make_mesh())["x"].shape
        (8,)
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }
