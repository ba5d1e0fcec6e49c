"""The arrays that define a set function, checked where they enter and brought to float32."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import validation


def operand(
    name: str,
    value: Any,
    *,
    rank: int,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> jax.Array:
    """Return `value` as a float32 array of the given rank, finite and within bounds, or raise.

    The check makes no copy of the array, so that it can be of the size of memory.

    Args:
        name: name of the argument, for the message.
        value: anything array-like of real numbers; of a traced one only the rank is checked.
        rank: number of axes.
        minimum: smallest entry allowed.
        maximum: largest entry allowed.

    Returns:
        The float32 array.

    Raises:
        TypeError: if `value` is not numeric.
        ValueError: if its rank is wrong, it is empty, or an entry is not finite or out of bounds.

    Example:
        >>> operand("weights", [1, 2], rank=1, minimum=0).dtype
        dtype('float32')
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of rank {rank}, got {array.shape}")
    if validation.is_traced(array):
        return jnp.asarray(array, jnp.float32)
    smallest, largest = float(array.min()), float(array.max())
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        place = np.argwhere(~np.isfinite(np.asarray(array)))[0]
        where = f"row {place[0]}" if rank == 2 else f"entry {place[0]}"
        raise ValueError(f"{name} must be finite, got NaN or infinity in {where}")
    if smallest < minimum or largest > maximum:
        wrong = smallest if smallest < minimum else largest
        raise ValueError(f"{name} must be in [{minimum:g}, {maximum:g}], got an entry {wrong:g}")
    if max(abs(smallest), abs(largest)) > float(np.finfo(np.float32).max):
        raise ValueError(f"{name} must fit float32, got entries from {smallest:g} to {largest:g}")
    return jnp.asarray(array, jnp.float32)


def refuse_text(name: str, value: Any) -> None:
    """Raise if `value` is a data frame with columns that are no numbers, and name them.

    Example:
        >>> refuse_text("features", np.eye(2))
    """
    if not (hasattr(value, "columns") and hasattr(value, "to_numpy")):
        return
    kinds = {str(column): np.asarray(value[column]).dtype.kind for column in value.columns}
    text = [column for column, kind in kinds.items() if kind not in "biuf"]
    if text:
        raise TypeError(
            f"{name} must hold numbers, got columns {', '.join(map(repr, text))} that do not: "
            "encode them or leave them out"
        )


def table(value: Any, name: str = "features") -> Any:
    """A table as an array: data frames of numbers and SciPy's sparse matrices are made dense.

    Example:
        >>> import scipy.sparse
        >>> table(scipy.sparse.eye_array(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    refuse_text(name, value)
    if hasattr(value, "toarray"):
        return value.toarray()
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def symmetric(name: str, value: Any, **bounds: float) -> jax.Array:
    """Return `value` as a square symmetric float32 matrix, or raise.

    Symmetry is checked to 1e-5 of the largest entry and then made exact.

    Args:
        name: name of the argument, for the message.
        value: a matrix.
        **bounds: as `operand`.

    Returns:
        The float32 matrix.

    Raises:
        TypeError: as `operand`.
        ValueError: as `operand`, or if the matrix is not square or not symmetric.

    Example:
        >>> symmetric("kernel", [[1.0, 0.5], [0.5, 1.0]]).shape
        (2, 2)
    """
    matrix = operand(name, value, rank=2, **bounds)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got {matrix.shape}")
    if not validation.is_traced(matrix):
        gap, size = float(jnp.abs(matrix - matrix.T).max()), float(jnp.abs(matrix).max())
        if gap > 1e-5 * size:
            raise ValueError(
                f"{name} must be symmetric, got entries that differ from the transpose by {gap:g}"
            )
    return (matrix + matrix.T) / 2


def weights_or_ones(name: str, value: Any, size: int) -> jax.Array:
    """Return non-negative weights `[size]`, all 1 where `value` is None, or raise.

    Example:
        >>> weights_or_ones("weights", None, 2).tolist()
        [1.0, 1.0]
    """
    if value is None:
        return jnp.ones(size, jnp.float32)
    weights = operand(name, value, rank=1, minimum=0)
    if weights.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {weights.shape}")
    return weights


def matches(name: str, value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return `value` if it has this shape, or raise.

    Example:
        >>> matches("mask", jnp.ones(2), (2,)).shape
        (2,)
    """
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    return value
