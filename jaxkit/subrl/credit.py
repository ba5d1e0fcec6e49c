"""What each action is credited with: signals along an episode, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def reward_to_go(gains: Float[Array, "B T"], discount: Any = 1.0) -> Float[Array, "B T"]:
    r"""Compute $q_i = \sum_{j \ge i} \gamma^{j-i} g_j$, the credit of the paper's theorem.

    Args:
        gains: g, `[B, T]`.
        discount: gamma in `[0, 1]`; the paper's is 1.

    Returns:
        `[B, T]`.

    Source: arXiv 2307.13372, the policy gradient theorem.

    Example:
        >>> reward_to_go(jnp.array([[1.0, 2.0, 4.0]])).tolist()
        [[7.0, 6.0, 4.0]]
    """

    def step(later, now):
        q = now + discount * later
        return q, q

    return jax.lax.scan(step, jnp.zeros_like(gains[:, 0]), gains.T, reverse=True)[1].T


def prefix_value(first: Float[Array, " B"], gains: Float[Array, "B T"]) -> Float[Array, "B T"]:
    r"""Compute $F(s_0 .. s_{i+1})$, the credit in the published grid-world program.

    In expectation it is the `one_step` signal, because what came before the action is a baseline:
    it does not follow the gradient of the objective.

    Args:
        first: F of the first state, `[B]`.
        gains: `[B, T]`.

    Returns:
        `[B, T]`.

    Source: the official program of arXiv 2307.13372.

    Example:
        >>> prefix_value(jnp.array([1.0]), jnp.array([[1.0, 2.0]])).tolist()
        [[2.0, 4.0]]
    """
    return first[:, None] + jnp.cumsum(gains, axis=1)


def total_value(first: Float[Array, " B"], gains: Float[Array, "B T"]) -> Float[Array, "B T"]:
    r"""Compute $F(\tau)$ for every action: unbiased, but of larger variance than `to_go`.

    Args:
        first: F of the first state, `[B]`.
        gains: `[B, T]`.

    Returns:
        `[B, T]`.

    Example:
        >>> total_value(jnp.array([1.0]), jnp.array([[1.0, 2.0]])).tolist()
        [[4.0, 4.0]]
    """
    return jnp.broadcast_to((first + gains.sum(1))[:, None], gains.shape)


#: Signals by name: `signal(first, gains, discount)`.
SIGNALS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "to_go": lambda first, gains, discount: reward_to_go(gains, discount),
    "total": lambda first, gains, discount: total_value(first, gains),
    "prefix": lambda first, gains, discount: prefix_value(first, gains),
    "one_step": lambda first, gains, discount: gains,
}


def centre_over_batch(signal: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Subtract the mean over episodes at each time; biased by the factor 1 - 1/B.

    Args:
        signal: `[B, T]`.

    Returns:
        `[B, T]`.

    Example:
        >>> centre_over_batch(jnp.array([[1.0], [3.0]])).tolist()
        [[-1.0], [1.0]]
    """
    return signal - signal.mean(0)


def leave_one_out(signal: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Subtract the mean over the *other* episodes at each time: exactly unbiased.

    Args:
        signal: `[B, T]`, B >= 2.

    Returns:
        `[B, T]`.

    Example:
        >>> leave_one_out(jnp.array([[1.0], [3.0]])).tolist()
        [[-2.0], [2.0]]
    """
    size = signal.shape[0]
    return centre_over_batch(signal) * (size / (size - 1))


def generalised_advantage(
    gains: Float[Array, "B T"],
    values: Float[Array, "B T"],
    discount: Any = 1.0,
    gae_lambda: Any = 1.0,
) -> Float[Array, "B T"]:
    r"""Compute $\sum_{j \ge i} (\gamma\lambda)^{j-i} \delta_j$.

    Here $\delta_j = g_j + \gamma V_{j+1} - V_j$.

    Args:
        gains: g, `[B, T]`.
        values: V before each action, `[B, T]`; 0 after the last.
        discount: gamma in `[0, 1]`.
        gae_lambda: lambda in `[0, 1]`; 1 gives `reward_to_go(gains) - values`.

    Returns:
        `[B, T]`.

    Source: Schulman et al., arXiv 1506.02438, eq. (16).

    Example:
        >>> generalised_advantage(jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 1.0]])).tolist()
        [[2.5, 1.0]]
    """
    later = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    return reward_to_go(gains + discount * later - values, discount * gae_lambda)


#: Baselines by name; `"critic"` is trained and has parameters of its own.
BASELINES = ("batch_mean", "leave_one_out", "none", "critic")
