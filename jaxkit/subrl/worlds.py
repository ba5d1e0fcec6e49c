"""The worlds of the paper, each one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from jaxkit import submodular, validation
from jaxkit.subrl import cells, fields, grids, information
from jaxkit.subrl.environments import SubmodularEnvironment, make_environment


def grid_world(
    shape: Sequence[int],
    set_function: submodular.SetFunction,
    *,
    horizon: int = 40,
    start: Any = 34,
    slip: Any = 0.0,
    free: ArrayLike | None = None,
    **options: Any,
) -> SubmodularEnvironment:
    """Join a grid and any set function of its cells.

    Args:
        shape: rows and columns; states are row * columns + column.
        set_function: F, one item a state.
        horizon: H >= 2, states of an episode.
        start: first state.
        slip: chance in `[0, 1]` that an action is replaced by a uniform one of the five.
        free: bool `[rows, columns]`, False for walls.
        **options: further options of `make_environment`.

    Raises:
        ValueError: if the start is outside the grid or in a wall, or a number out of range.

    Source: the official grid worlds of arXiv 2307.13372.

    Example:
        >>> grid_world((1, 3), submodular.modular(jnp.ones(3)), horizon=3, start=1).num_actions
        5
    """
    dynamics, params = grids.grid_dynamics(shape, start=start, slip=slip, free=free)
    options["shape"] = grids.checked_shape(shape)
    return make_environment(dynamics, params, set_function, horizon=horizon, **options)


def coverage_world(
    shape: Sequence[int] = (30, 30),
    weights: ArrayLike | None = None,
    *,
    block: int = 2,
    free: ArrayLike | None = None,
    horizon: int = 40,
    **options: Any,
) -> SubmodularEnvironment:
    r"""Make a grid where a state covers a square of cells and F is the weight of their union.

    Args:
        shape: rows and columns.
        weights: w >= 0 of each cell, `[rows * columns]`; 1 by default. See `gp_weights`,
            `density_weights`, `bimodal_weights`, or bring a density of your own.
        block: side of the square, whose top left corner is the state.
        free: bool `[rows, columns]`, False for walls, which are neither entered nor covered.
        horizon: H >= 2, states of an episode.
        **options: further options of `grid_world`.

    Returns:
        The environment; its return scale is the number of cells that H states can cover.

    Raises:
        ValueError: if weights have the wrong length, are negative or not finite; as `grid_world`.

    Source: arXiv 2307.13372, coverage and biodiversity monitoring.

    Example:
        >>> env = coverage_world((30, 30), horizon=40, start=34)
        >>> float(env.default_params.return_scale)
        82.0
    """
    rows, columns = grids.checked_shape(shape)
    horizon = validation.integer("horizon", horizon, minimum=2)
    if weights is not None and np.shape(weights) != (rows * columns,):
        raise ValueError(
            f"weights must be a vector, one for each of the {rows * columns} cells of shape "
            f"{(rows, columns)}, got shape {np.shape(weights)}"
        )
    cover = grids.grid_blocks(shape, block, free)
    options.setdefault("return_scale", block**2 + block * (horizon - 1))
    return grid_world(
        shape, cells.cell_coverage(cover, weights), horizon=horizon, free=free, **options
    )


def two_rooms_world(**options: Any) -> SubmodularEnvironment:
    """Make the two rooms: 68 free cells, start in the corridor; only memory covers both rooms.

    Options and errors are those of `coverage_world` and `grid_world`.

    Source: arXiv 2307.13372, two rooms.

    Example:
        >>> two_rooms_world().shape
        (7, 14)
    """
    return coverage_world((7, 14), free=grids.two_rooms(), **options)


def item_world(
    groups: Sequence[Sequence[int]],
    caps: ArrayLike | Sequence[float] = (3.0, 2.0, 3.0, 4.0, 6.0, 3.0),
    shape: Sequence[int] = (7, 15),
    *,
    shared: bool = False,
    **options: Any,
) -> SubmodularEnvironment:
    """Make a grid with groups of items, of each of which only so many count.

    Args:
        groups: the states of each group's items (`random_groups`).
        caps: how many items of each group count.
        shape: rows and columns.
        shared: whether a state may hold items of two groups.
        **options: options of `grid_world`, whose errors it has.

    Source: arXiv 2307.13372, item collection ("Steiner covering").

    Example:
        >>> env = item_world([(0, 1), (2,)], (1.0, 1.0), (1, 3), start=0, horizon=3)
        >>> env.num_items
        3
    """
    rows, columns = grids.checked_shape(shape)
    function = cells.item_collection(
        groups, jnp.asarray(caps, jnp.float32), rows * columns, shared=shared
    )
    return grid_world(shape, function, **options)


def design_world(
    covariance: ArrayLike,
    shape: Sequence[int] = (30, 30),
    *,
    noise_variance: Any = 1e-3,
    offset: Any = None,
    horizon: int = 40,
    **options: Any,
) -> SubmodularEnvironment:
    """Make a grid where every visit measures a Gaussian field and F is the information gained.

    Args:
        covariance: K of the field at the cells, `[n, n]` (`random_posterior`).
        shape: rows and columns.
        noise_variance: variance of a measurement.
        offset: as `measurements`.
        horizon: H >= 2, states of an episode.
        **options: options of `grid_world`; errors are of that and of `measurements`.

    Returns:
        The environment; a second visit is a second measurement, worth less but not nothing.

    Source: arXiv 2307.13372, Bayesian experiment design.

    Example:
        >>> design_world(jnp.eye(4), (2, 2), start=0, horizon=3).num_items
        4
    """
    rows, columns = grids.checked_shape(shape)
    if np.shape(covariance) != (rows * columns,) * 2:
        raise ValueError(
            f"covariance must be [n, n] with n = {rows * columns} cells, got shape "
            f"{np.shape(covariance)}"
        )
    function = information.measurements(covariance, noise_variance, max_size=horizon, offset=offset)
    return grid_world(shape, function, horizon=horizon, **options)


#: Worlds by name: `WORLDS[name](key, **options)`; the key draws what is random in the world.
WORLDS = {
    "coverage": lambda key, **options: coverage_world(**options),
    "bimodal": lambda key, **options: coverage_world(weights=fields.bimodal_weights(), **options),
    "gp": lambda key, **options: coverage_world(weights=fields.gp_weights(key), **options),
    "density": lambda key, **options: coverage_world(
        weights=fields.density_weights(key), **options
    ),
    "items": lambda key, **options: item_world(fields.random_groups(key), **options),
    "design": lambda key, **options: design_world(
        fields.random_posterior(key, (30, 30)), **options
    ),
    "two-rooms": lambda key, **options: two_rooms_world(**options),
}


def named_world(name: str, key: Key[Array, ""] | None = None, **options: Any) -> Any:
    """Make a world by its name.

    Args:
        name: `"coverage"`, `"bimodal"`, `"gp"`, `"density"`, `"items"`, `"design"` or
            `"two-rooms"`.
        key: draws what is random in it; `jax.random.key(0)` by default.
        **options: options of its maker.

    Raises:
        ValueError: if there is no such world.

    Example:
        >>> named_world("two-rooms", horizon=10).horizon
        10
    """
    validation.choice("world", name, WORLDS)
    return WORLDS[name](jax.random.key(0) if key is None else key, **options)
