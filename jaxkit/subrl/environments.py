"""Submodular environments: dynamics, a set function of the visited states, and what is seen."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import submodular, validation
from jaxkit.subrl import features as seeing
from jaxkit.subrl.tables import Move

Observation = Float[Array, "*o"]


@runtime_checkable
class Dynamics(Protocol):
    """How positions change: static and hashable; its numbers come as `params`."""

    @property
    def num_actions(self) -> int | None:
        """Number of actions, None if they are vectors."""
        ...

    @property
    def action_size(self) -> int | None:
        """Length of an action vector, None if actions are numbers."""
        ...

    @property
    def terminates(self) -> bool:
        """Whether an episode can end before its horizon or leave the ground set."""
        ...

    def start(self, key: Any, params: Any) -> Any:
        """Draw the first position."""
        ...

    def move(self, key: Any, position: Any, action: Any, params: Any) -> Move:
        """Draw the next position."""
        ...

    def element(self, position: Any, params: Any) -> Any:
        """The item of the ground set at a position, -1 for none."""
        ...

    def features(self, position: Any, params: Any) -> Any:
        """What a policy sees of a position, `[d]`, of order 1."""
        ...


class Params(NamedTuple):
    """Everything of an environment that may be traced.

    `return_scale` is a typical large F, by which signals are divided; `max_steps_in_episode` is at
    most H - 1.
    """

    dynamics: PyTree
    set_function: Any
    return_scale: Float[Array, ""]
    max_steps_in_episode: Int[Array, ""]


class State(NamedTuple):
    """Where an episode stands; `memory` is what the features keep, `time` the actions taken."""

    position: PyTree
    covered: PyTree
    memory: PyTree
    time: Int[Array, ""]
    done: Bool[Array, ""]


class Step(NamedTuple):
    """The six values of a step, as gymnax (1.0) returns them.

    The reward is the gain of the state just reached, and the bonus of the move; `info` has
    `element`, the item reached, and after `step` also `final_observation`.
    """

    observation: Observation
    state: State
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class SubmodularEnvironment:
    r"""A submodular MDP: the return of an episode is $F(s_0, \dots, s_{H-1})$.

    The reward of a step is the gain $F(s_{h+1} \mid s_0 .. s_h)$; with $F(s_0)$, which no
    action earns, the rewards add up to F. Methods are pure and follow gymnax's signatures; `params`
    may be traced, so that weights, slips or starts can be swept by `vmap`.

    Attributes:
        dynamics: static part of the dynamics.
        horizon: H, number of *states* of an episode, so H - 1 actions.
        features: what a policy sees, a name in `FEATURES`.
        default_params: numbers used where none are given.
        shape: rows and columns, where the states are cells of a grid.

    Source: arXiv 2307.13372, definition of the submodular MDP.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> observation, state = jax.jit(env.reset)(jax.random.key(0))
        >>> step = jax.jit(env.step)(jax.random.key(1), state, 1)
        >>> float(step.reward), bool(step.truncated)
        (2.0, False)
    """

    dynamics: Any
    horizon: int
    features: str
    default_params: Params
    shape: tuple[int, int] | None = None

    @property
    def num_actions(self) -> int | None:
        """Number of actions, None if they are vectors."""
        return self.dynamics.num_actions

    @property
    def action_size(self) -> int | None:
        """Length of an action vector, None if actions are numbers."""
        return self.dynamics.action_size

    @property
    def num_items(self) -> int:
        """Size of the ground set of F."""
        return self.default_params.set_function.num_items

    def observe(self, state: State, params: Params | None = None) -> Observation:
        """What a policy sees in a state."""
        params = self.default_params if params is None else params
        view = seeing.View(
            self.dynamics.features(state.position, params.dynamics),
            self.dynamics.element(state.position, params.dynamics),
            state.time,
            state.memory,
            self.horizon,
        )
        return seeing.FEATURES[self.features].observe(view)

    def start(self, key: Key[Array, ""], params: Params | None = None) -> State:
        """Draw the first state; s_0 is in the set already."""
        params = self.default_params if params is None else params
        f, memory = params.set_function, seeing.FEATURES[self.features]
        position = self.dynamics.start(key, params.dynamics)
        element = self.dynamics.element(position, params.dynamics)
        empty, nothing = f.init(), memory.start(f.num_items, self.horizon)
        covered, kept = f.add(empty, element), memory.remember(nothing, element, 0)
        if self.dynamics.terminates:
            covered, kept = _where(element >= 0, (covered, kept), (empty, nothing))
        return State(position, covered, kept, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def reset(self, key: Key[Array, ""], params: Params | None = None) -> tuple[Observation, State]:
        """Draw the first state and what is seen of it."""
        state = self.start(key, params)
        return self.observe(state, params), state

    def step_env(
        self, key: Key[Array, ""], state: State, action: Any, params: Params | None = None
    ) -> Step:
        """Take an action, a number below `num_actions` or a vector; no reset.

        After the end, nothing changes and rewards are 0. The reward is NaN where the dynamics name
        an item that F lacks, or end or leave the items though they do not `terminates`.

        Raises:
            ValueError: if a concrete action is out of range.
        """
        params = self.default_params if params is None else params
        self._check(action)
        f, memory = params.set_function, seeing.FEATURES[self.features]
        move = self.dynamics.move(key, state.position, action, params.dynamics)
        element = self.dynamics.element(move.position, params.dynamics)
        reward = f.gains(state.covered, element) + move.bonus
        covered = f.add(state.covered, element)
        time = state.time + 1
        after = State(
            move.position, covered, memory.remember(state.memory, element, time), time, state.done
        )
        if self.dynamics.terminates:
            counts = (element >= 0) & ~state.done
            reward = jnp.where(counts, reward, jnp.where(state.done, 0, move.bonus))
            after = after._replace(
                position=_where(state.done, state.position, after.position),
                covered=_where(counts, covered, state.covered),
                memory=_where(counts, after.memory, state.memory),
                done=state.done | move.terminated,
            )
        # No item of F, or an end where the dynamics say that there is none.
        wrong = element >= f.num_items
        if not self.dynamics.terminates:
            wrong |= (element < 0) | move.terminated
        reward = jnp.where(wrong, jnp.nan, reward)
        truncated = time >= params.max_steps_in_episode
        return Step(
            self.observe(after, params), after, reward, after.done, truncated, {"element": element}
        )

    def step(
        self, key: Key[Array, ""], state: State, action: Any, params: Params | None = None
    ) -> Step:
        """Take an action as `step_env`; at the end of an episode, start the next.

        The last observation of the episode that ended is in `info["final_observation"]`.
        """
        step_key, reset_key = jax.random.split(key)
        taken = self.step_env(step_key, state, action, params)
        observation, fresh = self.reset(reset_key, params)
        over = taken.terminated | taken.truncated
        return taken._replace(
            observation=_where(over, observation, taken.observation),
            state=_where(over, fresh, taken.state),
            info={**taken.info, "final_observation": taken.observation},
        )

    def _check(self, action: Any) -> None:
        if validation.is_traced(action):
            return
        if self.num_actions is not None:
            number = validation.integer("action", action)
            if not 0 <= number < self.num_actions:
                raise ValueError(f"action must be in 0 .. {self.num_actions - 1}, got {number}")
        elif np.shape(action) != (self.action_size,):
            raise ValueError(
                f"action must be a vector [{self.action_size}], got shape {np.shape(action)}"
            )


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def make_environment(
    dynamics: Any,
    dynamics_params: PyTree,
    set_function: submodular.SetFunction,
    *,
    horizon: int,
    features: str = "position",
    return_scale: Any = None,
    shape: tuple[int, int] | None = None,
) -> SubmodularEnvironment:
    """Join dynamics and a set function to an environment.

    Args:
        dynamics: a `Dynamics`.
        dynamics_params: its numbers.
        set_function: F over the items that `dynamics.element` names.
        horizon: H >= 2, states of an episode.
        features: `"position"` (place and time: Markovian policies), `"visited"` (and a mask of the
            visited items), `"official_position"` (raw state number and time) or
            `"official_history"` (raw numbers of all states so far, padded with -1).
        return_scale: by what signals are divided; by default `2 (H + 1)`, as the paper's program.
        shape: rows and columns for figures, where the items are cells of a grid.

    Raises:
        TypeError: if `set_function` is none, or the dynamics lack a part of `Dynamics` or do not
            fit together.
        ValueError: if the horizon is shorter than 2, the scale not positive, `features` unknown, or
            the set function has another number of items than there are states.

    Source: arXiv 2307.13372, definition of the submodular MDP.

    Example:
        >>> from jaxkit import submodular, subrl
        >>> dynamics, numbers = subrl.table_dynamics([[0, 1], [1, 0]])
        >>> f = submodular.modular(jnp.array([1.0, 2.0]))
        >>> make_environment(dynamics, numbers, f, horizon=3).num_items
        2
    """
    horizon = validation.integer("horizon", horizon, minimum=2)
    validation.choice("features", features, seeing.FEATURES)
    if missing := [name for name in _PARTS if not hasattr(dynamics, name)]:
        raise TypeError(
            f"dynamics must have all of subrl.Dynamics, {type(dynamics).__name__} has no "
            f"{', '.join(missing)}"
        )
    count, size = dynamics.num_actions, dynamics.action_size
    if (count is None) == (size is None):
        raise ValueError(
            f"dynamics must have either num_actions or action_size, got {count} and {size}"
        )
    name, number = ("action_size", size) if count is None else ("num_actions", count)
    validation.integer(f"{name} of the dynamics", number, minimum=1)
    if not isinstance(set_function, submodular.SetFunction):
        raise TypeError(
            "set_function must have the methods of submodular.SetFunction, got "
            f"{type(set_function).__name__}"
        )
    num_states = getattr(dynamics, "num_states", None)
    if num_states is not None and set_function.num_items != num_states:
        raise ValueError(
            f"set_function must have one item for each of the {num_states} states, got "
            f"{set_function.num_items}"
        )
    if num_states is None and seeing.FEATURES[features].finite:
        raise ValueError(f"features {features!r} need a world whose states are numbers")
    scale = 2 * (horizon + 1) if return_scale is None else return_scale
    validation.number("return_scale", scale, minimum=0, open_minimum=True)
    params = Params(
        dynamics_params,
        set_function,
        jnp.asarray(scale, jnp.float32),
        jnp.asarray(horizon - 1, jnp.int32),
    )
    made = SubmodularEnvironment(dynamics, horizon, features, params, shape)
    _try(made)
    return made


_PARTS = ("num_actions", "action_size", "terminates", "start", "move", "element", "features")


def _try(environment: SubmodularEnvironment) -> None:
    """Trace one step, so that dynamics that do not fit together are named when they are made."""
    size = environment.action_size
    action = jnp.zeros((), jnp.int32) if size is None else jnp.zeros(size)

    def one(key):
        observation, state = environment.reset(key)
        taken = environment.step_env(key, state, action)
        return (observation, state), (taken.observation, taken.state), taken.info["element"]

    try:
        before, after, element = jax.eval_shape(one, jax.random.key(0))
    except Exception as error:
        raise TypeError(
            f"dynamics must draw a start and a Move from it: one step of "
            f"{type(environment.dynamics).__name__} fails: {error}"
        ) from error
    if element.shape or not jnp.issubdtype(element.dtype, jnp.integer):
        raise TypeError(
            f"dynamics.element must be one integer, got {element.dtype} of shape {element.shape}"
        )
    if jax.tree.structure(before) != jax.tree.structure(after) or before != after:
        raise TypeError(
            "dynamics must move to a position of the shapes and types of the start, got "
            f"{before[1].position} and then {after[1].position}"
        )
