"""A loss curve: the learning rate of every step and the loss of some of them."""

from __future__ import annotations

import math
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import logs, validation
from jaxkit.losscurves import areas, event_files, precision

#: Names that logs give a column, best first; `run/loss` and `run - loss` are read as `loss`.
ALIASES = {
    "step": ("step", "_step", "global_step", "iteration", "iter"),
    "learning_rate": ("learning_rate", "lr"),
    "loss": ("loss", "train_loss"),
}


class LossCurve(NamedTuple):
    """One run, on the host; `loss_curve` checks what it builds.

    Attributes:
        learning_rates: rate in force at step `t` is element `t`, `[steps]`; element 0 is the rate
            before the first counted step.
        steps: steps at which the loss is known, increasing, each an index of `learning_rates`,
            `[n]`.
        losses: the loss there, `[n]`, > 0 (the fits take its logarithm), in any unit.
        weights: weight of each point in a fit, `[n]`, >= 0.
        model_size: number of parameters of the model, or None; only `ModelSize` reads it.
        warmup_steps: last index of the warm-up, not necessarily whole; 0 where there is none.
    """

    learning_rates: Float[np.ndarray, " steps"]
    steps: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    model_size: float | None = None
    warmup_steps: float = 0


def loss_curve(
    learning_rates: Float[ArrayLike, " steps"] | Sequence[float],
    steps: Int[ArrayLike, " n"] | Sequence[int],
    losses: Float[ArrayLike, " n"] | Sequence[float],
    weights: Float[ArrayLike, " n"] | Sequence[float] | None = None,
    *,
    model_size: float | None = None,
    warmup_steps: float = 0,
    name: str = "curve",
) -> LossCurve:
    """Build a checked `LossCurve` in float64 on the host.

    Args:
        learning_rates: rate at each step, index 0 before the first counted step, `[steps]`. Of a
            schedule of N updates, whose last loss is known at step N, give
            `np.append(rates[:1], rates)`.
        steps: steps at which the loss is known, strictly increasing, `[n]`.
        losses: the losses there, `[n]`, > 0.
        weights: weight of each point, `[n]`; 1 if None.
        model_size: number of parameters, for the model-size law.
        warmup_steps: last index of the warm-up; need not be whole.
        name: what to call the curve in an error.

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
            hint = " (of N updates, give np.append(rates[:1], rates))" * bool(step == rates.size)
            raise ValueError(f"{where} is outside the schedule of {rates.size} values{hint}")
        if index and step <= at[index - 1]:
            raise ValueError(f"{where} must come after step {at[index - 1]}: steps must increase")
        if not (math.isfinite(loss) and loss > 0):
            raise ValueError(
                f"{where}: loss must be finite and > 0, got {float(loss)!r}: the fits take its "
                "logarithm, so losses such as negative log densities are not supported"
            )
    validation.number(f"{name}: weights", weight, minimum=0)
    validation.number(f"{name}: warmup_steps", warmup_steps, minimum=0)
    if model_size is not None:
        validation.number(f"{name}: model_size", model_size, minimum=0, open_minimum=True)
    return LossCurve(
        np.array(rates, np.float64),
        np.array(at, np.int64),
        np.array(values, np.float64),
        np.array(weight, np.float64),
        model_size,
        warmup_steps,
    )


def rates_of(schedule: Any, total_steps: int | None = None) -> Float[Any, "*batch steps"]:
    """Tabulate a schedule, in float64: element `t` is its rate at `t`, for t = 0 to `total_steps`.

    Args:
        schedule: any `optax.Schedule`; or a curve or an array, whose own rates are returned.
        total_steps: last step wanted; by default the horizon that the schedule knows.

    Returns:
        The rates, `[total_steps + 1]`.

    Raises:
        ValueError: if no horizon is known, or the schedule gives a negative or non-finite rate.

    Example:
        >>> import optax
        >>> rates_of(optax.linear_schedule(1.0, 0.0, 4), 4)
        array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    schedule = if_curve(schedule, "schedule")
    if isinstance(schedule, LossCurve):
        return schedule.learning_rates
    if not callable(schedule):
        return areas.check_schedule("schedule", schedule)
    known = getattr(schedule, "total_steps", None) if total_steps is None else total_steps
    if known is None:
        raise ValueError("total_steps must be given: the schedule does not know its own")
    total = validation.integer("total_steps", known, minimum=0)
    with precision.float64_on_cpu():
        rates = np.asarray(schedule(np.arange(total + 1)), np.float64)
    return areas.check_schedule("schedule", np.array(np.broadcast_to(rates, (total + 1,))))


def as_curve(value: Any, name: str, warmup_steps: float | None = None) -> LossCurve:
    """Return a curve of what people have: a `LossCurve`, a table of columns, or a file."""
    if isinstance(value, LossCurve):
        return loss_curve(
            *value[:4], model_size=value.model_size, warmup_steps=value.warmup_steps, name=name
        )
    return read_curve(value, warmup_steps=warmup_steps)


def if_curve(value: Any, name: str, warmup_steps: float | None = None) -> Any:
    """Return a curve of what `as_curve` takes, and anything else (a schedule) as it is."""
    table = isinstance(value, Mapping | str | os.PathLike) or hasattr(value, "columns")
    return as_curve(value, name, warmup_steps) if table else value


def read_curve(
    source: str | os.PathLike[str] | Any,
    *,
    learning_rates: Float[ArrayLike, " steps"] | Any = None,
    warmup_steps: float | None = None,
    step: str = "step",
    units_per_step: float = 1.0,
    learning_rate: str = "learning_rate",
    loss: str = "loss",
    smoothing: float = 0.0,
    first_step: int = 0,
    model_size: float | None = None,
) -> LossCurve:
    r"""Read a curve from a log: CSV, JSON lines, TensorBoard event files, or a table of columns.

    A row may be logged at any number of steps; `jaxkit.logs` says which rows count (later ones win
    after a resume; a loss that is NaN or of another metric makes no point, but its rate counts; a
    hole is warned about). Rates between rows are interpolated. Columns are found under the usual
    names, those of a W&B export (`_step`, `Step`, `run - loss`) among them.

    Args:
        source: a file ending in `.csv`, `.jsonl` or `.ndjson`; a TensorBoard event file or a folder
            of them; a pandas DataFrame or a mapping of columns.
        learning_rates: the whole schedule in place of the logged rates: an array, index = step, or
            an optax schedule, whose update t - 1 makes step t.
        warmup_steps: last step of the warm-up, whose points are left out; 0 for none. It cannot be
            told from a log, so it must be given where rates rise or the first steps are missing.
        step: column of the steps, or of tokens, samples or epochs.
        units_per_step: how much that column grows in one optimizer step: 1 for steps, the batch's
            tokens for tokens, `1 / steps_per_epoch` for epochs.
        learning_rate: column of the rate.
        loss: column of the loss, in nats, bits per byte or any unit above 0.
        smoothing: weight of the exponential average (TensorBoard's) that the losses went through
            and that is undone, in [0, 1).
        first_step: points before it are left out (their learning rates are kept).
        model_size: number of parameters of the model.

    Raises:
        ValueError: if the format is unknown or a row is faulty, naming file and line, if a column
            is missing, or the warm-up must be given.
        OSError: if the file cannot be read.

    Warns:
        UserWarning: if rows are missing inside the log.

    Example:
        >>> columns = {"step": [1, 3], "learning_rate": [0.1, 0.05], "loss": [3.0, 2.5]}
        >>> read_curve(columns).learning_rates
        array([0.1  , 0.1  , 0.075, 0.05 ])
    """
    first_step = validation.integer("first_step", first_step, minimum=0)
    validation.number("units_per_step", units_per_step, minimum=0, open_minimum=True)
    validation.number("smoothing", smoothing, minimum=0, maximum=1, open_maximum=True)
    if warmup_steps is not None:
        validation.number("warmup_steps", warmup_steps, minimum=0)
    wanted = {"step": step, "learning_rate": learning_rate, "loss": loss}
    log = _read_log(source, wanted, units_per_step)
    (rate_at, rates), (at, losses) = log.column("learning_rate"), log.column("loss")
    known = np.isfinite(losses)
    at, losses = at[known], losses[known]
    if not at.size:
        raise ValueError(f"{log.path}: no row with a {loss!r}")
    for before, after in logs.holes(at):
        warnings.warn(f"{log.path}: no loss between steps {before} and {after}", stacklevel=2)
    last = int(max(at[-1], rate_at[-1] if rate_at.size else 0))
    if learning_rates is None:
        schedule = _logged_rates(log.path, rate_at, rates, last, warmup_steps)
    elif callable(learning_rates):
        schedule = rates_of(learning_rates, max(last - 1, 0))
        schedule = np.append(schedule[:1], schedule)
    else:
        schedule = np.asarray(learning_rates, np.float64)
    warmup = warmup_steps or 0
    keep = (at >= first_step) & ((at > warmup) | (warmup == 0))
    losses = _unsmoothed(losses, smoothing)
    return loss_curve(
        schedule, at[keep], losses[keep], model_size=model_size, warmup_steps=warmup,
        name=str(log.path),
    )  # fmt: skip


def _read_log(source: Any, wanted: Mapping[str, str], units_per_step: float) -> logs.Log:
    def rename(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: _column(where, row, name, asked) for name, asked in wanted.items()}
        if found["step"] is None:
            raise ValueError(f"{where}: column {wanted['step']!r} is missing, got {list(row)}")
        values = {name: row[column] for name, column in found.items() if column is not None}
        if units_per_step != 1:
            exact = logs.number(where, wanted["step"], values["step"]) / units_per_step
            if not abs(exact - round(exact)) <= 0.05:
                raise ValueError(
                    f"{where}: {wanted['step']} {values['step']} is {exact:g} steps of "
                    f"{units_per_step:g}, not a whole number: units_per_step must be what the "
                    "column grows by in one optimizer step"
                )
            values["step"] = round(exact)
        return values

    if not isinstance(source, str | os.PathLike):
        rows = _table_rows(source)
        return logs.from_lines(
            "table", ((line, rename(f"table:{line}", row)) for line, row in rows)
        )
    path = pathlib.Path(source)
    if path.is_dir() or "tfevents" in path.name:
        rows = event_files.rows(path)
        return logs.from_lines(path, ((i, rename(f"{path}", row)) for i, row in rows))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise ValueError(
            f"{path}: a curve file must end in .csv, .jsonl or .ndjson, or be a TensorBoard event "
            "file"
        )
    return logs.read_log(path, rename)


def _column(where: str, row: Mapping[str, Any], name: str, asked: str) -> str | None:
    """Find the column asked for: by its name, then by the last part of a longer one."""
    names = ALIASES[name] if asked == name else (asked,)
    for one in names:
        if one in row:
            return one
    tails = {column: _tail(column) for column in row}
    for one in names:
        found = [column for column, tail in tails.items() if tail == one]
        if len(found) > 1:
            raise ValueError(f"{where}: {asked!r} may be any of {found}: name the column")
        if found:
            return found[0]
    return None


def _tail(column: str) -> str:
    return column.rsplit(" - ", 1)[-1].rsplit("/", 1)[-1].strip().lower().replace(" ", "_")


def _table_rows(table: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    if getattr(getattr(table, "index", None), "name", None) is not None:
        table = table.reset_index()  # a DataFrame indexed by its steps
    try:
        columns = {str(name): np.asarray(table[name]) for name in table}
    except (TypeError, KeyError, IndexError):
        raise TypeError(
            f"a curve must be a LossCurve, a file, a DataFrame or a mapping of columns, got "
            f"{type(table).__name__}"
        ) from None
    lengths = {values.shape for values in columns.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise ValueError(f"columns of a curve must have one length, got shapes {sorted(lengths)}")
    for line in range(next(iter(lengths))[0]):
        cells = {name: values[line] for name, values in columns.items()}
        row = {n: cell.item() if hasattr(cell, "item") else cell for n, cell in cells.items()}
        yield line, {name: value for name, value in row.items() if value is not None}


def _logged_rates(
    path: Any, at: np.ndarray, rates: np.ndarray, last: int, warmup_steps: float | None
) -> np.ndarray:
    """Interpolate the rates of rows, with the corner that a warm-up puts between them."""
    known = np.isfinite(rates)
    at, rates = at[known], rates[known]
    if not at.size:
        raise ValueError(f"{path}: column 'learning_rate' is missing: give learning_rates")
    if (rates < 0).any():
        index = int(np.argmax(rates < 0))
        raise ValueError(f"{path}: learning_rate must be >= 0, got {rates[index]} at {at[index]}")
    if warmup_steps is None:
        if at[0] > 1 or np.any(rates[: int(np.argmax(rates))] < rates.max() * (1 - 1e-6)):
            why = (
                f"the first row is of step {at[0]}"
                if at[0] > 1
                else f"the rate rises from {rates[0]:g} to {rates.max():g}"
            )
            raise ValueError(
                f"{path}: {why}, so the warm-up cannot be told from the log: give warmup_steps, "
                "0 where there was none"
            )
        warmup_steps = 0
    after = at > warmup_steps
    if after.any():
        start = warmup_steps + 1 if warmup_steps else 0
        top = _continued(at[after][:3], rates[after][:3], start)
        front = ([0.0], [0.0]) if warmup_steps else ([], [])
        at = np.concatenate([front[0], at[~after], [start], at[after]])
        rates = np.concatenate([front[1], rates[~after], [top], rates[after]])
    return np.interp(np.arange(last + 1), at, rates)


def _continued(at: np.ndarray, rates: np.ndarray, start: float) -> float:
    """The rate at the start of a decay, from the parabola through the first rows after it.

    A cosine logged every 50 steps is so known at its peak; a rate that jumps is held.
    """
    if len(at) < 3 or at[0] <= start or abs(rates[1] - rates[0]) > 0.1 * rates[0]:
        return float(rates[0])
    others = [(1, 2), (0, 2), (0, 1)]
    weights = [
        (start - at[j]) * (start - at[k]) / ((at[i] - at[j]) * (at[i] - at[k]))
        for i, (j, k) in enumerate(others)
    ]
    return float(max(np.dot(weights, rates), rates[0]))


def _unsmoothed(losses: np.ndarray, weight: float) -> np.ndarray:
    """Undo an exponential average that starts unbiased, as TensorBoard's does."""
    if weight == 0:
        return losses
    sums = losses * (1 - weight ** np.arange(1, len(losses) + 1))
    return (sums - weight * np.append(0.0, sums[:-1])) / (1 - weight)
