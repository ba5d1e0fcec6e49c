"""The arrays and items that define and index a set function, checked where they enter."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from jaxkit import validation

#: One item of the ground set.
Item = Int[Array, ""] | Int[np.ndarray, ""] | int | np.integer

#: Items of any shape `[*c]`.
Items = Int[Array, "*c"] | Int[np.ndarray, "*c"] | int | np.integer

#: A list of items `[s]`.
ItemList = Int[Array, " s"] | Int[np.ndarray, " s"]

#: A flag for each of a list of items `[s]`.
FlagList = Bool[Array, " s"] | Bool[np.ndarray, " s"]

#: A flag for each item of the ground set `[n]`.
Mask = Bool[Array, " n"] | Bool[np.ndarray, " n"]


def take(matrix: jax.Array, items: ArrayLike) -> jax.Array:
    """Take rows `[*c, ...]` of a matrix by items `[*c]`, moving only those where it is sharded.

    `matrix[i]` with a scalar i becomes a dynamic slice, for which XLA first gathers the whole
    matrix on every device; with a vector of indices it becomes a gather, which each device
    does on its part.
    """
    items = jnp.asarray(items)
    return matrix[items.reshape(-1)].reshape(*items.shape, *matrix.shape[1:])


def operand(
    name: str,
    value: Any,
    *,
    rank: int,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> jax.Array:
    """Return real numbers as a float32 array of this rank, finite and within bounds, or raise.

    The check makes no copy of the array, so that it can be of the size of memory; of a traced one
    only type and rank are checked.
    """
    array = validation.array(name, table(value, name))
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if not (real or array.dtype == bool):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of rank {rank}, got {array.shape}")
    if validation.is_traced(array):
        return jnp.asarray(array, jnp.float32)
    # A constant of a traced caller has its numbers too.
    with jax.ensure_compile_time_eval():
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


def item_list(name: str, value: Any) -> jax.Array:
    """Return integers as int32, or raise; an empty list of any type is one."""
    array = value if hasattr(value, "dtype") else np.asarray(value)
    if array.size and not jnp.issubdtype(array.dtype, jnp.integer):
        hint = ": list the items of a mask by np.flatnonzero" if array.dtype == bool else ""
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}{hint}")
    return jnp.asarray(array).astype(jnp.int32)


def indices(name: str, value: Any, size: int) -> jax.Array:
    """Return integers in `[0, size)` as int32, or raise; of traced ones the type is checked."""
    array = item_list(name, value)
    if not validation.is_traced(value) and array.size:
        lowest, highest = int(np.asarray(value).min()), int(np.asarray(value).max())
        if lowest < 0 or highest >= size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{name} must be in [0, {size}), got {wrong}")
    return array


def refuse_table(name: str, value: Any) -> None:
    """Raise if entries are masked, or columns of a data frame hold no numbers: name those."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries: fill them or leave their rows out")
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
    """A table as an array: data frames of numbers and SciPy's sparse matrices are made dense."""
    refuse_table(name, value)
    if hasattr(value, "toarray"):
        return value.toarray()
    if not hasattr(value, "to_numpy"):
        return value
    array = value.to_numpy()
    if array.dtype == object:
        # Columns of numbers that may be missing have types of pandas' own.
        array = value.to_numpy(np.float64, na_value=np.nan)
    return array


def symmetric(name: str, value: Any, **bounds: float) -> jax.Array:
    """Return a matrix, symmetric to 1e-5 of its largest entry, made exactly so, or raise."""
    matrix = operand(name, value, rank=2, **bounds)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got {matrix.shape}")
    if not validation.is_traced(matrix):
        with jax.ensure_compile_time_eval():
            gap, size = float(jnp.abs(matrix - matrix.T).max()), float(jnp.abs(matrix).max())
        if gap > 1e-5 * size:
            raise ValueError(
                f"{name} must be symmetric, got entries that differ from the transpose by {gap:g}"
            )
    return (matrix + matrix.T) / 2


def weights_or_ones(name: str, value: Any, size: int) -> jax.Array:
    """Return non-negative weights `[size]`, all 1 where `value` is None, or raise."""
    if value is None:
        return jnp.ones(size, jnp.float32)
    return matches(name, operand(name, value, rank=1, minimum=0), (size,))


def size_limit(max_size: int | None, size: int) -> int:
    """The number of items, or a smaller one that is asked for, or raise."""
    if max_size is None:
        return size
    return min(validation.integer("max_size", max_size, minimum=1), size)


def matches(name: str, value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return `value` if it has this shape, or raise."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    return value
