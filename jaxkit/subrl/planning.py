"""Planners that know the dynamics, and what curvature promises of a plan for F({s})."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import pytrees, submodular, validation
from jaxkit.subrl import tables
from jaxkit.subrl.environments import Params, SubmodularEnvironment


class Plan(NamedTuple):
    """Actions, the states they lead through, the gain of each after the first, and F."""

    actions: Int[Array, " T"]
    states: Int[Array, " H"]
    gains: Float[Array, " T"]
    value: Float[Array, ""]


def _sure(environment: SubmodularEnvironment, what: str) -> None:
    validation.instance("environment", environment, SubmodularEnvironment, "a world")
    dynamics = environment.dynamics
    if not isinstance(dynamics, tables.TableDynamics) or dynamics.slips:
        raise ValueError(
            f"environment must have moves by a table without slip for {what}, got "
            f"{environment.dynamics}"
        )


def follow(environment: SubmodularEnvironment, actions: Any, params: Params | None = None) -> Plan:
    """Follow actions `[T]`, T <= H - 1, where moves are sure."""
    _sure(environment, "follow")
    params = environment.default_params if params is None else params
    return _follow(params.set_function, params.dynamics, jnp.asarray(actions, jnp.int32))


@pytrees.jit
def _follow(f: Any, dynamics: tables.TableParams, actions: Any) -> Plan:
    def step(carry, action):
        state, covered = carry
        state = dynamics.next_state[state, action]
        gain = f.gains(covered, state)
        return (state, f.add(covered, state)), (state, gain)

    start = dynamics.start
    covered = f.add(f.init(), start)
    (_, last), (states, gains) = jax.lax.scan(step, (start, covered), actions)
    return Plan(actions, jnp.concatenate([start[None], states]), gains, f.value(last))


def greedy_plan(environment: SubmodularEnvironment, params: Params | None = None) -> Plan:
    """Take the action with the largest gain at each step; ties go to the lowest number.

    It has no guarantee: gains behind a detour are never seen. `params` are numbers of the
    environment, whose moves must be sure, by a table without slip, or it is a `ValueError`.

    Example:
        >>> from jaxkit import subrl
        >>> float(greedy_plan(subrl.coverage_world(horizon=40)).value)
        82.0
    """
    _sure(environment, "greedy_plan")
    params = environment.default_params if params is None else params
    return _greedy(params.set_function, params.dynamics, environment.horizon)


@functools.partial(pytrees.jit, static_argnames="horizon")
def _greedy(f: Any, dynamics: tables.TableParams, horizon: int) -> Plan:
    def step(carry, _):
        state, covered = carry
        nexts = dynamics.next_state[state]
        action = jnp.argmax(f.gains(covered, nexts)).astype(jnp.int32)
        state = nexts[action]
        return (state, f.add(covered, state)), action

    carry = (dynamics.start, f.add(f.init(), dynamics.start))
    return _follow(f, dynamics, jax.lax.scan(step, carry, None, length=horizon - 1)[1])


def beam_plan(
    environment: SubmodularEnvironment, width: int = 1000, params: Params | None = None
) -> Plan:
    """Keep the best partial trajectories at each step; of equal sets at one place only one.

    The best plan found is a lower bound of the optimum. `width` trajectories are kept; other
    arguments are those of `greedy_plan`, and errors too.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> float(beam_plan(env, 8).value)
        9.0
    """
    _sure(environment, "beam_plan")
    width = validation.integer("width", width, minimum=1)
    params = environment.default_params if params is None else params
    return _beam(params.set_function, params.dynamics, environment.horizon, width)


@functools.partial(pytrees.jit, static_argnames=("horizon", "width"))
def _beam(f: Any, dynamics: tables.TableParams, horizon: int, width: int) -> Plan:
    n, num_actions = dynamics.next_state.shape
    # A set is known by the sum of random numbers of its items, so that equal sets meet in a sort.
    marks = jax.random.bits(jax.random.key(0), (2, n))
    start = dynamics.start

    def step(carry, h):
        states, covered, values, visited, names, actions = carry
        nexts = dynamics.next_state[states]
        totals = values[:, None] + jax.vmap(f.gains)(covered, nexts)
        new = ~jnp.take_along_axis(visited, nexts, axis=1)
        grown = names[:, None] + jnp.where(new, marks[0][nexts], 0)
        totals = _without_repeats(totals.reshape(-1), (grown ^ marks[1][nexts]).reshape(-1))
        values, best = jax.lax.top_k(totals, width)
        parents, chosen = jnp.divmod(best, num_actions)
        states = nexts[parents, chosen]
        covered = jax.vmap(f.add)(jax.tree.map(lambda x: x[parents], covered), states)
        visited = visited[parents] | (jnp.arange(n) == states[:, None])
        actions = actions[parents].at[:, h].set(chosen.astype(jnp.int32))
        return (states, covered, values, visited, grown[parents, chosen], actions), None

    def spread(x):
        return jnp.broadcast_to(x, (width, *jnp.shape(x)))

    first = f.add(f.init(), start)
    carry = (
        spread(start),
        jax.tree.map(spread, first),
        jnp.where(jnp.arange(width) == 0, f.value(first), -jnp.inf),
        spread(jnp.arange(n) == start),
        spread(marks[0][start]),
        jnp.zeros((width, horizon - 1), jnp.int32),
    )
    (*_, actions), _ = jax.lax.scan(step, carry, jnp.arange(horizon - 1))
    return _follow(f, dynamics, actions[0])


def _without_repeats(totals: Any, names: Any) -> Any:
    """Set all but the best of entries with the same name to -inf."""
    order = jnp.lexsort((-totals, names))
    sorted_names = names[order]
    repeat = jnp.concatenate([jnp.zeros(1, bool), sorted_names[1:] == sorted_names[:-1]])
    return totals.at[order].set(jnp.where(repeat, -jnp.inf, totals[order]))


class ModularPlan(NamedTuple):
    """The best actions by time and state, the expected sum of F({s}), and that still to come."""

    policy: Int[Array, "T n"]
    value: Float[Array, ""]
    state_values: Float[Array, "H n"]


def modular_plan(environment: SubmodularEnvironment, params: Params | None = None) -> ModularPlan:
    r"""Solve $V_h(s) = \max_a E[F(s') + V_{h+1}(s')]$ exactly, backwards.

    It is what ModPO strives for. With curvature c over time-stamped items its F is at least
    $(1 - c)$ of the optimum (see `curvature`).

    Args:
        environment: a world with finite states; moves may be random.
        params: numbers of the environment.

    Raises:
        ValueError: if states are not finite.

    Source: arXiv 2307.13372, the modular baseline.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> float(modular_plan(env).value)
        16.0
    """
    params = environment.default_params if params is None else params
    dynamics, f = environment.dynamics, params.set_function
    missing = [n for n in ("num_states", "expect") if not hasattr(dynamics, n)]
    missing += ["start"] * (not hasattr(params.dynamics, "start"))
    if missing:
        raise ValueError(
            "environment must have finite states, with dynamics.num_states, "
            "dynamics.expect(values, params) -> [n, A] and a first state params.dynamics.start, "
            f"got no {' and no '.join(missing)}"
        )
    found = jax.eval_shape(dynamics.expect, jnp.zeros(f.num_items), params.dynamics).shape
    if found != (shape := (f.num_items, dynamics.num_actions)):
        raise ValueError(f"dynamics.expect must give shape {shape}, got {found}")
    alone = f.gains(f.init())

    def step(later, _):
        q = dynamics.expect(alone + later, params.dynamics)
        return q.max(1), (jnp.argmax(q, 1), q.max(1))

    zero = jnp.zeros_like(alone)
    _, (policy, values) = jax.lax.scan(
        step, zero, None, length=environment.horizon - 1, reverse=True
    )
    start = params.dynamics.start
    return ModularPlan(
        policy.astype(jnp.int32),
        alone[start] + values[0, start],
        jnp.concatenate([values, zero[None]]),
    )


def follow_policy(
    environment: SubmodularEnvironment, policy: Int[Array, "T n"], params: Params | None = None
) -> Plan:
    """Follow a deterministic Markovian policy, `[H - 1, n]`, where moves are sure."""
    _sure(environment, "follow_policy")
    numbers = (environment.default_params if params is None else params).dynamics

    def step(state, actions):
        return numbers.next_state[state, actions[state]], actions[state]

    return follow(environment, jax.lax.scan(step, numbers.start, policy)[1], params)


def curvature(function: submodular.SetFunction) -> Float[Array, ""]:
    r"""Compute $c = 1 - \min_{v: F(v) > 0} F(v \mid V \setminus v) / F(v)$, in `[0, 1]`; n chains.

    For sets of distinct items $(1 - c) \sum F(v) \le F(\tau) \le \sum F(v)$, so a plan
    that is optimal for the sum reaches $(1 - c)$ of the optimum of F. Where a repeated visit counts
    once, the items of the sum must be time-stamped, and c is 1: the bound says nothing. It says
    something for `measurements`, where each visit has noise of its own.

    Source: arXiv 2307.13372, curvature; Conforti and Cornuejols 1984.
    """
    n = function.num_items
    items = jnp.arange(n)

    def last_gain(item):
        rest = submodular.set_functions.add_all(function, function.init(), items, items != item)
        return function.gains(rest, item)

    alone = function.gains(function.init())
    ratio = jax.lax.map(last_gain, items) / jnp.where(alone > 0, alone, 1)
    return 1 - jnp.min(jnp.where(alone > 0, ratio, 1))
