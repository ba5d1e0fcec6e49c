"""A loss curve: the learning rate of every step and the loss of some of them."""

from __future__ import annotations

import csv
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import files, validation
from jaxkit.losscurves import areas


class LossCurve(NamedTuple):
    """One run, on the host; `loss_curve` checks what it builds.

    Attributes:
        learning_rates: rate in force at step `t` is element `t`, `[steps]`; element 0 is the rate
            before the first counted step.
        steps: steps at which the loss is known, increasing, each an index of `learning_rates`,
            `[n]`.
        losses: the loss there, `[n]`, > 0 (the fits take its logarithm).
        weights: weight of each point in a fit, `[n]`, >= 0.
        model_size: number of parameters of the model, or None; only `ModelSize` reads it.

    Example:
        >>> curve = loss_curve([1.0, 1.0, 0.5], [1, 2], [3.0, 2.5])
        >>> curve.learning_rates[curve.steps].tolist(), curve.losses.tolist()
        ([1.0, 0.5], [3.0, 2.5])
    """

    learning_rates: Float[np.ndarray, " steps"]
    steps: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    model_size: float | None = None


def loss_curve(
    learning_rates: Float[ArrayLike, " steps"] | Sequence[float],
    steps: Int[ArrayLike, " n"] | Sequence[int],
    losses: Float[ArrayLike, " n"] | Sequence[float],
    weights: Float[ArrayLike, " n"] | Sequence[float] | None = None,
    *,
    model_size: float | None = None,
    name: str = "curve",
) -> LossCurve:
    """Build a checked `LossCurve` in float64 on the host.

    Args:
        learning_rates: rate at each step, index 0 before the first counted step, `[steps]`.
        steps: steps at which the loss is known, strictly increasing, `[n]`.
        losses: the losses there, `[n]`, > 0.
        weights: weight of each point, `[n]`; 1 if None.
        model_size: number of parameters, for the model-size law.
        name: what to call the curve in an error.

    Returns:
        The curve, all arrays NumPy.

    Raises:
        ValueError: if a rate, loss or weight is out of range or not finite, if lengths disagree,
            or if steps do not increase inside the schedule.
        TypeError: if an argument is not of real numbers (or steps not of integers).

    Example:
        >>> curve = loss_curve([1.0, 1.0, 0.5], [1, 2], [3.0, 2.5])
        >>> curve.weights
        array([1., 1.])
    """
    rates = np.asarray(learning_rates)
    if rates.ndim != 1:
        raise ValueError(f"{name}: learning_rates must have shape [steps], got {rates.shape}")
    areas.check_schedule(f"{name}: learning_rates", rates)
    at, values = np.asarray(steps), np.asarray(losses)
    if at.size and at.dtype.kind not in "iu":
        raise TypeError(f"{name}: steps must be integers, got dtype {at.dtype}")
    validation.number(f"{name}: losses", values[..., :0])
    weight = np.ones(values.shape) if weights is None else np.asarray(weights)
    if not (at.ndim == values.ndim == weight.ndim == 1 and at.size == values.size == weight.size):
        raise ValueError(
            f"{name}: steps, losses and weights must have one length, got shapes {at.shape}, "
            f"{values.shape}, {weight.shape}"
        )
    for index, (step, loss) in enumerate(zip(at, values, strict=True)):
        where = f"{name}: point {index} (step {step})"
        if not 0 <= step < rates.size:
            raise ValueError(f"{where} is outside the schedule of {rates.size} values")
        if index and step <= at[index - 1]:
            raise ValueError(f"{where} must come after step {at[index - 1]}: steps must increase")
        _check_loss(where, float(loss))
    validation.number(f"{name}: weights", weight, minimum=0)
    if model_size is not None:
        validation.number(f"{name}: model_size", model_size, minimum=0, open_minimum=True)
    return LossCurve(
        np.array(rates, np.float64),
        np.array(at, np.int64),
        np.array(values, np.float64),
        np.array(weight, np.float64),
        model_size,
    )


def rates_of(schedule: optax.Schedule, total_steps: int) -> Float[np.ndarray, " steps"]:
    """Tabulate an optax schedule: element `t` is `schedule(t)`, for t = 0 to `total_steps`.

    Args:
        schedule: any `optax.Schedule`.
        total_steps: last step wanted.

    Returns:
        The rates, `[total_steps + 1]`.

    Raises:
        ValueError: if `total_steps` is negative or the schedule gives a negative or non-finite
            rate.

    Example:
        >>> rates_of(optax.linear_schedule(1.0, 0.0, 4), 4)
        array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    total_steps = validation.integer("total_steps", total_steps, minimum=0)
    rates = np.broadcast_to(np.asarray(schedule(np.arange(total_steps + 1))), (total_steps + 1,))
    return areas.check_schedule("schedule", np.array(rates, np.float64))


def read_curve(
    path: str | os.PathLike[str],
    *,
    learning_rates: Float[ArrayLike, " steps"] | None = None,
    loss: str = "loss",
    first_step: int = 0,
    model_size: float | None = None,
) -> LossCurve:
    r"""Read `step, learning_rate, loss` rows from a CSV file with a header, or from JSON lines.

    `jaxkit train` writes such a `metrics.jsonl`. Rates between two rows are interpolated linearly
    and the rate before the first row is taken as that of the first row: exact where every step is
    logged or the schedule is piecewise linear with a row at each corner; give `learning_rates` to
    be exact elsewhere. A row without the loss (of a JSON lines file, or an empty CSV cell) is one
    of another metric: its learning rate counts, and no point is made.

    Args:
        path: a file ending in `.csv`, `.jsonl` or `.ndjson`.
        learning_rates: the whole schedule, index = step, in place of the logged rates.
        loss: name of the column to read as the loss.
        first_step: points before it are left out (their learning rates are kept).
        model_size: number of parameters of the model.

    Returns:
        The curve; its schedule ends at the last row.

    Raises:
        ValueError: if the format is unknown or a row is faulty; the message starts with
            `path:line`.
        OSError: if the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "run.csv"
        ...     _ = path.write_text("step,learning_rate,loss\n1,0.1,3.0\n3,0.05,2.5\n")
        ...     read_curve(path).learning_rates
        array([0.1  , 0.1  , 0.075, 0.05 ])
    """
    path = pathlib.Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a curve file must end in {', '.join(readers)}")
    first_step = validation.integer("first_step", first_step, minimum=0)
    steps, rates, points = [], [], []
    for where, row in readers[path.suffix](path, loss):
        step = _whole(where, "step", row["step"])
        if steps and step <= steps[-1]:
            raise ValueError(f"{where}: step {step} must come after step {steps[-1]}")
        if learning_rates is None:
            rates.append(_rate(where, row["learning_rate"]))
        steps.append(step)
        if row[loss] is not None and step >= first_step:
            points.append((step, _check_loss(where, _real(where, loss, row[loss]))))
    if not points:
        raise ValueError(f"{path}: no row with a {loss!r} at step {first_step} or later")
    if learning_rates is None:
        schedule = np.interp(np.arange(steps[-1] + 1), steps, rates)
    else:
        schedule = np.asarray(learning_rates, np.float64)
    at, losses = zip(*points, strict=True)
    return loss_curve(schedule, at, losses, model_size=model_size, name=str(path))


def _csv_rows(path: pathlib.Path, loss: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        columns = _columns(f"{path}:1", header, loss)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{where}: {len(header)} columns expected, got {len(row)}")
            cells = dict(zip(header, row, strict=True))
            values = {ours: cells[theirs].strip() for ours, theirs in columns.items()}
            yield where, values | {loss: values[loss] or None}


def _json_rows(path: pathlib.Path, loss: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line, row in files.json_lines(path):
        where = f"{path}:{line}"
        columns = _columns(where, [*row, loss], loss)
        yield where, {ours: row.get(theirs) for ours, theirs in columns.items()}


def _columns(where: str, names: Sequence[str], loss: str) -> dict[str, str]:
    rate = "lr" if "learning_rate" not in names and "lr" in names else "learning_rate"
    wanted = {"step": "step", "learning_rate": rate, loss: loss}
    missing = [name for name in wanted.values() if name not in names]
    if missing:
        raise ValueError(f"{where}: column {missing[0]!r} is missing, got {list(names)}")
    return wanted


def _real(where: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or value is None:
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {name} must be a number, got {value!r}") from None


def _whole(where: str, name: str, value: Any) -> int:
    number = _real(where, name, value)
    if not (math.isfinite(number) and number == int(number) and number >= 0):
        raise ValueError(f"{where}: {name} must be an integer >= 0, got {value!r}")
    return int(number)


def _rate(where: str, value: Any) -> float:
    rate = _real(where, "learning_rate", value)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{where}: learning_rate must be finite and >= 0, got {value!r}")
    return rate


def _check_loss(where: str, loss: float) -> float:
    if not (math.isfinite(loss) and loss > 0):
        raise ValueError(
            f"{where}: loss must be finite and > 0, got {loss!r}: the fits take its logarithm, so "
            "losses such as negative log densities are not supported"
        )
    return loss
