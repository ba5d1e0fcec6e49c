"""The one driver: state forward, numbers and checkpoints out, a clean stop at any time."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxkit import validation
from jaxkit.training import mesh as meshes
from jaxkit.training import progress as showing
from jaxkit.training import runs


class Lap(NamedTuple):
    """What one call of `advance` did.

    Attributes:
        state: the new state.
        steps: steps made.
        rows: called with the seconds a step took, None where that is not known; returns a row of
            numbers for each step, with its `"step"`, and raises if one shows that the run has
            failed. It is called one lap later, so that the device need not wait for the host.
        checkpoint: whether now is a moment to save, whatever the cadence says.
        finished: whether nothing is left to do.
    """

    state: Any
    steps: int = 1
    rows: Callable[[float | None], Sequence[Mapping[str, Any]]] = lambda seconds: ()
    checkpoint: bool = False
    finished: bool = False


class Driven(NamedTuple):
    """How a call of `drive` ended.

    Attributes:
        state: the last state.
        step: steps made, those of interrupted processes included.
        finished: whether all is done; False if the run was told to stop.
    """

    state: Any
    step: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When things happen, in steps; None for never.

    Attributes:
        checkpoint_every: steps between checkpoints; the last step has one in any case.
        evaluate_every: steps between evaluations; the last step has one in any case.
        log_every: steps between lines of metrics.
        agree_every: laps after which processes ask each other whether one was told to stop.

    Raises:
        ValueError: if one is not a positive integer.

    Example:
        >>> Cadence(evaluate_every=None).checkpoint_every
        100
    """

    checkpoint_every: int | None = 100
    evaluate_every: int | None = 100
    log_every: int = 1
    agree_every: int = 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                validation.integer(field.name, value, minimum=1)

    def until_next(self, step: int, num_steps: int | None) -> int | None:
        """Steps that may be made at once before something is due."""
        every = (self.checkpoint_every, self.evaluate_every)
        left = [n - step % n for n in every if n is not None]
        left += [] if num_steps is None else [num_steps - step]
        return min(left, default=None)


def drive(
    advance: Callable[[Any, int, int | None], Lap],
    state: Any,
    *,
    first_step: int = 0,
    num_steps: int | None = None,
    run: runs.Run | None = None,
    cadence: Cadence = Cadence(),
    evaluate: Callable[[int, Any], Mapping[str, float]] | None = None,
    record: Callable[[int], Mapping[str, Any]] = lambda step: {},
    progress: showing.Progress | None = None,
) -> Driven:
    """Advance a state until all steps are made, or until told to stop.

    SIGTERM, SIGHUP and Ctrl-C end the lap in flight, write a checkpoint and return; a second Ctrl-C
    interrupts at once. A checkpoint is written only after the rows of all steps before it were
    made.

    Args:
        advance: `advance(state, step, most)` makes 1 to `most` steps (None: any number) after
            `step` and tells of them; it may donate the state.
        state: where to start.
        first_step: steps made before.
        num_steps: steps of the whole run; None if `advance` says when it is finished.
        run: where numbers and checkpoints go, or None to keep nothing.
        cadence: when to save, evaluate and log.
        evaluate: `evaluate(step, state)` returns numbers to show and to write to
            `evaluations.jsonl`.
        record: `record(step)` is JSON to store in a checkpoint beside the state.
        progress: where to show it.

    Raises:
        TypeError: if `advance` returns no `Lap`.
        ValueError: if more than `num_steps` were made before, or `advance` makes none or too many.
        Exception: what `advance` or its rows raise; the checkpoints before it stand.
        OSError: if a file cannot be written.

    Example:
        >>> halve = lambda x, step, most: Lap(x / 2)
        >>> drive(halve, 8.0, num_steps=3)
        Driven(state=1.0, step=3, finished=True)
    """
    progress = progress or showing.Silent()
    if num_steps is not None:
        validation.integer("num_steps", num_steps, minimum=first_step)
    step, finished, stopping, laps = first_step, first_step == num_steps, False, 0
    rows = measured = None
    clock = _Clock()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_requests())
        log = evaluations = None
        if run is not None and jax.process_index() == 0:
            log = stack.enter_context(run.log("metrics", first_step))
            if evaluate is not None:
                evaluations = stack.enter_context(run.log("evaluations", first_step))
        stack.enter_context(progress)

        def settle(seconds: float | None) -> None:
            for row in rows(seconds) if rows else ():
                if log is not None and row["step"] % cadence.log_every == 0:
                    log.write(row)
                progress.step(row)

        while not finished and not stopping:
            most = cadence.until_next(step, num_steps)
            lap = advance(state, step, most)
            if not isinstance(lap, Lap):
                raise TypeError(f"advance must return a Lap, got {type(lap).__name__}")
            if not (lap.finished or 1 <= lap.steps <= (most or lap.steps)):
                raise ValueError(f"advance must make 1 to most={most} steps, got {lap.steps}")
            state, laps = lap.state, laps + 1
            settle(clock.lap())
            step, rows, clock.steps, measured = step + lap.steps, lap.rows, lap.steps, None
            finished = lap.finished or step == num_steps
            if jax.process_count() == 1 or laps % cadence.agree_every == 0:
                stopping = meshes.any_process(stop.is_set()) and not finished
            evaluating = evaluate is not None and (finished or _due(step, cadence.evaluate_every))
            saving = lap.checkpoint or finished or stopping or _due(step, cadence.checkpoint_every)
            if not (evaluating or saving):
                continue
            settle(None)
            rows = None
            if evaluating and evaluate is not None:
                measured = evaluate(step, state)
                if evaluations is not None:
                    evaluations.write({"step": step, **measured})
                progress.evaluation(step, measured)
            if saving and run is not None:
                run.save(step, state, record(step), measured)
            clock.restart()
        settle(None)
        if run is not None:
            run.wait()
    return Driven(state, step, finished)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class _Clock:
    """Seconds a step, pauses left out."""

    def __init__(self):
        self.steps = 1
        self.restart()

    def restart(self) -> None:
        self._last: float | None = None

    def lap(self) -> float | None:
        now, before = time.perf_counter(), self._last
        self._last = now
        return None if before is None else (now - before) / self.steps


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGHUP and Ctrl-C set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # What the shell told us to ignore (`nohup`, a job in the background) stays ignored.
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
