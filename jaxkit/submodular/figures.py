"""Pictures of a selection and of a dynamic stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkit import plotting
from jaxkit.submodular import operands
from jaxkit.submodular.selection import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plane(features: Any) -> np.ndarray:
    """Project rows `[n, d]` on their two principal axes, `[n, 2]`; a missing second axis is 0."""
    rows = np.asarray(operands.operand("features", operands.table(features), rank=2), np.float64)
    rows = rows - rows.mean(0)
    # The axes come from the d x d matrix, so that many rows cost one pass.
    _, axes = np.linalg.eigh(rows.T @ rows)
    flat = rows @ axes[:, ::-1][:, :2]
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def selection_figure(features: Any, selection: Selection, *, title: str = "") -> Figure:
    """Draw where the selected rows lie among all, and how the value grew with each.

    Args:
        features: `[n, d]`, what was selected from.
        selection: what was selected.
        title: a line above the left panel.

    Raises:
        ImportError: if matplotlib is missing.
        TypeError, ValueError: as `plane`.

    Example:
        >>> from jaxkit.submodular import select
        >>> figure = selection_figure(np.eye(4), select(np.eye(4), 2))
        >>> len(figure.axes)
        2
    """
    points = plane(features)
    valid = np.asarray(selection.valid)
    chosen = np.asarray(selection.indices)[valid]
    gains = np.asarray(selection.gains)[valid]
    figure, (left, right) = plotting.axes(1, 2)
    size = float(np.clip(4000 / len(points), 1, 20))
    left.scatter(*points.T, s=size, color="#bbbbbb", linewidths=0, rasterized=True)
    left.scatter(*points[chosen].T, s=28, color=plotting.COLORS[1], zorder=3)
    for rank, item in enumerate(chosen[:20], 1):
        left.annotate(str(rank), points[item], xytext=(3, 3), textcoords="offset points", size=8)
    left.set(
        xlabel="first principal axis",
        ylabel="second principal axis",
        title=title or f"{len(chosen)} of {len(points)} rows",
    )
    ranks = np.arange(1, len(gains) + 1)
    start = float(selection.value) - gains.sum()
    right.plot(ranks, start + np.cumsum(gains), color=plotting.COLORS[0], marker=".")
    right.set(xlabel="rows selected", ylabel="value F(S)", title="each new row adds less")
    right.set_ylim(bottom=0)
    return figure
