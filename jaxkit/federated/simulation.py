"""A whole run from the host: progress, metrics by round, evaluation, checkpoints, resumption."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxkit import files, training, validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import clients as client_examples
from jaxkit.federated import cohorts, fitness, local_steps, mapping, rounds
from jaxkit.federated import state as states

_DESCRIPTION = "federated.json"


class SimulationResult(NamedTuple):
    """How a run ended.

    Attributes:
        state: after the last round.
        history: a row a round: `"step"` (rounds made), the metrics of `RoundMetrics`, and on rounds
            with an evaluation what it returned. After a resumption, from the file of metrics.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.federated import averaging
        >>> local = local_steps.local_training(lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2)
        >>> data = client_examples.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> result = simulate(
        ...     averaging.fedavg(), local, jnp.zeros(()), data, cohorts.uniform_sampler(2, 2),
        ...     num_rounds=1, key=jax.random.key(0),
        ... )
        >>> int(result.state.round), result.history[0]["num_participants"]
        (1, 2)
    """

    state: states.FederatedState
    history: list[dict[str, Any]]


def simulate(
    algorithm: algorithms.FederatedAlgorithm,
    local: local_steps.LocalTraining,
    params: PyTree,
    data: client_examples.ClientData,
    sampler: cohorts.Sampler,
    *,
    num_rounds: int,
    key: Key[Array, ""],
    client_map: mapping.ClientMap | None = None,
    evaluate: Callable[[PyTree], Mapping[str, Array]] | None = None,
    evaluate_every: int = 10,
    folder: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    progress: training.Progress | None = None,
) -> SimulationResult:
    """Run an experiment: a loop on the host around the compiled round.

    With a `folder`, a run that was stopped goes on from its last checkpoint and ends in the very
    same state. Each round is compiled once and donates its state.

    Args:
        algorithm: the federated algorithm.
        local: how clients train.
        params: the first global model.
        data: of all clients; placed on the mesh of `client_map` if it has one.
        sampler: of cohorts.
        num_rounds: rounds of the whole run.
        key: typed key of the run.
        client_map: backend, by default `vmap_clients()`.
        evaluate: `(params) -> {name: scalar}`, pure; compiled once.
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        folder: where metrics (`metrics.jsonl`) and checkpoints go, or None to keep nothing.
        checkpoint_every: rounds between checkpoints.
        progress: where to show it: `jaxkit.training.Console(num_rounds)` draws a bar.

    Returns:
        The last state and the history.

    Raises:
        NonFiniteLossError: if a client diverged, naming the round; the checkpoints before it stand.
        TypeError: if the loss is not a scalar or a parameter not floating point.
        ValueError: if the parts do not fit, or the folder holds another run.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.federated import averaging
        >>> local = local_steps.local_training(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = client_examples.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> result = simulate(
        ...     averaging.fedavg(), local, jnp.zeros(()), data, cohorts.uniform_sampler(2, 2),
        ...     num_rounds=3, key=jax.random.key(0),
        ... )
        >>> [row["step"] for row in result.history]
        [1, 2, 3]
    """
    for name, value in (
        ("num_rounds", num_rounds),
        ("evaluate_every", evaluate_every),
        ("checkpoint_every", checkpoint_every),
    ):
        validation.integer(name, value, minimum=1)
    client_map = client_map or mapping.vmap_clients()
    mesh = client_map.mesh
    if mesh is not None:
        data = client_examples.place_data(data, mesh)
    state = states.init_state(algorithm, params, sampler.num_clients, key, mesh=mesh)
    fitness.check_run(algorithm, local, state, data, sampler, client_map)
    step = jax.jit(
        lambda state, data: rounds.federated_round(
            algorithm, local, state, data, sampler, client_map
        ),
        donate_argnums=0,
    )
    measure = None if evaluate is None else jax.jit(evaluate)
    main = jax.process_index() == 0

    with contextlib.ExitStack() as stack:
        checkpoints = log = None
        history: list[dict[str, Any]] = []
        if folder is not None:
            folder = pathlib.Path(folder)
            _claim(folder, algorithm, state)
            checkpoints = stack.enter_context(training.Checkpoints(folder / "checkpoints"))
            restored = checkpoints.restore(_pack(state))
            state = state if restored is None else _unpack(state, restored.state)
            if main:
                path = folder / "metrics.jsonl"
                log = stack.enter_context(training.MetricsLog(path, int(state.round)))
                history = training.read_metrics(path)
        shown = progress or training.Silent()
        stack.enter_context(shown)
        for made in range(int(state.round) + 1, num_rounds + 1):
            state, metrics = step(state, data)
            row = {"step": made, **_numbers(metrics._replace(evaluation=None)._asdict())}
            if row["nonfinite_clients"]:
                raise training.NonFiniteLossError(
                    f"{row['nonfinite_clients']} of {row['num_participants']} clients diverged in "
                    f"round {made}: their local models are not finite"
                )
            last = made == num_rounds
            if measure is not None and (made % evaluate_every == 0 or last):
                evaluation = _numbers(measure(state.params))
                row |= evaluation
                shown.evaluation(made, evaluation)
            shown.step(row)
            history.append(row)
            if log is not None:
                log.write(row)
            if checkpoints is not None and (made % checkpoint_every == 0 or last):
                checkpoints.save(_pack(state), {"algorithm": algorithm.name})
    return SimulationResult(state, history)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Host numbers of device scalars; absent ones are left out."""
    fetched = jax.device_get({k: v for k, v in metrics.items() if v is not None})
    return {name: np.asarray(value).item() for name, value in fetched.items()}


def _pack(state: states.FederatedState) -> training.TrainState:
    """The state in the form that checkpoints are written in; the number of clients is not in it."""
    held = {"params": state.params, "shared": state.shared, "clients": state.clients}
    return training.TrainState(state.round, held, state.server_optimizer_state, state.key)


def _unpack(like: states.FederatedState, packed: training.TrainState) -> states.FederatedState:
    return like._replace(
        round=packed.step,
        **packed.params,
        server_optimizer_state=packed.opt_state,
        key=packed.key,
    )


def _claim(
    folder: pathlib.Path, algorithm: algorithms.FederatedAlgorithm, state: states.FederatedState
) -> None:
    """Refuse a folder whose run has other shapes, before anything in it is read or written."""
    shapes = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(_pack(state))
    }
    ours = {"algorithm": algorithm.name, "num_clients": int(state.num_clients), **shapes}
    path = folder / _DESCRIPTION
    if path.exists():
        theirs = json.loads(path.read_text("utf-8"))
        for name in [*ours, *(theirs.keys() - ours.keys())]:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"folder {folder} holds another run: its {name} is {theirs.get(name)}, this "
                    f"run's is {ours.get(name)}"
                )
    elif jax.process_index() == 0:
        files.write_atomically(path, json.dumps(ours, indent=1))
