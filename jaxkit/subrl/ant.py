"""Brax's Ant on an occupancy map; Brax is an optional extra."""

from __future__ import annotations

import importlib
from typing import Any

import jax.numpy as jnp

from jaxkit import validation
from jaxkit.subrl.occupancy import occupancy_world

#: Physics engines of Brax.
BACKENDS = ("positional", "generalized", "spring", "mjx")


def ant_world(backend: str = "positional", *, horizon: int = 401, **options: Any) -> Any:
    """Make the paper's Ant: 29 observations, 8 actions, a map of 100 x 100 cells of 0.4.

    Args:
        backend: physics engine, one of `BACKENDS`.
        horizon: H, states of an episode; the paper's has 400 actions.
        **options: options of `occupancy_world`.

    Returns:
        The environment.

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
