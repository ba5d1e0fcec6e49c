"""How items are named, and how their rows are taken from a matrix spread over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

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
    """Take rows of a matrix, moving only those rows where it is sharded over its first axis.

    `matrix[i]` with a scalar i becomes a dynamic slice, for which XLA first gathers the whole
    matrix on every device; with a vector of indices it becomes a gather, which each device
    does on its part.

    Args:
        matrix: `[n, ...]`.
        items: indices of any shape `[*c]`, each in `[0, n)`.

    Returns:
        The rows, `[*c, ...]`.

    Example:
        >>> take(jnp.arange(6).reshape(3, 2), 2).tolist()
        [4, 5]
    """
    items = jnp.asarray(items)
    return matrix[items.reshape(-1)].reshape(*items.shape, *matrix.shape[1:])
