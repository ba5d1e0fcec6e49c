"""A run's numbers as TensorBoard event files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from jaxkit import validation
from jaxkit.training import progress as showing


class EventFiles:
    """Writes what a run tells as scalars for TensorBoard, and passes it on.

    Args:
        folder: where the event files go; a resumed run adds another file, in which what the
            earlier ones say of later steps is withdrawn.
        first_step: steps made before.
        every: steps between scalars.
        beside: what shows the run too.

    Raises:
        ImportError: without the `logs` extra.
        ValueError: if `every` is not positive.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with EventFiles(folder) as progress:
        ...         progress.step({"step": 1, "loss": 2.5})
        ...     [path.name[:19] for path in pathlib.Path(folder).iterdir()]
        ['events.out.tfevents']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        first_step: int = 0,
        every: int = 1,
        beside: showing.Progress | None = None,
    ):
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer import event_file_writer
        except ImportError as error:
            raise ImportError("event files need tensorboard: pip install 'jaxkit[logs]'") from error
        self._every = validation.integer("every", every, minimum=1)
        self._beside = showing.Silent() if beside is None else beside
        self._event: Any = getattr(event_pb2, "Event")  # noqa: B009, made at run time
        self._writer = event_file_writer.EventFileWriter(os.fspath(folder))
        if first_step:
            session = {"status": "START"}  # at a step: what was said of it and later ones is void
            self._add(step=first_step + 1, session_log=session)

    def __enter__(self) -> EventFiles:
        self._beside.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._writer.close()
        self._beside.__exit__(*exception)

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a step."""
        if row["step"] % self._every == 0:
            self._write(row["step"], row)
        self._beside.step(row)

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an evaluation."""
        self._write(step, numbers)
        self._beside.evaluation(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, Any]) -> None:
        values = [
            {"tag": name, "simple_value": value}
            for name, value in numbers.items()
            if name != "step" and isinstance(value, int | float)
        ]
        self._add(step=step, summary={"value": values})

    def _add(self, **event: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), **event))
