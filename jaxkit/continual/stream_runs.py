"""A learner on a stream: the loop, its results, and resumption in the middle of a task."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxkit import training, validation
from jaxkit.continual.learners import Advance, Learner
from jaxkit.continual.streams import Stream

#: Raised when what is written changes, so that an old run is refused instead of misread.
FORMAT = 1


class StreamResult(NamedTuple):
    """What a learner did on a stream.

    Attributes:
        accuracy: `accuracy[i, j]` on task i after training task j; NaN where j < i.
        num_tests: test images of each task.
        events: what happened, in order (`Advance.events`).
        state: what was learnt.
        num_steps: optimizer steps made.
        finished: False if the run was stopped on request.
    """

    accuracy: Float[np.ndarray, "T T"]
    num_tests: Int[np.ndarray, " T"]
    events: tuple[dict[str, Any], ...]
    state: PyTree
    num_steps: int
    finished: bool

    @property
    def expansions(self) -> list[tuple[int, int]]:
        """Task and block of each adapter added."""
        return [(e["task"], e["block"]) for e in self.events if e["kind"] == "expand"]


def task_accuracy(
    learner: Learner, state: PyTree, stream: Stream, task_index: int, after: int
) -> float:
    """Accuracy on the tests of a task among all classes seen.

    Args:
        learner: whose predictions.
        state: what it has learnt.
        stream: the stream.
        task_index: the task tested.
        after: the task trained last; classes that arrive later are not candidates.

    Returns:
        A fraction.

    Example:
        >>> from jaxkit.continual import SimpleCIL, digits_stream, tiny_vision_transformer
        >>> stream, _ = digits_stream()
        >>> model = tiny_vision_transformer()
        >>> learner = SimpleCIL(model, {}, stream.num_classes)
        >>> learner.predict = lambda state, images: np.eye(30)[np.zeros(len(images), int)]
        >>> 0 < task_accuracy(learner, None, stream, 0, 0) < 0.3  # always "0"
        True
    """
    task = stream.tasks[task_index]
    scores = learner.predict(state, task.test_images)[:, : stream.num_classes]
    if not np.isfinite(scores[:, stream.seen_classes(after)]).all():
        raise FloatingPointError(f"scores on task {task.name!r} must be finite, some are not")
    guesses = np.argmax(np.where(stream.seen_classes(after), scores, -np.inf), axis=1)
    return float(np.mean(guesses == task.test_labels))


def run_stream(
    learner: Learner,
    stream: Stream,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | training.Run | None = None,
    checkpoint_every: int = 0,
    max_steps: int = 1_000_000,
    on_advance: Callable[[int, Advance], Any] | None = None,
) -> StreamResult:
    """Let a learner learn the tasks of a stream in turn, testing it on all tasks seen after each.

    With a folder, the run is saved and an interrupted one goes on where its last checkpoint stands,
    in the middle of a phase too; the result is then the same to the bit. SIGTERM, SIGHUP and Ctrl-C
    end it after the piece in flight.

    Args:
        learner: SEMA or a baseline.
        stream: the tasks.
        seed: of first parameters, new adapters and orders of batches.
        folder: of the run, or a `training.Run` claimed already; None to keep nothing.
        checkpoint_every: optimizer steps between checkpoints; 0 for one after each task only.
        max_steps: steps in one piece of work; a piece ends at every checkpoint anyway.
        on_advance: called with the number of the task and each piece of work done.

    Returns:
        The result; unfinished if it was stopped.

    Raises:
        ValueError: if a number is out of range, or the folder holds a run with other settings,
            all of which are named.
        OSError: if another process writes the folder, or the disk refuses.
        FloatingPointError: if training diverges.

    Example:
        >>> from jaxkit import datasets, models
        >>> from jaxkit.continual import SimpleCIL, average_accuracy, class_incremental_stream
        >>> stream = class_incremental_stream(datasets.load_digits(), 5)
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        >>> backbone = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)  # or trained weights
        >>> result = run_stream(SimpleCIL(model, backbone, 10), stream)
        >>> 0 < average_accuracy(result.accuracy) < 0.3
        True
    """
    validation.seed("seed", seed)
    validation.integer("checkpoint_every", checkpoint_every, minimum=0)
    validation.integer("max_steps", max_steps, minimum=1)
    work = _Work(learner, stream, seed)
    saved = 0

    def advance(state: PyTree, pieces: int, most: int | None) -> training.Lap:
        nonlocal saved
        due = saved + checkpoint_every - work.record["num_steps"] if checkpoint_every else max_steps
        piece = work.advance(min(max_steps, due))
        new_task = piece.position is None
        task = work.record["task"] - new_task
        if on_advance is not None:
            on_advance(task, piece)
        checkpoint = new_task or work.record["num_steps"] - saved >= (checkpoint_every or np.inf)
        saved = work.record["num_steps"] if checkpoint else saved
        row = {"step": pieces + 1, "task": task, "num_steps": work.record["num_steps"]}
        return training.Lap(
            work.state,
            rows=lambda seconds: [{**row, "doing": piece.doing, "share": piece.share}],
            checkpoint=checkpoint,
            finished=work.record["task"] == len(stream.tasks),
        )

    with contextlib.ExitStack() as stack:
        run, first = None, 0
        if folder is not None:
            claimed = isinstance(folder, training.Run)
            run = folder if claimed else stack.enter_context(training.Run(folder))
            run.identify(describe_run(learner, stream, seed))
            restored = run.restore(work.state)
            if restored is not None:
                first, work.state, work.record = restored
                saved = work.record["num_steps"]
        if work.record["task"] == len(stream.tasks):
            return work.result(finished=True)
        # A piece may be a whole phase, so processes agree on stopping after each.
        result = training.drive(
            advance,
            work.state,
            first_step=first,
            run=run,
            cadence=training.Cadence(None, None, agree_every=1),
            record=lambda step: work.record,
        )
    return work.result(finished=result.finished)


class _Work:
    """A learner's arrays and the facts beside them, which together are a checkpoint."""

    def __init__(self, learner: Learner, stream: Stream, seed: int):
        self.learner, self.stream, self.seed = learner, stream, seed
        self.state = jax.tree.map(jnp.asarray, learner.init(seed))
        self.record: dict[str, Any] = {
            "task": 0, "position": learner.begin(0), "num_steps": 0, "accuracy": [], "events": [],
        }  # fmt: skip

    def advance(self, max_steps: int) -> Advance:
        record = self.record
        piece = self.learner.advance(
            self.state, record["position"], self.stream, record["task"],
            seed=self.seed, max_steps=max_steps,
        )  # fmt: skip
        self.state = jax.tree.map(jnp.asarray, piece.state)
        record["num_steps"] += piece.num_steps
        record["events"].extend(piece.events)
        record["position"] = piece.position
        if piece.position is None:
            after = record["task"]
            column = [
                task_accuracy(self.learner, self.state, self.stream, i, after)
                for i in range(after + 1)
            ]
            record["accuracy"].append(column)
            record["task"] += 1
            record["position"] = self.learner.begin(record["task"])
        return piece

    def result(self, *, finished: bool) -> StreamResult:
        tasks = len(self.stream.tasks)
        accuracy = np.full((tasks, tasks), np.nan)
        for after, column in enumerate(self.record["accuracy"]):
            accuracy[: after + 1, after] = column
        return StreamResult(
            accuracy,
            np.array([len(task.test_images) for task in self.stream.tasks]),
            tuple(self.record["events"]),
            self.state,
            self.record["num_steps"],
            finished,
        )


def describe_run(learner: Learner, stream: Stream, seed: int) -> dict[str, Any]:
    """Everything that two runs must share to be one run: settings, data, seed.

    Example:
        >>> from jaxkit.continual import SimpleCIL, digits_stream, tiny_vision_transformer
        >>> learner = SimpleCIL(tiny_vision_transformer(), {}, 30)
        >>> describe_run(learner, digits_stream()[0], 0)["stream"]
        'digits'
    """
    data = [
        (task.train_labels, task.test_labels, task.train_images, task.test_images)
        for task in stream.tasks
    ]
    facts = {
        "format": FORMAT, "seed": seed, "stream": stream.name, "data": training.fingerprint(data),
        "tasks": [task.name for task in stream.tasks], **learner.description(),
    }  # fmt: skip
    return json.loads(json.dumps(facts))
