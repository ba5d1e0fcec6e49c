"""A learner on a stream: the loop, its results, and resumption in the middle of a task."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxkit import files, training, validation
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

    Example:
        >>> event = {"kind": "expand", "task": 1, "block": 3}
        >>> StreamResult(np.eye(2), np.ones(2, int), (event,), None, 0, True).expansions
        [(1, 3)]
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
    folder: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 0,
    max_steps: int = 1_000_000,
    on_advance: Callable[[int, Advance], Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[str], Any] = print,
) -> StreamResult:
    """Let a learner learn the tasks of a stream in turn, testing it on all tasks seen after each.

    With a folder, the run is saved and an interrupted one goes on where its last checkpoint stands,
    in the middle of a phase too; the result is then the same to the bit.

    Args:
        learner: SEMA or a baseline.
        stream: the tasks.
        seed: of first parameters, new adapters and orders of batches.
        folder: where to keep checkpoints; None to keep none.
        checkpoint_every: optimizer steps between checkpoints; 0 for one after each task only.
        max_steps: steps in one piece of work; a piece ends at every checkpoint anyway.
        on_advance: called with the number of the task and each piece of work done.
        should_stop: asked after each piece; if true, the run is saved and ends.
        report: called with a line of text when a checkpoint is damaged.

    Returns:
        The result; unfinished if it was stopped.

    Raises:
        ValueError: if a number is out of range, or the folder holds a run with other settings,
            all of which are named.
        OSError: if the disk refuses.
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
    validation.integer("seed", seed, minimum=0)
    validation.integer("checkpoint_every", checkpoint_every, minimum=0)
    validation.integer("max_steps", max_steps, minimum=1)
    run = _Run(learner, stream, seed)
    if folder is None:
        return _loop(run, None, checkpoint_every, max_steps, on_advance, should_stop)
    place = pathlib.Path(folder)
    _require_same_run(place / "description.json", describe_run(learner, stream, seed))
    with training.Checkpoints(place / "checkpoints", report=report) as checkpoints:
        run.restore(checkpoints)
        return _loop(run, checkpoints, checkpoint_every, max_steps, on_advance, should_stop)


def _loop(
    run: _Run,
    checkpoints: training.Checkpoints | None,
    checkpoint_every: int,
    max_steps: int,
    on_advance: Callable[[int, Advance], Any] | None,
    should_stop: Callable[[], bool],
) -> StreamResult:
    tasks, saved = len(run.stream.tasks), run.record["num_steps"]
    while run.record["task"] < tasks:
        due = saved + checkpoint_every - run.record["num_steps"] if checkpoint_every else max_steps
        piece = run.advance(min(max_steps, due))
        new_task = piece.position is None
        if on_advance is not None:
            on_advance(run.record["task"] - new_task, piece)
        due = checkpoint_every and run.record["num_steps"] - saved >= checkpoint_every
        stop = run.record["task"] < tasks and training.any_process(should_stop())
        if checkpoints is not None and (new_task or due or stop):
            run.save(checkpoints)
            saved = run.record["num_steps"]
        if stop:
            return run.result(finished=False)
    return run.result(finished=True)


class _Run:
    """A learner's arrays and the facts beside them, which together are a checkpoint."""

    def __init__(self, learner: Learner, stream: Stream, seed: int):
        self.learner, self.stream, self.seed = learner, stream, seed
        self.state = learner.init(seed)
        self.record: dict[str, Any] = {
            "task": 0, "position": learner.begin(0), "num_steps": 0, "num_pieces": 0,
            "accuracy": [], "events": [],
        }  # fmt: skip

    def advance(self, max_steps: int) -> Advance:
        record = self.record
        piece = self.learner.advance(
            self.state, record["position"], self.stream, record["task"],
            seed=self.seed, max_steps=max_steps,
        )  # fmt: skip
        self.state = piece.state
        record["num_steps"] += piece.num_steps
        record["num_pieces"] += 1
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

    def save(self, checkpoints: training.Checkpoints) -> None:
        checkpoints.save(self._as_train_state(), json.loads(json.dumps(self.record)))

    def restore(self, checkpoints: training.Checkpoints) -> None:
        restored = checkpoints.restore(self._as_train_state())
        if restored is not None:
            self.state = restored.state.params
            self.record = json.loads(json.dumps(restored.record))

    def _as_train_state(self) -> training.TrainState:
        step = jnp.asarray(self.record["num_pieces"], jnp.int32)
        arrays = jax.tree.map(jnp.asarray, self.state)
        return training.TrainState(step, arrays, (), jax.random.key(self.seed))

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
    digest = hashlib.sha256()
    for task in stream.tasks:
        for array in (task.train_labels, task.test_labels, task.train_images, task.test_images):
            for start in range(0, len(array), 1024):
                digest.update(np.ascontiguousarray(array[start : start + 1024]).tobytes())
    facts = {
        "format": FORMAT, "seed": seed, "stream": stream.name, "data": digest.hexdigest(),
        "tasks": [task.name for task in stream.tasks], **learner.description(),
    }  # fmt: skip
    return json.loads(json.dumps(facts))


def _require_same_run(path: pathlib.Path, description: dict[str, Any]) -> None:
    if path.exists():
        try:
            stored = dict(json.loads(path.read_text("utf-8")))
        except (json.JSONDecodeError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged: it is not the description of a run") from None
        names = [n for n in {**stored, **description} if stored.get(n) != description.get(n)]
        if names:
            changes = ", ".join(
                f"{n}: {stored.get(n)!r} there, {description.get(n)!r} now" for n in names
            )
            raise ValueError(f"{path.parent} holds a run with other settings ({changes})")
    elif jax.process_index() == 0:
        files.write_atomically(path, json.dumps(description, indent=2) + "\n")
