"""Auditing: can the outputs tell whether one example was there, more than the guarantee allows?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import mechanisms
from jaxkit.privacy.spiderboost import SpiderBoost


class Audit(NamedTuple):
    """What an audit measured.

    Attributes:
        claimed: mu^2 that the guarantee allows.
        measured: squared separation of the scores, an estimate of mu^2 from below.
        lower: the measured value less its sampling error at the confidence asked for.
        passed: whether the claim is not refuted.
    """

    claimed: float
    measured: float
    lower: float
    passed: bool


def audit_llr(
    absent: Float[Any, " runs"],
    present: Float[Any, " runs"],
    mu: float,
    *,
    confidence: float = 0.999,
) -> Audit:
    r"""Test the claim of mu-Gaussian-DP on scores of many runs without and with an example.

    If a run is mu-GDP, no score separates the two cases better than :math:`N(0,1)` from
    :math:`N(\mu,1)`. For log-likelihood ratios of Gaussian releases the separation is

    .. math:: (E[s|present] - E[s|absent])^2 / \mathrm{Var}[s|absent] \le \mu^2,

    whatever scale the score has; noise at half its claimed size makes it four times as large.

    Args:
        absent: scores of runs without the example.
        present: scores of runs with it.
        mu: the claim, > 0.
        confidence: in (0, 1), of a correct mechanism passing.

    Returns:
        The verdict.

    Raises:
        ValueError: if a number is not allowed, there are fewer than 30 runs of either kind, or a
            score is not finite.

    Source: exact log-likelihood ratio of Gaussian mechanisms; Dong, Roth and Su 2019.

    Example:
        >>> scores = np.random.default_rng(0).normal(size=(2, 4000))
        >>> audit_llr(scores[0], scores[1] + 0.5, mu=0.5).passed
        True
        >>> audit_llr(scores[0], scores[1] + 1.0, mu=0.5).passed
        False
    """
    from scipy import stats

    validation.number("mu", mu, minimum=0, open_minimum=True)
    validation.number(
        "confidence", confidence, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    a, p = (np.asarray(scores, np.float64) for scores in (absent, present))
    validation.number("absent", a)
    validation.number("present", p)
    if min(a.size, p.size) < 30:
        raise ValueError(f"absent and present must have at least 30 runs, got {a.size}, {p.size}")
    shift = max(p.mean() - a.mean(), 0.0)
    spread = a.std(ddof=1)
    if spread == 0:
        measured = math.inf if shift > 0 else 0.0
        return Audit(mu**2, measured, measured, measured <= mu**2)
    separation = shift / spread
    # Delta method: variance of the means over that of the scores, and of the estimated spread.
    error = math.sqrt(1 / a.size + p.var() / spread**2 / p.size + separation**2 / (2 * a.size))
    lower = max(0.0, separation - stats.norm.ppf(confidence) * error)
    return Audit(mu**2, separation**2, lower**2, bool(lower <= mu))


def spiderboost_scores(
    estimator: SpiderBoost,
    params: PyTree,
    data: PyTree,
    canary: Float[Array, " n"] | Any,
    present: Any,
    key: Key[Array, ""],
    *,
    num_steps: int,
    phase_length: int,
    learning_rate: Any,
    clip_norm: Any,
    difference_clip: Any,
    anchor_noise_multiplier: Any,
    variation_noise_multiplier: Any,
    anchor_size: Any,
    variation_size: Any,
) -> Float[Array, ""]:
    r"""Run SpiderBoost with or without a canary and score how much it shows.

    The auditor sees every estimate, hence every noisy sum r_t, and knows all other rows:

    .. math:: s = \sum_t \langle v_t, r_t - m_t\rangle / (z_t B_t)^2

    with v_t what the canary adds to the sum and m_t the sum without it, at the public iterates,
    and z_t B_t the noise as *claimed*. `vmap` over keys and give both sets to `audit_llr`.

    Args:
        estimator: what is audited.
        params: w_0.
        data: tree of arrays ``[n, ...]``.
        canary: boolean ``[n]``, true at the canary's row.
        present: whether the canary takes part, a boolean that may be traced.
        key: typed key of this run.
        num_steps: T, static.
        phase_length: q, static.
        learning_rate: eta of gradient descent on the estimates.
        clip_norm: C1 as claimed.
        difference_clip: C2 as claimed.
        anchor_noise_multiplier: z1 as claimed.
        variation_noise_multiplier: z2 as claimed.
        anchor_size: b1, the divisor of anchors.
        variation_size: b2, the divisor of variations.

    Returns:
        The score of the run.

    Raises:
        ValueError: if `num_steps` or `phase_length` is not allowed.

    Source: arXiv 2206.00846 Algorithm 2 releases, seen by the strongest adversary.

    Example:
        >>> from jaxkit.privacy import glm, spiderboost
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> claims = dict(
        ...     difference_clip=0.25, anchor_noise_multiplier=1.0, variation_noise_multiplier=1.0,
        ...     anchor_size=2, variation_size=2,
        ... )
        >>> estimator = spiderboost(gradient, **claims)
        >>> data, canary = (jnp.ones((2, 1)), jnp.ones(2)), jnp.array([True, False])
        >>> def score(key):
        ...     return spiderboost_scores(
        ...         estimator, jnp.zeros(1), data, canary, True, key,
        ...         num_steps=2, phase_length=2, learning_rate=0.1, clip_norm=1.0, **claims,
        ...     )
        >>> jax.eval_shape(score, jax.random.key(0)).shape
        ()
    """
    mechanisms.spiderboost_counts(num_steps, phase_length)
    others = ~canary
    taking_part = others | (canary & present)

    def step(carry, index):
        state, params = carry
        is_anchor = index % phase_length == 0
        bound = jnp.minimum(
            difference_clip * optax.tree.norm(optax.tree.sub(params, state.prev_params)),
            2 * clip_norm,
        )

        anchored, _ = estimator.anchor(state, params, data, taking_part)
        varied, _ = estimator.variation(state, params, data, taking_part)
        new_state = optax.tree.where(is_anchor, anchored, varied)
        released = optax.tree.where(
            is_anchor,
            optax.tree.scale(anchor_size, anchored.estimate),
            optax.tree.scale(variation_size, optax.tree.sub(varied.estimate, state.estimate)),
        )
        with_canary, without = (
            optax.tree.where(
                is_anchor,
                estimator.anchor(state, params, data, mask)[1].total,
                estimator.variation(state, params, data, mask)[1].total,
            )
            for mask in (canary | others, others)
        )
        shown = optax.tree.sub(with_canary, without)
        residual = optax.tree.sub(released, without)
        claimed = jnp.where(
            is_anchor,
            anchor_noise_multiplier * clip_norm,
            variation_noise_multiplier * bound,
        )
        inner = optax.tree.vdot(shown, residual)
        score = jnp.where(claimed > 0, inner / jnp.where(claimed > 0, claimed, 1) ** 2, 0)
        params = optax.tree.add_scale(params, -learning_rate, new_state.estimate)
        return (new_state, params), score

    carry = (estimator.init(params, key), params)
    _, scores = jax.lax.scan(step, carry, jnp.arange(num_steps))
    return jnp.sum(scores)
