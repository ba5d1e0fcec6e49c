"""Pictures of paths on a map and of learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkit import intervals, plotting
from jaxkit.subrl.environments import SubmodularEnvironment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def paths_figure(
    environment: SubmodularEnvironment, paths: Mapping[str, Any], *, width: float = 3.4
) -> Figure:
    """Draw paths over the weight that each state would earn alone, one panel a name.

    Args:
        environment: a world whose states are cells of a grid.
        paths: states by name, `[P, H]` each, -1 for none.
        width: of a panel, inches.

    Raises:
        ValueError: if `paths` is empty, or the states are not cells of a grid.

    Example:
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((3, 3), start=0)
        >>> len(paths_figure(env, {"a": np.array([[0, 1, 4]])}).axes)
        1
    """
    if not paths:
        raise ValueError("paths must have at least one entry, got none")
    if environment.shape is None:
        raise ValueError("environment must have states that are cells of a grid")
    rows, columns = environment.shape
    f = environment.default_params.set_function
    alone = np.array(f.gains(f.init()), np.float64).reshape(rows, columns)
    alone[alone <= 0] = np.nan
    height = width * rows / columns + 0.4
    figure, panels = plotting.axes(1, len(paths), width=width, height=height)
    for panel, (name, states) in zip(np.atleast_1d(panels), paths.items(), strict=True):
        panel.imshow(alone, cmap="Greens", vmin=0, vmax=1.2 * np.nanmax(alone))
        panel.set_facecolor("#dddddd")
        states = np.asarray(states)
        # A small shift for each path, so that paths over each other stay visible.
        shifts = np.linspace(-0.25, 0.25, len(states)) if len(states) > 1 else np.zeros(1)
        for index, (path, shift) in enumerate(zip(states, shifts, strict=True)):
            row, column = np.divmod(path[path >= 0], columns)
            color = plotting.COLORS[(0, 1, 3, 4, 5, 6, 7)[index % 7]]
            panel.plot(column + shift, row + shift, color=color, linewidth=1.4)
        row, column = divmod(int(states[0, 0]), columns)
        panel.scatter([column], [row], color="black", s=22, zorder=3)
        panel.set(title=name, xticks=[], yticks=[])
        panel.grid(visible=False)
    return figure


def draw_curves(
    panel: Any,
    curves: Mapping[str, Any],
    levels: Mapping[str, float] | None = None,
    *,
    title: str = "",
    ylabel: str = "F of an episode",
) -> None:
    """Draw means over seeds by step, with 95 % bands of the mean, and known values as lines.

    Args:
        panel: a matplotlib `Axes`.
        curves: values by name, `[seeds, steps]` each.
        levels: values of planners or bounds by name.
        title: above the panel.
        ylabel: of the panel.

    Example:
        >>> panel = plotting.axes()[1]
        >>> draw_curves(panel, {"SubPO": np.ones((3, 4))}, {"greedy": 0.5})
        >>> len(panel.lines)
        2
    """
    lines, bands = {}, {}
    for name, values in curves.items():
        values = np.asarray(values, np.float64)
        steps, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
        lines[name] = (steps, mean)
        if len(values) > 1:
            bands[name] = intervals.mean_interval(values)
    plotting.lines(panel, lines, bands=bands, xlabel="step", ylabel=ylabel, title=title)
    right = max(len(x) for x, _ in lines.values())
    ordered = sorted((levels or {}).items(), key=lambda item: item[1])
    top = max([level for _, level in ordered] + [float(np.max(y)) for _, y in lines.values()])
    for index, (name, level) in enumerate(ordered):
        panel.axhline(level, color="#777777", linestyle=":", linewidth=1)
        # Below its line where the next level is so near that the names would overlap.
        crowded = index + 1 < len(ordered) and ordered[index + 1][1] - level < 0.06 * top
        panel.annotate(
            name,
            (right, level),
            xytext=(0, -2 if crowded else 2),
            textcoords="offset points",
            ha="right",
            va="top" if crowded else "bottom",
            size=8,
        )
    panel.set_ylim(0, 1.1 * top)
    panel.legend(frameon=False, loc="best")
