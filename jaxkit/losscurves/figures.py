"""Figures of loss curves and the laws that predict them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import plotting
from jaxkit.losscurves import areas, curves, fitting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_figure(
    fitted: fitting.LawFit,
    observed: Mapping[str, curves.LossCurve],
    *,
    warmup_steps: int | None = None,
    title: str = "",
) -> Figure:
    """Draw observed points and predicted curves, with the relative residuals below.

    Args:
        fitted: the fit that predicts.
        observed: curves by name.
        warmup_steps: as for `predict`.
        title: title of the figure.

    Returns:
        A figure of two panels.

    Raises:
        ValueError: as `predict`, or if there is no curve.

    Example:
        >>> rates, at = np.full(101, 0.1), np.arange(10, 101, 10)
        >>> run = curves.loss_curve(rates, at, 2 + np.cumsum(rates)[at] ** -0.5)
        >>> from jaxkit.losscurves import forms
        >>> len(prediction_figure(fitting.fit(forms.StepPower(), [run]), {"a": run}).axes)
        2
    """
    if not observed:
        raise ValueError("observed must hold at least one curve, got none")
    figure, (top, bottom) = plotting.axes(
        2, 1, width=7.0, height=2.6, sharex=True, height_ratios=[2.2, 1]
    )
    for index, (name, curve) in enumerate(observed.items()):
        predicted = np.asarray(
            fitting.predict(
                fitted,
                curve.learning_rates,
                steps=curve.steps,
                warmup_steps=warmup_steps,
                model_size=curve.model_size,
            )
        )
        color = plotting.COLORS[index % len(plotting.COLORS)]
        top.plot(curve.steps, curve.losses, ".", color=color, alpha=0.35, markersize=4)
        top.plot(curve.steps, predicted, color=color, label=name)
        residual = 100 * (predicted - curve.losses) / curve.losses
        bottom.plot(curve.steps, residual, color=color, linewidth=1.0)
    top.set(ylabel="loss (nats)", title=title or "Observed (points) and predicted (lines)")
    top.legend(ncols=2)
    bottom.axhline(0.0, color="black", linewidth=0.8)
    bottom.set(xlabel="step", ylabel="residual (%)")
    return figure


def areas_figure(
    schedules: Mapping[str, Float[ArrayLike, " steps"]], *, decay: float = 0.999
) -> Figure:
    """Draw learning rates and the two areas they give.

    Args:
        schedules: rates by name.
        decay: lambda.

    Returns:
        A figure of three panels.

    Raises:
        ValueError: as `annealing_areas`.

    Example:
        >>> len(areas_figure({"linear": np.linspace(1.0, 0.0, 50)}, decay=0.9).axes)
        3
    """
    figure, panels = plotting.axes(1, 3, width=4.0, height=2.9)
    found = {name: areas.annealing_areas(rates, decay) for name, rates in schedules.items()}
    rows = [
        ("learning rate", {name: np.asarray(rates) for name, rates in schedules.items()}),
        ("S1: area under the rate", {name: np.asarray(a.forward) for name, a in found.items()}),
        ("S2: annealing area", {name: np.asarray(a.annealing) for name, a in found.items()}),
    ]
    for panel, (title, values) in zip(panels, rows, strict=True):
        curves_ = {name: (np.arange(len(y)), y) for name, y in values.items()}
        plotting.lines(panel, curves_, xlabel="step", title=title)
    for panel in panels[1:]:
        if panel.get_legend():
            panel.get_legend().remove()
    return figure


def decay_fraction_figure(
    predicted: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    measured: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]
    | None = None,
    *,
    title: str = "Final loss against decay fraction",
) -> Figure:
    """Draw final loss against the share of the run that decays; each minimum is marked.

    Args:
        predicted: (fractions, losses) by name, drawn as lines.
        measured: (fractions, losses) by the same names, drawn as points.
        title: title of the figure.

    Returns:
        A figure of one panel.

    Example:
        >>> len(decay_fraction_figure({"linear": ([0.1, 0.2], [2.8, 2.7])}).axes)
        1
    """
    figure, panel = plotting.axes(width=6.4, height=3.8)
    lines = {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in predicted.items()}
    plotting.lines(
        panel, lines, xlabel="decay steps / all steps", ylabel="final loss (nats)", title=title
    )
    for index, (name, (x, y)) in enumerate(lines.items()):
        color = plotting.COLORS[index % len(plotting.COLORS)]
        best = int(np.argmin(y))
        panel.plot(x[best], y[best], "*", color=color, markersize=11)
        if measured and name in measured:
            panel.plot(*measured[name], "o--", color=color, markersize=5, linewidth=0.8)
    return figure
