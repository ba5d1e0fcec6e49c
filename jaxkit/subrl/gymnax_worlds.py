"""Worlds made of gymnax environments: their moves, rewarded by a set function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxkit import submodular
from jaxkit.subrl.environments import SubmodularEnvironment, make_environment
from jaxkit.subrl.tables import Move


class _Position(NamedTuple):
    state: Any
    observation: Float[Array, " o"]


@dataclasses.dataclass(frozen=True)
class GymnaxDynamics:
    """Moves of a gymnax environment; make it with `gymnax_world`."""

    environment: Any
    item: Callable[[Any], Any]
    num_actions: int
    action_size: None = None
    terminates: bool = True

    def start(self, key: Key[Array, ""], params: Any) -> Any:
        """Draw the first state."""
        observation, state = self.environment.reset_env(key, params)
        return _Position(state, jnp.ravel(observation).astype(jnp.float32))

    def move(self, key: Key[Array, ""], position: Any, action: Any, params: Any) -> Move:
        """Step without a reset; the environment's own reward is left out."""
        observation, state, _, terminated, *_ = self.environment.step_env(
            key, position.state, action, params
        )
        after = _Position(state, jnp.ravel(observation).astype(jnp.float32))
        return Move(after, jnp.zeros(()), jnp.asarray(terminated, bool))

    def element(self, position: Any, params: Any) -> Any:
        """The item of the set function in a state."""
        return jnp.asarray(self.item(position.state))

    def features(self, position: Any, params: Any) -> Float[Array, " o"]:
        """What the environment shows."""
        return position.observation


def gymnax_world(
    environment: Any,
    set_function: submodular.SetFunction,
    item: Callable[[Any], Any],
    *,
    env_params: Any = None,
    horizon: int = 40,
    **options: Any,
) -> SubmodularEnvironment:
    """Reward the visits of a gymnax environment with discrete actions by a set function.

    Args:
        environment: what `gymnax.make` returns first, or anything with its methods `reset_env`,
            `step_env` and `num_actions`.
        set_function: F over the items visited.
        item: `item(state)`, the item of F in a state of the environment, -1 for none.
        env_params: numbers of the environment; its `default_params` if None. Part of the world's
            `default_params.dynamics`, so that they can be swept by `vmap`.
        horizon: H >= 2, states of an episode.
        **options: further options of `make_environment`; a place is seen as the environment shows
            it, flat.

    Returns:
        The world. An episode ends where the environment's does.

    Raises:
        TypeError, ValueError: as `make_environment`.

    Example:
        >>> class Line:
        ...     num_actions, default_params = 2, ()
        ...     def reset_env(self, key, params): return jnp.zeros(1), jnp.zeros((), int)
        ...     def step_env(self, key, s, a, params): return s[None] + a, s + a, 0.0, s > 3, {}
        >>> f = submodular.modular(jnp.ones(9))
        >>> world = gymnax_world(Line(), f, lambda state: state, horizon=4)
        >>> world.num_actions, world.num_items
        (2, 9)
    """
    parts = ("reset_env", "step_env", "num_actions")
    if missing := [name for name in parts if not hasattr(environment, name)]:
        raise TypeError(f"environment must have {', '.join(parts)}, got no {', '.join(missing)}")
    dynamics = GymnaxDynamics(environment, item, environment.num_actions)
    numbers = environment.default_params if env_params is None else env_params
    return make_environment(dynamics, numbers, set_function, horizon=horizon, **options)
