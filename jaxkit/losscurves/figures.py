"""Figures of loss curves and the laws that predict them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import plotting
from jaxkit.losscurves import areas, curves, fitting, uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_figure(
    fitted: fitting.Law,
    observed: Mapping[str, Any],
    *,
    unseen: Mapping[str, Any] | None = None,
    warmup_steps: float | None = None,
    title: str = "",
) -> Figure:
    """Draw what was fitted, by how much it misses, and what is predicted of other schedules.

    Args:
        fitted: the fit that predicts.
        observed: curves by name, in any form that `fit` takes.
        unseen: learning rates or optax schedules by name, drawn dashed and, where the law comes
            from `bootstrap_fit`, with the 90 % interval of their final loss in a third panel.
        warmup_steps: as for `predict`.
        title: title of the figure.

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
    known = {name: curves.as_curve(one, name, warmup_steps) for name, one in observed.items()}
    ratios = [2.2, 1, 0.3 + 0.16 * len(unseen)] if unseen else [2.2, 1]
    figure, panels = plotting.axes(len(ratios), 1, width=7.0, height=2.6, height_ratios=ratios)
    top, bottom = panels[0], panels[1]
    top.sharex(bottom)
    top.tick_params(labelbottom=False)
    for index, (name, curve) in enumerate(known.items()):
        predicted = np.asarray(fitting.predict(fitted, curve, warmup_steps=warmup_steps))
        color = plotting.COLORS[index % len(plotting.COLORS)]
        top.plot(curve.steps, curve.losses, ".", color=color, alpha=0.35, markersize=4)
        top.plot(curve.steps, predicted, color=color, label=name)
        residual = 100 * (predicted - curve.losses) / curve.losses
        bottom.plot(curve.steps, residual, color=color, linewidth=1.0)
    top.set(ylabel="loss", title=title or "Observed (points) and predicted (lines)")
    top.legend(ncols=2)
    bottom.axhline(0.0, color="black", linewidth=0.8)
    bottom.set(xlabel="step", ylabel="residual (%)")
    if unseen:
        _draw_unseen(fitted, unseen, top, panels[2], len(known), warmup_steps)
        top.legend(ncols=2)
    # The fall of the first steps would hide what the schedules do.
    drawn = np.concatenate([curve.losses[len(curve.losses) // 10 :] for curve in known.values()])
    margin = 0.1 * np.ptp(drawn)
    low = min([drawn.min(), *(line.get_ydata()[-1] for line in top.lines)])
    top.set_ylim(low - margin, drawn.max() + margin)
    return figure


def _draw_unseen(
    law: fitting.Law,
    unseen: Mapping[str, Any],
    curves_panel: Any,
    finals_panel: Any,
    first_color: int,
    warmup_steps: float | None,
) -> None:
    names = list(unseen)
    for index, (name, schedule) in enumerate(unseen.items()):
        rates = curves.rates_of(schedule)
        steps = np.unique(np.linspace(0, len(rates) - 1, 500).astype(int))[25:]
        color = plotting.COLORS[(first_color + index) % len(plotting.COLORS)]
        loss = np.asarray(fitting.predict(law, rates, steps=steps, warmup_steps=warmup_steps))
        curves_panel.plot(steps, loss, "--", color=color, label=f"{name} (predicted)")
        half = None
        if law.samples is not None:
            last = np.array([len(rates) - 1])
            found = uncertainty.prediction_interval(
                law, rates, steps=last, warmup_steps=warmup_steps
            )
            half = found.high - found.loss
        finals_panel.errorbar(
            loss[-1:], [index], xerr=half, fmt="o", color=color, capsize=3, markersize=4
        )
    finals_panel.set_yticks(range(len(names)), names)
    finals_panel.set_ylim(len(names) - 0.5, -0.5)
    finals_panel.set(xlabel="final loss predicted, with its 90 % interval")


def areas_figure(
    schedules: Mapping[str, Float[ArrayLike, " steps"]],
    *,
    decay: float = 0.999,
    warmup_steps: float = 0,
) -> Figure:
    """Draw learning rates and the two areas they give.

    Args:
        schedules: rates by name.
        decay: lambda.
        warmup_steps: last step of a warm-up, whose rates are drawn as the areas count them: at the
            peak.

    Raises:
        ValueError: as `annealing_areas`.

    Example:
        >>> len(areas_figure({"linear": np.linspace(1.0, 0.0, 50)}, decay=0.9).axes)
        3
    """
    figure, panels = plotting.axes(1, 3, width=4.0, height=2.9)
    if warmup_steps:
        schedules = {
            name: areas.warmup_at_peak(rates, warmup_steps) for name, rates in schedules.items()
        }
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
