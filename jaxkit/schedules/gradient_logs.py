"""Read the gradient norms that a training run logged."""

from __future__ import annotations

import csv
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxkit import files


class GradientLog(NamedTuple):
    r"""Norms of one run.

    Attributes:
        steps: int64[n], increasing, evenly spaced to within one logging interval.
        norms: float64[n], >= 0; NaN where the run logged a norm that was not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "norms.csv"
        ...     _ = file.write_text("step,gradient_norm\n0,2.5\n10,2.0\n20,1.0\n")
        ...     log = read_gradient_norms(file)
        >>> log.steps.tolist(), log.norms.tolist()
        ([0, 10, 20], [2.5, 2.0, 1.0])
    """

    steps: np.ndarray
    norms: np.ndarray


def read_gradient_norms(path: str | os.PathLike[str]) -> GradientLog:
    r"""Read `step,gradient_norm` from a CSV file, a JSONL file or the folder of a run.

    A JSONL file holds one object a line; lines without `gradient_norm` are passed over, and where
    the step goes back, as after a resumed run, the later lines replace the earlier. Unevenly
    spaced logs are interpolated to the same number of even steps.

    Args:
        path: a `.csv` file with the header `step,gradient_norm`, a `.jsonl` file, or a folder
            with `metrics.jsonl` in it.

    Returns:
        The log, ready for `refine_schedule`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold such a log; the message names file and line.

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
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    steps, norms = [], []
    for line, step, norm in rows:
        step, norm = _checked(path, line, step, norm)
        if steps and step <= steps[-1]:
            if path.suffix.lower() == ".csv":
                raise ValueError(f"{path}:{line}: step must increase, got {step} after {steps[-1]}")
            while steps and steps[-1] >= step:
                steps.pop()
                norms.pop()
        steps.append(step)
        norms.append(norm)
    if len(steps) < 2:
        raise ValueError(f"{path}: must hold at least 2 gradient norms, found {len(steps)}")
    return _evenly_spaced(np.array(steps, np.int64), np.array(norms, np.float64))


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, Any, Any]]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in ("step", "gradient_norm") if name not in header]
        if missing:
            raise ValueError(
                f"{path}:1: header must name step and gradient_norm, got {','.join(header)!r}"
            )
        step, norm = header.index("step"), header.index("gradient_norm")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: must hold {len(header)} fields, got {len(row)}"
                )
            yield reader.line_num, row[step], row[norm]


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[int, Any, Any]]:
    for line, record in files.json_lines(path):
        if "gradient_norm" not in record:
            continue
        if "step" not in record:
            raise ValueError(f"{path}:{line}: gradient_norm without step")
        yield line, record["step"], record["gradient_norm"]


def _checked(path: pathlib.Path, line: int, step: Any, norm: Any) -> tuple[int, float]:
    try:
        number = int(step)
        if isinstance(step, bool) or number != float(step) or number < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{path}:{line}: step must be an integer >= 0, got {step!r}") from None
    try:
        if isinstance(norm, bool):
            raise ValueError
        size = math.nan if norm is None else float(norm)
        if size < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{path}:{line}: gradient_norm must be >= 0, got {norm!r}") from None
    return number, size if math.isfinite(size) else math.nan


def _evenly_spaced(steps: np.ndarray, norms: np.ndarray) -> GradientLog:
    gaps = np.diff(steps)
    if gaps.max() == gaps.min():
        return GradientLog(steps, norms)
    known = np.isfinite(norms)
    if not known.any():
        return GradientLog(steps, norms)
    even = np.linspace(steps[0], steps[-1], len(steps))
    return GradientLog(np.rint(even).astype(np.int64), np.interp(even, steps[known], norms[known]))
