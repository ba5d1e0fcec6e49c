"""Numbers of a run as lines of JSON."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxkit import files, logs


class MetricsLog:
    """A file of JSON lines, one a step, that survives being killed and resumed.

    Args:
        path: the file; appended to.
        resume_step: lines of later steps, and a last line cut short, are removed first, so that a
            resumed run does not tell a step twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsLog(pathlib.Path(folder) / "m.jsonl") as log:
        ...         log.write({"step": 1, "loss": 2.5})
        ...     read_metrics(pathlib.Path(folder) / "m.jsonl")
        [{'step': 1, 'loss': 2.5}]
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int = 0):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        end = 0
        if path.exists():
            with path.open("rb") as stream:
                for line, text in enumerate(stream, 1):
                    where = f"{path}:{line}"
                    if not text.endswith(b"\n"):
                        break
                    row = files.json_object(text, where) if text.strip() else {"step": 0}
                    if logs.step_of(where, row) > resume_step:
                        break
                    end += len(text)
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(end)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the operating system."""
        rounded = {
            name: float(f"{value:.7g}") if isinstance(value, float) else value
            for name, value in row.items()
        }
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a metrics file, by the rule of `jaxkit.logs`: one row a step, later lines win.

    Args:
        path: JSON lines with a `step`, as `MetricsLog` writes them.

    Returns:
        The rows, steps increasing; an empty list if there is no file.

    Raises:
        ValueError: if a line is not a JSON object with a step, naming file and line; a last one
            that was cut short is left out.

    Example:
        >>> read_metrics("does-not-exist.jsonl")
        []
    """
    if not pathlib.Path(path).exists():
        return []
    return [{"step": row.step, **row.values} for row in logs.read_log(path).rows]


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN; the message names the step.

    Example:
        >>> try:
        ...     require_finite(7, float("inf"))
        ... except NonFiniteLossError as error:
        ...     print(error)
        loss is inf at step 7
    """


def require_finite(step: int, value: float, what: str = "loss") -> None:
    """Stop a run whose loss or gradient is not a finite number.

    Example:
        >>> require_finite(7, float("nan"))
        Traceback (most recent call last):
        jaxkit.training.metrics.NonFiniteLossError: loss is nan at step 7
    """
    if not math.isfinite(value):
        raise NonFiniteLossError(f"{what} is {value} at step {step}")
