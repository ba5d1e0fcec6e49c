"""A whole run from the host: progress, metrics by round, evaluation, checkpoints, resumption."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxkit import training, validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import backends, checks, clients, cohorts, rounds
from jaxkit.federated import local_training as local_steps
from jaxkit.federated import state as states


class SimulationResult(NamedTuple):
    """How a run ended.

    Attributes:
        state: after the last round.
        history: a row a round: `"step"` (rounds made), the metrics of `RoundMetrics`, and on rounds
            with an evaluation what it returned. After a resumption, from the logs.
    """

    state: states.FederatedState
    history: list[dict[str, Any]]


def simulate(
    algorithm: algorithms.FederatedAlgorithm,
    local: local_steps.LocalTraining,
    params: PyTree,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    *,
    num_rounds: int,
    key: Key[Array, ""],
    client_map: backends.ClientMap | None = None,
    evaluate: Callable[..., Mapping[str, Array]] | None = None,
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
        num_rounds: rounds of the whole run; more than before make a run longer.
        key: typed key of the run.
        client_map: backend, by default `vmap_clients()`.
        evaluate: `(params) -> {name: scalar}`, pure; compiled once. Where the algorithm shares a
            model state, `(params, model_state) -> {name: scalar}`.
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        folder: of the run (`training.Run`): metrics, evaluations and checkpoints.
        checkpoint_every: rounds between checkpoints.
        progress: where to show it: `jaxkit.training.Console(num_rounds)` draws a bar; the memory of
            a round is told before the first.

    Raises:
        NonFiniteLossError: if a client diverged, naming the round; the checkpoints before it stand.
        TypeError: if the loss is not a scalar, a parameter not floating point, or a part something
            else.
        ValueError: if the parts do not fit, or the folder holds another run: other data, key,
            batches or computations.
        OSError: if another process writes the folder, or the disk refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.federated.fedavg import fedavg
        >>> local = local_steps.LocalTraining(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = clients.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> result = simulate(
        ...     fedavg(), local, jnp.zeros(()), data, cohorts.uniform_sampler(2, 2),
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
    client_map = client_map or backends.vmap_clients()
    checks.check_kinds(local, data, sampler, client_map)
    mesh, given, num_clients = client_map.mesh, data, sampler.num_clients
    if data.on_host:
        if jax.process_count() > 1:
            raise ValueError("data must not be on_host where there are several processes")
        state = states.init_state(algorithm, params, 1, key)
        table = jax.tree.map(lambda row: np.repeat(np.asarray(row), num_clients, 0), state.clients)
        state = state._replace(clients=table, num_clients=jnp.asarray(num_clients, jnp.int32))
    else:
        data = data if mesh is None else data.placed(mesh)
        state = states.init_state(algorithm, params, num_clients, key, mesh=mesh)
    checks.check_run(algorithm, local, state, data, sampler, client_map, num_rounds=num_rounds)
    measure = None if evaluate is None else jax.jit(evaluate)
    if measure is not None:
        found = jax.eval_shape(measure, *rounds.evaluated(algorithm, state._replace(clients=())))
        if not isinstance(found, Mapping) or any(np.shape(leaf) for leaf in found.values()):
            raise TypeError(f"evaluate must return {{name: scalar}}, got {found}")

    def parts(state):
        """What goes to the device: all, or of data in host memory the cohort's rows alone."""
        if not data.on_host:
            return state, data, None
        known = state._replace(clients=())
        cohort = rounds.draw_cohort(algorithm, known, sampler, client_map)
        chosen = np.minimum(np.asarray(cohort.clients), num_clients - 1)
        held = jax.tree.map(lambda table: table[chosen], state.clients)
        moved = jax.tree.map(jnp.asarray, (state._replace(clients=held), data.of(chosen)))
        return *moved, cohort

    def one_round(state, data, cohort):
        if cohort is None:
            return rounds.federated_round(algorithm, local, state, data, sampler, client_map)
        return rounds.round_of(algorithm, local, state, data, cohort, client_map, gathered=True)

    history: list[dict[str, Any]] = []

    def advance(state: states.FederatedState, made: int, most: int | None) -> training.Lap:
        sent = parts(state)
        after, metrics = compiled(*sent)
        state = after if sent[2] is None else _written_back(state, after, sent[2])

        def rows(seconds: float | None) -> list[dict[str, Any]]:
            row = {"step": made + 1, **_numbers(metrics._asdict())}
            if row["nonfinite_clients"]:
                raise training.NonFiniteLossError(
                    f"{row['nonfinite_clients']} of {row['num_participants']} clients diverged in "
                    f"round {made + 1}: their local models are not finite"
                )
            history.append(row)
            return [dict(row)]

        return training.Lap(state, rows=rows)

    def score(made: int, state: states.FederatedState) -> dict[str, Any]:
        found = _numbers(measure(*rounds.evaluated(algorithm, state))) if measure else {}
        history[-1] |= found
        return found

    with contextlib.ExitStack() as stack:
        run, first = None, 0
        if folder is not None:
            # Another run is refused before anything is compiled.
            run = stack.enter_context(training.Run(folder))
            run.identify(_identity(algorithm, local, params, given, sampler, key))
            restored = run.restore(state)
            if restored is not None:
                first, state = restored.step, restored.state
            if first > num_rounds:
                raise ValueError(
                    f"num_rounds must be at least the {first} that {run.folder} has made, got "
                    f"{num_rounds}"
                )
            history += _told(run.folder, first)
        compiled = jax.jit(one_round, donate_argnums=0).lower(*parts(state)).compile()
        if progress is not None and (memory := compiled.memory_analysis()) is not None:
            held, more = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
            training.say(
                f"a device holds {held:.1f} MiB of clients, models and examples, and needs "
                f"{more:.1f} MiB more in a round"
            )
        result = training.drive(
            advance,
            state,
            first_step=first,
            num_steps=num_rounds,
            run=run,
            cadence=training.Cadence(checkpoint_every, evaluate_every),
            evaluate=None if evaluate is None else score,
            progress=progress,
        )
    return SimulationResult(result.state, history)


def _written_back(
    state: states.FederatedState, after: states.FederatedState, cohort: cohorts.Cohort
) -> states.FederatedState:
    """The state after a round, with the cohort's rows written to the table in host memory."""
    active = np.asarray(cohort.active)
    chosen = np.asarray(cohort.clients)[active]

    def write(table, rows):
        table[chosen] = np.asarray(rows)[active]
        return table

    return after._replace(clients=jax.tree.map(write, state.clients, after.clients))


def _told(folder: pathlib.Path, last: int) -> list[dict[str, Any]]:
    """What the logs of an interrupted run say of its rounds up to `last`."""
    rows = {
        row["step"]: row
        for row in training.read_metrics(folder / "metrics.jsonl")
        if row["step"] <= last
    }
    for row in training.read_metrics(folder / "evaluations.jsonl"):
        if row["step"] in rows:
            rows[row["step"]] |= row
    return list(rows.values())


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Host numbers of device scalars; absent ones are left out."""
    fetched = jax.device_get({k: v for k, v in metrics.items() if v is not None})
    return {name: np.asarray(value).item() for name, value in fetched.items()}


def _identity(
    algorithm: algorithms.FederatedAlgorithm,
    local: local_steps.LocalTraining,
    params: PyTree,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    key: Key[Array, ""],
) -> dict[str, Any]:
    """What two starts of one run share; how clients are spread over devices is not among it."""

    def one_round(params: PyTree, data: Any, key: Any) -> Any:
        state = states.init_state(algorithm, params, sampler.num_clients, key)
        return rounds.federated_round(
            algorithm, local, state, data, sampler, backends.vmap_clients()
        )

    return {
        "algorithm": algorithm.name,
        "sampler": sampler.law,
        "local": {name: v for name, v in vars(local).items() if not callable(v)},
        "params": training.fingerprint(params),
        "data": training.fingerprint(data),
        "key": training.fingerprint(key),
        "program": training.program_fingerprint(one_round, params, data, key),
    }
