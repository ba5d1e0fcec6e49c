"""A host loop around compiled chunks of steps: progress, metrics, checkpoints, resumption."""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxkit import training as runs
from jaxkit import validation
from jaxkit.subrl.environments import Params
from jaxkit.subrl.subpo import StepMetrics, Training


class Fitted(NamedTuple):
    """The last state of `fit`, with a leading axis of seeds, and metrics `[seeds, steps]`, NumPy.

    Metrics are of before each update; with checkpoints, also those of the interrupted run.
    """

    state: runs.TrainState
    metrics: StepMetrics


_NAMES = StepMetrics._fields

#: A state of several seeds: they share the step.
_OVER_SEEDS: Any = runs.TrainState(None, 0, 0, 0)  # type: ignore[arg-type]


def fit(
    training: Training,
    key: Key[Array, ""],
    *,
    num_seeds: int = 1,
    chunk: int = 10,
    params: Params | None = None,
    progress: runs.Progress | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Fitted:
    """Train several seeds together, chunk by chunk; with a folder, go on where it stopped.

    The same numbers as `vmap(training.run)` of the keys `split(key, num_seeds)`. At most two
    programs are compiled: one for whole chunks and one for a shorter last.

    Args:
        training: from `make_training`.
        key: typed PRNG key, split over the seeds.
        num_seeds: S, independent runs.
        chunk: steps between looks of the host, each of which is a checkpoint.
        params: numbers of the environment.
        progress: where to show it.
        folder: of the run (`training.Run`): a line for each step, means over the seeds, and
            checkpoints; None to keep nothing. More steps than before make a run longer.

    Raises:
        NonFiniteLossError: if a loss or gradient is not finite; the checkpoints before it stand.
        ValueError: if a number is out of range, or the folder holds another run.
        OSError: if another process writes the folder, or the disk refuses.

    Example:
        >>> import optax
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((2, 2), horizon=3, start=0, features="official_position")
        >>> policy = subrl.TabularPolicy(5, 4, 3)
        >>> train = subrl.make_training(env, policy, optax.sgd(1.0), batch_size=4, num_steps=2)
        >>> fit(train, jax.random.key(0), num_seeds=2).metrics.mean.shape
        (2, 2)
    """
    num_seeds = validation.integer("num_seeds", num_seeds, minimum=1)
    chunk = validation.integer("chunk", chunk, minimum=1)

    def first(keys: Key[Array, " seeds"]) -> Any:
        state: Any = jax.vmap(training.init)(keys)
        return state._replace(step=jnp.zeros((), jnp.int32))

    def several(state, params, length):
        def one(state, _):
            return training.step(state, params)

        over = jax.vmap(one, (_OVER_SEEDS, None), (_OVER_SEEDS, 0))
        return jax.lax.scan(over, state, None, length=length)

    advance_several = jax.jit(several, static_argnums=2, donate_argnums=0)

    def advance(held: Fitted, done: int, most: int | None) -> runs.Lap:
        length = min(chunk, most or chunk)
        state, measured = advance_several(held.state, params, length)
        measured = jax.tree.map(lambda x: np.asarray(x).T, measured)
        metrics = jax.tree.map(lambda a, b: np.append(a, b, axis=1), held.metrics, measured)
        return runs.Lap(Fitted(state, metrics), length, rows=lambda seconds: _rows(done, measured))

    def means(done: int, held: Fitted) -> dict[str, float]:
        return {n: float(getattr(held.metrics, n)[:, -1].mean()) for n in ("mean", "best")}

    def holding(steps: int) -> StepMetrics:
        empty: Any = (np.zeros((num_seeds, steps), np.float32) for _ in _NAMES)
        return StepMetrics(*empty)

    keys = jax.random.split(key, num_seeds)
    held = Fitted(jax.jit(first)(keys), holding(0))
    with contextlib.ExitStack() as stack:
        run = done = None
        if folder is not None:
            run = stack.enter_context(runs.Run(folder))
            program = runs.program_fingerprint(lambda k: several(first(k), params, 1), keys)
            run.identify({"key": runs.fingerprint(key), "num_seeds": num_seeds, "program": program})
            done = run.restore(lambda record: Fitted(held.state, holding(record["steps"])))
            held = held if done is None else done.state
        result = runs.drive(
            advance,
            held,
            first_step=0 if done is None else done.step,
            num_steps=training.num_steps,
            run=run,
            cadence=runs.Cadence(chunk, chunk),
            evaluate=means,
            record=lambda step: {"steps": step},
            progress=progress,
        )
    return result.state


def _rows(done: int, measured: StepMetrics) -> list[dict[str, float]]:
    """The steps of a chunk, as means over the seeds."""
    rows = []
    for t, at in enumerate(zip(*(np.mean(values, 0) for values in measured), strict=True)):
        row = dict(zip(_NAMES, map(float, at), strict=True))
        runs.require_finite(done + 1 + t, row["loss"])
        runs.require_finite(done + 1 + t, row["gradient_norm"], "gradient norm")
        rows.append({"step": done + 1 + t, **row})
    return rows
