"""Private stationary points in miniature: SpiderBoost beside DP-GD and DP-SGD, and projections.

Paper: arXiv 2206.00846, which proves rates and has no experiment. Stationarity is the exact norm of
the gradient of the whole objective, averaged over the last tenth of the iterates. Every run of a
comparison has the same (epsilon, delta); step sizes and step counts of the baselines are tuned.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from scipy import stats

from jaxkit import datasets, plotting, privacy
from jaxkit.experiments import private_descent
from jaxkit.experiments.evidence import Claim, Evidence, Table

DELTA = 1e-6
STEPS, PHASE = 3000, 300
SPIDER_RATE = 4 / private_descent.SMOOTHNESS
#: Poisson rates of DP-SGD in the comparison at equal numbers of gradient evaluations.
RATES = (1.0, 0.25, 0.1, 0.05, 0.02)
VARIATION_RATE = 0.01
#: Gradient evaluations of SpiderBoost with full anchors and small variations, in passes over n.
PASSES = (STEPS // PHASE) + 2 * VARIATION_RATE * (STEPS - STEPS // PHASE)
DIMENSIONS = (8, 64, 512, 4096)
RANK, PROJECTED = 5, 40


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


def run(*, quick: bool = False, seed: int = 0) -> Evidence:
    """Measure what variance reduction and projections gain under privacy.

    Args:
        quick: two epsilons, coarse grids, no one-pass and no null comparisons.
        seed: base of the seeds.

    Returns:
        The claims, the numbers, and two figures.

    Source: arXiv 2206.00846 Table 1 (rates), Theorem 4.2 and section 6.

    Example:
        >>> evidence = run(quick=True)  # doctest: +SKIP
    """
    keys = jax.random.split(jax.random.key(seed), 8 if quick else 20)
    epsilons = (1.0, 3.0) if quick else (0.3, 1.0, 3.0, 10.0)
    prose = private_descent.vowel_problem()
    full = {epsilon: full_batch(prose, epsilon, keys, quick) for epsilon in epsilons}
    equal = {epsilon: equal_cost(prose, epsilon, keys[:8], quick) for epsilon in (1.0, 3.0)}
    dimensions = (8, 4096) if quick else DIMENSIONS
    by_dimension = {d: dimension(d, keys[: 4 if quick else 8]) for d in dimensions}
    claims = [
        *(_ratio_claim(full[e], e, limit, "DP-GD") for e, limit in ((1.0, 0.65), (3.0, 0.45))),
        *(_ratio_claim(equal[e], e, limit, "DP-SGD") for e, limit in ((1.0, 0.35), (3.0, 0.15))),
        *_projection_claims(by_dimension),
    ]
    tables = [
        _table("Full batches, vowels after letters", full, "epsilon"),
        _table(f"At most {PASSES:.0f} n gradient evaluations, Poisson batches", equal, "epsilon"),
        _table("Rank 5 in d dimensions, n = 2000, epsilon = 4", by_dimension, "d"),
    ]
    if not quick:
        nulls = null_comparisons(prose, keys[:8])
        claims += [_slope_claim(full), *(_null_claim(name, pair) for name, pair in nulls.items())]
        tables.append(_table("Where no gain, or a small one, is expected", nulls, "problem"))
    return Evidence(
        title="Private stationary points",
        claims=claims,
        tables=tables,
        figures={
            "dp_stationary_epsilon": _epsilon_figure(full, equal),
            "dp_stationary_dimension": _dimension_figure(by_dimension),
        },
    )


def best(found: dict[str, np.ndarray]) -> Measured:
    """The setting of the smallest mean gradient norm: `found` maps settings to ``[seeds]``."""
    name = min(found, key=lambda setting: float(np.mean(found[setting])))
    return Measured(np.asarray(found[name]), name)


def full_batch(
    problem: private_descent.Problem, epsilon: float, keys: Key[Array, " seeds"], quick: bool
) -> dict[str, Measured]:
    """SpiderBoost at its default setting against DP-GD tuned over steps and step sizes."""
    everyone = privacy.full_batches(problem.num_examples)
    calibrated = privacy.calibrate_spiderboost(
        everyone, everyone, num_steps=STEPS, phase_length=PHASE, epsilon=epsilon, delta=DELTA
    )
    spider = private_descent.spiderboost_norms(
        problem,
        keys,
        private_descent.Noise(calibrated.anchor, calibrated.variation),
        jnp.array([SPIDER_RATE]),
        num_steps=STEPS,
        phase_length=PHASE,
    )
    factors = np.array([1.0, 4.0] if quick else [1.0, 4.0, 16.0])
    descent = {}
    for steps in (1000, 3000) if quick else (300, 1000, 3000, 6000):
        z = privacy.calibrate_dp_sgd(everyone, steps, epsilon=epsilon, delta=DELTA)
        norms = private_descent.descent_norms(
            problem,
            keys,
            private_descent.Noise(z),
            jnp.asarray(factors / private_descent.SMOOTHNESS),
            num_steps=steps,
        )
        for factor, row in zip(factors, norms, strict=True):
            descent[f"T = {steps}, eta = {factor:g}/L1"] = np.asarray(row)
    return {
        "SpiderBoost": Measured(np.asarray(spider[0]), f"T = {STEPS}, q = {PHASE}, eta = 4/L1"),
        "DP-GD": best(descent),
    }


def equal_cost(
    problem: private_descent.Problem, epsilon: float, keys: Key[Array, " seeds"], quick: bool
) -> dict[str, Measured]:
    """SpiderBoost with full anchors and 1 % batches against tuned DP-SGD of the same cost."""
    n = problem.num_examples
    everyone = privacy.full_batches(n)
    few = _poisson(n, VARIATION_RATE, STEPS, epsilon)
    calibrated = privacy.calibrate_spiderboost(
        everyone,
        few,
        num_steps=STEPS,
        phase_length=PHASE,
        epsilon=epsilon,
        delta=DELTA,
        accountant="rdp",
    )
    spider = private_descent.spiderboost_norms(
        problem,
        keys,
        private_descent.Noise(calibrated.anchor, calibrated.variation),
        jnp.array([SPIDER_RATE]),
        num_steps=STEPS,
        phase_length=PHASE,
        poisson=True,
        variation_rate=VARIATION_RATE,
    )
    factors = np.array([1.0, 4.0, 16.0] if quick else [0.25, 1.0, 4.0, 16.0, 64.0])
    descent = {}
    for rate in (0.25, 0.05) if quick else RATES:
        # Rounded up: never less work for the baseline.
        steps = int(np.ceil(PASSES / rate))
        sampling = everyone if rate == 1 else _poisson(n, rate, steps, epsilon)
        z = privacy.calibrate_dp_sgd(
            sampling, steps, epsilon=epsilon, delta=DELTA, accountant="rdp"
        )
        norms = private_descent.descent_norms(
            problem,
            keys,
            private_descent.Noise(z),
            jnp.asarray(factors / private_descent.SMOOTHNESS),
            num_steps=steps,
            poisson=rate < 1,
            rate=rate,
        )
        for factor, row in zip(factors, norms, strict=True):
            descent[f"p = {rate}, T = {steps}, eta = {factor:g}/L1"] = np.asarray(row)
    return {
        "SpiderBoost": Measured(np.asarray(spider[0]), f"p = {VARIATION_RATE}, T = {STEPS}"),
        "DP-SGD": best(descent),
    }


def _poisson(n: int, rate: float, steps: int, epsilon: float) -> privacy.Sampling:
    # Rows with counts need no padding, so that no batch overflows.
    sampling = privacy.poisson_sampling(n, rate, num_steps=steps, delta=DELTA, epsilon=epsilon)
    return sampling._replace(padded_size=n, overflow=0.0)


def dimension(d: int, keys: Key[Array, " seeds"]) -> dict[str, Measured]:
    """SpiderBoost with and without a projection, and DP-GD, on rank-5 data in d dimensions."""
    problem, steps, phase, epsilon, delta = private_descent.low_rank_problem(d), 500, 50, 4.0, 1e-5
    everyone = privacy.full_batches(problem.num_examples)
    calibrated = privacy.calibrate_spiderboost(
        everyone, everyone, num_steps=steps, phase_length=phase, epsilon=epsilon, delta=delta
    )
    z = privacy.calibrate_dp_sgd(everyone, steps, epsilon=epsilon, delta=delta)
    noise = private_descent.Noise(calibrated.anchor, calibrated.variation)
    factors = np.array([1.0, 4.0])
    rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
    options = {"num_steps": steps, "phase_length": phase}
    found = {
        "SpiderBoost": private_descent.spiderboost_norms(problem, keys, noise, rates, **options),
        "SpiderBoost + JL": private_descent.spiderboost_norms(
            problem, keys, noise, rates, target_dimension=min(d, PROJECTED), **options
        ),
        "DP-GD": private_descent.descent_norms(
            problem, keys, private_descent.Noise(z), rates, num_steps=steps
        ),
    }
    return {
        name: best({f"eta = {f:g}/L1": np.asarray(r) for f, r in zip(factors, norms, strict=True)})
        for name, norms in found.items()
    }


def null_comparisons(
    prose: private_descent.Problem, keys: Key[Array, " seeds"]
) -> dict[str, dict[str, Measured]]:
    """A small data set, one pass over the prose, and recursive regularisation."""
    return {
        "breast cancer, epsilon = 4": _small_data(keys),
        "one pass, epsilon = 1": _one_pass(prose, keys[:4], 1.0),
        "one pass, epsilon = 0.3": _one_pass(prose, keys[:4], 0.3),
    }


def _small_data(keys: Key[Array, " seeds"]) -> dict[str, Measured]:
    split = datasets.load_table("breast_cancer")
    x = np.concatenate([split.train_inputs, split.test_inputs])
    labels = np.concatenate([split.train_labels, split.test_labels])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1) / np.sqrt(x.shape[1] + 1)
    problem = private_descent.Problem(
        privacy.clip_rows(jnp.asarray(x, jnp.float32)),
        jnp.asarray(2.0 * labels - 1, jnp.float32),
        jnp.ones(len(x), jnp.int32),
        jnp.eye(x.shape[1]),
    )
    everyone, budget = privacy.full_batches(len(x)), {"epsilon": 4.0, "delta": 1e-4}
    factors = np.array([1.0, 4.0])
    rates = jnp.asarray(factors / private_descent.SMOOTHNESS)
    spider, descent = {}, {}
    for steps in (100, 300):
        noise = privacy.calibrate_spiderboost(
            everyone, everyone, num_steps=steps, phase_length=steps // 10, **budget
        )
        z = privacy.calibrate_dp_sgd(everyone, steps, **budget)
        pair = private_descent.Noise(noise.anchor, noise.variation)
        boosted = private_descent.spiderboost_norms(
            problem, keys, pair, rates, num_steps=steps, phase_length=steps // 10
        )
        plain = private_descent.descent_norms(
            problem, keys, private_descent.Noise(z), rates, num_steps=steps
        )
        for factor, b, p in zip(factors, boosted, plain, strict=True):
            spider[f"T = {steps}, eta = {factor:g}/L1"] = np.asarray(b)
            descent[f"T = {steps}, eta = {factor:g}/L1"] = np.asarray(p)
    return {"SpiderBoost": best(spider), "DP-GD": best(descent)}


def _one_pass(
    problem: private_descent.Problem, keys: Key[Array, " seeds"], epsilon: float
) -> dict[str, Measured]:
    stream = private_descent.shuffled(problem, keys[0])
    z = privacy.calibrate_one_pass(epsilon, DELTA)
    trees, descent = {}, {}
    for depth, root_size in ((5, 12800), (4, 25600)):
        rounds = problem.num_examples // privacy.tree_examples(root_size, depth)
        betas = np.array([0.04, 0.08, 0.16])
        norms = private_descent.tree_norms(
            problem,
            stream,
            keys,
            z,
            jnp.asarray(betas),
            depth=depth,
            root_size=root_size,
            num_rounds=rounds,
        )
        for beta, row in zip(betas, norms, strict=True):
            trees[f"D = {depth}, b = {root_size}, beta = {beta:g}"] = np.asarray(row)
    factors = np.array([1.0, 4.0, 16.0])
    for steps in (30, 100, 300):
        norms = private_descent.one_pass_descent_norms(
            problem,
            stream,
            keys,
            z,
            jnp.asarray(factors / private_descent.SMOOTHNESS),
            num_steps=steps,
        )
        for factor, row in zip(factors, norms, strict=True):
            descent[f"{steps} batches, eta = {factor:g}/L1"] = np.asarray(row)
    return {"tree SPIDER": best(trees), "one-pass DP-SGD": best(descent)}


def ratio(over: Measured, under: Measured) -> tuple[float, tuple[float, float]]:
    """Ratio of two means with its 95 % interval, by the delta method on logarithms.

    Example:
        >>> ratio(Measured(np.array([1.0, 1.0]), ""), Measured(np.array([2.0, 2.0]), ""))[0]
        0.5
    """
    relative = [np.std(m.norms, ddof=1) / m.mean / len(m.norms) ** 0.5 for m in (over, under)]
    width = float(stats.t.ppf(0.975, len(over.norms) - 1) * np.hypot(*relative))
    middle = over.mean / under.mean
    return middle, (middle * np.exp(-width), middle * np.exp(width))


def _ratio_claim(pair: dict[str, Measured], epsilon: float, limit: float, other: str) -> Claim:
    middle, interval = ratio(pair["SpiderBoost"], pair[other])
    cost = " at equal gradient evaluations" if other == "DP-SGD" else ""
    return Claim(
        statement=f"SpiderBoost's gradient norm is at most {limit} times that of tuned {other}"
        f"{cost} at epsilon = {epsilon:g}",
        paper="rate (sqrt(d)/(n eps))^(2/3) against (sqrt(d)/(n eps))^(1/2)",
        measured=f"ratio {middle:.2f} over {len(pair[other].norms)} seeds "
        f"({pair['SpiderBoost'].mean:.2e} against {pair[other].mean:.2e}; {pair[other].setting})",
        verdict="shown" if middle <= limit else "not shown",
        interval=interval,
    )


def _projection_claims(found: dict[int, dict[str, Measured]]) -> list[Claim]:
    low, high = found[8], found[4096]
    gain, interval = ratio(high["SpiderBoost"], high["SpiderBoost + JL"])
    growth, growth_interval = ratio(high["SpiderBoost + JL"], low["SpiderBoost + JL"])
    return [
        Claim(
            statement="a projection improves SpiderBoost at d = 4096, rank 5, by at least 5 times",
            paper="the rate depends on the rank instead of the dimension",
            measured=f"{gain:.1f} times smaller gradient norm",
            verdict="shown" if gain >= 5 else "not shown",
            interval=interval,
        ),
        Claim(
            statement="projected SpiderBoost at d = 4096 stays within 2 times its value at d = 8",
            paper="the rate depends on the rank instead of the dimension",
            measured=f"{growth:.2f} times; DP-GD is as flat without a projection "
            f"({high['DP-GD'].mean / low['DP-GD'].mean:.2f} times) and as small "
            f"({high['DP-GD'].mean:.1e} against {high['SpiderBoost + JL'].mean:.1e})",
            verdict="shown" if growth <= 2 else "not shown",
            interval=growth_interval,
        ),
    ]


def _slope_claim(full: dict[float, dict[str, Measured]]) -> Claim:
    slopes = {
        name: float(np.log(full[1.0][name].mean / full[10.0][name].mean) / np.log(10))
        for name in ("SpiderBoost", "DP-GD")
    }
    return Claim(
        statement="SpiderBoost's gradient norm falls faster with epsilon than that of tuned DP-GD",
        paper="exponents 2/3 and 1/2",
        measured=f"exponents {slopes['SpiderBoost']:.2f} and {slopes['DP-GD']:.2f} between "
        "epsilon = 1 and 10",
        verdict="shown" if slopes["SpiderBoost"] > slopes["DP-GD"] else "not shown",
    )


def _null_claim(name: str, pair: dict[str, Measured]) -> Claim:
    method, other = pair
    middle, interval = ratio(pair[method], pair[other])
    return Claim(
        statement=f"{method} is better than tuned {other} on {name}",
        paper="no constants; the ratio of the rates is close to 1 at this size",
        measured=f"ratio {middle:.2f} of the gradient norms",
        verdict="shown" if interval[1] < 1 else "null result",
        interval=interval,
    )


def _table(title: str, found: dict, label: str) -> Table:
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    rows = [
        [key, *(f"{row[n].cell} ({row[n].setting})" if n in row else "" for n in names)]
        for key, row in found.items()
    ]
    return Table(f"{title}: gradient norm, mean ± sd over seeds", [label, *names], rows)


def _epsilon_figure(full: dict, equal: dict):
    figure, (left, right) = plotting.axes(1, 2, width=4.6, height=3.4, sharey=True)
    for panel, found, title in (
        (left, full, "full batches"),
        (right, equal, f"{PASSES:.0f} n gradient evaluations"),
    ):
        epsilons = list(found)
        names = list(found[epsilons[0]])
        plotting.lines(
            panel,
            {name: (epsilons, [found[e][name].mean for e in epsilons]) for name in names},
            bands={
                name: tuple(
                    [np.percentile(found[e][name].norms, q) for e in epsilons] for q in (5, 95)
                )
                for name in names
            },
            xlabel="epsilon (delta = 1e-6)",
            ylabel="gradient norm" if panel is left else "",
            title=title,
        )
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
        panel.minorticks_off()
    return figure


def _dimension_figure(found: dict[int, dict[str, Measured]]):
    figure, panel = plotting.axes()
    dimensions = list(found)
    plotting.lines(
        panel,
        {n: (dimensions, [found[d][n].mean for d in dimensions]) for n in found[dimensions[0]]},
        xlabel="dimension d (rank 5, n = 2000, epsilon = 4)",
        ylabel="gradient norm",
    )
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(dimensions, [str(d) for d in dimensions])
    panel.minorticks_off()
    return figure
