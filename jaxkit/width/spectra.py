"""The largest singular values of a model's matrices, without decomposing or gathering them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxkit import validation
from jaxkit.width import paths, roles, rules

_matmul = functools.partial(jnp.matmul, precision="highest")


def top_singular_values(
    params: PyTree,
    *,
    key: jax.Array,
    k: int = 1,
    num_iters: int = 64,
    scaling: rules.WidthScaling | None = None,
) -> PyTree:
    r"""Estimate the k largest singular values of every matrix in a tree.

    Golub-Kahan-Lanczos bidiagonalisation :math:`W V_j = U_j B_j` with full re-orthogonalisation in
    float32; the singular values of the small :math:`B_j` approach those of W from below. Each
    step reads W twice, as two matrix-vector products, so a sharded W stays where it is.

    Args:
        params: an array or a tree of arrays; leading axes are a batch of matrices.
        key: for the start vectors.
        k: how many singular values.
        num_iters: steps at most, k or more; min(n_in, n_out) steps are exact, and no more are done.
            Values that occur several times are all found only then. On a Gaussian matrix, whose
            top values lie closest together, 32 steps leave 1 start in 10 more than 1e-5 low; 64
            none.
        scaling: with it, kernels such as `(d, heads, head_dim)` are unfolded by their input and
            output axes, and parameters that are not matrices give None; without it, the last two
            axes are the matrix and every leaf must have them.

    Returns:
        Tree of f32[..., k], descending; batch axes kept. NaN for a matrix that is not finite.

    Raises:
        ValueError: if a leaf has rank < 2 (without `scaling`), k is larger than its smaller side,
            or num_iters < k.

    Source: Golub and Kahan 1965, the bidiagonalisation; arXiv 2510.15262 for its use as the
    diagnostic of width transfer.

    Example:
        >>> w = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
        >>> top_singular_values(w, key=jax.random.key(0), k=2).round(5)
        Array([3., 2.], dtype=float32)
    """
    k = validation.integer("k", k, minimum=1)
    num_iters = validation.integer("num_iters", num_iters, minimum=k)
    infos = paths.named_leaves(scaling.info) if scaling is not None else {}
    keys = iter(jax.random.split(key, max(1, len(jax.tree.leaves(params)))))

    def estimate(path: tuple[Any, ...], leaf: Any) -> Any:
        name, leaf_key = paths.path_name(path), next(keys)
        leaf = jnp.asarray(leaf)
        if scaling is not None:
            info = paths.look_up("scaling", infos, name)
            if info.role != "matrix" or leaf.ndim < 2 or not info.fan_out_axes:
                return None
            leaf = unfold_kernel(leaf, info)
        if leaf.ndim < 2:
            raise ValueError(
                f"{name or 'params'!r} must have rank >= 2, got shape {leaf.shape}: a vector has "
                "no singular values (pass scaling to skip vectors)"
            )
        if k > min(leaf.shape[-2:]):
            raise ValueError(
                f"k must be <= {min(leaf.shape[-2:])}, the smaller side of {name or 'params'!r}, "
                f"got {k}"
            )
        return _estimate(leaf, leaf_key, num_iters=min(num_iters, *leaf.shape[-2:]))[..., :k]

    return jax.tree_util.tree_map_with_path(estimate, params)


def unfold_kernel(kernel: Array, info: roles.WidthInfo) -> Array:
    """Bring a kernel into the shape `[..., n_in, n_out]` of the matrix it acts as."""
    if info.role != "matrix":
        raise ValueError(f"{info.path!r} must be a matrix, got the role {info.role!r}")
    sides = (info.fan_in_axes, info.fan_out_axes)
    batch = tuple(axis for axis in range(kernel.ndim) if axis not in sides[0] + sides[1])
    kernel = kernel.transpose(batch + sides[0] + sides[1])
    n_in = math.prod(kernel.shape[len(batch) : len(batch) + len(sides[0])])
    return kernel.reshape(*kernel.shape[: len(batch)], n_in, -1)


@functools.partial(jax.jit, static_argnames=("num_iters",))
def _estimate(
    matrix: Float[Array, "*batch n_in n_out"], key: jax.Array, *, num_iters: int
) -> Float[Array, "*batch num_iters"]:
    def one(matrix: Array, key: jax.Array) -> Array:
        bidiagonal, scale = bidiagonalise(matrix, key, num_iters)
        return scale * jnp.linalg.svd(bidiagonal, compute_uv=False)

    batch = matrix.shape[:-2]
    mapped = one
    for _ in batch:
        mapped = jax.vmap(mapped)
    keys = jax.random.split(key, batch) if batch else key
    sharding = jax.typeof(matrix).sharding
    if any(kind == jax.sharding.AxisType.Explicit for kind in sharding.mesh.axis_types):
        # Vectors change their sharding at every product; let the compiler place them.
        over_batch = jax.sharding.PartitionSpec(*sharding.spec[: len(batch)])
        mapped = jax.sharding.auto_axes(out_sharding=over_batch)(mapped)
        with jax.sharding.use_abstract_mesh(sharding.mesh):
            return mapped(matrix.astype(jnp.float32), keys)
    return mapped(matrix.astype(jnp.float32), keys)


def bidiagonalise(
    matrix: Float[Array, "n_in n_out"], key: jax.Array, num_iters: int
) -> tuple[Float[Array, "num_iters num_iters+1"], Float[Array, ""]]:
    r"""Run Golub-Kahan-Lanczos: :math:`W V = s\, U B`, with orthonormal U, V and bidiagonal B.

    The scale s = max |W| is taken out of B, so that no square under- or overflows. Keys draw the
    start, and a fresh direction where the recurrence breaks down; at most min(n_in, n_out) steps.

    Source: Golub and Kahan 1965; Golub and Van Loan, Matrix Computations, 4th ed., §10.4.1.
    """
    n_in, n_out = matrix.shape
    scale = jnp.max(jnp.abs(matrix))
    inverse = jnp.where(scale > 0, 1 / scale, 0.0)
    us, vs = jnp.zeros((num_iters, n_in)), jnp.zeros((num_iters + 1, n_out))
    u_key, v_key = jax.random.split(key)
    random_u = jax.random.uniform(u_key, us.shape, minval=-1.0)
    random_v = jax.random.uniform(v_key, vs.shape, minval=-1.0)
    v, _ = _new_direction(random_v[0], vs, jnp.zeros(()), random_v[0])

    def step(carry: Any, inputs: Any) -> Any:
        us, vs, v, u, beta, largest = carry
        j, random_u, random_v = inputs
        u, alpha = _new_direction(_matmul(matrix, inverse * v) - beta * u, us, largest, random_u)
        us, largest = us.at[j].set(u), jnp.maximum(largest, alpha)
        v, beta = _new_direction(_matmul(inverse * u, matrix) - alpha * v, vs, largest, random_v)
        vs, largest = vs.at[j + 1].set(v), jnp.maximum(largest, beta)
        return (us, vs, v, u, beta, largest), (alpha, beta)

    start = (us, vs.at[0].set(v), v, jnp.zeros(n_in), jnp.zeros(()), jnp.zeros(()))
    _, (alphas, betas) = jax.lax.scan(step, start, (jnp.arange(num_iters), random_u, random_v[1:]))
    bidiagonal = jnp.zeros((num_iters, num_iters + 1))
    diagonal = jnp.arange(num_iters)
    bidiagonal = bidiagonal.at[diagonal, diagonal].set(alphas)
    return bidiagonal.at[diagonal, diagonal + 1].set(betas), scale


def _new_direction(
    vector: Float[Array, " n"],
    basis: Float[Array, "j n"],
    largest: Float[Array, ""],
    random: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Normalise what is orthogonal to `basis` in `vector`; if nothing is, in `random`."""

    def beyond_basis(vector: Array) -> tuple[Array, Array]:
        for _ in range(2):  # twice is enough (Parlett)
            vector = vector - _matmul(_matmul(basis, vector), basis)
        length = jnp.linalg.norm(vector)
        return vector / jnp.where(length > 0, length, 1.0), length

    direction, length = beyond_basis(vector)
    lost = length <= jnp.finfo(jnp.float32).eps * largest
    direction = jax.lax.cond(lost, lambda: beyond_basis(random)[0], lambda: direction)
    return direction, jnp.where(lost, 0.0, length)
