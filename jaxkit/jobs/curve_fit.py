"""Fit the loss-curve law to finished runs and predict others."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkit import losscurves, plotting, schedules, training
from jaxkit.jobs import runs

#: Decays of the annealing momentum that are compared when none is given.
DECAYS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)


class CurveFit(NamedTuple):
    """What `fit_runs` found.

    Attributes:
        fitted: the law.
        decay: its decay of the annealing momentum.
        fit_table: how well it describes the runs it was fitted on.
        predictions: final loss by schedule, best first.
        figure: where the figure is.
    """

    fitted: losscurves.LawFit
    decay: float
    fit_table: losscurves.ComparisonTable
    predictions: losscurves.ComparisonTable
    figure: pathlib.Path


def fit_runs(
    paths: Sequence[str | os.PathLike[str]],
    predict: Sequence[str] = (),
    *,
    decay: float | None = None,
    first_step: int = 0,
    out: str | os.PathLike[str] = ".",
) -> CurveFit:
    """Fit the annealing law to runs and predict the final loss of other schedules.

    Args:
        paths: run folders, or CSV or JSONL files with `step, learning_rate, loss`; at least one
            must anneal, and one constant and one decaying run are what the law needs.
        predict: schedules to predict, each `NAME` or `NAME:STEPS`, at the peak of the fitted runs;
            STEPS is by default the length of the longest.
        decay: decay of the annealing momentum, per update; None takes the best of `DECAYS`.
        first_step: points before it are left out; those of a run's warm-up always are.
        out: folder for `fit_curve.png`.

    Returns:
        The law, its tables and its figure.

    Raises:
        ValueError: if a file is faulty (naming file and line), a schedule unknown, or the runs do
            not identify the law.
        OSError: if a file cannot be read or written.
    """
    curves, warmups = {}, []
    for path in map(pathlib.Path, paths):
        curve, warmup = _read(path, first_step)
        curves[path.name if path.name not in curves else str(path)] = curve
        warmups.append(warmup)
    if not curves:
        raise ValueError("paths must name at least one run, got none")
    observed = list(curves.values())
    if decay is None:
        decay = losscurves.profile_decay(observed, DECAYS, warmup_steps=warmups).best
    fitted = losscurves.fit(losscurves.Annealing(decay), observed, warmup_steps=warmups)
    fit_table = losscurves.comparison_table(
        {"annealing": fitted}, curves, warmup_steps=max(warmups)
    )
    longest = max(len(curve.learning_rates) - 1 for curve in observed)
    candidates = {name: _rates(name, float(fitted.peak), longest, max(warmups)) for name in predict}
    losses = {
        name: float(
            np.asarray(
                losscurves.predict(
                    fitted, rates, steps=np.array([len(rates) - 1]), warmup_steps=max(warmups)
                )
            )[-1]
        )
        for name, rates in candidates.items()
    }
    ranked = sorted(losses, key=lambda name: losses[name])
    predictions = losscurves.ComparisonTable(
        ("schedule", "updates", "final loss predicted"),
        tuple((name, len(candidates[name]) - 1, losses[name]) for name in ranked),
    )
    figure = losscurves.prediction_figure(fitted, curves, warmup_steps=max(warmups))
    for index, (name, rates) in enumerate(candidates.items()):
        loss = np.asarray(losscurves.predict(fitted, rates, warmup_steps=max(warmups)))
        start = max(warmups) + max(1, len(rates) // 50)
        figure.axes[0].plot(
            np.arange(start, len(rates)),
            loss[start:],
            "--",
            color=plotting.COLORS[(len(curves) + index) % len(plotting.COLORS)],
            label=f"{name} (predicted)",
        )
    figure.axes[0].legend(ncols=2)
    path = plotting.save(figure, pathlib.Path(out) / "fit_curve.png")
    return CurveFit(fitted, decay, fit_table, predictions, path)


def _read(path: pathlib.Path, first_step: int) -> tuple[losscurves.LossCurve, int]:
    if not path.is_dir():
        return losscurves.read_curve(path, first_step=first_step), 0
    if not runs.RunFiles.at(path).config.exists():
        raise ValueError(f"{path} is not a run: it holds no config.json")
    metrics = runs.RunFiles.at(path).metrics
    rates = [row["learning_rate"] for row in training.read_metrics(metrics)]
    # The warm-up ends where the rate peaks for the first time.
    warmup = int(np.argmax(rates)) if len(rates) > 1 and rates[1] > rates[0] else 0
    return losscurves.read_curve(metrics, first_step=max(first_step, warmup + 1)), warmup


def _rates(text: str, peak: float, longest: int, warmup: int) -> np.ndarray:
    name, _, steps = text.partition(":")
    if steps and not steps.isdigit():
        raise ValueError(f"predict must be NAME or NAME:STEPS, got {text!r}")
    total = int(steps) if steps else longest
    schedule = schedules.schedule_from_profile(name, peak, total, warmup_steps=warmup)
    # The rate in force at step t is that of the update before it.
    rates = losscurves.rates_of(schedule, total - 1)
    return np.concatenate([rates[:1], rates])
