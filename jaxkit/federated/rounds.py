"""One communication round, and many in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from jaxkit import validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import clients as client_examples
from jaxkit.federated import (
    cohorts,
    fitness,
    local_steps,
    mapping,
    perturbation,
)
from jaxkit.federated import state as states


class RoundMetrics(NamedTuple):
    """What a round measured; not protected by client-level privacy.

    Attributes:
        loss: mean over the cohort of the clients' mean training loss.
        num_participants: clients that took part.
        update_norm: l2 norm of the change of the global model.
        divergence: mean squared distance of the local models from the new global model.
        nonfinite_clients: clients whose local model has an infinity or NaN; nothing is dropped.
        evaluation: what `evaluate` returned, or None.
    """

    loss: Float[Array, ""]
    num_participants: Int[Array, ""]
    update_norm: Float[Array, ""]
    divergence: Float[Array, ""]
    nonfinite_clients: Int[Array, ""]
    evaluation: Any = None


class Client(NamedTuple):
    """One client in one round.

    Attributes:
        identity: its number.
        active: whether it takes part (False on a padded place).
        held: its row of `FederatedState.clients`.
        examples: its examples [n, ...].
        num_examples: how many of them are real.
    """

    identity: Int[Array, ""]
    active: Any
    held: PyTree
    examples: PyTree
    num_examples: Int[Array, ""]


def federated_round(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: client_examples.ClientData,
    sampler: cohorts.Sampler,
    client_map: mapping.ClientMap | None = None,
) -> tuple[states.FederatedState, RoundMetrics]:
    """Draw a cohort, train its clients, aggregate: one round, pure.

    Compile it with the state donated, or its client rows are copied every round:
    `jax.jit(lambda state: federated_round(...), donate_argnums=0)`.

    Args:
        algorithm: the federated algorithm.
        training: how clients train.
        state: before the round.
        data: of all clients.
        sampler: of cohorts. A stratified one with as many strata as devices of a `shard_clients`
            map keeps every client's state and data on its device.
        client_map: backend, by default `vmap_clients()`.

    Returns:
        State and metrics after the round.

    Raises:
        TypeError: if the loss is not a scalar or a parameter not floating point.
        ValueError: if the parts do not fit (see `jaxkit.federated.check_run`).

    Source: arXiv 2302.10429 Algorithm 1.

    Example:
        >>> from jaxkit.federated import averaging
        >>> training = local_steps.local_training(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = client_examples.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> fedavg, sampler = averaging.fedavg(), cohorts.uniform_sampler(2, 2)
        >>> state = states.init_state(fedavg, jnp.zeros(()), 2, jax.random.key(0))
        >>> state, metrics = federated_round(fedavg, training, state, data, sampler)
        >>> round(float(state.params), 3), int(metrics.num_participants)
        (0.819, 2)
    """
    client_map = client_map or mapping.vmap_clients()
    fitness.check_run(algorithm, training, state, data, sampler, client_map)
    draw_key, _, _ = _round_keys(algorithm, state)
    cohort = sampler.sample(draw_key, state.round)
    mesh = client_map.mesh
    local = mesh is not None and sampler.num_strata == mesh.shape[mapping.AXIS] > 1
    padded = cohorts.pad_cohort(cohort, client_map.multiple)
    if local and padded.clients.shape != cohort.clients.shape:
        raise ValueError(
            f"a stratified cohort must fill its chunks: {client_map.multiple} must divide "
            f"cohort_size, got {sampler.cohort_size}"
        )
    return _round(algorithm, training, state, data, padded, client_map, rows_are_local=local)


def cohort_round(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: client_examples.ClientData,
    cohort: cohorts.Cohort,
    client_map: mapping.ClientMap,
) -> tuple[states.FederatedState, RoundMetrics]:
    """A round of a given cohort, which no client-level privacy accounts for.

    Args:
        algorithm: the federated algorithm.
        training: how clients train.
        state: before the round.
        data: of all clients.
        cohort: distinct clients, as many places as `client_map` divides.
        client_map: backend.

    Returns:
        State and metrics after the round.

    Raises:
        ValueError: if the algorithm is private: its promise holds for cohorts that its sampler
            draws, in `federated_round`.

    Example:
        >>> from jaxkit.federated import duals
        >>> training = local_steps.local_training(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=1
        ... )
        >>> data = client_examples.stack_clients(jnp.array([[1.0], [3.0]]))
        >>> method, cohort = duals.feddyn(), cohorts.make_cohort([1], 2)
        >>> state = states.init_state(method, jnp.zeros(()), 2, jax.random.key(0))
        >>> args = (method, training, state, data, cohort, mapping.vmap_clients())
        >>> (cohort_round(*args)[0].clients["memory"]["dual"] > 1).tolist()
        [False, True]
    """
    if algorithm.privacy is not None:
        raise ValueError(
            f"algorithm must not be private, got {algorithm.name}: its promise holds for cohorts "
            "that its sampler draws, use federated_round"
        )
    return _round(algorithm, training, state, data, cohort, client_map)


def _round(algorithm, training, state, data, cohort, client_map, *, rows_are_local=False):
    """A round; `rows_are_local`: each place of the cohort names a client of its own device."""
    _, clients_key, noise_key = _round_keys(algorithm, state)
    mesh = client_map.mesh if rows_are_local else None
    gather = lambda tree: mapping.gather_rows(tree, cohort.clients, mesh)  # noqa: E731
    clients = Client(
        identity=cohort.clients,
        active=cohort.active,
        held=gather(state.clients),
        examples=gather(data.examples),
        num_examples=gather(data.num_examples),
    )
    full = _always_full(training, data)

    def on_client(broadcast, client):
        return _client_round(algorithm, training, full, broadcast, client)

    broadcast = (state.params, state.shared, state.round, clients_key)
    held, total = client_map.run(on_client, broadcast, clients)
    held = mapping.scatter_rows(state.clients, cohort.clients, held, mesh)

    aggregate = algorithm.aggregate(total["message"], total["active"], noise_key)
    if algorithm.privacy is not None:
        accounted = state.round < algorithm.privacy.num_rounds
        release = lambda leaf: jnp.where(accounted, leaf, jnp.nan)  # noqa: E731
        aggregate = aggregate._replace(mean=jax.tree.map(release, aggregate.mean))
    fraction = aggregate.count / state.num_clients
    displacement, shared = algorithm.absorb(state.shared, aggregate.mean, fraction)
    updates, server_state = algorithm.server_optimizer.update(
        optax.tree.scale(-1, displacement),
        state.server_optimizer_state,
        algorithms.widened(state.params),
    )
    params = optax.apply_updates(state.params, updates)
    new_state = state._replace(
        round=state.round + 1,
        params=params,
        shared=shared,
        server_optimizer_state=server_state,
        clients=held,
    )
    metrics = _metrics(total, optax.tree.sub(params, state.params))
    return _keep_placed(new_state, client_map), metrics


def run_rounds(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: client_examples.ClientData,
    sampler: cohorts.Sampler,
    client_map: mapping.ClientMap | None = None,
    *,
    num_rounds: int,
    evaluate: Callable[[PyTree], PyTree] | None = None,
) -> tuple[states.FederatedState, RoundMetrics]:
    """Many rounds as one `lax.scan`: pure, for `jit` and for `vmap` over seeds or numbers.

    Args:
        algorithm: the federated algorithm.
        training: how clients train.
        state: before the first of the rounds.
        data: of all clients.
        sampler: of cohorts.
        client_map: backend, by default `vmap_clients()`.
        num_rounds: rounds to make.
        evaluate: `(params) -> pytree` after every round.

    Returns:
        The last state, and metrics with leaves [num_rounds, ...].

    Raises:
        TypeError: if the loss is not a scalar or a parameter not floating point.
        ValueError: if the parts do not fit (see `jaxkit.federated.check_run`).

    Example:
        >>> from jaxkit.federated import averaging
        >>> training = local_steps.local_training(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = client_examples.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> fedavg, sampler = averaging.fedavg(), cohorts.uniform_sampler(2, 2)
        >>> state = states.init_state(fedavg, jnp.zeros(()), 2, jax.random.key(0))
        >>> state, metrics = run_rounds(fedavg, training, state, data, sampler, num_rounds=3)
        >>> metrics.loss.shape
        (3,)
    """
    validation.integer("num_rounds", num_rounds, minimum=1)
    client_map = client_map or mapping.vmap_clients()
    fitness.check_run(algorithm, training, state, data, sampler, client_map, num_rounds=num_rounds)

    def one(state, _):
        state, metrics = federated_round(algorithm, training, state, data, sampler, client_map)
        evaluation = None if evaluate is None else evaluate(state.params)
        return state, metrics._replace(evaluation=evaluation)

    return lax.scan(one, state, length=num_rounds)


def _client_round(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    full: bool,
    broadcast: tuple[Any, ...],
    client: Client,
) -> tuple[Any, Any]:
    """Local steps, report and bookkeeping of one client."""
    params, shared, round, key = broadcast
    start = _relaxed_start(algorithm, params, client.held)
    examples_per_client = jax.tree.leaves(client.examples)[0].shape[0]
    batches = local_steps.plan_batches(
        training,
        examples_per_client,
        client.num_examples,
        jax.random.fold_in(key, client.identity),
    )
    held = client.held.get("optimizer_state")
    trained = local_steps.train_locally(
        training,
        algorithm.client_optimizer,
        start,
        algorithm.client_optimizer.init(start) if held is None else held,
        client.examples,
        batches,
        full=full,
        anchor=start,
        memory=client.held["memory"],
        shared=shared,
        round=round,
    )
    result = algorithms.LocalResult(
        offset=_difference(start, params),
        delta=_difference(trained.params, start),
        num_steps=trained.num_steps,
        params=trained.params,
        optimizer_state=trained.optimizer_state,
        round=round,
        relaxed=algorithm.relaxation is not None,
    )
    message, memory = algorithm.report(shared, client.held["memory"], result)
    row = {"memory": memory}
    if algorithm.relaxation is not None:
        row["last_params"] = trained.params
    if algorithm.keep_optimizer_state:
        row["optimizer_state"] = trained.optimizer_state

    moved = _difference(trained.params, params)
    square = perturbation.global_norm(moved) ** 2
    sums = {
        "message": message,
        "active": jnp.ones_like(square),
        "loss": trained.loss,
        "moved": moved,
        "moved_square": square,
        "nonfinite": jnp.where(jnp.isfinite(square), 0, 1),
    }
    return row, jax.tree.map(lambda leaf: jnp.where(client.active, leaf, 0), sums)


def _relaxed_start(algorithm: algorithms.FederatedAlgorithm, params: PyTree, held: Any) -> PyTree:
    if algorithm.relaxation is None:
        return params
    return jax.tree.map(
        lambda x, last: (x + algorithm.relaxation * (x - last)).astype(x.dtype),
        params,
        held["last_params"],
    )


def _difference(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: perturbation.widen(x) - perturbation.widen(y), a, b)


def _metrics(total: Any, update: PyTree) -> RoundMetrics:
    count = total["active"]
    mean = jax.tree.map(lambda leaf: leaf / count, total["moved"])
    update_norm = perturbation.global_norm(update)
    # mean |w_i - x_new|^2 with w_i - x_new = (w_i - x) - update.
    divergence = total["moved_square"] / count - 2 * optax.tree.vdot(mean, update) + update_norm**2
    return RoundMetrics(
        loss=total["loss"] / count,
        num_participants=count.astype(jnp.int32),
        update_norm=update_norm,
        divergence=divergence,
        nonfinite_clients=total["nonfinite"],
    )


def _round_keys(
    algorithm: algorithms.FederatedAlgorithm, state: states.FederatedState
) -> tuple[Any, Any, Any]:
    draw, clients, noise = jax.random.split(jax.random.fold_in(state.key, state.round), 3)
    if algorithm.privacy is not None:
        draw, noise = algorithm.privacy.secretly(draw), algorithm.privacy.secretly(noise)
    return draw, clients, noise


def _always_full(training: local_steps.LocalTraining, data: client_examples.ClientData) -> bool:
    batch_size = training.batch_size or data.examples_per_client
    divides = data.examples_per_client % batch_size == 0
    return data.equal and (divides or training.drop_remainder)


def _keep_placed(
    state: states.FederatedState, client_map: mapping.ClientMap
) -> states.FederatedState:
    """Hold the state where it came from, so that it can be donated."""
    if client_map.mesh is None:
        return state
    by_client = NamedSharding(client_map.mesh, P(mapping.AXIS))
    everywhere = NamedSharding(client_map.mesh, P())
    clients = lax.with_sharding_constraint(state.clients, by_client)
    rest = lax.with_sharding_constraint(state._replace(clients=()), everywhere)
    return rest._replace(clients=clients)
