"""Covering a plane: an occupancy map over anything that has x and y, as Brax's Ant."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation
from jaxkit.subrl import cells, grids
from jaxkit.subrl.environments import SubmodularEnvironment, make_environment
from jaxkit.subrl.tables import Move


@dataclasses.dataclass(frozen=True)
class OccupancyDynamics:
    """Any moves in the plane, by the arguments of `occupancy_world`; leaving the map is the end."""

    begin: Callable[..., Any]
    advance: Callable[..., Any]
    place: Callable[..., Any]
    see: Callable[..., Any]
    half_side: float
    cells_a_side: int
    action_size: int
    num_actions: None = None
    terminates: bool = True

    def start(self, key: Key[Array, ""], params: Any) -> Any:
        """Draw the first body."""
        return self.begin(key)

    def move(self, key: Key[Array, ""], position: Any, action: Any, params: Any) -> Move:
        """Advance the body."""
        after = self.advance(key, position, action)
        outside = jnp.any(jnp.abs(self.place(after)) >= self.half_side)
        return Move(after, jnp.zeros(()), outside)

    def element(self, position: Any, params: Any) -> Int[Array, ""]:
        """The cell below the body, -1 outside the map."""
        place = self.place(position)
        cell = jnp.floor((place + self.half_side) / (2 * self.half_side) * self.cells_a_side)
        inside = jnp.all(jnp.abs(place) < self.half_side)
        row, column = jnp.clip(cell, 0, self.cells_a_side - 1).astype(jnp.int32)
        return jnp.where(inside, row * self.cells_a_side + column, -1)

    def features(self, position: Any, params: Any) -> Float[Array, " d"]:
        """What the body shows."""
        return self.see(position)


def occupancy_world(
    begin: Callable[..., Any],
    advance: Callable[..., Any],
    *,
    place: Callable[..., Any],
    see: Callable[..., Any],
    action_size: int,
    half_side: float = 20.0,
    cells_a_side: int = 100,
    block: int = 5,
    horizon: int = 400,
    features: str = "position",
) -> SubmodularEnvironment:
    """Put an occupancy map under any body with x and y: F is a tenth of the cells marked.

    Args:
        begin: `begin(key) -> body`, any pytree of arrays.
        advance: `advance(key, body, action) -> body`.
        place: `place(body) -> [2]`, x and y.
        see: `see(body) -> [d]`, what a policy sees, of order 1.
        action_size: length of an action vector.
        half_side: the map is `[-half_side, half_side]^2`; leaving it ends the episode.
        cells_a_side: its cells in each direction, numbered by row (x) and column (y).
        block: each visit marks block x block cells, the visited one at their lowest corner.
        horizon: H >= 2, states of an episode.
        features: `"position"` or `"visited"`.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv 2307.13372, MuJoCo Ant: its map and reward.

    Example:
        >>> same = lambda body: body
        >>> env = occupancy_world(
        ...     lambda key: jnp.zeros(2), lambda key, body, action: body + action, place=same,
        ...     see=same, action_size=2, half_side=2.0, cells_a_side=4, block=1, horizon=3,
        ... )
        >>> env.action_size, env.num_items
        (2, 16)
    """
    validation.number("half_side", half_side, minimum=0, open_minimum=True)
    cells_a_side = validation.integer("cells_a_side", cells_a_side, minimum=1)
    action_size = validation.integer("action_size", action_size, minimum=1)
    shape = (cells_a_side, cells_a_side)
    cover = grids.grid_blocks(shape, block)
    dynamics = OccupancyDynamics(begin, advance, place, see, half_side, cells_a_side, action_size)
    return make_environment(
        dynamics,
        (),
        cells.cell_coverage(cover, jnp.full(cells_a_side**2, 0.1)),
        horizon=horizon,
        features=features,
        shape=shape,
    )


class PointMass(NamedTuple):
    """A point in the plane: x and y, and its velocity in units a second, `[2]` each."""

    place: Float[Array, " 2"]
    velocity: Float[Array, " 2"]


def point_mass_world(
    *, top_speed: float = 4.0, time_step: float = 0.1, **options: Any
) -> SubmodularEnvironment:
    """Make a point mass that marks the map: the light stand-in for Ant.

    `top_speed` is in map units a second, `time_step` in seconds; other options and errors are those
    of `occupancy_world`.

    An action is the acceleration, clipped to `[-1, 1]^2` and scaled so that full thrust against
    drag ends at `top_speed` in each direction, with a time constant of one second.

    Example:
        >>> env = point_mass_world(half_side=2.0, cells_a_side=4, horizon=3)
        >>> env.action_size, env.num_items
        (2, 16)
    """
    validation.number("top_speed", top_speed, minimum=0, open_minimum=True)
    validation.number("time_step", time_step, minimum=0, maximum=1, open_minimum=True)
    half_side = options.get("half_side", 20.0)

    def begin(key):
        return PointMass(jnp.zeros(2), jnp.zeros(2))

    def advance(key, body, action):
        thrust = top_speed * jnp.clip(action, -1, 1)
        velocity = body.velocity + time_step * (thrust - body.velocity)
        return PointMass(body.place + time_step * velocity, velocity)

    return occupancy_world(
        begin,
        advance,
        place=lambda body: body.place,
        see=lambda body: jnp.concatenate([body.place / half_side, body.velocity / top_speed]),
        action_size=2,
        **options,
    )


#: Physics engines of Brax.
BACKENDS = ("positional", "generalized", "spring", "mjx")


def ant_world(backend: str = "positional", *, horizon: int = 401, **options: Any) -> Any:
    """Make the paper's Ant: 29 observations, 8 actions, a map of 100 x 100 cells of 0.4.

    Args:
        backend: physics engine, one of `BACKENDS`.
        horizon: H, states of an episode; the paper's has 400 actions.
        **options: options of `occupancy_world`.

    Raises:
        ImportError: if Brax is not installed.
        ValueError: if there is no such backend.

    Source: arXiv 2307.13372, MuJoCo Ant.

    Example:
        >>> ant_world("x")
        Traceback (most recent call last):
        ValueError: backend must be one of 'positional', 'generalized', 'spring', 'mjx', got 'x'
    """
    validation.choice("backend", backend, BACKENDS)
    try:
        envs: Any = importlib.import_module("brax.envs")
    except ImportError as error:
        raise ImportError("ant_world needs brax: pip install 'jaxkit[ant]'") from error
    ant = envs.get_environment(
        "ant",
        backend=backend,
        exclude_current_positions_from_observation=False,
        terminate_when_unhealthy=False,
    )

    def see(body):
        # Places span the map; joint speeds reach tens of radians a second.
        scaled = jnp.concatenate([body.obs[:2] / 20, body.obs[2:15], body.obs[15:] / 10])
        return jnp.clip(scaled, -10, 10)

    return occupancy_world(
        ant.reset,
        lambda key, body, action: ant.step(body, jnp.clip(action, -1, 1)),
        place=lambda body: body.obs[:2],
        see=see,
        action_size=ant.action_size,
        horizon=horizon,
        **options,
    )
