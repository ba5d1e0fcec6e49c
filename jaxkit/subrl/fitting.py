"""A host loop around compiled chunks of epochs: progress, metrics, checkpoints, resumption."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxkit import training as runs
from jaxkit import validation
from jaxkit.subrl.environments import Params
from jaxkit.subrl.subpo import EpochMetrics, Training


class Fitted(NamedTuple):
    """What `fit` made.

    Attributes:
        state: the last state; parameters and optimizer state have a leading axis of seeds.
        metrics: measured before each update, each `[seeds, epochs]`, NumPy; with checkpoints, also
            those of the interrupted run.

    Example:
        >>> weights = {"logits": jnp.zeros((3, 5))}  # of three seeds
        >>> state = runs.TrainState(jnp.array(2), weights, (), jax.random.key(0))
        >>> reached = np.array([[2.0, 3.0], [2.0, 5.0], [1.0, 4.0]])
        >>> fitted = Fitted(state, EpochMetrics(*np.ones((8, 3, 2)))._replace(mean=reached))
        >>> int(fitted.metrics.mean[:, -1].argmax())  # the best seed
        1
    """

    state: runs.TrainState
    metrics: EpochMetrics


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
    log: runs.MetricsLog | None = None,
    checkpoints: runs.Checkpoints | None = None,
) -> Fitted:
    """Train several seeds together, chunk by chunk; with checkpoints, go on where it stopped.

    The same numbers as `vmap(training.run)` of the keys `split(key, num_seeds)`. At most two
    programs are compiled: one for whole chunks and one for a shorter last.

    Args:
        training: from `make_training`.
        key: typed PRNG key, split over the seeds.
        num_seeds: S, independent runs.
        chunk: epochs between looks of the host.
        params: numbers of the environment.
        progress: where to show it; each chunk is told as one step.
        log: where a line for each epoch goes, means over the seeds.
        checkpoints: where the state goes after each chunk.

    Returns:
        The last state, and all metrics.

    Raises:
        NonFiniteLossError: if a loss or gradient is not finite; the checkpoints before it stand.
        ValueError: if a number is out of range, or a checkpoint is of another number of seeds.

    Example:
        >>> import optax
        >>> from jaxkit import subrl
        >>> env = subrl.coverage_world((2, 2), horizon=3, start=0, features="official_position")
        >>> policy = subrl.TabularPolicy(5, 4, 3)
        >>> train = subrl.make_training(env, policy, optax.sgd(1.0), batch_size=4, epochs=2)
        >>> fit(train, jax.random.key(0), num_seeds=2).metrics.mean.shape
        (2, 2)
    """
    num_seeds = validation.integer("num_seeds", num_seeds, minimum=1)
    chunk = validation.integer("chunk", chunk, minimum=1)
    progress = progress or runs.Silent()
    keys = jax.random.split(key, num_seeds)
    state: Any = jax.jit(jax.vmap(training.init))(keys)
    state = state._replace(step=jnp.zeros((), jnp.int32))
    history: dict[str, Any] = {
        name: np.zeros((num_seeds, 0), np.float32) for name in EpochMetrics._fields
    }
    restored = None if checkpoints is None else checkpoints.restore(state)
    if restored is not None:
        state = restored.state
        history = {
            name: np.asarray(restored.record["metrics"][name], np.float32) for name in history
        }

    def several(state, params, length):
        def epoch(state, _):
            return training.epoch(state, params)

        over = jax.vmap(epoch, (_OVER_SEEDS, None), (_OVER_SEEDS, 0))
        return jax.lax.scan(over, state, None, length=length)

    advance = jax.jit(several, static_argnums=2, donate_argnums=0)
    with progress:
        while (done := int(state.step)) < training.epochs:
            state, measured = advance(state, params, min(chunk, training.epochs - done))
            measured = jax.tree.map(lambda x: np.asarray(x).T, measured)
            for name, values in measured._asdict().items():
                history[name] = np.concatenate([history[name], values], axis=1)
            _tell(done, measured, progress, log)
            if checkpoints is not None:
                record = {name: values.tolist() for name, values in history.items()}
                checkpoints.save(state, {"metrics": record})
        if checkpoints is not None:
            checkpoints.wait()
    return Fitted(state, EpochMetrics(**history))


def _tell(done: int, measured: EpochMetrics, progress: runs.Progress, log: Any) -> None:
    """Check, log and show the epochs of a chunk, as means over the seeds."""
    rows = [
        {
            "step": done + 1 + t,
            **{name: float(x) for name, x in zip(measured._fields, at, strict=True)},
        }
        for t, at in enumerate(zip(*(np.mean(values, 0) for values in measured), strict=True))
    ]
    for row in rows:
        runs.require_finite(row["step"], row["loss"])
        runs.require_finite(row["step"], row["gradient_norm"], "gradient norm")
        if log is not None:
            log.write(row)
    progress.step(rows[-1])
    progress.evaluation(rows[-1]["step"], {"mean": rows[-1]["mean"], "best": rows[-1]["best"]})
