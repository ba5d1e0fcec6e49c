"""Exact answers on tiny worlds, from the tree of all move sequences."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import pytrees
from jaxkit.subrl import planning, tables
from jaxkit.subrl.environments import Params, SubmodularEnvironment


class MoveTree(NamedTuple):
    """All sequences of moves; node i of level h has the children i A .. i A + A - 1.

    `states` are `[A^h]` for h = 0 .. H - 1, `gains` and `singles` (F of the state reached alone)
    `[A^h, A]` for h = 0 .. H - 2; choosing action a executes move m with chance `outcomes[a, m]`.
    """

    states: tuple[Int[Array, " _"], ...]
    gains: tuple[Float[Array, "_ A"], ...]
    singles: tuple[Float[Array, "_ A"], ...]
    first: Float[Array, ""]
    outcomes: Float[Array, "A A"]


def move_tree(
    environment: SubmodularEnvironment, params: Params | None = None, *, limit: int = 200_000
) -> MoveTree:
    """Enumerate all move sequences of an episode, at most `limit`."""
    if not isinstance(environment.dynamics, tables.TableDynamics):
        raise ValueError(f"environment must have moves by a table, got {environment.dynamics}")
    num_actions, horizon = environment.dynamics.num_actions, environment.horizon
    count = num_actions ** (horizon - 1)
    if count > limit:
        raise ValueError(
            f"horizon {horizon} with {num_actions} actions has {num_actions}^{horizon - 1} = "
            f"{count} sequences, more than limit = {limit}"
        )
    params = environment.default_params if params is None else params
    outcomes = environment.dynamics.outcomes(params.dynamics)
    return _tree(params.set_function, params.dynamics, outcomes, horizon)


@functools.partial(pytrees.jit, static_argnames="horizon")
def _tree(f: Any, dynamics: tables.TableParams, outcomes: Any, horizon: int) -> MoveTree:
    next_state = dynamics.next_state
    num_actions = next_state.shape[1]
    alone = f.gains(f.init())
    states = [dynamics.start[None]]
    covered = jax.vmap(lambda s: f.add(f.init(), s))(states[0])
    gains, singles = [], []
    for h in range(horizon - 1):
        nexts = next_state[states[-1]]
        gains.append(jax.vmap(f.gains)(covered, nexts))
        singles.append(alone[nexts])
        states.append(nexts.reshape(-1))
        if h < horizon - 2:
            parents = jax.tree.map(lambda x: jnp.repeat(x, num_actions, axis=0), covered)
            covered = jax.vmap(f.add)(parents, states[-1])
    return MoveTree(tuple(states), tuple(gains), tuple(singles), alone[dynamics.start], outcomes)


def exhaustive_plan(
    environment: SubmodularEnvironment, params: Params | None = None, *, limit: int = 200_000
) -> planning.Plan:
    """Find the best action sequence where moves are sure; ties go to the lowest numbers.

    With sure moves no policy, with memory or without, does better. At most `limit` sequences are
    enumerated, or it is a `ValueError`; other arguments and errors are those of `greedy_plan`.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), horizon=4, start=0)
        >>> float(exhaustive_plan(env).value)
        9.0
    """
    planning._sure(environment, "exhaustive_plan")
    tree = move_tree(environment, params, limit=limit)
    return planning.follow(environment, _best_actions(tree), params)


@pytrees.jit
def _best_actions(tree: MoveTree) -> Int[Array, " T"]:
    later = jnp.zeros(len(tree.states[-1]))
    best = []
    for gains in reversed(tree.gains):
        q = gains + later.reshape(gains.shape)
        best.append(jnp.argmax(q, 1).astype(jnp.int32))
        later = q.max(1)
    node, actions = 0, []
    for choice in reversed(best):
        actions.append(choice[node])
        node = node * tree.outcomes.shape[0] + actions[-1]
    return jnp.stack(actions)


def expectimax_value(tree: MoveTree) -> Float[Array, ""]:
    r"""Compute the expected F of an optimal policy that sees the whole history.

    $V(\tau) = \max_a \sum_m P(m \mid a)\,(F(s_m \mid \tau) + V(\tau, s_m))$.

    Source: arXiv 2307.13372, non-Markovian policies.
    """
    later = jnp.zeros(len(tree.states[-1]))
    for gains in reversed(tree.gains):
        moves = gains + later.reshape(gains.shape)
        later = jnp.matmul(moves, tree.outcomes.T, precision="highest").max(1)
    return tree.first + later[0]


def tabular_probabilities(
    tree: MoveTree, logits: Float[Array, "T n A"]
) -> list[Float[Array, "_ A"]]:
    """Probabilities `[A^h, A]` at the nodes of each level, by logits of time, state and action."""
    return [jax.nn.softmax(logits[h, states]) for h, states in enumerate(tree.states[:-1])]


def exact_value(
    tree: MoveTree, probabilities: Sequence[Any], *, modular: bool = False
) -> Float[Array, ""]:
    r"""Compute $J(\pi) = E[F(\tau)]$ of any policy; `jax.grad` of it is the exact gradient.

    `probabilities` are the chances of each action at the nodes of each level, `[A^h, A]`; with
    `modular`, F({s}) is added up over the visits in place of F.

    Source: arXiv 2307.13372, the objective.
    """
    later = jnp.zeros(len(tree.states[-1]))
    earned = tree.singles if modular else tree.gains
    for gains, chances in zip(reversed(earned), reversed(list(probabilities)), strict=True):
        moves = gains + later.reshape(gains.shape)
        executed = jnp.matmul(chances, tree.outcomes, precision="highest")
        later = (executed * moves).sum(1)
    return tree.first + later[0]
