"""The training loop: batches in, state forward, numbers and checkpoints out."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkit import validation
from jaxkit.training import checkpoints as checkpointing
from jaxkit.training import chips
from jaxkit.training import mesh as meshes
from jaxkit.training import metrics as measuring
from jaxkit.training import progress as showing
from jaxkit.training import step as steps

# How often processes ask each other whether one was told to stop.
_STOP_AGREEMENT_STEPS = 10


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of batches that knows where it is.

    Example:
        >>> from jaxkit import datasets
        >>> batches = datasets.token_batches(np.arange(9), sequence_length=4, batch_size=2, seed=0)
        >>> isinstance(batches, Batches)
        True
    """

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch: this process's rows."""
        ...

    def get_state(self) -> Mapping[str, Any]:
        """Where the iterator is, as JSON-able values."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to where `get_state` was called."""
        ...


class FitResult(NamedTuple):
    """How a call of `fit` ended.

    Attributes:
        state: the last training state.
        finished: whether all steps were made; False after SIGTERM or Ctrl-C.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxkit import datasets
        >>> mesh, optimizer = meshes.make_mesh(), optax.sgd(0.1)
        >>> state = steps.init_state(lambda key: jnp.ones(()), optimizer, jax.random.key(0), mesh)
        >>> loss = lambda w, batch, key: w * batch["inputs"].mean()
        >>> step = steps.make_train_step(loss, optimizer)
        >>> batches = datasets.array_batches(np.ones(8), batch_size=8, seed=0)
        >>> result = fit(step, state, batches, mesh=mesh, cadence=Cadence(2))
        >>> result.finished, round(float(result.state.params), 3)
        (True, 0.8)
    """

    state: steps.TrainState
    finished: bool


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When things happen, in steps.

    Attributes:
        total_steps: updates of the whole run.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations.
        log_every: steps between lines of metrics.

    Raises:
        ValueError: if one is not a positive integer.

    Example:
        >>> Cadence(total_steps=10).checkpoint_every
        100
    """

    total_steps: int
    checkpoint_every: int = 100
    evaluate_every: int = 100
    log_every: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            validation.integer(field.name, getattr(self, field.name), minimum=1)


def fit(
    train_step: Callable[[steps.TrainState, Any], tuple[steps.TrainState, steps.StepMetrics]],
    state: steps.TrainState,
    batches: Batches,
    *,
    mesh: Mesh,
    cadence: Cadence,
    log: measuring.MetricsLog | None = None,
    checkpoints: checkpointing.Checkpoints | None = None,
    record: Mapping[str, Any] | None = None,
    evaluate: Callable[[int, Any], Mapping[str, float]] | None = None,
    facts: Callable[[int], Mapping[str, float]] = lambda step: {},
    tokens_per_step: int = 0,
    flops_per_token: int = 0,
    progress: showing.Progress | None = None,
) -> FitResult:
    """Train until `total_steps`, or until told to stop.

    SIGTERM and Ctrl-C end the step in flight, write a checkpoint and return. Metrics of a step are
    read while the next one runs, so that the device never waits for the host; a checkpoint is
    written only after every loss before it was seen to be finite.

    Args:
        train_step: from `make_train_step`.
        state: where to start; consumed.
        batches: yields this process's rows, and stands where `state` stands.
        mesh: from `make_mesh`.
        cadence: when to stop, save, evaluate and log.
        log: where each step's numbers go.
        checkpoints: where states go.
        record: stored in each checkpoint beside the position in the data.
        evaluate: `evaluate(step, params)` returns numbers to show.
        facts: `facts(step)` returns further numbers of that step (its learning rate, say) for the
            log.
        tokens_per_step: tokens in a global batch, for the tokens per second.
        flops_per_token: model FLOPs a token, for the utilisation.
        progress: where to show it.

    Returns:
        The last state, and whether the run is complete.

    Raises:
        NonFiniteLossError: at a loss or gradient that is not finite; the checkpoints before it
            stand.
        OSError: if a file cannot be written.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> class Ones:
        ...     __next__ = lambda self: {"x": np.ones(8)}
        ...     get_state, set_state = lambda self: {}, lambda self, state: None
        >>> mesh, optimizer = meshes.make_mesh(), optax.sgd(0.1)
        >>> state = steps.init_state(lambda k: jnp.zeros(()), optimizer, jax.random.key(0), mesh)
        >>> loss = lambda w, batch, key: jnp.mean((w - batch["x"]) ** 2)
        >>> step = steps.make_train_step(loss, optimizer)
        >>> int(fit(step, state, Ones(), mesh=mesh, cadence=Cadence(3)).state.step)
        3
    """
    progress = progress or showing.Silent()
    main = jax.process_index() == 0
    step = int(state.step)
    clock = _Clock(tokens_per_step, flops_per_token)

    def settle(pending: tuple[int, steps.StepMetrics] | None, *, timed: bool = True) -> None:
        if pending is None:
            return
        at, measured = pending
        loss, norm = float(measured.loss), float(measured.gradient_norm)
        measuring.require_finite(at, loss)
        measuring.require_finite(at, norm, "gradient norm")
        speed = clock.lap() if timed else {}
        row = {"step": at, "loss": loss, "gradient_norm": norm, **facts(at), **speed}
        if main and log is not None and at % cadence.log_every == 0:
            log.write(row)
        progress.step(row)

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save(state, {**(record or {}), "batches": dict(batches.get_state())})

    pending = None
    with _stop_requests() as stop, progress:
        stopping = False
        while step < cadence.total_steps and not stopping:
            batch = meshes.place_batch(next(batches), mesh)
            state, measured = train_step(state, batch)
            settle(pending)
            step += 1
            pending = (step, measured)
            last = step == cadence.total_steps
            if evaluate is not None and (step % cadence.evaluate_every == 0 or last):
                settle(pending, timed=False)
                pending = None
                progress.evaluation(step, evaluate(step, state.params))
                clock.restart()
            if jax.process_count() == 1 or step % _STOP_AGREEMENT_STEPS == 0:
                stopping = meshes.any_process(stop.is_set())
            if step % cadence.checkpoint_every == 0 or last or stopping:
                settle(pending, timed=False)
                pending = None
                save()
                clock.restart()
        settle(pending, timed=False)
        if checkpoints is not None:
            checkpoints.wait()
    return FitResult(state, step >= cadence.total_steps)


class _Clock:
    """Tokens per second from one step to the next, pauses left out."""

    def __init__(self, tokens_per_step: int, flops_per_token: int):
        self.tokens, self.flops = tokens_per_step, flops_per_token
        self.restart()

    def restart(self) -> None:
        self._last: float | None = None

    def lap(self) -> dict[str, float]:
        now, before = time.perf_counter(), self._last
        self._last = now
        if before is None or not self.tokens:
            return {}
        speed = self.tokens / (now - before)
        used = chips.model_flops_utilization(speed * self.flops)
        return {"tokens_per_second": speed} | ({} if used is None else {"mfu": used})


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
