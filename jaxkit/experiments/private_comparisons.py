"""What the privacy experiment compares: each method at its setting, baselines at their best."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxkit import datasets, privacy
from jaxkit.experiments import private_descent

DELTA = 1e-6
STEPS, PHASE = 3000, 300
SPIDER_RATE = 4 / private_descent.SMOOTHNESS
#: Poisson rates of DP-SGD in the comparison at equal numbers of gradient evaluations.
RATES = (1.0, 0.25, 0.1, 0.05, 0.02)
VARIATION_RATE = 0.01
#: Gradient evaluations of SpiderBoost with full anchors and small variations, in passes over n.
PASSES = (STEPS // PHASE) + 2 * VARIATION_RATE * (STEPS - STEPS // PHASE)
DIMENSIONS = (8, 64, 512, 4096)
PROJECTED = 40


class Measured(NamedTuple):
    """Gradient norms of the best setting of one method, one a seed.

    Attributes:
        norms: ``[seeds]``.
        setting: the setting in words.
    """

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


def best(found: dict[str, np.ndarray]) -> Measured:
    """The setting of the smallest mean gradient norm: `found` maps settings to ``[seeds]``."""
    name = min(found, key=lambda setting: float(np.mean(found[setting])))
    return Measured(np.asarray(found[name]), name)


def full_batch(
    problem: private_descent.Problem, epsilon: float, keys: Key[Array, " seeds"], quick: bool
) -> dict[str, Measured]:
    """SpiderBoost at its default setting against DP-GD tuned over steps and step sizes."""
    everyone = privacy.full_batches(problem.num_examples)
    calibrated = _calibrated(everyone, everyone, STEPS, PHASE, epsilon=epsilon, delta=DELTA)
    spider = _spiderboost(problem, keys, calibrated)
    factors = np.array([1.0, 4.0] if quick else [1.0, 4.0, 16.0])
    descent = {}
    for steps in (1000, 3000) if quick else (300, 1000, 3000, 6000):
        z = _multiplier(everyone, steps, epsilon=epsilon, delta=DELTA)
        descent |= _descent(f"T = {steps}, ", factors, problem, keys, z, num_steps=steps)
    return {
        "SpiderBoost": Measured(spider, f"T = {STEPS}, q = {PHASE}, eta = 4/L1"),
        "DP-GD": best(descent),
    }


def equal_cost(
    problem: private_descent.Problem, epsilon: float, keys: Key[Array, " seeds"], quick: bool
) -> dict[str, Measured]:
    """SpiderBoost with full anchors and 1 % batches against tuned DP-SGD of the same cost."""
    n = problem.num_examples
    everyone = privacy.full_batches(n)
    few = _poisson(n, VARIATION_RATE, STEPS, epsilon)
    calibrated = _calibrated(
        everyone, few, STEPS, PHASE, epsilon=epsilon, delta=DELTA, accountant="rdp"
    )
    spider = _spiderboost(problem, keys, calibrated, poisson=True, variation_rate=VARIATION_RATE)
    factors = np.array([1.0, 4.0, 16.0] if quick else [0.25, 1.0, 4.0, 16.0, 64.0])
    descent = {}
    for rate in (0.05,) if quick else RATES:
        # Rounded up: never less work for the baseline.
        steps = int(np.ceil(PASSES / rate))
        sampling = everyone if rate == 1 else _poisson(n, rate, steps, epsilon)
        z = _multiplier(sampling, steps, epsilon=epsilon, delta=DELTA, accountant="rdp")
        sampled = {"poisson": rate < 1, "rate": rate}
        name = f"p = {rate}, T = {steps}, "
        descent |= _descent(name, factors, problem, keys, z, num_steps=steps, **sampled)
    return {
        "SpiderBoost": Measured(spider, f"p = {VARIATION_RATE}, T = {STEPS}"),
        "DP-SGD": best(descent),
    }


def _named(prefix: str, factors: np.ndarray, norms: Any) -> dict[str, np.ndarray]:
    """Norms by setting, a step size a row."""
    return {
        f"{prefix}eta = {factor:g}/L1": np.asarray(row)
        for factor, row in zip(factors, norms, strict=True)
    }


def _descent(
    prefix: str,
    factors: np.ndarray,
    problem: private_descent.Problem,
    keys: Any,
    z: float,
    **options: Any,
) -> dict[str, np.ndarray]:
    rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
    noise = private_descent.Noise(z)
    norms = private_descent.descent_norms(problem, keys, noise, rates, **options)
    return _named(prefix, factors, norms)


def _spiderboost(
    problem: private_descent.Problem,
    keys: Key[Array, " seeds"],
    calibrated: private_descent.Noise,
    **sampling: Any,
) -> np.ndarray:
    """Gradient norms of SpiderBoost at its default setting, ``[seeds]``."""
    norms = private_descent.spiderboost_norms(
        problem,
        keys,
        calibrated,
        jnp.array([SPIDER_RATE]),
        num_steps=STEPS,
        phase_length=PHASE,
        **sampling,
    )
    return np.asarray(norms[0])


def _calibrated(
    anchors: privacy.Sampling, variations: privacy.Sampling, steps: int, phase: int, **budget: Any
) -> private_descent.Noise:
    plan = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0),
        anchors,
        variations,
        num_steps=steps,
        phase_length=phase,
        difference_clip=private_descent.LOSS_SMOOTHNESS,
        **budget,
    )
    return private_descent.Noise(plan.anchor_noise_multiplier, plan.variation_noise_multiplier)


def _multiplier(sampling: privacy.Sampling, steps: int, **budget: Any) -> float:
    """Noise of DP-SGD on these losses for a budget."""
    gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
    return privacy.dp_sgd(gradient, sampling, steps, **budget).noise_multiplier


def _poisson(n: int, rate: float, steps: int, epsilon: float) -> privacy.Sampling:
    # Rows with counts need no padding, so that no batch overflows.
    sampling = privacy.poisson_sampling(n, rate, num_steps=steps, delta=DELTA, epsilon=epsilon)
    return sampling._replace(padded_size=n, overflow=0.0)


def dimension(d: int, keys: Key[Array, " seeds"]) -> dict[str, Measured]:
    """SpiderBoost with and without a projection, and DP-GD, on rank-5 data in d dimensions."""
    problem, steps, phase, epsilon, delta = private_descent.low_rank_problem(d), 500, 50, 4.0, 1e-5
    everyone = privacy.full_batches(problem.num_examples)
    noise = _calibrated(everyone, everyone, steps, phase, epsilon=epsilon, delta=delta)
    z = _multiplier(everyone, steps, epsilon=epsilon, delta=delta)
    factors = np.array([1.0, 4.0])
    rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
    options = {"num_steps": steps, "phase_length": phase}
    found = {
        "SpiderBoost": private_descent.spiderboost_norms(problem, keys, noise, rates, **options),
        "SpiderBoost + JL": private_descent.spiderboost_norms(
            problem,
            keys,
            noise,
            rates,
            target_dimension=PROJECTED if d > PROJECTED else None,
            **options,
        ),
        "DP-GD": private_descent.descent_norms(
            problem, keys, private_descent.Noise(z), rates, num_steps=steps
        ),
    }
    return {name: best(_named("", factors, norms)) for name, norms in found.items()}


def null_comparisons(
    prose: private_descent.Problem, keys: Key[Array, " seeds"]
) -> dict[str, dict[str, Measured]]:
    """A small data set, and one pass over the prose."""
    return {
        "breast cancer, epsilon = 4": _small_data(keys),
        "one pass, epsilon = 1": _one_pass(prose, keys[:4], 1.0),
        "one pass, epsilon = 0.3": _one_pass(prose, keys[:4], 0.3),
    }


def _small_data(keys: Key[Array, " seeds"]) -> dict[str, Measured]:
    split: Any = datasets.load_table("breast_cancer")
    x, labels = split.train_inputs, split.train_labels
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1) / np.sqrt(x.shape[1] + 1)
    problem = private_descent.Problem(
        privacy.clip_per_example(jnp.asarray(x, jnp.float32), 1.0).gradients,
        jnp.asarray(2.0 * labels - 1, jnp.float32),
        jnp.ones(len(x), jnp.int32),
        jnp.eye(x.shape[1]),
    )
    everyone = privacy.full_batches(len(x))
    factors = np.array([1.0, 4.0])
    rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
    spider, descent = {}, {}
    for steps in (100, 300):
        pair = _calibrated(everyone, everyone, steps, steps // 10, epsilon=4.0, delta=1e-4)
        z = _multiplier(everyone, steps, epsilon=4.0, delta=1e-4)
        boosted = private_descent.spiderboost_norms(
            problem, keys, pair, rates, num_steps=steps, phase_length=steps // 10
        )
        spider |= _named(f"T = {steps}, ", factors, boosted)
        descent |= _descent(f"T = {steps}, ", factors, problem, keys, z, num_steps=steps)
    return {"SpiderBoost": best(spider), "DP-GD": best(descent)}


def _one_pass(
    problem: private_descent.Problem, keys: Key[Array, " seeds"], epsilon: float
) -> dict[str, Measured]:
    stream = private_descent.shuffled(problem, keys[0])
    gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
    z = privacy.one_pass(gradient, epsilon=epsilon, delta=DELTA).noise_multiplier
    trees, descent = {}, {}
    for depth, root_size in ((5, 12800), (4, 25600)):
        rounds = problem.num_examples // privacy.tree_examples(root_size, depth)
        betas = np.array([0.04, 0.08, 0.16])
        sizes = {"depth": depth, "root_size": root_size, "num_rounds": rounds}
        norms = private_descent.tree_norms(problem, stream, keys, z, jnp.asarray(betas), **sizes)
        for beta, row in zip(betas, norms, strict=True):
            trees[f"D = {depth}, b = {root_size}, beta = {beta:g}"] = np.asarray(row)
    factors = np.array([1.0, 4.0, 16.0])
    for steps in (30, 100, 300):
        rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
        norms = private_descent.one_pass_descent_norms(
            problem, stream, keys, z, rates, num_steps=steps
        )
        descent |= _named(f"{steps} batches, ", factors, norms)
    return {"tree SPIDER": best(trees), "one-pass DP-SGD": best(descent)}
