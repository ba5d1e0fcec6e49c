"""Products with parameters, and what of them crosses devices.

Without a mesh each is one flat matrix product. Under a mesh whose `fsdp` axis splits the parameters
and the batch alike, every product could be partitioned in two ways, and a compiler left alone sums
whole activations over `fsdp`. So each parameter is gathered over `fsdp` where it is used, and its
gradient is formed with the axis that `fsdp` splits in front and scattered at once: TPUs turn a sum
into a sum that leaves each device its part only where that part does not lie in the last axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxkit import training

Names = tuple[str | None, ...]


def project(x: Array, kernel: Array, names: Names) -> Array:
    """Contract ``[B, T, *inputs]`` with ``[*inputs, *outputs]`` to ``[B, T, *outputs]``.

    `names` are the logical axes of the kernel, which is cast to the type of `x`.
    """
    kernel = kernel.astype(x.dtype)
    if training.mesh_in_use() is None:
        return _flat(x, kernel)
    return _project_on_mesh(x, kernel, names)


def _flat(x: Array, kernel: Array, **options: Any) -> Array:
    # As one flat matrix product: XLA's CPU backend is slower on the same contraction in 3-D.
    batch, length, *inputs = x.shape
    outputs = kernel.shape[len(inputs) :]
    size = math.prod(inputs)
    flat = jnp.matmul(x.reshape(batch * length, size), kernel.reshape(size, -1), **options)
    return flat.reshape(batch, length, *outputs)


def _gathered(parameter: Array, names: Names) -> Array:
    # Split first: what is gathered is the parameter in its narrow type.
    parameter = training.constrain(parameter, *names)
    return training.constrain(parameter, *(None if name == "embed" else name for name in names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project_on_mesh(x: Array, kernel: Array, names: Names) -> Array:
    return _flat(x, _gathered(kernel, names))


def _project_forward(x: Array, kernel: Array, names: Names) -> tuple[Array, tuple[Array, Array]]:
    return _project_on_mesh(x, kernel, names), (x, kernel)


def _project_backward(names: Names, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    inputs = x.ndim - 2
    whole = jnp.moveaxis(_gathered(kernel, names), range(inputs), range(-inputs, 0))
    return _flat(g, whole), _kernel_gradient(x, g, names)


_project_on_mesh.defvjp(_project_forward, _project_backward)


def _kernel_gradient(x: Array, g: Array, names: Names) -> Array:
    """The gradient of a kernel, formed with its `embed` axis in front."""
    inputs, outputs = x.ndim - 2, g.ndim - 2
    if names[-1] != "embed":
        return _outer(x, g, names)
    # One axis out, the others in: formed the other way round.
    gradient = _outer(g, x, (names[-1], *names[:inputs]))
    return jnp.moveaxis(gradient, range(outputs), range(-outputs, 0))


def _outer(a: Array, b: Array, names: Names) -> Array:
    """``[B, T, D]`` and ``[B, T, *n]`` summed over the tokens to ``[D, *n]``, split by name."""

    def summed(a: Array, b: Array) -> Array:
        rows = a.shape[0] * a.shape[1]
        return jnp.matmul(a.reshape(rows, -1).T, b.reshape(rows, -1))

    if _few_rows(a):
        mesh = training.mesh_in_use()
        names = tuple(
            name if size % training.partition_count(name or "", mesh) == 0 else None
            for name, size in zip(names, (a.shape[2], *b.shape[2:]), strict=True)
        )
        return by_parts(
            lambda a, b: _scattered(summed(a, b)).reshape(-1, *b.shape[2:]),
            (a, ("batch", None, None)),
            (b, ("batch", None, *names[1:])),
            out=names,
        )
    return training.constrain(summed(a, b).reshape(a.shape[2], *b.shape[2:]), *names)


#: TPUs hold matrices of bfloat16 in tiles of so many rows. Where a device would keep less of a sum,
#: their compiler sums it whole on every device and then cuts it, which moves twice the bytes.
_ROWS_OF_A_TILE = 16


def _few_rows(a: Float[Array, "B T D"]) -> bool:
    mesh = training.mesh_in_use()
    if mesh is None or not {"data", "fsdp"} <= set(mesh.auto_axes):
        return False
    parts, batch = mesh.shape["fsdp"], training.partition_count("batch", mesh)
    whole = a.shape[2] % parts or a.shape[0] % batch
    return parts > 1 and not whole and a.shape[2] // parts < _ROWS_OF_A_TILE


def _scattered(part: Float[Array, "D F"]) -> Float[Array, "d F"]:
    """Sum over devices and keep the own rows, in two stages that each scatter many at a time.

    Of the devices ``n i + j`` over `fsdp`, those of one ``j`` first leave each other blocks of
    rows, then those of one ``i`` cut their block.
    """
    parts = jax.lax.axis_size("fsdp")
    near = max(n for n in range(1, math.isqrt(parts) + 1) if parts % n == 0)
    devices = np.arange(parts).reshape(-1, near)
    for groups in (devices.T, devices):
        part = jax.lax.psum_scatter(part, "fsdp", axis_index_groups=groups.tolist(), tiled=True)
    return jax.lax.psum(part, "data")


def by_parts(function: Callable[..., Array], *arrays: tuple[Array, Names], out: Names) -> Array:
    """Call `function` with each device's part of `arrays`, split by the names of their axes.

    Axes of the mesh that the caller has split by hand already are gone from the shapes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rules = dict(training.RULES)

    def spec(names: Names) -> PartitionSpec:
        axes = [rules.get(name or "") or () for name in names]
        axes = [(a,) if isinstance(a, str) else a for a in axes]
        return PartitionSpec(*(tuple(x for x in a if x in mesh.auto_axes) or None for a in axes))

    return jax.shard_map(
        function,
        in_specs=tuple(spec(names) for _, names in arrays),
        out_specs=spec(out),
        axis_names=set(mesh.auto_axes),
        check_vma=False,
    )(*(array for array, _ in arrays))


def read_rows(table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of a learned table.

    On a mesh each device reads its columns of the rows that its neighbours over `fsdp` need, and
    they exchange rows for columns: the table is neither gathered nor its gradient summed whole.
    """
    tokens = training.constrain(tokens, "replica", None)
    rows = training.constrain(jnp.take(table, tokens, axis=0), "replica", None, "embed")
    return training.constrain(rows, "batch", None, None)


def score_rows(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Inner products with every row of a learned table, float32."""
    table = table.astype(hidden.dtype)
    if training.mesh_in_use() is None:
        return _flat(hidden, table.T, preferred_element_type=jnp.float32)
    return _score_on_mesh(hidden, table)


_TABLE = ("vocab", "embed")


@jax.custom_vjp
def _score_on_mesh(hidden: Array, table: Array) -> Array:
    whole = _gathered(table, _TABLE)
    scores = _flat(hidden, whole.T, preferred_element_type=jnp.float32)
    return training.constrain(scores, "batch", None, "vocab")


def _score_forward(hidden: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    return _score_on_mesh(hidden, table), (hidden, table)


def _score_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    hidden, table = saved
    g = training.constrain(g.astype(hidden.dtype), "batch", None, "vocab")
    gradient = _outer(hidden, g, ("embed", "vocab"))
    return _flat(g, _gathered(table, _TABLE)), gradient.T


_score_on_mesh.defvjp(_score_forward, _score_backward)
