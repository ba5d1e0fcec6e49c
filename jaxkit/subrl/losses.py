"""The policy-gradient losses: their gradient is the estimator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.subrl.rollouts import Decisions, Rollout


class LossParts(NamedTuple):
    """What a loss is made of.

    Attributes:
        policy: the policy part, a scalar.
        entropy: mean entropy of the policy over active steps, nats.
    """

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
    action cannot change.

    Args:
        params: parameters of the policy.
        policy: a `Policy`.
        rollout: episodes drawn with these parameters, or their decisions.
        advantages: A, `[B, T]`, or as the decisions; no gradient flows through it.
        entropy_coefficient: c >= 0.

    Returns:
        The loss, and its parts.

    Source: arXiv 2307.13372, the policy gradient theorem and Algorithm 1.

    Example:
        >>> from jaxkit import subrl
        >>> policy = subrl.TabularPolicy(num_actions=2, num_states=1, horizon=2)
        >>> params = {"params": {"logits": jnp.zeros((1, 1, 2))}}
        >>> ones = jnp.ones((1, 1))  # one episode of one action
        >>> drawn = subrl.Rollout(
        ...     jnp.zeros((1, 1, 2)), ones, ones, ones, ones[0], jnp.zeros((1, 2), int), ones > 0
        ... )
        >>> loss, parts = subpo_loss(params, policy, drawn, 2 * ones)
        >>> round(float(loss), 4)  # 2 ln 2
        1.3863
    """
    outputs = policy.apply(params, rollout.observations)
    log_prob = jnp.where(rollout.active, policy.log_prob(outputs, rollout.actions), 0)
    loss = -jnp.mean(log_prob * jax.lax.stop_gradient(advantages))
    entropy = jnp.mean(policy.entropy(outputs) * rollout.share)
    return loss - entropy_coefficient * entropy, LossParts(loss, entropy)


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

    Args:
        params: parameters of the policy.
        policy: a `Policy`.
        rollout: episodes drawn with older parameters, or their decisions.
        advantages: A, `[B, T]`, or as the decisions; no gradient flows through it.
        entropy_coefficient: c >= 0.
        old_log_prob: log-probabilities under those older parameters, `[B, T]`.
        clip_ratio: epsilon > 0.

    Returns:
        The loss, and its parts.

    Source: Schulman et al., arXiv 1707.06347, eq. (7).

    Example:
        >>> from jaxkit import subrl
        >>> policy = subrl.TabularPolicy(num_actions=2, num_states=1, horizon=2)
        >>> params = {"params": {"logits": jnp.zeros((1, 1, 2))}}
        >>> ones = jnp.ones((1, 1))  # one episode of one action
        >>> drawn = subrl.Rollout(
        ...     jnp.zeros((1, 1, 2)), ones, ones, ones, ones[0], jnp.zeros((1, 2), int), ones > 0
        ... )
        >>> loss, _ = clipped_loss(
        ...     params, policy, drawn, ones, old_log_prob=jnp.log(ones / 4), clip_ratio=0.2
        ... )
        >>> round(float(loss), 4)  # the ratio is 2, clipped to 1.2
        -1.2
    """
    outputs = policy.apply(params, rollout.observations)
    log_prob = policy.log_prob(outputs, rollout.actions)
    ratio = jnp.exp(jnp.where(rollout.active, log_prob - old_log_prob, 0))
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    advantages = jnp.where(rollout.active, jax.lax.stop_gradient(advantages), 0)
    loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
    entropy = jnp.mean(policy.entropy(outputs) * rollout.share)
    return loss - entropy_coefficient * entropy, LossParts(loss, entropy)
