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
from typing import Any

import jax
import jax.numpy as jnp
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
        return training.constrain(_outer(x, g), *names)
    # One axis out, the others in: formed the other way round.
    gradient = training.constrain(_outer(g, x), names[-1], *names[:inputs])
    return jnp.moveaxis(gradient, range(outputs), range(-outputs, 0))


def _outer(a: Array, b: Array) -> Array:
    """``[B, T, *m]`` and ``[B, T, *n]`` summed over the tokens to ``[*m, *n]``."""
    rows = a.shape[0] * a.shape[1]
    flat = jnp.matmul(a.reshape(rows, -1).T, b.reshape(rows, -1))
    return flat.reshape(*a.shape[2:], *b.shape[2:])


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
    gradient = training.constrain(_outer(hidden, g), "embed", "vocab")
    return _flat(g, _gathered(table, _TABLE)), gradient.T


_score_on_mesh.defvjp(_score_forward, _score_backward)
