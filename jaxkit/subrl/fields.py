"""Random fields for the worlds: Matern-5/2 samples, posteriors and weight maps.

Made once on the host in float64: a covariance of hundreds of near points is close to singular, and
its Cholesky factor does not exist in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from jaxkit import validation
from jaxkit.subrl import grids

Points = ArrayLike | Sequence[Sequence[float]]

_OUTPUTSCALE, _NOISE, _SIDE = math.log(2), 1e-3, 10.0


def matern52(
    x: Points, y: Points, *, lengthscale: float = 1.0, outputscale: float = _OUTPUTSCALE
) -> np.ndarray:
    r"""Compute $\sigma^2 (1 + t + t^2/3) e^{-t}$ with $t = \sqrt5 |x - y| / \ell$, `[a, b]`.

    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", eq. (4.17).
    """
    validation.number("lengthscale", lengthscale, minimum=0, open_minimum=True)
    validation.number("outputscale", outputscale, minimum=0, open_minimum=True)
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    t = math.sqrt(5) * np.linalg.norm(left[:, None] - right[None], axis=-1) / lengthscale
    return outputscale * (1 + t + t**2 / 3) * np.exp(-t)


def posterior_covariance(
    points: Points, measured: Points, *, noise_variance: float = _NOISE, **kernel: Any
) -> np.ndarray:
    r"""Compute $K_{xx} - K_{xm} (K_{mm} + \sigma^2 I)^{-1} K_{mx}$ of a Matern-5/2 field, `[n, n]`.

    Source: Rasmussen and Williams, eq. (2.24).
    """
    validation.number("noise_variance", noise_variance, minimum=0, open_minimum=True)
    prior = matern52(points, points, **kernel)
    cross = matern52(points, measured, **kernel)
    inner = matern52(measured, measured, **kernel) + noise_variance * np.eye(len(cross[0]))
    posterior = prior - cross @ np.linalg.solve(inner, cross.T)
    return (posterior + posterior.T) / 2


def grid_points(shape: Sequence[int]) -> np.ndarray:
    """Places of cells in the plane, 1 + 0.1 (row, column), `[n, 2]`, as the paper's program."""
    rows, columns = grids.checked_shape(shape)
    return 1 + 0.1 * np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


def random_posterior(
    key: Key[Array, ""], shape: Sequence[int], *, num_measured: int = 5
) -> Float[Array, "n n"]:
    """Draw the covariance of a field on a grid after noisy measurements at uniform places.

    Args:
        key: typed PRNG key.
        shape: rows and columns.
        num_measured: measurements in the square [0, 10]^2, with noise variance 1e-3.

    Raises:
        ValueError: if a number is out of range.

    Source: the official experiment design world of arXiv 2307.13372.

    Example:
        >>> random_posterior(jax.random.key(0), (2, 2)).shape
        (4, 4)
    """
    validation.integer("num_measured", num_measured, minimum=1)
    measured = _SIDE * np.asarray(jax.random.uniform(key, (num_measured, 2)), np.float64)
    return jnp.asarray(posterior_covariance(grid_points(shape), measured), jnp.float32)


def _sample(key: jax.Array, shape: Sequence[int], num_measured: int) -> np.ndarray:
    place_key, sample_key = jax.random.split(key)
    covariance = np.asarray(random_posterior(place_key, shape, num_measured=num_measured))
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    draws = np.asarray(jax.random.normal(sample_key, (len(values),)), np.float64)
    return vectors @ (np.sqrt(np.maximum(values, 0)) * draws)


def gp_weights(key: Key[Array, ""], shape: Sequence[int] = (30, 30)) -> Float[Array, " n"]:
    """Draw a weight map: a Gaussian field, fixed to 0 at one place, raised by 3, `[n]`.

    Where the field falls below -3, it is raised until its smallest value is 0: weights below 0
    would make a coverage that is not monotone.

    Source: the official "GP" world of arXiv 2307.13372.

    Example:
        >>> bool((gp_weights(jax.random.key(0), (4, 5)) >= 0).all())
        True
    """
    sample = _sample(key, shape, 1)
    raised = sample + max(3.0, -float(sample.min()))
    return jnp.asarray(np.maximum(raised, 0), jnp.float32)


def density_weights(key: Key[Array, ""], shape: Sequence[int] = (30, 30)) -> Float[Array, " n"]:
    r"""Draw a density map: $\log(1 + e^{g})$ of a Gaussian field g, `[rows * columns]`.

    It stands in for the density of nests that the paper monitors, whose data are not published
    with its program; any map of your own can be passed to `coverage_world` in its place.

    Source: arXiv 2307.13372, biodiversity monitoring.
    """
    # Scaled up, so that most of the map is nearly empty and some of it crowded.
    return jax.nn.softplus(jnp.asarray(3 * _sample(key, shape, 1), jnp.float32))


def bimodal_weights(shape: Sequence[int] = (30, 30)) -> Float[Array, " n"]:
    """Make the map $1 / (1 + e^{-xy})$ with x, y from -1 to 1 over rows and columns.

    Source: the official "bimodal" world of arXiv 2307.13372.
    """
    rows, columns = grids.checked_shape(shape)
    x, y = jnp.linspace(-1, 1, rows)[:, None], jnp.linspace(-1, 1, columns)[None]
    return jax.nn.sigmoid(x * y).reshape(-1)


def random_groups(
    key: Key[Array, ""],
    num_states: int = 105,
    sizes: Sequence[int] = (18, 14, 13, 16, 18, 14),
) -> tuple[tuple[int, ...], ...]:
    """Draw disjoint groups of items at random states.

    Args:
        key: typed PRNG key.
        num_states: states there are.
        sizes: items of each group; the paper's program has 93 items on 105 cells.

    Raises:
        ValueError: if there are more items than states.

    Source: the official "Steiner covering" world of arXiv 2307.13372.

    Example:
        >>> [len(group) for group in random_groups(jax.random.key(0), 6, (2, 3))]
        [2, 3]
    """
    if sum(sizes) > num_states:
        raise ValueError(f"sizes must add up to at most {num_states} states, got {sum(sizes)}")
    order = np.asarray(jax.random.permutation(key, num_states)).tolist()
    stops = np.cumsum([0, *sizes]).tolist()
    return tuple(tuple(sorted(order[a:b])) for a, b in itertools.pairwise(stops))
