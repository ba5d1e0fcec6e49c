"""Finite dynamics: moves by a table, with slips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import validation

Position = Int[Array, ""]


class Move(NamedTuple):
    """Where an action led, its reward beside the gain of F, and whether the episode ends."""

    position: Any
    bonus: Float[Array, ""]
    terminated: Bool[Array, ""]


class TableParams(NamedTuple):
    """Numbers of table dynamics.

    `slip` is the chance that an action is replaced by a uniform one, `coordinates` in `[-1, 1]` are
    what a policy sees of each state.
    """

    next_state: Int[Array, "n A"]
    start: Int[Array, ""]
    slip: Float[Array, ""]
    coordinates: Float[Array, "n d"]


@dataclasses.dataclass(frozen=True)
class TableDynamics:
    """Moves by a table; with chance `slip` a uniform action is taken in place of the chosen one.

    `slips`, whether they can at all, is static, so that sure moves draw no numbers.
    """

    num_states: int
    num_actions: int
    slips: bool
    terminates: bool = False
    action_size: None = None

    def start(self, key: Key[Array, ""], params: TableParams) -> Position:
        """First state."""
        # A copy: the state may be donated, and the next episode needs the start.
        return jnp.array(params.start, jnp.int32)

    def element(self, position: Position, params: TableParams) -> Position:
        """The state itself is what the set function counts."""
        return position

    def features(self, position: Position, params: TableParams) -> Float[Array, " d"]:
        """Coordinates of the state."""
        return params.coordinates[position]

    def move(self, key: Key[Array, ""], position: Any, action: Any, params: TableParams) -> Move:
        """Draw the next state."""
        if self.slips:
            slip_key, action_key = jax.random.split(key)
            other = jax.random.randint(action_key, (), 0, self.num_actions)
            action = jnp.where(jax.random.uniform(slip_key) < params.slip, other, action)
        return Move(params.next_state[position, action], jnp.zeros(()), jnp.zeros((), bool))

    def outcomes(self, params: TableParams) -> Float[Array, "A A"]:
        """Chance `[a, m]` that choosing action a executes move m."""
        a = self.num_actions
        return (1 - params.slip) * jnp.eye(a) + params.slip / a

    def expect(self, values: Float[Array, " n"], params: TableParams) -> Float[Array, "n A"]:
        """Expected value of the next state for each state and action."""
        return jnp.matmul(values[params.next_state], self.outcomes(params).T, precision="highest")


def table_dynamics(
    next_state: ArrayLike | Sequence[Any],
    *,
    start: Any = 0,
    slip: Any = 0.0,
    coordinates: ArrayLike | None = None,
) -> tuple[TableDynamics, TableParams]:
    r"""Make $s' = T[s, a]$, where with chance $p$ a uniform action takes the place of $a$.

    Args:
        next_state: T, integers `[n, A]`.
        start: first state; a concrete or traced integer.
        slip: p in `[0, 1]`; a concrete 0 compiles dynamics that draw no numbers.
        coordinates: what a policy sees of each state, `[n, d]`; by default its index in `[-1, 1]`.

    Raises:
        TypeError: if `next_state` is not of integers.
        ValueError: if an entry is not a state, or a number is out of range.

    Source: arXiv 2307.13372, "Submodular RL" (the tuple (S, A, P, rho, H, F)).

    Example:
        >>> dynamics, params = table_dynamics([[0, 1], [1, 0]])
        >>> int(dynamics.move(jax.random.key(0), 0, 1, params).position)
        1
    """
    table = np.asarray(validation.array("next_state", next_state))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"next_state must be a table [n, A], got shape {table.shape}")
    if not np.issubdtype(table.dtype, np.integer):
        raise TypeError(f"next_state must hold integers, got dtype {table.dtype}")
    n, num_actions = table.shape
    wrong = (table < 0) | (table >= n)
    if wrong.any():
        state, action = np.argwhere(wrong)[0]
        raise ValueError(
            f"next_state must hold states 0 .. {n - 1}, got {table[state, action]} at state "
            f"{state}, action {action}"
        )
    first = start
    if not validation.is_traced(start):
        first = jnp.asarray(validation.integer("start", start), jnp.int32)
        if not 0 <= start < n:
            raise ValueError(f"start must be one of the states 0 .. {n - 1}, got {start}")
    seen = jnp.linspace(-1, 1, n)[:, None]
    if coordinates is not None:
        seen = jnp.asarray(coordinates, jnp.float32)
    if seen.ndim != 2 or seen.shape[0] != n:
        raise ValueError(f"coordinates must have shape ({n}, d), got {seen.shape}")
    validation.number("slip", slip, minimum=0, maximum=1)
    slips = validation.is_traced(slip) or float(slip) > 0
    params = TableParams(jnp.asarray(table, jnp.int32), first, jnp.asarray(slip, jnp.float32), seen)
    return TableDynamics(n, num_actions, slips), params
