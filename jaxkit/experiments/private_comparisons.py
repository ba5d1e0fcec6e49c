"""What the privacy experiment compares: each method at its setting, baselines at their best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxkit import datasets, privacy
from jaxkit.experiments import private_descent
from jaxkit.experiments.private_descent import Problem

DELTA = 1e-6
STEPS, PHASE = 3000, 300
#: Poisson rates of DP-SGD in the comparison at equal numbers of gradient evaluations.
RATES = (1.0, 0.25, 0.1, 0.05, 0.02)
VARIATION_RATE = 0.01
#: Gradient evaluations of SpiderBoost with full anchors and small variations, in passes over n.
PASSES = (STEPS // PHASE) + 2 * VARIATION_RATE * (STEPS - STEPS // PHASE)
DIMENSIONS = (8, 64, 512, 4096)
PROJECTED = 40
_GRADIENT = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)

Keys = Key[Array, " seeds"]
#: Gradient norms `[seeds]` of each setting.
Tried = dict[str, np.ndarray]


class Measured(NamedTuple):
    """Gradient norms `[seeds]` of the best setting of one method, and that setting in words."""

    norms: np.ndarray
    setting: str

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.norms))

    @property
    def cell(self) -> str:
        """Mean and standard deviation, printable."""
        return f"{self.mean:.2e} ± {np.std(self.norms, ddof=1):.0e}"


def best(tried: Tried) -> Measured:
    """The setting of the smallest mean gradient norm."""
    name = min(tried, key=lambda setting: float(np.mean(tried[setting])))
    return Measured(np.asarray(tried[name]), name)


def full_batch(problem: Problem, epsilon: float, keys: Keys, quick: bool) -> dict[str, Measured]:
    """SpiderBoost, also tuned over steps, phases and step sizes, against DP-GD so tuned."""
    budget = {"epsilon": epsilon, "delta": DELTA}
    (spider,) = _spiderboost("", problem, keys, (4.0,), STEPS, PHASE, budget).values()
    tuned: Tried = {}
    for steps, phase in ((3000, 300),) if quick else ((3000, 300), (3000, 600), (4500, 900)):
        name = f"T = {steps}, q = {phase}, "
        tuned |= _spiderboost(name, problem, keys, (3.0, 4.0), steps, phase, budget)
    factors = (1.0, 4.0) if quick else (1.0, 4.0, 16.0)
    descent: Tried = {}
    for steps in (1000, 3000) if quick else (300, 1000, 3000, 6000):
        descent |= _descent(f"T = {steps}, ", problem, keys, factors, steps, budget)
    setting = f"T = {STEPS}, q = {PHASE}, eta = 4/L1"
    return {
        "SpiderBoost": Measured(spider, setting),
        "DP-GD": best(descent),
        "SpiderBoost, tuned": best(tuned),
    }


def equal_cost(problem: Problem, epsilon: float, keys: Keys, quick: bool) -> dict[str, Measured]:
    """SpiderBoost with full anchors and 1 % batches against tuned DP-SGD of the same cost."""
    budget = {"epsilon": epsilon, "delta": DELTA, "accountant": "rdp"}
    (spider,) = _spiderboost(
        "", problem, keys, (4.0,), STEPS, PHASE, budget, rate=VARIATION_RATE
    ).values()
    factors = (1.0, 4.0, 16.0) if quick else (0.25, 1.0, 4.0, 16.0, 64.0)
    descent: Tried = {}
    for rate in (0.05,) if quick else RATES:
        # Rounded up: never less work for the baseline.
        steps = int(np.ceil(PASSES / rate))
        name = f"p = {rate}, T = {steps}, "
        descent |= _descent(name, problem, keys, factors, steps, budget, rate=rate)
    setting = f"p = {VARIATION_RATE}, T = {STEPS}"
    return {"SpiderBoost": Measured(spider, setting), "DP-SGD": best(descent)}


def dimension(d: int, keys: Keys) -> dict[str, Measured]:
    """SpiderBoost with and without a projection, and DP-GD, on rank-5 data in d dimensions."""
    problem, budget = private_descent.low_rank_problem(d), {"epsilon": 4.0, "delta": 1e-5}
    setting: Any = ("", problem, keys, (1.0, 4.0), 500)
    target = PROJECTED if d > PROJECTED else None
    found = {
        "SpiderBoost": _spiderboost(*setting, phase=50, budget=budget),
        "SpiderBoost + JL": _spiderboost(
            *setting, phase=50, budget=budget, target_dimension=target
        ),
        "DP-GD": _descent(*setting, budget=budget),
    }
    return {name: best(tried) for name, tried in found.items()}


def null_comparisons(prose: Problem, keys: Keys) -> dict[str, dict[str, Measured]]:
    """A small data set, and one pass over the prose."""
    return {
        "breast cancer, epsilon = 4": _small_data(keys),
        "one pass, epsilon = 1": _one_pass(prose, keys[:4], 1.0),
        "one pass, epsilon = 0.3": _one_pass(prose, keys[:4], 0.3),
    }


def _small_data(keys: Keys) -> dict[str, Measured]:
    split: Any = datasets.load_table("breast_cancer")
    x, labels = split.train_inputs, split.train_labels
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1) / np.sqrt(x.shape[1] + 1)
    problem = Problem(
        privacy.clip_per_example(jnp.asarray(x, jnp.float32), 1.0).gradients,
        jnp.asarray(2.0 * labels - 1, jnp.float32),
        jnp.ones(len(x), jnp.int32),
        jnp.eye(x.shape[1]),
    )
    spider, descent, budget = {}, {}, {"epsilon": 4.0, "delta": 1e-4}
    for steps in (100, 300):
        setting: Any = (f"T = {steps}, ", problem, keys, (1.0, 4.0), steps)
        spider |= _spiderboost(*setting, phase=steps // 10, budget=budget)
        descent |= _descent(*setting, budget=budget)
    return {"SpiderBoost": best(spider), "DP-GD": best(descent)}


def _one_pass(problem: Problem, keys: Keys, epsilon: float) -> dict[str, Measured]:
    stream = private_descent.shuffled(problem, keys[0])
    z = privacy.one_pass(_GRADIENT, epsilon=epsilon, delta=DELTA).noise_multiplier
    trees: Tried = {}
    for depth, root_size in ((5, 12800), (4, 25600)):
        rounds = problem.num_examples // privacy.tree_examples(root_size, depth)
        betas = np.array([0.04, 0.08, 0.16])
        sizes = {"depth": depth, "root_size": root_size, "num_rounds": rounds}
        norms = private_descent.tree_norms(problem, stream, keys, z, jnp.asarray(betas), **sizes)
        for beta, row in zip(betas, norms, strict=True):
            trees[f"D = {depth}, b = {root_size}, beta = {beta:g}"] = np.asarray(row)
    factors, descent = (1.0, 4.0, 16.0), {}
    for steps in (30, 100, 300):
        norms = private_descent.one_pass_descent_norms(
            problem, stream, keys, z, _rates(factors), num_steps=steps
        )
        descent |= _named(f"{steps} batches, ", factors, norms)
    return {"tree SPIDER": best(trees), "one-pass DP-SGD": best(descent)}


def _rates(factors: Sequence[float]) -> Array:
    return jnp.asarray(np.array(factors) / private_descent.SMOOTHNESS)


def _named(prefix: str, factors: Sequence[float], norms: Any) -> Tried:
    rows = zip(factors, norms, strict=True)
    return {f"{prefix}eta = {factor:g}/L1": np.asarray(row) for factor, row in rows}


def _sampling(problem: Problem, rate: float, steps: int, epsilon: float) -> privacy.Sampling:
    n = problem.num_examples
    if rate == 1:
        return privacy.full_batches(n)
    # Rows with counts need no padding, so that no batch overflows.
    sampling = privacy.poisson_sampling(n, rate, num_steps=steps, delta=DELTA, epsilon=epsilon)
    return sampling._replace(padded_size=n, overflow=0.0)


def _spiderboost(
    prefix: str,
    problem: Problem,
    keys: Keys,
    factors: Sequence[float],
    steps: int,
    phase: int,
    budget: Any,
    rate: float = 1.0,
    target_dimension: int | None = None,
) -> Tried:
    """SpiderBoost at each step size; `rate` is that of its variations, anchors are full."""
    plan = privacy.spiderboost(
        _GRADIENT,
        privacy.full_batches(problem.num_examples),
        _sampling(problem, rate, steps, budget["epsilon"]),
        num_steps=steps,
        phase_length=phase,
        difference_clip=private_descent.LOSS_SMOOTHNESS,
        **budget,
    )
    norms = private_descent.spiderboost_norms(
        problem,
        keys,
        private_descent.Noise(plan.anchor_noise_multiplier, plan.variation_noise_multiplier),
        _rates(factors),
        num_steps=steps,
        phase_length=phase,
        poisson=rate < 1,
        variation_rate=rate,
        target_dimension=target_dimension,
    )
    return _named(prefix, factors, norms)


def _descent(
    prefix: str,
    problem: Problem,
    keys: Keys,
    factors: Sequence[float],
    steps: int,
    budget: Any,
    rate: float = 1.0,
) -> Tried:
    """DP-SGD at each step size, on batches of a Poisson rate; DP-GD where that is 1."""
    sampling = _sampling(problem, rate, steps, budget["epsilon"])
    z = privacy.dp_sgd(_GRADIENT, sampling, steps, **budget).noise_multiplier
    norms = private_descent.descent_norms(
        problem,
        keys,
        private_descent.Noise(z),
        _rates(factors),
        num_steps=steps,
        poisson=rate < 1,
        rate=rate,
    )
    return _named(prefix, factors, norms)
