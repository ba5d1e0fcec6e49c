"""What each action is credited with, and the losses whose gradient is the estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.subrl.rollouts import Decisions, Rollout


@jax.jit
def reward_to_go(gains: Float[Array, "B T"], discount: Any = 1.0) -> Float[Array, "B T"]:
    r"""Compute $q_i = \sum_{j \ge i} \gamma^{j-i} g_j$, `[B, T]`: the paper's credit.

    Source: arXiv 2307.13372, the policy gradient theorem.
    """

    def step(later, now):
        q = now + discount * later
        return q, q

    return jax.lax.scan(step, jnp.zeros_like(gains[:, 0]), gains.T, reverse=True)[1].T


#: Signals by name, `signal(first, gains, discount)`, each `[B, T]`: the credit of the theorem; F of
#: the episode for every action, unbiased too but of larger variance; the credit in the published
#: program, $F(s_0 .. s_{i+1})$, which in expectation is the last (what came before an action is a
#: baseline); and the gain of the next step alone. Those two do not follow the objective's gradient.
SIGNALS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "to_go": lambda first, gains, discount: reward_to_go(gains, discount),
    "total": lambda first, gains, _: jnp.broadcast_to((first + gains.sum(1))[:, None], gains.shape),
    "prefix": lambda first, gains, _: first[:, None] + jnp.cumsum(gains, axis=1),
    "one_step": lambda first, gains, _: gains,
}


def centre_over_batch(signal: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Subtract the mean over episodes at each time, `[B, T]`; biased by the factor 1 - 1/B."""
    return signal - signal.mean(0)


def leave_one_out(signal: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Subtract the mean over the *other* episodes at each time, `[B, T]`: exactly unbiased."""
    size = signal.shape[0]
    return centre_over_batch(signal) * (size / (size - 1))


def generalised_advantage(
    gains: Float[Array, "B T"],
    values: Float[Array, "B T"],
    discount: Any = 1.0,
    gae_lambda: Any = 1.0,
) -> Float[Array, "B T"]:
    r"""Compute $\sum_{j \ge i} (\gamma\lambda)^{j-i} (g_j + \gamma V_{j+1} - V_j)$, `[B, T]`.

    V is 0 after the last action; lambda = 1 gives `reward_to_go(gains) - values`.

    Source: Schulman et al., arXiv 1506.02438, eq. (16).
    """
    later = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    return reward_to_go(gains + discount * later - values, discount * gae_lambda)


#: Baselines by name; `"critic"` is trained and has parameters of its own.
BASELINES = ("batch_mean", "leave_one_out", "none", "critic")


class LossParts(NamedTuple):
    """What a loss is made of: the policy part, and the mean entropy over active steps in nats."""

    policy: Float[Array, ""]
    entropy: Float[Array, ""]


def subpo_loss(
    params: Any,
    policy: Any,
    rollout: Rollout | Decisions,
    advantages: Float[Array, "*d"],
    entropy_coefficient: Any = 0.0,
) -> tuple[Float[Array, ""], LossParts]:
    r"""Compute $-\frac{1}{BT}\sum_{b,h} \log\pi(a_{bh} \mid o_{bh}) A_{bh} - c\,\bar H$.

    With $A$ = gains to go less a baseline, minus its gradient times T estimates
    $\nabla J = E[\sum_i \nabla\log\pi(a_i)(\sum_{j \ge i} g_j - b(\tau_{0:i}))]$: the score of an
    action is uncorrelated with gains that were earned before it, and with any baseline that the
    action cannot change. No gradient flows through `advantages`.

    Source: arXiv 2307.13372, the policy gradient theorem and Algorithm 1.
    """
    log_prob, entropy = _judged(params, policy, rollout)
    loss = -jnp.mean(jnp.where(rollout.active, log_prob, 0) * jax.lax.stop_gradient(advantages))
    return loss - entropy_coefficient * entropy, LossParts(loss, entropy)


def _judged(params: Any, policy: Any, rollout: Rollout | Decisions) -> tuple[Any, Any]:
    """Log-probability of each action, and the mean entropy over active steps."""
    outputs = policy.apply(params, rollout.observations)
    entropy = jnp.mean(policy.entropy(outputs) * rollout.share)
    return policy.log_prob(outputs, rollout.actions), entropy


def clipped_loss(
    params: Any,
    policy: Any,
    rollout: Rollout | Decisions,
    advantages: Float[Array, "*d"],
    entropy_coefficient: Any = 0.0,
    *,
    old_log_prob: Float[Array, "*d"],
    clip_ratio: Any,
) -> tuple[Float[Array, ""], LossParts]:
    r"""Compute PPO's $-\frac{1}{BT}\sum \min(r A, \mathrm{clip}(r, 1 \pm \epsilon) A) - c\,\bar H$.

    As `subpo_loss`, of episodes drawn with older parameters: `old_log_prob` are the
    log-probabilities under those, `[B, T]`, and `clip_ratio` is epsilon > 0.

    Source: Schulman et al., arXiv 1707.06347, eq. (7).
    """
    log_prob, entropy = _judged(params, policy, rollout)
    ratio = jnp.exp(jnp.where(rollout.active, log_prob - old_log_prob, 0))
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    advantages = jnp.where(rollout.active, jax.lax.stop_gradient(advantages), 0)
    loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
    return loss - entropy_coefficient * entropy, LossParts(loss, entropy)
