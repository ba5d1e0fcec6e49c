"""Schedules refined from the gradient norms of a finished run."""

from __future__ import annotations

import os
import pathlib
from typing import Literal, NamedTuple

import numpy as np
import tyro

from jaxkit import files, plotting, schedules
from jaxkit.jobs import options
from jaxkit.schedules import gradient_logs

#: The file of a run that holds its l1 gradient norms, as the recorder in its optimizer kept them.
GRADIENT_NORMS = "gradient_norms.csv"


class RefinedSchedule(NamedTuple):
    """What `refine_run` wrote.

    Attributes:
        table: CSV `step,learning_rate_fraction`.
        figure: PNG of norms and schedule.
    """

    table: pathlib.Path
    figure: pathlib.Path

    def show(self) -> None:
        """Print where they are."""
        print(*self, sep="\n")


def write_gradient_norms(path: pathlib.Path, norms: np.ndarray, total_steps: int) -> None:
    """Write the recorder's bins as `step,gradient_norm`, each at its middle update."""
    middles = (np.arange(len(norms)) + 0.5) * total_steps / len(norms)
    lines = [f"{int(step)},{norm:.7g}" for step, norm in zip(middles, norms, strict=True)]
    files.write_atomically(path, "\n".join(["step,gradient_norm", *lines]) + "\n")


def read_pilot(pilot: str | os.PathLike[str]) -> gradient_logs.GradientLog:
    """Read the norms of a finished run, or of a CSV or JSONL file."""
    path = pathlib.Path(pilot)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(f"{path} is not a run: it holds no config.json")
        path = path / GRADIENT_NORMS
        if not path.exists():
            raise ValueError(
                f"{pilot} is not finished: a schedule is refined from the norms of a whole run"
            )
    return schedules.read_gradient_norms(path)


def refine_run(
    pilot: tyro.conf.Positional[options.Path],
    norm: Literal["l1", "l2"] | None = None,
    smoothing: float = 0.1,
    out: options.Path | None = None,
) -> RefinedSchedule:
    """Refine a learning-rate schedule from the gradient norms of a finished run.

    Train with the result by `jaxkit train --schedule refined:PILOT`, and tune the peak again.

    Args:
        pilot: folder of the run, or a CSV or JSONL file with step and gradient_norm.
        norm: the norm in a file: l1 (Adam family) or l2 (SGD); a run says it itself.
        smoothing: width of the median filter as a fraction of the run.
        out: folder to write to; by default that of the run or file.
    """
    path = pathlib.Path(pilot)
    if norm is None:
        if path.is_file():
            raise ValueError("norm must say which norm the file holds: 'l1' or 'l2', got None")
        norm = "l1"
    log = read_pilot(path)
    folder = path if path.is_dir() else path.parent
    folder = folder if out is None else options.output_folder(out)
    values = np.asarray(schedules.refine_schedule(log.norms, norm=norm, smoothing=smoothing))
    name = "" if path.is_dir() else f"{path.stem}_"
    lines = [f"{step},{value:.7g}" for step, value in zip(log.steps, values, strict=True)]
    table = files.write_atomically(
        folder / f"{name}refined_schedule.csv",
        "\n".join(["step,learning_rate_fraction", *lines]) + "\n",
    )
    figure = schedules.refined_schedule_figure(
        log.norms, norm=norm, smoothing=smoothing, steps=log.steps, title=path.name
    )
    return RefinedSchedule(table, plotting.save(figure, folder / f"{name}refined_schedule.png"))
