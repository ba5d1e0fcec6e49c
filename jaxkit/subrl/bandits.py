"""Near-bandit problems: policies that ignore the state, with provable ascent methods."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkit import submodular, validation

Probabilities = Float[Array, "H A"]


def bandit_objective(
    function: submodular.SetFunction, horizon: int, *, limit: int = 200_000
) -> Callable[[Probabilities], Float[Array, ""]]:
    r"""Make $J(x) = E[F(a_0, \dots, a_{H-1})]$, step h takes action a with chance $x_{ha}$.

    The chance that a row of x leaves over goes to an action that takes nothing. Of a monotone F, J
    is linear in each row, its gradient is >= 0 and its second derivatives across rows are <= 0: it
    is DR-submodular. All sequences, at most `limit`, are enumerated.

    Source: arXiv 2307.13372, the epsilon-bandit submodular MDP with epsilon = 0.
    """
    validation.integer("horizon", horizon, minimum=1)
    num_actions = function.num_items
    count = (num_actions + 1) ** horizon
    if count > limit:
        raise ValueError(
            f"horizon {horizon} with {num_actions} actions and none has {count} sequences, more "
            f"than limit = {limit}"
        )
    sequences = jnp.array(list(itertools.product(range(num_actions + 1), repeat=horizon)))

    @jax.jit
    def value_of(function, sequence):
        return submodular.evaluate(function, jnp.where(sequence < num_actions, sequence, -1))

    values = jax.vmap(value_of, (None, 0))(function, sequences)

    def objective(x: Probabilities) -> Float[Array, ""]:
        full = jnp.concatenate([x, 1 - x.sum(1, keepdims=True)], axis=1)
        chances = full[0, sequences[:, 0]]
        for h in range(1, horizon):
            chances = chances * full[h, sequences[:, h]]
        return chances @ values

    return objective


def frank_wolfe(
    objective: Callable[[Probabilities], Any], shape: tuple[int, int], *, steps: int = 100
) -> Probabilities:
    r"""Climb from 0 by $x \leftarrow x + \frac1K \arg\max_v \langle v, \nabla J(x)\rangle$.

    Of a monotone DR-submodular J over probabilities of `shape` (H, A), K `steps` reach (1 - 1/e) of
    the optimum, less O(1/K).

    Source: Bian et al., AISTATS 2017; arXiv 2307.13372, guarantees.
    """
    validation.integer("steps", steps, minimum=1)
    gradient = jax.grad(objective)

    def step(x, _):
        best = jnp.argmax(gradient(x), axis=1)
        return x + jax.nn.one_hot(best, shape[1]) / steps, None

    return jax.lax.scan(step, jnp.zeros(shape), None, length=steps)[0]


def projected_gradient(
    objective: Callable[[Probabilities], Any],
    x: Probabilities,
    *,
    learning_rate: Any = 0.1,
    steps: int = 100,
) -> Probabilities:
    r"""Climb from x by $x \leftarrow \Pi(x + \eta \nabla J(x))$ on $x \ge 0, \sum_a x_{ha} \le 1$.

    A stationary point of a monotone DR-submodular J is at least half the optimum.

    Source: Hassani, Soltanolkotabi and Karbasi, NeurIPS 2017; arXiv 2307.13372, guarantees.
    """
    validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.integer("steps", steps, minimum=1)
    gradient = jax.grad(objective)

    def project(row):
        positive = jnp.maximum(row, 0)
        return jnp.where(positive.sum() <= 1, positive, optax.projections.projection_simplex(row))

    def step(x, _):
        return jax.vmap(project)(x + learning_rate * gradient(x)), None

    return jax.lax.scan(step, x, None, length=steps)[0]
