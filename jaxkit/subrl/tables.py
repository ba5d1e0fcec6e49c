"""Finite dynamics: moves by a table with slips, and moves by a matrix of probabilities."""

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


def _start(self: Any, key: Key[Array, ""], params: Any) -> Position:
    """First state."""
    # A copy: the state may be donated, and the next episode needs the start.
    return jnp.array(params.start, jnp.int32)


def _element(self: Any, position: Any, params: Any) -> Any:
    """The state itself is what the set function counts."""
    return position


def _features(self: Any, position: Any, params: Any) -> Float[Array, " d"]:
    """Coordinates of the state."""
    return params.coordinates[position]


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
    start, element, features = _start, _element, _features

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


class MatrixParams(NamedTuple):
    """Numbers of matrix dynamics: P(s' | s, a), the first state, and what a policy sees of each."""

    probabilities: Float[Array, "n A n"]
    start: Int[Array, ""]
    coordinates: Float[Array, "n d"]


@dataclasses.dataclass(frozen=True)
class MatrixDynamics:
    """Moves drawn from a matrix P(s' | s, a)."""

    num_states: int
    num_actions: int
    terminates: bool = False
    action_size: None = None
    start, element, features = _start, _element, _features

    def move(self, key: Key[Array, ""], position: Any, action: Any, params: MatrixParams) -> Move:
        """Draw the next state."""
        logits = jnp.log(params.probabilities[position, action])
        drawn = jax.random.categorical(key, logits).astype(jnp.int32)
        return Move(drawn, jnp.zeros(()), jnp.zeros((), bool))

    def expect(self, values: Float[Array, " n"], params: MatrixParams) -> Float[Array, "n A"]:
        """Expected value of the next state for each state and action."""
        return jnp.matmul(params.probabilities, values, precision="highest")


def _first_state(start: Any, num_states: int) -> jax.Array:
    if validation.is_traced(start):
        return start
    number = validation.integer("start", start)
    if not 0 <= number < num_states:
        raise ValueError(f"start must be one of the states 0 .. {num_states - 1}, got {number}")
    return jnp.asarray(number, jnp.int32)


def _coordinates(coordinates: Any, num_states: int) -> jax.Array:
    if coordinates is None:
        return jnp.linspace(-1, 1, num_states)[:, None]
    array = jnp.asarray(coordinates, jnp.float32)
    if array.ndim != 2 or array.shape[0] != num_states:
        raise ValueError(f"coordinates must have shape ({num_states}, d), got {array.shape}")
    return array


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
    table = np.asarray(next_state)
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
    validation.number("slip", slip, minimum=0, maximum=1)
    slips = validation.is_traced(slip) or float(slip) > 0
    params = TableParams(
        jnp.asarray(table, jnp.int32),
        _first_state(start, n),
        jnp.asarray(slip, jnp.float32),
        _coordinates(coordinates, n),
    )
    return TableDynamics(n, num_actions, slips), params


def matrix_dynamics(
    probabilities: ArrayLike | Sequence[Any],
    *,
    start: Any = 0,
    coordinates: ArrayLike | None = None,
) -> tuple[MatrixDynamics, MatrixParams]:
    r"""Make $s' \sim P(\cdot \mid s, a)$.

    Args:
        probabilities: P, `[n, A, n]`, rows of which sum to 1.
        start: first state; a concrete or traced integer.
        coordinates: what a policy sees of each state, `[n, d]`; by default its index in `[-1, 1]`.

    Raises:
        ValueError: if a row is not a distribution (to 1e-5), or a shape or number is wrong.

    Source: arXiv 2307.13372, "Submodular RL" (the tuple (S, A, P, rho, H, F)).

    Example:
        >>> dynamics, params = matrix_dynamics([[[0.0, 1.0]], [[1.0, 0.0]]])
        >>> int(dynamics.move(jax.random.key(0), 0, 0, params).position)
        1
    """
    matrix = np.asarray(probabilities, np.float64)
    if matrix.ndim != 3 or matrix.size == 0 or matrix.shape[0] != matrix.shape[2]:
        raise ValueError(f"probabilities must have shape [n, A, n], got {matrix.shape}")
    validation.number("probabilities", matrix, minimum=0, maximum=1)
    sums = matrix.sum(-1)
    off = np.abs(sums - 1) > 1e-5
    if off.any():
        state, action = np.argwhere(off)[0]
        raise ValueError(
            f"probabilities must sum to 1 over next states, got {sums[state, action]:g} at state "
            f"{state}, action {action}"
        )
    n, num_actions, _ = matrix.shape
    params = MatrixParams(
        jnp.asarray(matrix, jnp.float32), _first_state(start, n), _coordinates(coordinates, n)
    )
    return MatrixDynamics(n, num_actions), params
