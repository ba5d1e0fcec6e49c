"""Read the gradient norms that a training run logged."""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import NamedTuple

import numpy as np

from jaxkit import logs


class GradientLog(NamedTuple):
    """Norms of one run.

    Attributes:
        steps: int64[n], increasing, evenly spaced to within one logging interval.
        norms: float64[n], >= 0; NaN where the run logged a norm that was not finite.
    """

    steps: np.ndarray
    norms: np.ndarray


def read_gradient_norms(path: str | os.PathLike[str]) -> GradientLog:
    r"""Read `step,gradient_norm` from a CSV file, a JSONL file or the folder of a run.

    `jaxkit.logs` says which rows count: those without a norm are passed over, later lines replace
    earlier ones after a resume. Unevenly spaced logs are interpolated to the same number of even
    steps.

    Args:
        path: a `.csv` file with the header `step,gradient_norm`, a `.jsonl` file, or a folder
            with `metrics.jsonl` in it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold such a log; the message names file and line.

    Warns:
        UserWarning: if rows are missing inside the log.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "norms.csv"
        ...     _ = file.write_text("step,gradient_norm\n0,2.5\n1,2.0\n")
        ...     read_gradient_norms(file).norms.tolist()
        [2.5, 2.0]
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"no gradient norms at {path}: give a CSV, a JSONL file or a run")
    log = logs.read_log(path)
    steps, norms = log.column("gradient_norm")
    if len(steps) < 2:
        columns = sorted({"step"}.union(*(row.values for row in log.rows)))
        raise ValueError(
            f"{path}: must hold at least 2 rows of gradient_norm, found {len(steps)} in the "
            f"columns {columns}"
        )
    if (norms < 0).any():
        step = int(steps[np.argmax(norms < 0)])
        (line,) = [row.line for row in log.rows if row.step == step]
        raise ValueError(f"{path}:{line}: gradient_norm must be >= 0, got {norms.min():g}")
    for before, after in logs.holes(steps):
        warnings.warn(f"{path}: no norm between steps {before} and {after}", stacklevel=2)
    gaps, known = np.diff(steps), np.isfinite(norms)
    if gaps.max() == gaps.min() or not known.any():
        return GradientLog(steps, norms)
    even = np.linspace(steps[0], steps[-1], len(steps))
    return GradientLog(np.rint(even).astype(np.int64), np.interp(even, steps[known], norms[known]))
