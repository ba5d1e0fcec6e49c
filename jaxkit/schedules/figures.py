"""Figures of schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxkit import plotting, validation
from jaxkit.schedules import bounds, refinement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2_000


def plot_schedules(
    schedules: Mapping[str, Callable[[Any], Any]],
    total_steps: int | None = None,
    *,
    ylabel: str = "learning rate",
) -> Figure:
    """Draw any number of schedules in one line of code.

    Args:
        schedules: `optax.Schedule`s by name.
        total_steps: updates to draw; by default the longest `total_steps` that they know.
        ylabel: what the values are.

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if there is no schedule, or no horizon is given and none of them knows one.

    Example:
        >>> from jaxkit.schedules import profile_schedules
        >>> rex = profile_schedules.schedule_from_profile("rex", 1.0, 100)
        >>> figure = plot_schedules({"REX": rex})
    """
    validation.instance("schedules", schedules, Mapping, "a mapping from names to schedules")
    if not schedules:
        raise ValueError("schedules must name at least one schedule, got none")
    if total_steps is None:
        known = [int(s.total_steps) for s in schedules.values() if hasattr(s, "total_steps")]
        if not known:
            raise ValueError("total_steps must be given: none of the schedules knows its own")
        total_steps = max(known)
    total_steps = validation.integer("total_steps", total_steps, minimum=1)
    steps = np.unique(np.linspace(0, total_steps, _MOST_POINTS).astype(np.int64))
    figure, panel = plotting.axes(width=6.0, height=3.6)
    curves = {
        name: (steps, np.broadcast_to(np.asarray(schedule(jnp.asarray(steps))), steps.shape))
        for name, schedule in schedules.items()
    }
    plotting.lines(panel, curves, xlabel="update", ylabel=ylabel)
    panel.set_ylim(bottom=0)
    if len(curves) > 1:
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def refined_schedule_figure(
    norms: Float[Array | np.ndarray, " n"],
    *,
    norm: str = "l2",
    smoothing: float | None = 0.1,
    steps: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw recorded norms, their median, and the refined schedule beside linear decay.

    Args:
        norms: gradient norms evenly spaced over the run.
        norm: the norm recorded, `"l2"` or `"l1"`.
        smoothing: width of the median filter as a fraction of n; None for none.
        steps: the updates at which they were recorded; by default fractions of the run.
        title: what the run is.

    Returns:
        The figure: norms on the left, schedules on the right.

    Raises:
        ValueError: as `refine_schedule`, or if `steps` is not as long as `norms`.

    Example:
        >>> figure = refined_schedule_figure(np.linspace(2.0, 1.0, 100), title="falling norms")
    """
    values = np.asarray(refinement.refine_schedule(norms, norm=norm, smoothing=smoothing))
    smooth = np.asarray(refinement.smooth_norms(norms, smoothing))
    if steps is not None and len(steps) != len(values):
        raise ValueError(f"steps must have {len(values)} entries like norms, got {len(steps)}")
    x = np.linspace(0, 1, len(values)) if steps is None else np.asarray(steps)
    xlabel = "fraction of the run" if steps is None else "update"
    figure, (left, right) = plotting.axes(1, 2)
    left.plot(x, np.asarray(norms), color=plotting.COLORS[7], linewidth=0.6, label="recorded")
    left.plot(x, smooth, color=plotting.COLORS[0], label="sliding median")
    finite = np.asarray(norms)[np.isfinite(np.asarray(norms))]
    if smooth.max() > 10 * smooth.min() and finite.min() > 0:
        left.set_yscale("log")
    left.set(xlabel=xlabel, ylabel=f"gradient norm ({norm})")
    left.set_title(title, loc="left")
    left.legend()
    curves = {"refined": (x, values), "linear decay": (x, np.linspace(1, 0, len(values)))}
    plotting.lines(right, curves, xlabel=xlabel, ylabel="learning rate / peak")
    if norm == "l2":
        gain = float(bounds.refinement_gain(smooth))
        right.set_title(f"bound {gain:.2f}x below linear decay", loc="left")
    return figure
