"""The one interface of continual learners, and what a learner reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, PyTree

from jaxkit.continual.streams import Stream


class Advance(NamedTuple):
    """What a learner did with a piece of a task.

    Attributes:
        state: the learner's arrays.
        position: where it stands within the task, JSON-able; None when it is done with the task.
        num_steps: optimizer steps made.
        events: what happened, JSON-able: each has a `"kind"` and a `"task"`.
        doing: a few words for a progress bar.
        share: how much of the present phase is done, in [0, 1].
    """

    state: PyTree
    position: dict[str, Any] | None
    num_steps: int
    events: tuple[dict[str, Any], ...]
    doing: str
    share: float


@runtime_checkable
class Learner(Protocol):
    """Learns a stream task by task, in pieces after each of which it can be saved.

    All that it has learnt is in its state, a pytree of arrays of constant shapes; the object holds
    settings and caches only.

    Attributes:
        name: shown in reports.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import SimpleCIL
        >>> isinstance(SimpleCIL(models.VisionTransformer(), {}, 10), Learner)
        True
    """

    name: str

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share, JSON-able."""
        ...

    def init(self, seed: int) -> PyTree:
        """Make the state before the first task."""
        ...

    def begin(self, task_index: int) -> dict[str, Any]:
        """The position at the start of a task."""
        ...

    def advance(
        self,
        state: PyTree,
        position: Mapping[str, Any],
        stream: Stream,
        task_index: int,
        *,
        seed: int,
        max_steps: int,
    ) -> Advance:
        """Learn a piece of a task, at most `max_steps` optimizer steps long."""
        ...

    def predict(
        self, state: PyTree, images: Float[np.ndarray, "B H W C"]
    ) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        ...
