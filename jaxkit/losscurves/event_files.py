"""TensorBoard's event files as rows of a log."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np


def rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the scalars of an event file, or of all in a folder in order of their names.

    Raises:
        ValueError: if there is no event file or one is damaged.
        ImportError: if tensorboard is not installed, naming the extra that brings it.
    """
    try:
        from tensorboard.backend.event_processing import event_file_loader
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise ImportError("event files need tensorboard: pip install 'jaxkit[logs]'") from error
    files = sorted(path.rglob("*tfevents*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no TensorBoard event file")
    count = 0
    for file in files:
        try:
            for event in event_file_loader.LegacyEventFileLoader(str(file)).Load():
                row: dict[str, Any] = {}
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        row[value.tag] = value.simple_value
                    elif value.HasField("tensor") and value.tensor.dtype in (1, 2):
                        scalar = np.ravel(tensor_util.make_ndarray(value.tensor))
                        row |= {value.tag: float(scalar[0])} if scalar.size == 1 else {}
                if row:
                    yield count, {"step": event.step, **row}
                    count += 1
        except Exception as error:  # the reader's own errors are of TensorFlow's many types
            raise ValueError(f"{file}: a damaged event file: {error}") from None
