"""The report of a run: one HTML file that needs no other, and its figures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkit import plotting
from jaxkit.jobs import pages
from jaxkit.jobs.runs import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_report(
    run: RunFiles,
    *,
    config: Mapping[str, Any],
    summary: Mapping[str, str],
    metrics: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
    by_position: np.ndarray,
    baseline: float | None,
    sample: str,
) -> None:
    """Draw the figures of a run and write `report.html` with them inside."""
    figures = {
        "loss": loss_figure(metrics, evaluations, baseline),
        "loss_by_position": position_figure(by_position, baseline),
        "learning_rate": learning_rate_figure(metrics),
    }
    told = ["<h2>Sample</h2>", f"<pre>{html.escape(sample)}</pre>"]
    told += ["<h2>Configuration</h2>", pages.facts(config)]
    pages.write_run(run.report, summary, figures, told)


def loss_figure(
    metrics: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
    baseline: float | None,
) -> Figure:
    """Training and validation loss by step."""
    figure, panel = plotting.axes(width=8, height=3.6)
    step, loss = _column(metrics, "step"), _column(metrics, "loss")
    panel.plot(step, loss, color=plotting.COLORS[0], alpha=0.25, linewidth=0.8)
    window = max(1, len(loss) // 50)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid") if len(loss) else loss
    curves = {"training": (step[window - 1 :], smooth)}
    if evaluations:
        curves["validation"] = (
            _column(evaluations, "step"), _column(evaluations, "validation_loss")
        )  # fmt: skip
    plotting.lines(panel, curves, xlabel="step", ylabel="nats per token", title="Loss by step")
    _draw_baseline(panel, baseline)
    if len(loss):
        low = min(
            loss.min(),
            np.inf if baseline is None else baseline,
            *(row["validation_loss"] for row in evaluations or [{"validation_loss": np.inf}]),
        )
        panel.set_ylim(low - 0.1, min(loss.max(), (baseline or loss.max()) + 1.5))
    return figure


def position_figure(by_position: np.ndarray, baseline: float | None) -> Figure:
    """Validation loss by position in the context."""
    figure, panel = plotting.axes(width=8, height=3.2)
    position = np.arange(1, len(by_position) + 1)
    plotting.lines(
        panel,
        {"model": (position, by_position)},
        xlabel="tokens of context",
        ylabel="nats per token",
        title="Validation loss by position in the context",
    )
    _draw_baseline(panel, baseline)
    return figure


def _draw_baseline(panel: Axes, baseline: float | None) -> None:
    if baseline is not None:
        panel.axhline(baseline, color="#999999", linestyle="--", linewidth=1, label="bigram model")
        panel.legend(frameon=False)


def learning_rate_figure(metrics: Sequence[Mapping[str, float]]) -> Figure:
    """Learning rate and gradient norm by step."""
    figure, (left, right) = plotting.axes(1, 2, width=4, height=2.8)
    step = _column(metrics, "step")
    plotting.lines(
        left, {"lr": (step, _column(metrics, "learning_rate"))}, xlabel="step",
        title="Learning rate",
    )  # fmt: skip
    plotting.lines(
        right, {"norm": (step, _column(metrics, "gradient_norm"))}, xlabel="step",
        title="Gradient norm before clipping",
    )  # fmt: skip
    right.set_yscale("log")
    return figure


def _column(rows: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=np.float64)
