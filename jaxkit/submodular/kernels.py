"""Similarities of feature vectors, never negative, and nearest neighbours without a full matrix."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxkit import validation
from jaxkit.submodular import operands

#: The kernels known by name.
NAMES = ("cosine", "rbf", "shifted_cosine")


def prepare(
    name: str, features: ArrayLike, kernel: str, gamma: ArrayLike = 1.0
) -> Float[Array, "n d"]:
    """Check feature rows; for a cosine, bring them to length 1, rows of zeros excepted."""
    validation.choice("kernel", kernel, NAMES)
    validation.number("gamma", gamma, minimum=0, open_minimum=True)
    rows = operands.operand(name, operands.table(features, name), rank=2)
    if kernel == "rbf":
        return rows
    # Scaled first, so that the squares of large entries stay finite. A row of zeros stays one.
    largest = jnp.abs(rows).max(-1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1)


def similarity(
    kernel: str, x: Float[Array, "a d"], y: Float[Array, "b d"], gamma: ArrayLike = 1.0
) -> Float[Array, "a b"]:
    r"""Compute the similarities `[a, b]` of prepared rows `x [a, d]` and `y [b, d]`, non-negative.

    `"cosine"`: $\max(0, x^\top y)$; `"shifted_cosine"`: $\max(0, 2 x^\top y - 1)$, which is
    $\max(0, 1 - |x - y|^2)$, the exemplar clustering gain over an exemplar at 0; `"rbf"`:
    $\exp(-\gamma |x - y|^2)$.
    """
    product = jnp.matmul(x, y.T, precision="highest")
    if kernel == "cosine":
        return jnp.maximum(product, 0)
    if kernel == "shifted_cosine":
        return jnp.maximum(2 * product - 1, 0)
    squared = (x**2).sum(-1)[:, None] + (y**2).sum(-1)[None] - 2 * product
    return jnp.exp(-jnp.asarray(gamma) * jnp.maximum(squared, 0))


_matrix = jax.jit(similarity, static_argnums=0)


def similarity_matrix(
    features: ArrayLike, *, kernel: str = "cosine", gamma: ArrayLike = 1.0
) -> Float[Array, "n n"]:
    """Compute the similarities of all rows of `features`.

    Args:
        features: `[n, d]`.
        kernel: as `facility_location_from_features`.
        gamma: of `"rbf"`.

    Returns:
        `[n, n]`, non-negative, exactly symmetric: what `facility_location`, `saturated_coverage`
        and `graph_cut` take.

    Raises:
        TypeError: if `features` is not numeric.
        ValueError: if an entry is not finite, or `kernel` unknown.

    Example:
        >>> similarity_matrix(jnp.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = prepare("features", features, kernel, gamma)
    matrix = _matrix(kernel, rows, rows, gamma)
    return (matrix + matrix.T) / 2


@functools.partial(jax.jit, static_argnames=("kernel", "count"))
def _search(rows, blocks, gamma, *, kernel, count):
    def of_block(clients):
        return jax.lax.top_k(similarity(kernel, clients, rows, gamma), count)

    return jax.lax.map(of_block, blocks)


class Neighbors(NamedTuple):
    """The nearest items of each client, most similar first, and their similarity, `[m, q]` each."""

    indices: Int[Array, "m q"]
    similarity: Float[Array, "m q"]


def nearest_neighbors(
    features: ArrayLike,
    num_neighbors: int,
    *,
    kernel: str = "cosine",
    gamma: ArrayLike = 1.0,
    block: int = 1024,
) -> Neighbors:
    """Find the most similar items of every item, a block of clients at a time.

    Args:
        features: `[n, d]`.
        num_neighbors: q, each item itself among them.
        kernel: as `facility_location_from_features`.
        gamma: of `"rbf"`.
        block: clients at a time; a block takes `4 block n` bytes.

    Returns:
        Indices and similarities, `[n, q]`, exact.

    Raises:
        TypeError: if `features` is not numeric or a number not an integer.
        ValueError: if `num_neighbors` is not in `[1, n]`, or as `similarity_matrix`.

    Example:
        >>> nearest_neighbors(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 2).indices.tolist()
        [[0, 1], [1, 0], [2, 1]]
    """
    validation.integer("num_neighbors", num_neighbors, minimum=1)
    validation.integer("block", block, minimum=1)
    rows = prepare("features", features, kernel, gamma)
    n = rows.shape[0]
    if num_neighbors > n:
        raise ValueError(f"num_neighbors must be at most the {n} items, got {num_neighbors}")
    block = min(block, n)
    padded = jnp.pad(rows, ((0, -n % block), (0, 0))).reshape(-1, block, rows.shape[1])

    values, indices = _search(rows, padded, gamma, kernel=kernel, count=num_neighbors)
    return Neighbors(indices.reshape(-1, num_neighbors)[:n], values.reshape(-1, num_neighbors)[:n])
