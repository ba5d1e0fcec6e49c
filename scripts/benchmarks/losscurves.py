"""The loss-curve law beside what a user would run instead: SciPy from 54 starts, step loops."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np
import scipy.optimize

from jaxkit import losscurves, schedules
from jaxkit.experiments.evidence import Table

DECAY, DELTA, PEAK = 0.999, 1e-3, 3e-4
LAW = losscurves.law(
    losscurves.Annealing(DECAY), floor=2.52, scale=0.65, annealing=0.57, exponent=0.42
)


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules.schedule_from_profile(name, peak, total, **options))


def run() -> list[Table]:
    """Time the fit, the areas and the candidates beside their peers, interleaved."""
    return [fits(), areas(), candidates()]


def measured_curves() -> list[losscurves.LossCurve]:
    """Three curves of 24,000 steps and 450 points, with the noise and the length of real ones."""
    rng = np.random.default_rng(0)
    curves = []
    for rates in (
        table("constant", 24000, PEAK),
        table("cosine", 24000, PEAK, end_value=PEAK / 10),
        table("step", 24000, PEAK, boundaries=(0.4,), factor=0.3),
    ):
        steps = np.arange(2176, 24000, 146)
        with jax.enable_x64(True):
            exact = np.asarray(losscurves.predict(LAW, rates, steps=steps))
        losses = exact * np.exp(1e-3 * rng.standard_normal(steps.size))
        curves.append(losscurves.loss_curve(rates, steps, losses))
    return curves


def official_fit(curves: Sequence[losscurves.LossCurve]) -> float:
    """Follow the published procedure: L-BFGS-B with finite differences from 54 starts."""
    s1, s2, log_losses = [], [], []
    for curve in curves:
        momentum, total, path = 0.0, 0.0, []
        rates = curve.learning_rates.tolist()
        for before, rate in zip([rates[0], *rates], rates, strict=False):
            momentum = DECAY * momentum + (before - rate)
            total += momentum
            path.append(total)
        s1.append(np.cumsum(curve.learning_rates)[curve.steps])
        s2.append(np.array(path)[curve.steps])
        log_losses.append(np.log(curve.losses))
    forward, annealing, target = map(np.concatenate, (s1, s2, log_losses))

    def objective(p: np.ndarray) -> float:
        r = np.abs(target - np.log(p[0] + p[1] * forward ** -p[3] - p[2] * annealing))
        return float(np.sum(np.where(r < DELTA, r**2 / 2, DELTA * r - DELTA**2 / 2)))

    best = np.inf
    for start in itertools.product((0.1, 2.1), (1, 11.5, 22), (1, 11.5, 22), (0, 0.4, 0.8)):
        # Half of the starts run into the logarithm of a negative number.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            found = scipy.optimize.minimize(
                objective,
                np.array(start),
                method="L-BFGS-B",
                bounds=[(0, None)] * 4,
                options={"maxiter": 100_000, "ftol": 1e-9, "gtol": 1e-6, "eps": 1e-8},
            )
        if np.isfinite(found.fun):
            best = min(best, float(found.fun))
    return best


def fits() -> Table:
    """Fit three curves."""
    curves = measured_curves()
    form = losscurves.Annealing(DECAY)
    objectives: dict[str, float] = {}

    def ours() -> None:
        objectives["ours"] = float(losscurves.fit(form, curves).objective)

    def theirs() -> None:
        objectives["theirs"] = official_fit(curves)

    rows = _compare("fit of 3 curves, 450 points", ours, theirs, repeats=5)
    note = f"{objectives['ours']:.6e} / {objectives['theirs']:.6e}"
    return Table(
        "Fit of the annealing law beside the published 54-start SciPy procedure (objectives: "
        f"{note})",
        COLUMNS,
        [rows],
    )


def areas() -> Table:
    """Compute the areas of a million steps beside the published loop over steps."""
    held, decayed = np.full(800_000, PEAK), np.linspace(PEAK, 0, 200_001)
    rates = np.concatenate([held, decayed])
    on_device = jax.numpy.asarray(rates, jax.numpy.float32)
    compiled = jax.jit(losscurves.annealing_areas, static_argnums=1)

    def ours() -> None:
        jax.block_until_ready(compiled(on_device, DECAY))

    def theirs() -> None:
        momentum, total, previous = 0.0, 0.0, float(rates[0])
        for rate in rates.tolist():
            momentum = DECAY * momentum + (previous - rate)
            total += momentum
            previous = rate

    return Table(
        "Areas of a schedule beside a Python loop over steps",
        COLUMNS,
        [_compare("10^6 steps", ours, theirs, repeats=5)],
    )


def candidates() -> Table:
    """Predict whole curves of 1000 schedules in one call beside a NumPy loop over schedules."""
    steps, count = 25_000, 1000
    lengths = np.linspace(1, steps, count).astype(int)
    left = (steps - np.arange(steps + 1)) / lengths[:, None]
    rates = (PEAK * np.clip(left, 0, 1)).astype(np.float32)
    compiled = jax.jit(lambda r: losscurves.predict(LAW, r))
    on_device = jax.numpy.asarray(rates)

    def ours() -> None:
        jax.block_until_ready(compiled(on_device))

    def theirs() -> None:
        # The best a NumPy user does: one recursion over steps for all schedules at once.
        table = rates.astype(np.float64).T.copy()
        s1, s2 = np.cumsum(table, axis=0), np.zeros_like(table)
        for step in range(1, steps + 1):
            s2[step] = DECAY * s2[step - 1] + (table[0] - table[step])
        floor, scale, annealing, exponent = LAW.constants
        floor + scale * s1**-exponent - annealing * s2

    return Table(
        "Whole predicted curves of 1000 schedules beside a vectorised NumPy recursion",
        COLUMNS,
        [_compare("1000 x 25,000 steps", ours, theirs, repeats=3)],
    )


COLUMNS = ("case", "ours (s)", "peer (s)", "peer / ours", "range of the ratio")


def _compare(
    case: str, ours: Callable[[], None], theirs: Callable[[], None], repeats: int
) -> tuple[str, str, str, str, str]:
    ours()
    times = np.zeros((repeats, 2))
    for row in times:
        for column, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            row[column] = time.perf_counter() - start
    ratios = times[:, 1] / times[:, 0]
    mine, peer = np.median(times, axis=0)
    return (
        case, f"{mine:.4f}", f"{peer:.3f}", f"{np.median(ratios):.1f}",
        f"{ratios.min():.1f} to {ratios.max():.1f}",
    )  # fmt: skip
