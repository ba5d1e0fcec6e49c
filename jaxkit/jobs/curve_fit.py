"""Fit the loss-curve law to finished runs and predict others."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from jaxkit import logs, losscurves, plotting, schedules, validation
from jaxkit.jobs import options
from jaxkit.jobs import runs as run_files
from jaxkit.schedules import profiles

#: Decays of the annealing momentum that are compared when none is given.
DECAYS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)


class CurveFit(NamedTuple):
    """What `fit_runs` found.

    Attributes:
        law: the law, with its uncertainty.
        fit_table: how well it describes the runs it was fitted on.
        left_out: error on each run when it was left out of the fit, in per cent, by name; empty
            where fewer than three runs do not allow it.
        predictions: final loss by schedule with its interval, best first.
        warnings: what to doubt: holes in logs, predictions that extrapolate.
        path: where the law is, for `jaxkit train --schedule law:PATH`.
        figure: where the figure is.
    """

    law: losscurves.Law
    fit_table: losscurves.ComparisonTable
    left_out: dict[str, float]
    predictions: losscurves.ComparisonTable
    warnings: tuple[str, ...]
    path: pathlib.Path
    figure: pathlib.Path

    def show(self) -> None:
        """Print the law, its tables and what to doubt."""
        law = {name: float(value) for name, value in self.law.constants._asdict().items()}
        print("  ".join(f"{name} {value:.6g}" for name, value in law.items()), f" {self.law.form}")
        if self.law.at_bound:
            print(f"at a bound, so not identified: {', '.join(self.law.at_bound)}")
        print(self.fit_table, end="\n\n")
        if self.left_out:
            errors = ", ".join(f"{name} {error:.3f} %" for name, error in self.left_out.items())
            print(f"mean error on a run left out of the fit: {errors}")
        else:
            print(
                "the error on an unseen schedule is not measured, that takes three runs or more: "
                "the intervals take 3 times that of the fit (where they said 90 %, 78 to 98 % of "
                "the points of published curves lay inside)"
            )
        print(self.predictions, end="\n\n")
        for message in self.warnings:
            print(f"warning: {message}")
        print(self.path, self.figure, sep="\n")


def fit_runs(
    runs: tyro.conf.Positional[Sequence[options.Path]],
    predict: Sequence[str] = ("constant", "linear", "cosine", "rex", "wsd"),
    decay: float | None = None,
    level: float = 0.9,
    warmup_steps: float | None = None,
    first_step: int = 0,
    step: str = "step",
    units_per_step: float = 1.0,
    learning_rate: str = "learning_rate",
    loss: str = "loss",
    smoothing: float = 0.0,
    out: options.Path = ".",
) -> CurveFit:
    """Fit the loss-curve law to runs and predict the loss of other schedules.

    Train with what the law chooses by `jaxkit train --schedule law:OUT`.

    Args:
        runs: run folders, or logs (CSV, JSON lines, TensorBoard event files, W&B exports): one with
            a constant rate and one that decays are what the law needs.
        predict: schedules, each NAME or NAME:STEPS, at the peak of the runs.
        decay: decay of the annealing momentum per update; by default the best of a few.
        level: nominal coverage of the intervals.
        warmup_steps: updates of the warm-up, 0 for none; a run folder says it itself, a log cannot.
        first_step: points before it are left out.
        step: column of the steps, or of tokens or epochs.
        units_per_step: growth of that column in one update: tokens of a batch, for example.
        learning_rate: column of the learning rate.
        loss: column of the loss, in nats, bits per byte or any unit.
        smoothing: weight of the exponential average that the logged loss went through.
        out: folder for the law and the figure.
    """
    reading = {
        "warmup_steps": warmup_steps, "first_step": first_step, "step": step,
        "units_per_step": units_per_step, "learning_rate": learning_rate, "loss": loss,
        "smoothing": smoothing,
    }  # fmt: skip
    paths = tuple(runs)
    if not paths:
        raise ValueError("paths must name at least one run, got none")
    validation.number("level", level, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    folder = options.output_folder(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        curves: dict[str, losscurves.LossCurve] = {}
        for path in map(pathlib.Path, paths):
            curve = _read(path, reading)
            curves[path.name if path.name not in curves else str(path)] = curve
        observed = list(curves.values())
        warmup = max(curve.warmup_steps for curve in observed)
        longest = max(len(curve.learning_rates) - 1 for curve in observed)
        for name in predict:  # refused before the fit, which takes a while
            _schedule(name, 1.0, longest, warmup)
        if decay is None:
            decay = losscurves.profile_decay(observed, DECAYS).best
        form = losscurves.Annealing(decay)
        law = losscurves.bootstrap_fit(jax.random.key(0), form, observed, num_samples=100)
        left_out = _left_out(form, curves)
        candidates = {name: _schedule(name, law.peak_value(), longest, warmup) for name in predict}
        rows = [_row(law, name, made, warmup, level) for name, made in candidates.items()]
        rows.sort(key=lambda row: row[2])
        figure = losscurves.prediction_figure(
            law, curves, unseen={name: candidates[name] for name, *_ in rows}, warmup_steps=warmup
        )
        fit_table = losscurves.comparison_table({"annealing": law}, curves)
    percent = f"{100 * level:g} %"
    columns = ("schedule", "updates", "final loss predicted", f"{percent} from", f"{percent} to")
    return CurveFit(
        law,
        fit_table,
        left_out,
        losscurves.ComparisonTable(columns, tuple(rows)),
        tuple(dict.fromkeys(str(one.message) for one in caught)),
        losscurves.write_law(folder / "law.json", law),
        plotting.save(figure, folder / "fit_curve.png"),
    )


def _read(path: pathlib.Path, reading: dict[str, Any]) -> losscurves.LossCurve:
    files = run_files.RunFiles.at(path)
    if not path.is_dir() or not files.config.exists():
        if path.is_dir() and not list(path.rglob("*tfevents*")):
            raise ValueError(f"{path} is not a run: it holds no config.json and no event file")
        return losscurves.read_curve(path, **reading)
    description = run_files.read_description(files)
    assert description is not None
    config = description.config
    known: dict[str, Any] = {"warmup_steps": config.warmup}
    if config.pilot is not None:  # a refined schedule has a warm-up of its own, of no known length
        known = {}
    elif _agrees(files.metrics, config.schedule_function()):
        known["learning_rates"] = config.schedule_function()
    given = {name: value for name, value in reading.items() if value is not None}
    return losscurves.read_curve(files.metrics, **known | given)


def _agrees(metrics: pathlib.Path, schedule: Any) -> bool:
    """Whether the run trained as its configuration says; it may have been resumed with another."""
    at, rates = logs.read_log(metrics).column("learning_rate")
    made = np.asarray(schedule(np.maximum(at - 1, 0)))
    return bool(np.allclose(rates, made, rtol=1e-4, atol=1e-6 * np.nanmax(rates, initial=0.0)))


def _left_out(
    form: losscurves.Annealing, curves: dict[str, losscurves.LossCurve]
) -> dict[str, float]:
    if len(curves) < 3:
        return {}
    try:
        scores = losscurves.leave_one_out(form, list(curves.values()))
    except ValueError as error:
        warnings.warn(f"no error of an unseen schedule: {error}", stacklevel=2)
        return {}
    return {name: 100 * float(one.mean_relative) for name, one in zip(curves, scores, strict=True)}


def _schedule(text: str, peak: float, longest: int, warmup: float) -> np.ndarray:
    name, _, steps = text.partition(":")
    if steps and not steps.isdigit():
        raise ValueError(f"predict must be NAME or NAME:STEPS, got {text!r}")
    total = int(steps) if steps else longest
    standard = schedules.standard_schedules(peak, total, warmup_steps=warmup)
    if name in standard:
        schedule = standard[name]
    else:
        validation.choice("predict", name, (*standard, *profiles.PROFILES))
        schedule = schedules.schedule_from_profile(name, peak, total, warmup_steps=warmup)
    # The rate in force at step t is that of the update before it.
    rates = losscurves.rates_of(schedule, total - 1)
    return np.concatenate([rates[:1], rates])


def _row(
    law: losscurves.Law, name: str, rates: np.ndarray, warmup: float, level: float
) -> tuple[str, int, float, float, float]:
    last = len(rates) - 1
    found = losscurves.prediction_interval(
        law, rates, steps=np.array([last]), warmup_steps=warmup, level=level
    )
    return name, last, float(found.loss[0]), float(found.low[0]), float(found.high[0])
