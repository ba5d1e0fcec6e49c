"""A learner on a stream: what a learner is, the loop, and resumption in the middle of a task."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxkit import training, validation
from jaxkit.continual.batches import StepBatches, draw_batches
from jaxkit.continual.picture_images import Images
from jaxkit.continual.streams import Stream, Task

#: Raised when what is written changes, so that an old run is refused instead of misread.
FORMAT = 2


class Phase(NamedTuple):
    """A part of a task that is over before the learner is asked for the next one.

    Attributes:
        kind: what it is, in a word.
        run: `run(state, first, most)` makes 1 to `most` optimizer steps after the first `first` of
            the phase; returns the state, how many it made, and JSON-able facts for the event.
        num_steps: optimizer steps of the phase; 0 if one call of `run` does it.
        about: JSON-able facts known before, for the event and for people who wait.
    """

    kind: str
    run: Callable[[Any, int, int], tuple[Any, int, Mapping[str, Any]]]
    num_steps: int = 0
    about: Mapping[str, Any] = {}


#: The phases of a task. Each is answered by the event it made, so that the events on record bring
#: the generator of an interrupted task to where it stood.
Phases = Generator[Phase, Mapping[str, Any], None]


@runtime_checkable
class Learner(Protocol):
    """Learns a stream task by task, in phases inside which it can be saved too.

    All that it has learnt is in its state, a pytree of arrays of constant shapes; the object holds
    settings only.

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

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The phases of a task, each answered by its event: `"kind"`, `"task"`, `"step"`, facts."""
        ...

    def predict(self, state: PyTree, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        ...


def training_phase(
    kind: str,
    task: Task,
    run: Callable[[Any, StepBatches], tuple[Any, Any]],
    *,
    inputs: Callable[[Any], Any],
    begin: Callable[[Any], Any],
    order: Sequence[int],
    learning_rates: Float[np.ndarray, " epochs"],
    batch_size: int,
    steps_per_call: int,
    about: Mapping[str, Any] = {},
    rate_name: str = "learning_rate",
) -> Phase:
    """Gradient steps over passes of a task's data, each in an order that the numbers `order` seed.

    `run` takes a state and the batches of some steps, `steps_per_call` at most, to the state after
    them and their losses; `inputs` makes rows to draw from of the state, once; `begin` the state of
    the first step. `rate_name` is the setting to lower if a loss is not finite.
    """
    num_steps = len(learning_rates) * -(-len(task.train_labels) // batch_size)
    rows: list[Any] = []

    def advance(state: Any, first: int, most: int) -> tuple[Any, int, Mapping[str, Any]]:
        if first == 0:
            state = begin(state)
        if not rows:
            rows.append(inputs(state))
        count = min(most, steps_per_call, num_steps - first)
        batches = draw_batches(
            rows[0], task.train_labels, order, learning_rates, first, count,
            batch_size=batch_size, capacity=steps_per_call,
        )  # fmt: skip
        state, losses = run(state, batches)
        losses = np.asarray(losses)[:count]
        if not np.isfinite(losses).all():
            raise FloatingPointError(
                f"the {kind} phase of task {task.name!r} diverged, {rate_name}="
                f"{learning_rates[0]} must be lower: losses {losses.tolist()}"
            )
        return state, count, {"loss": float(losses[-1])}

    return Phase(kind, advance, num_steps, about)


class Advance(NamedTuple):
    """A piece of a phase that is done.

    Attributes:
        state: the learner's arrays.
        phase: what it is a piece of.
        step: optimizer steps of the phase made.
        facts: what `Phase.run` told of it.
        event: what the phase did, once it is over: `"kind"`, `"task"`, `"step"` and facts.
        learnt: whether the task is.
    """

    state: PyTree
    phase: Phase
    step: int
    facts: Mapping[str, Any]
    event: dict[str, Any] | None
    learnt: bool

    @property
    def share(self) -> float:
        """How much of the phase is done, in [0, 1]."""
        return self.step / self.phase.num_steps if self.phase.num_steps else 1.0


class StreamResult(NamedTuple):
    """What a learner did on a stream.

    Attributes:
        accuracy: `accuracy[i, j]` on task i after training task j; NaN where j < i.
        num_tests: test images of each task.
        events: what each phase did, in order: `"kind"`, `"task"`, `"step"` and facts.
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
    """Accuracy on the tests of a task among the classes seen by the end of task `after`."""
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
        due = saved + checkpoint_every - work.num_steps if checkpoint_every else max_steps
        task = work.task
        piece = work.advance(min(max_steps, due))
        if on_advance is not None:
            on_advance(task, piece)
        if checkpoint := piece.learnt or work.num_steps - saved >= (checkpoint_every or np.inf):
            saved = work.num_steps
        row = {"step": pieces + 1, "task": task, "num_steps": work.num_steps,
               "doing": piece.phase.kind, "share": piece.share}  # fmt: skip
        row |= {"loss": piece.facts["loss"]} if "loss" in piece.facts else {}
        return training.Lap(
            work.state,
            rows=lambda seconds: [row],
            checkpoint=checkpoint,
            finished=work.task == len(stream.tasks),
        )

    with contextlib.ExitStack() as stack:
        run, first = None, 0
        if folder is not None:
            claimed = isinstance(folder, training.Run)
            run = folder if claimed else stack.enter_context(training.Run(folder))
            run.identify(describe_run(learner, stream, seed))
            restored = run.restore(work.state)
            if restored is not None:
                first, state, record = restored
                work.resume(state, record)
                saved = work.num_steps
        if work.task == len(stream.tasks):
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
    """A learner's arrays and its log, which together are a checkpoint."""

    def __init__(self, learner: Learner, stream: Stream, seed: int):
        self.learner, self.stream, self.seed = learner, stream, seed
        self.resume(learner.init(seed), {"num_steps": 0, "accuracy": [], "events": []})

    def resume(self, state: PyTree, record: dict[str, Any]) -> None:
        """Stand where the log ends: its events of the present task are told to the learner anew."""
        self.state = jax.tree.map(jnp.asarray, state)
        self.num_steps, self.accuracy = record["num_steps"], record["accuracy"]
        self.events = record["events"]
        self.step = self.num_steps - sum(event["step"] for event in self.events)
        self._begin_task()
        for event in [event for event in self.events if event["task"] == self.task]:
            self._next_phase(event)

    @property
    def record(self) -> dict[str, Any]:
        """What resumes it."""
        return {"num_steps": self.num_steps, "accuracy": self.accuracy, "events": self.events}

    @property
    def task(self) -> int:
        """Tasks learnt, and so the index of the present one."""
        return len(self.accuracy)

    def advance(self, max_steps: int) -> Advance:
        phase, event = self._phase, None
        assert phase is not None
        state, count, facts = phase.run(self.state, self.step, max_steps)
        self.state = jax.tree.map(jnp.asarray, state)
        self.step += count
        self.num_steps += count
        step = self.step
        if step == phase.num_steps:
            event = {"kind": phase.kind, "task": self.task, "step": step, **phase.about, **facts}
            self.events.append(event)
            self.step = 0
            self._next_phase(event)
        learnt = self._phase is None
        if learnt:
            self.accuracy.append([
                task_accuracy(self.learner, self.state, self.stream, i, self.task)
                for i in range(self.task + 1)
            ])  # fmt: skip
            self._begin_task()
        return Advance(self.state, phase, step, facts, event, learnt)

    def _begin_task(self) -> None:
        if self.task < len(self.stream.tasks):
            self._phases = self.learner.phases(self.stream, self.task, self.seed)
            self._phase: Phase | None = next(self._phases)

    def _next_phase(self, event: Mapping[str, Any]) -> None:
        try:
            self._phase = self._phases.send(event)
        except StopIteration:
            self._phase = None

    def result(self, *, finished: bool) -> StreamResult:
        tasks = len(self.stream.tasks)
        accuracy = np.full((tasks, tasks), np.nan)
        for after, column in enumerate(self.accuracy):
            accuracy[: after + 1, after] = column
        sizes = np.array([len(task.test_images) for task in self.stream.tasks])
        return StreamResult(
            accuracy, sizes, tuple(self.events), self.state, self.num_steps, finished
        )


def describe_run(learner: Learner, stream: Stream, seed: int) -> dict[str, Any]:
    """Everything that two runs must share to be one run: settings, data, seed."""
    data = [
        (task.train_labels, task.test_labels, task.train_images, task.test_images)
        for task in stream.tasks
    ]
    facts = {
        "format": FORMAT, "seed": seed, "stream": stream.name, "data": training.fingerprint(data),
        "tasks": [task.name for task in stream.tasks], **learner.description(),
    }  # fmt: skip
    return json.loads(json.dumps(facts))
