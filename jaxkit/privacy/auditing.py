"""Auditing: can the outputs tell whether one example was there, more than the guarantee allows?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import clipping
from jaxkit.privacy.bounded_sums import widened
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
    Noise that is used again can make the measured value smaller: `audit_noise` is for that.

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


class NoiseAudit(NamedTuple):
    """What an audit of the noise of a run found.

    Attributes:
        p_values: how improbable the least likely of each kind of statistic is for fresh noise,
            times the number of statistics: `"energy"`, `"steps"` (two alike), `"lags"`, `"arrays"`
            (two, or halves of one, alike in any steps).
        passed: whether none is too improbable.
    """

    p_values: dict[str, float]
    passed: bool


def audit_noise(residuals: PyTree, *, confidence: float = 0.999) -> NoiseAudit:
    r"""Test that the noise of releases is fresh: of its size, and used once.

    Noise that steps, phases, clients, arrays or resumed parts share has the right size, and hides
    nothing. Give all that was released, over resumes and runs, one after the other.

    Args:
        residuals: releases less the sums they hide, over their claimed standard deviation: a tree
            of arrays ``[T, ...]``, standard normals under the claim. Many runs side by side,
            ``[T, runs, ...]``, show what small arrays cannot.
        confidence: in (0, 1), of fresh noise passing.

    Returns:
        The verdict.

    Raises:
        ValueError: if there are no residuals or one is not finite.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(8, 500))
        >>> audit_noise(draws).passed, audit_noise(draws[[0, 1, 2, 0, 4, 5, 6, 7]]).passed
        (True, False)
    """
    from scipy import stats

    steps = clipping.batch_size("residuals", residuals)
    leaves = [np.asarray(x, np.float64).reshape(steps, -1) for x in jax.tree.leaves(residuals)]
    leaves = [leaf for leaf in leaves if leaf.size]
    if not leaves:
        raise ValueError("residuals must hold at least one number, got arrays of size 0")
    everything = np.concatenate(leaves, 1)
    validation.number("residuals", everything)

    def energy(draws, axis=None):
        square, degrees = (draws**2).sum(axis), draws.size if axis is None else draws.shape[axis]
        return 2 * np.minimum(stats.chi2.sf(square, degrees), stats.chi2.cdf(square, degrees))

    def alike(cosine, size):
        """Of the cosine of two independent normal vectors, exactly."""
        freedom, cosine = size - 1, np.clip(np.abs(cosine), 0, 1 - 1e-15)
        if not freedom:
            return np.ones_like(cosine)
        return 2 * stats.t.sf(cosine * np.sqrt(freedom / (1 - cosine**2)), freedom)

    def pair(one, other):
        norms = np.linalg.norm(one) * np.linalg.norm(other)
        return alike(np.vdot(one, other) / max(norms, 1e-300), one.size)

    found: dict[str, list[Any]] = {
        "energy": [energy(everything, 1), *map(energy, [everything, *leaves])]
    }
    parts = [everything, *leaves] if len(leaves) > 1 else leaves

    def any_steps(one, other):
        norms = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
        return alike(one @ other.T / np.maximum(norms, 1e-300), one.shape[1])

    found["steps"] = [any_steps(part, part)[np.triu_indices(steps, 1)] for part in parts]
    found["lags"] = [pair(everything[lag:], everything[:-lag]) for lag in range(1, steps)]
    # What one array takes from the beginning or end of another, or an array repeats.
    halves = [np.array_split(leaf[:, : leaf.shape[1] // 2 * 2], 2, 1) for leaf in leaves]
    pairs = [*itertools.combinations(leaves, 2), *(half for half in halves if half[0].size)]
    shared = []
    for one, other in pairs:
        size = min(one.shape[1], other.shape[1])
        shared.append((one[:, :size], other[:, :size]))
        if one.shape != other.shape:
            shared.append((one[:, -size:], other[:, -size:]))
    # Within steps, all of them together for the sake of small arrays, and between any two.
    found["arrays"] = [test(*both) for both in shared for test in (pair, any_steps)]
    tests = sum(np.size(value) for values in found.values() for value in values)
    p_values = {
        name: min(1.0, tests * min((float(np.min(v)) for v in values if np.size(v)), default=1.0))
        for name, values in found.items()
    }
    return NoiseAudit(p_values, min(p_values.values()) > 1 - confidence)


def spiderboost_scores(
    plan: SpiderBoost,
    params: PyTree,
    data: PyTree,
    canary: Float[Array, " n"] | Any,
    present: Any,
    key: Key[Array, ""],
    *,
    learning_rate: Any,
    claim: SpiderBoost | None = None,
) -> tuple[Float[Array, ""], PyTree[Float[Array, "steps ..."]]]:
    r"""Run SpiderBoost with or without a canary and score how much it shows.

    The auditor sees every estimate, hence every noisy sum r_t, and knows all other rows:

    .. math:: s = \sum_t \langle v_t, r_t - m_t\rangle / (z_t B_t)^2

    with v_t what the canary adds to the sum and m_t the sum without it, at the public iterates,
    and z_t B_t the noise as *claimed*. `vmap` over keys and give both sets to `audit_llr`.

    Args:
        plan: what is audited.
        params: w_0.
        data: tree of arrays ``[n, ...]``.
        canary: boolean ``[n]``, true at the canary's row.
        present: whether the canary takes part, a boolean that may be traced.
        key: typed key of this run.
        learning_rate: eta of gradient descent on the estimates.
        claim: the plan whose noise and bounds are claimed, by default the one audited.

    Returns:
        The score of the run, and for `audit_noise` the residuals of its steps.

    Source: arXiv 2206.00846 Algorithm 2 releases, seen by the strongest adversary.

    Example:
        >>> from jaxkit.privacy import batches, glm
        >>> from jaxkit.privacy.spiderboost import spiderboost
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> two = batches.full_batches(2)
        >>> plan = spiderboost(
        ...     gradient, two, two, num_steps=3, phase_length=2, difference_clip=0.25,
        ...     noise_multipliers=(1.0, 1.0), delta=1e-5,
        ... )
        >>> data, canary = (jnp.ones((2, 1)), jnp.ones(2)), jnp.array([True, False])
        >>> def scores(key):
        ...     return spiderboost_scores(
        ...         plan, jnp.zeros(1), data, canary, True, key, learning_rate=0.1
        ...     )
        >>> score, residuals = jax.eval_shape(scores, jax.random.key(0))
        >>> score.shape, residuals.shape
        ((), (3, 1))
    """
    claim = claim or plan
    clip_norm = clipping.total_clip_norm(claim.gradient.clip_norm)
    gradient, params, _ = widened(plan.gradient, params)
    plan, others = dataclasses.replace(plan, gradient=gradient), ~canary
    taking_part = others | (canary & present)

    def step(carry, index):
        state, params = carry
        is_anchor = index % plan.phase_length == 0
        bound = jnp.minimum(
            claim.difference_clip * optax.tree.norm(optax.tree.sub(params, state.prev_params)),
            2 * clip_norm,
        )

        anchored, _ = plan.anchor(state, params, data, key, taking_part)
        varied, _ = plan.variation(state, params, data, key, taking_part)
        new_state = optax.tree.where(is_anchor, anchored, varied)
        released = optax.tree.where(
            is_anchor,
            optax.tree.scale(claim.anchors.expected_size, anchored.estimate),
            optax.tree.scale(
                claim.variations.expected_size, optax.tree.sub(varied.estimate, state.estimate)
            ),
        )
        with_canary, without = (
            optax.tree.where(
                is_anchor,
                plan.anchor(state, params, data, key, mask)[1].total,
                plan.variation(state, params, data, key, mask)[1].total,
            )
            for mask in (canary | others, others)
        )
        shown = optax.tree.sub(with_canary, without)
        residual = optax.tree.sub(released, without)
        claimed = jnp.where(
            is_anchor,
            claim.anchor_noise_multiplier * clip_norm,
            claim.variation_noise_multiplier * bound,
        )
        size = jnp.where(claimed > 0, claimed, 1)
        score = jnp.where(claimed > 0, optax.tree.vdot(shown, residual) / size**2, 0)
        hidden = optax.tree.where(present, shown, optax.tree.zeros_like(shown))
        drawn = optax.tree.scale(1 / size, optax.tree.sub(residual, hidden))
        params = optax.tree.add_scale(params, -learning_rate, new_state.estimate)
        return (new_state, params), (score, drawn)

    carry = (plan.init(params), params)
    _, (scores, drawn) = jax.lax.scan(step, carry, jnp.arange(plan.num_steps))
    return jnp.sum(scores), drawn
