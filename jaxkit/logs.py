r"""Logs of runs: numbers by step, from JSON lines or CSV, as people have them.

One rule, for every reader:

* A row has a `step`, a whole number below $2^{31}$, which may be written `1.0`.
* Rows of one step are one row.
* Later lines win: where the step goes back, as after a resumed run, a line replaces what earlier
  ones said of its columns at its step and later ones. A row of an evaluation alone, written late,
  so leaves the losses as they are.
* `null`, an empty cell and a number that is not finite are NaN: the step was made, its value is not
  known. `null` and an empty cell replace nothing.
* A last line of JSON that was cut short is left out; any other fault is an error that names file,
  line and field.
* A gap more than twice as long as is usual on both its sides is a hole (`holes`), which who fits or
  interpolates must notice.
"""

from __future__ import annotations

import bisect
import csv
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkit import files

#: From (file and line, row) to a row with a `step`.
Rename = Callable[[str, Mapping[str, Any]], dict[str, Any]]

#: Steps end here, as JAX counts them in int32.
STEP_LIMIT = 2**31


class Row(NamedTuple):
    """What a log says of one step.

    Attributes:
        line: where it was last said, from 1.
        step: the step.
        values: numbers, or other JSON values, by column; `step` is not among them.
    """

    line: int
    step: int
    values: dict[str, Any]


class Log(NamedTuple):
    r"""The rows of a log, steps increasing.

    Attributes:
        path: the file.
        rows: what it says.
    """

    path: pathlib.Path
    rows: tuple[Row, ...]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps that name a column, int64 `[n]`, and its values, float64 `[n]`, NaN unknown.

        Raises:
            ValueError: if a value is no number, naming file, line and field.
        """
        named = [row for row in self.rows if name in row.values]
        values = [number(f"{self.path}:{r.line}", name, r.values[name]) for r in named]
        return np.array([row.step for row in named], np.int64), np.array(values, np.float64)


def read_log(path: str | os.PathLike[str], rename: Rename | None = None) -> Log:
    """Read a log, by the rule above.

    Args:
        path: a CSV file with a header (`.csv`), or JSON lines (any other name).
        rename: from (file and line, row) to the row as this module knows it, for logs that call
            their step something else.

    Raises:
        ValueError: if a line is faulty.
        OSError: if the file cannot be read.
    """
    if pathlib.Path(path).suffix.lower() == ".csv":
        lines = _csv_rows(pathlib.Path(path), rename)
    else:
        lines = files.json_lines(path)
    if rename is None:
        return from_lines(path, lines)
    return from_lines(path, ((line, rename(f"{path}:{line}", row)) for line, row in lines))


def from_lines(path: str | os.PathLike[str], lines: Iterable[tuple[int, Mapping[str, Any]]]) -> Log:
    """Apply the rule to lines that were read already.

    Args:
        path: the file, for messages.
        lines: the number of each line and what it says.

    Raises:
        ValueError: if a step is faulty.

    Example:
        >>> log = from_lines("run.jsonl", [(1, {"step": 1, "loss": 3}), (2, {"step": 1.0, "a": 2})])
        >>> log.rows
        (Row(line=2, step=1, values={'loss': 3, 'a': 2}),)
    """
    rows: list[Row] = []
    for line, values in lines:
        step = step_of(f"{path}:{line}", values)
        row = Row(line, step, {name: values[name] for name in values if name != "step"})
        if rows and row.step <= rows[-1].step:
            _replace(rows, row)
        else:
            rows.append(row)
    return Log(pathlib.Path(path), tuple(rows))


def holes(steps: np.ndarray) -> list[tuple[int, int]]:
    """Find the gaps of a log that is otherwise denser, as the steps before and after each.

    A gap is a hole if it is more than twice the median of the three before it and of the three
    after; the first and the last gap, more than twice the longest of the three beside it.

    Example:
        >>> holes(np.array([1, 2, 3, 4, 10, 11, 12]))
        [(4, 10)]
        >>> holes(np.array([1, 2, 5, 10, 20, 50, 100, 200]))
        []
    """
    gaps, found = np.diff(steps), []
    for index, gap in enumerate(gaps):
        sides = [
            s for s in (gaps[max(0, index - 3) : index], gaps[index + 1 : index + 4]) if s.size
        ]
        usual = [float(np.median(s) if len(sides) == 2 else np.max(s)) for s in sides]
        if sides and gap > 2 * max(usual):
            found.append((int(steps[index]), int(steps[index + 1])))
    return found


def step_of(where: str, values: Mapping[str, Any]) -> int:
    """The step of a row.

    Raises:
        ValueError: if it is missing or no whole number in [0, 2^31).

    Example:
        >>> step_of("a.jsonl:1", {"step": 3.0})
        3
    """
    if "step" not in values:
        raise ValueError(f"{where}: step is missing, the columns are {sorted(values)}")
    step = number(where, "step", values["step"])
    if not (0 <= step < STEP_LIMIT and step == int(step)):
        raise ValueError(
            f"{where}: step must be a whole number in [0, {STEP_LIMIT}), got {values['step']!r}"
        )
    return int(step)


def number(where: str, name: str, value: Any) -> float:
    """A number of a row, NaN where its value is not known.

    Raises:
        ValueError: if it is no number.

    Example:
        >>> number("a.csv:2", "loss", "2.5"), number("a.jsonl:2", "loss", None)
        (2.5, nan)
    """
    try:
        if isinstance(value, bool | list | dict) or (isinstance(value, str) and "_" in value):
            raise ValueError
        found = np.nan if value is None else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: {name} must be a number, got {str(value)[:40]!r}") from None
    return found if np.isfinite(found) else np.nan


def _replace(rows: list[Row], row: Row) -> None:
    """Put a row in its place and forget what it replaces."""
    said = {name for name, value in row.values.items() if value is not None}
    start = bisect.bisect_left(rows, row.step, key=lambda r: r.step)
    later = rows[start:]
    if later[0].step == row.step:
        old = later.pop(0).values
        new = {name: row.values[name] for name in row.values if name in said or name not in old}
        row = row._replace(values={**old, **new})
    rows[start:] = [row]
    for old in later:
        kept = {name: value for name, value in old.values.items() if name not in said}
        if any(value is not None for value in kept.values()):
            rows.append(old._replace(values=kept))


def _csv_rows(
    path: pathlib.Path, rename: Rename | None
) -> Iterator[tuple[int, dict[str, str | None]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        try:
            header = [name.strip() for name in next(reader, [])]
            repeated = {name for name in header if header.count(name) > 1}
            if rename is not None:
                rename(f"{path}:1", dict.fromkeys(header, "0"))
            if ("step" not in header and rename is None) or repeated:
                problem = f"{min(repeated)!r} twice" if repeated else "no step"
                raise ValueError(f"{path}:1: the header names {problem}: {','.join(header)!r}")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{where}: {len(header)} columns expected, got {len(cells)}")
                stripped = (cell.strip() or None for cell in cells)
                yield reader.line_num, dict(zip(header, stripped, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}:{reader.line_num + 1}: {error}") from None
