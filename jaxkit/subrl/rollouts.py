"""Episodes drawn from a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import validation
from jaxkit.subrl.environments import Params, SubmodularEnvironment


class Decisions(NamedTuple):
    """What a loss reads of episodes; axes are `[B, T]`, or others if the same in all.

    A loss over all decisions is the mean of the losses over slices of equal size. `share` is the
    weight in a mean over active decisions, 0 where inactive and 1 on average.
    """

    observations: Float[Array, "*d o"]
    actions: Any
    active: Bool[Array, "*d"]
    share: Float[Array, "*d"]


class Rollout(NamedTuple):
    """B episodes of H states, so T = H - 1 actions.

    Attributes:
        observations: what the policy saw before each action, `[B, T, o]`.
        actions: `[B, T]`, or `[B, T, a]` for vectors.
        gains: `F(s_{h+1} | s_0 .. s_h)` and bonus, `[B, T]`; 0 after an end.
        singles: `F({s_{h+1}})` and bonus, counted at every visit, `[B, T]`; 0 after an end.
        first: `F({s_0})`, `[B]`.
        elements: items visited, -1 for none, `[B, H]`.
        active: whether the episode still ran when the action was taken, `[B, T]`.
    """

    observations: Float[Array, "B T o"]
    actions: Any
    gains: Float[Array, "B T"]
    singles: Float[Array, "B T"]
    first: Float[Array, " B"]
    elements: Int[Array, "B H"]
    active: Bool[Array, "B T"]

    @property
    def share(self) -> Float[Array, "B T"]:
        """Weight of each decision in a mean over the active ones: 1 on average, `[B, T]`."""
        return self.active / jnp.maximum(self.active.mean(), 1 / self.active.size)

    @property
    def decisions(self) -> Decisions:
        """What a loss reads."""
        return Decisions(self.observations, self.actions, self.active, self.share)

    @property
    def values(self) -> Float[Array, " B"]:
        """F of each episode: the first value and the gains telescope."""
        return self.first + self.gains.sum(-1)

    @property
    def modular_values(self) -> Float[Array, " B"]:
        """Sum of F({s}) over the visits of each episode."""
        return self.first + self.singles.sum(-1)


def rollout(
    key: Key[Array, ""],
    environment: SubmodularEnvironment,
    act: Callable[[Key[Array, ""], Any], Any],
    batch_size: int,
    params: Params | None = None,
    constrain: Callable[[Any], Any] = lambda x: x,
) -> Rollout:
    """Draw episodes; each array is the same on any number of devices.

    Args:
        key: typed PRNG key.
        environment: where to act.
        act: `act(key, observations [B, o])` draws the actions `[B, ...]`.
        batch_size: B.
        params: numbers of the environment.
        constrain: applied to the batch of states at each step, to place it on a mesh.

    Raises:
        ValueError: if `batch_size` is not positive.

    Source: arXiv 2307.13372, Algorithm 1, the roll-out.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> right = lambda key, observations: jnp.ones(len(observations), int)
        >>> draw = jax.jit(lambda key: rollout(key, env, right, 1))
        >>> draw(jax.random.key(0)).gains.tolist()
        [[2.0, 0.0, 0.0]]
    """
    batch_size = validation.integer("batch_size", batch_size, minimum=1)
    return _episodes(
        key, environment, lambda time, *seen: act(*seen), batch_size, params, constrain
    )


def replay(
    environment: SubmodularEnvironment,
    actions: ArrayLike | Sequence[Any],
    key: Key[Array, ""] | None = None,
    params: Params | None = None,
) -> Rollout:
    """Take given actions: what they would have earned, for a loss or for a comparison.

    Args:
        environment: where to act.
        actions: the actions, `[B, H - 1, ...]`.
        key: draws what is random in the moves; `jax.random.key(0)` by default.
        params: numbers of the environment.

    Raises:
        ValueError: if a shape is wrong, or a concrete action out of range.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> replay(env, [[1, 2, 2]]).values.tolist()
        [8.0]
    """
    array = jnp.asarray(actions)
    steps, size, number = environment.horizon - 1, environment.action_size, environment.num_actions
    tail = (steps,) if size is None else (steps, size)
    if array.ndim != len(tail) + 1 or array.shape[1:] != tail:
        wanted = ", ".join(map(str, tail))
        raise ValueError(f"actions must have shape [B, {wanted}], got {array.shape}")
    if number is not None and not validation.is_traced(array):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"actions must be integers, got dtype {array.dtype}")
        given = np.asarray(array)
        wrong = given[(given < 0) | (given >= number)]
        if wrong.size:
            raise ValueError(f"actions must be in 0 .. {number - 1}, got {int(wrong[0])}")
    key = jax.random.key(0) if key is None else key
    return _episodes(key, environment, lambda time, *_: array[:, time], len(array), params)


def _episodes(key, environment, choose, batch_size, params=None, constrain=lambda x: x) -> Rollout:
    params = environment.default_params if params is None else params
    dynamics, f = environment.dynamics, params.set_function
    num_steps = environment.horizon - 1
    keys = jax.random.split(key, 2 * num_steps + 1)
    starts = jax.random.split(keys[-1], batch_size)
    observations, state = jax.vmap(environment.reset, (0, None))(starts, params)

    def step(carry, step_keys):
        observations, state = constrain(carry)
        time, act_key, move_key = step_keys
        actions = choose(time, act_key, observations)
        taken = jax.vmap(environment.step_env, (0, 0, 0, None))(
            jax.random.split(move_key, batch_size), state, actions, params
        )
        record = (observations, actions, taken.reward, taken.info["element"], ~state.done)
        return (taken.observation, taken.state), record

    step_keys = (jnp.arange(num_steps), keys[:num_steps], keys[num_steps:-1])
    _, recorded = jax.lax.scan(step, (observations, state), step_keys)
    seen, actions, gains, later, active = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), recorded)
    first_element = jax.vmap(dynamics.element, (0, None))(state.position, params.dynamics)
    # F of single items is known before any episode: one look-up a visit. The barrier keeps XLA from
    # working it out while compiling: on CPU (jaxlib 0.10) some compilations then fold it to zeros.
    alone = f.gains(jax.lax.optimization_barrier(f.init()))
    inside = (later >= 0) & active
    singles = jnp.where(inside, alone[later], 0)
    if dynamics.terminates:
        gained = jax.vmap(_set_gains, (None, 0, 0))(f, first_element, jnp.where(inside, later, -1))
        singles = singles + gains - gained
    elements = jnp.concatenate([first_element[:, None], later], axis=1)
    none = 0 if dynamics.terminates else jnp.nan
    first = jnp.where(first_element < 0, none, alone.at[first_element].get(mode="fill"))
    return Rollout(seen, actions, gains, singles, first, elements, active)


def _set_gains(f: Any, first: Any, later: Any) -> Any:
    """Gains without the bonus of moves, `[T]`; -1 for none."""

    def step(state, element):
        gain = jnp.where(element >= 0, f.gains(state, element), 0)
        added = f.add(state, element)
        return jax.tree.map(lambda a, b: jnp.where(element >= 0, a, b), added, state), gain

    return jax.lax.scan(step, f.init(), jnp.append(first, later))[1][1:]


def policy_act(policy: Any, params: Any) -> Callable[[Key[Array, ""], Any], Any]:
    """The `act(key, observations)` of `rollout`, from a policy and its parameters."""
    return lambda key, observations: policy.sample(key, policy.apply(params, observations))
