"""Random projections of linear models: noise that pays for the rank, not the dimension."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxkit import validation
from jaxkit.privacy import clipping


def projection(key: Key[Array, ""], dimension: int, target_dimension: int) -> Float[Array, "k d"]:
    r"""Draw a Johnson-Lindenstrauss matrix :math:`\Phi = G/\sqrt k`, independently of the data.

    Args:
        key: typed key.
        dimension: d.
        target_dimension: k >= 1; where k >= d there is nothing to gain and the identity is
            returned.

    Returns:
        Phi ``[min(k, d), d]``.

    Raises:
        ValueError: if a number is not allowed.

    Source: arXiv 2206.00846 Algorithm 4.

    Example:
        >>> projection(jax.random.key(0), 100, 10).shape
        (10, 100)
    """
    d = validation.integer("dimension", dimension, minimum=1)
    k = validation.integer("target_dimension", target_dimension, minimum=1)
    if k >= d:
        return jnp.eye(d)
    return jax.random.normal(key, (k, d)) / math.sqrt(k)


def jl_embed(
    x: Float[Array, "n d"], phi: Float[Array, "k d"], *, radius: float = 1.0
) -> Float[Array, "n k"]:
    r"""Embed the rows of a linear model's data: :math:`\Phi x_i`, clipped to norm `radius`.

    Train any private algorithm on the result with the constants of rows of that norm, and take
    its parameters back with `jl_lift`. Clipping makes the constants hold for every row, where the
    paper spends half of delta on the chance that they fail for rows of twice the norm.

    Args:
        x: features ``[n, d]``, rows of norm at most `radius`.
        phi: from `projection`.
        radius: the bound on the norm of embedded rows.

    Returns:
        Features ``[n, k]``.

    Raises:
        ValueError: if shapes do not fit or `radius` is not positive.

    Source: arXiv 2206.00846 Algorithm 4.

    Example:
        >>> jl_embed(jnp.ones((2, 3)) / 2, projection(jax.random.key(0), 3, 5)).shape
        (2, 3)
    """
    if x.ndim != 2 or phi.ndim != 2 or x.shape[1] != phi.shape[1]:
        raise ValueError(f"x [n, d] and phi [k, d] must share d, got {x.shape} and {phi.shape}")
    return clipping.clip_per_example(x @ phi.T, radius).gradients


def jl_lift(params: Float[Array, " k"], phi: Float[Array, "k d"]) -> Float[Array, " d"]:
    r"""Take parameters back to the original space: :math:`w = \Phi^\top\tilde w`.

    Then :math:`\langle w, x\rangle = \langle\tilde w, \Phi x\rangle`, hence
    :math:`\Phi\nabla F(w) = \nabla F_\Phi(\tilde w)`.

    Args:
        params: parameters of the embedded model ``[k]``.
        phi: from `projection`.

    Returns:
        Parameters ``[d]``.

    Raises:
        ValueError: if shapes do not fit.

    Source: arXiv 2206.00846 Algorithm 4.

    Example:
        >>> jl_lift(jnp.ones(2), jnp.eye(2)).tolist()
        [1.0, 1.0]
    """
    if params.ndim != 1 or phi.ndim != 2 or params.shape[0] != phi.shape[0]:
        raise ValueError(
            f"params [k] and phi [k, d] must share k, got {params.shape} and {phi.shape}"
        )
    return params @ phi
