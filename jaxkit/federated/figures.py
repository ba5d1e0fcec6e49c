"""Figures of federated runs and of how clients differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkit import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_distribution_figure(
    counts: Mapping[str, Any],
) -> Figure:
    """Draw which classes the first 40 clients hold: a bar a client, a panel a partition.

    Args:
        counts: by name of the partition, examples of each class at each client
            [clients, classes] (see `label_counts`).

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = label_distribution_figure({"two clients": np.array([[3, 0], [1, 2]])})
    """
    if not counts:
        raise ValueError("counts must name at least one partition, got none")
    figure, panels = plotting.axes(1, len(counts), width=4.6, height=3.0, squeeze=False)
    for panel, (name, table) in zip(panels[0], counts.items(), strict=True):
        table = np.asarray(table)[:40]
        bottom = np.zeros(len(table))
        for label, column in enumerate(table.T):
            panel.bar(
                np.arange(len(table)),
                column,
                bottom=bottom,
                width=1.0,
                color=_class_color(label, table.shape[1]),
                label=str(label),
            )
            bottom += column
        panel.set(xlabel="client", ylabel="examples", title=name, xlim=(-0.5, len(table) - 0.5))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(visible=False)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="class")
    return figure


def accuracy_figure(
    histories: Mapping[str, Any],
    *,
    metric: str = "accuracy",
    target: float | None = None,
    title: str = "",
) -> Figure:
    """Draw a metric by round, for several runs.

    Args:
        histories: by name, either rows of metrics with `"step"` (the round) and the metric, as
            `simulate` returns and `read_metrics` reads, or an array [seeds, rounds]: its mean is
            drawn with a band of one standard deviation.
        metric: name of the metric in rows.
        target: level to mark.
        title: of the figure.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = accuracy_figure({"FedAvg": [{"step": 1, "accuracy": 0.5}]})
    """
    if not histories:
        raise ValueError("histories must name at least one run, got none")
    curves, bands = {}, {}
    for name, history in histories.items():
        if isinstance(history, list):
            rows = [row for row in history if metric in row]
            if not rows:
                raise ValueError(f"histories[{name!r}] has no row with {metric!r}")
            curves[name] = ([row["step"] for row in rows], [row[metric] for row in rows])
            continue
        values = np.atleast_2d(np.asarray(history))
        rounds, mean, spread = np.arange(1, values.shape[1] + 1), values.mean(0), values.std(0)
        curves[name] = (rounds, mean)
        bands[name] = (mean - spread, mean + spread)
    figure, panel = plotting.axes(width=6.4, height=3.8)
    plotting.lines(panel, curves, xlabel="round", ylabel=metric, title=title, bands=bands)
    if target is not None:
        panel.axhline(target, color="0.4", linestyle=":", linewidth=1)
    return figure


def _class_color(label: int, classes: int) -> Any:
    if classes <= len(plotting.COLORS):
        return plotting.COLORS[label]
    import matplotlib as mpl

    return mpl.colormaps["turbo"]((label + 0.5) / classes)
