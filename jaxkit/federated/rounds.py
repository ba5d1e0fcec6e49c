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
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxkit import validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import backends, checks, clients, cohorts, perturbation
from jaxkit.federated import local_training as local_steps
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
        local: the clients of the cohort one by one, where `keep_local` asked for them, or None.
    """

    loss: Float[Array, ""]
    num_participants: Int[Array, ""]
    update_norm: Float[Array, ""]
    divergence: Float[Array, ""]
    nonfinite_clients: Int[Array, ""]
    evaluation: Any = None
    local: LocalModels | None = None


class LocalModels(NamedTuple):
    """What the clients of a cohort ended with; every leaf leads with the places of the cohort.

    Attributes:
        clients: which client each place is; `active` is False on padded places.
        active: whether it took part.
        params: its local model w_K.
        message: what it sent, before it was weighted (under client-level privacy: clipped, without
            noise).
        loss: its mean training loss.
        num_steps: its local steps.
    """

    clients: Int[Array, " cohort"]
    active: Bool[Array, " cohort"]
    params: PyTree
    message: PyTree
    loss: Float[Array, " cohort"]
    num_steps: Float[Array, " cohort"]


class Client(NamedTuple):
    """One client in one round; `active` is False on a padded place.

    Its examples [n, ...], or () where they lie in a pool and `index` [n] says where; so many real.
    """

    identity: Int[Array, ""]
    active: Any
    examples: PyTree
    index: Any
    num_examples: Int[Array, ""]


def federated_round(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    client_map: backends.ClientMap | None = None,
    *,
    keep_local: bool = False,
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
        keep_local: whether the metrics hold each client's model and message, as many models as the
            cohort has places.

    Raises:
        TypeError: if the loss is not a scalar or a parameter not floating point.
        ValueError: if the parts do not fit together.

    Source: arXiv 2302.10429 Algorithm 1.

    Example:
        >>> from jaxkit.federated import client_step
        >>> from jaxkit.federated.fedavg import fedavg
        >>> training = local_steps.LocalTraining(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = clients.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> method = fedavg(client_step.local_sgd(0.1))
        >>> sampler = cohorts.uniform_sampler(2, 2)
        >>> state = states.init_state(method, jnp.zeros(()), 2, jax.random.key(0))
        >>> state, metrics = federated_round(method, training, state, data, sampler)
        >>> round(float(state.params), 3), int(metrics.num_participants)
        (0.819, 2)
    """
    client_map = client_map or backends.vmap_clients()
    checks.check_run(algorithm, training, state, data, sampler, client_map)
    cohort = draw_cohort(algorithm, state, sampler, client_map)
    mesh = client_map.mesh
    local = mesh is not None and sampler.num_strata == mesh.shape[backends.AXIS] > 1
    if local and cohort.clients.shape[0] != sampler.cohort_size:
        raise ValueError(
            f"a stratified cohort must fill its chunks: {client_map.multiple} must divide "
            f"cohort_size, got {sampler.cohort_size}"
        )
    return round_of(
        algorithm, training, state, data, cohort, client_map,
        rows_are_local=local, keep_local=keep_local,
    )  # fmt: skip


def round_of(
    algorithm, training, state, data, cohort, client_map, *,
    rows_are_local=False, keep_local=False, gathered=False,
):  # fmt: skip
    """The round of a cohort of `draw_cohort`.

    `rows_are_local`: each of its places names a client of its own device. `gathered`: the rows of
    state and data are its places already.
    """
    _, clients_key, noise_key = _round_keys(algorithm, state)
    mesh = client_map.mesh if rows_are_local else None

    def gather(tree):
        return tree if gathered else backends.gather_rows(tree, cohort.clients, mesh)

    pool = () if data.index is None else data.examples
    places = Client(
        identity=cohort.clients,
        active=cohort.active,
        examples=gather(data.examples) if data.index is None else (),
        index=gather(data.index),
        num_examples=gather(data.num_examples),
    )
    full = training.always_full(data)
    client_round = _client_round(
        algorithm, training, full=full, equal=full and data.equal, keep_local=keep_local
    )
    broadcast = (state.params, state.shared, state.round, clients_key, pool)
    (held, local), total, spread = client_map.run(
        client_round, broadcast, gather(state.clients), places
    )
    if not gathered:
        held = backends.scatter_rows(state.clients, cohort.clients, held, mesh)

    aggregate = algorithm.aggregate(total["message"], total["weight"], noise_key)
    if algorithm.privacy is not None:
        accounted = state.round < algorithm.privacy.num_rounds
        release = lambda leaf: jnp.where(accounted, leaf, jnp.nan)  # noqa: E731
        aggregate = aggregate._replace(mean=jax.tree.map(release, aggregate.mean))
    by_size = algorithm.weighting == "examples"
    count = spread.count.sum()
    fraction = (count if by_size else aggregate.count) / state.num_clients
    displacement, shared = algorithm.absorb(state.shared, aggregate.mean, fraction)
    updates, server_state = algorithm.server_optimizer.update(
        optax.tree.scale(-1, displacement),
        state.server_optimizer_state,
        jax.tree.map(perturbation.widen, state.params),
    )
    params = optax.apply_updates(state.params, updates)
    new_state = state._replace(
        round=state.round + 1,
        params=params,
        shared=shared,
        server_optimizer_state=server_state,
        clients=held,
    )
    update = _difference(params, state.params)
    metrics = RoundMetrics(
        loss=total["loss"] / count,
        num_participants=count.astype(jnp.int32),
        update_norm=perturbation.global_norm(update),
        divergence=spread.around(update),
        nonfinite_clients=total["nonfinite"],
        local=LocalModels(cohort.clients, cohort.active, **local) if keep_local else None,
    )
    return _keep_placed(new_state, client_map), metrics


def draw_cohort(
    algorithm: algorithms.FederatedAlgorithm,
    state: states.FederatedState,
    sampler: cohorts.Sampler,
    client_map: backends.ClientMap,
) -> cohorts.Cohort:
    """The cohort of the next round, padded for the backend."""
    draw_key, _, _ = _round_keys(algorithm, state)
    return cohorts.pad_cohort(sampler.sample(draw_key, state.round), client_map.multiple)


def run_rounds(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    client_map: backends.ClientMap | None = None,
    *,
    num_rounds: int,
    evaluate: Callable[..., PyTree] | None = None,
) -> tuple[states.FederatedState, RoundMetrics]:
    """Many rounds as one `lax.scan`: pure, for `jit` and for `vmap` over seeds or numbers.

    `evaluate` is `(params) -> pytree` after every round, `(params, model_state) -> pytree` where
    the algorithm shares a model state. Other arguments are those of `federated_round`, and errors
    too.

    Returns:
        The last state, and metrics with leaves [num_rounds, ...].

    Example:
        >>> from jaxkit.federated import client_step
        >>> from jaxkit.federated.fedavg import fedavg
        >>> training = local_steps.LocalTraining(
        ...     lambda w, batch, key: jnp.mean((w - batch) ** 2) / 2, batch_size=2
        ... )
        >>> data = clients.stack_clients(jnp.array([[1.0, 1.0], [3.0, 3.0]]))
        >>> method = fedavg(client_step.local_sgd(0.1))
        >>> sampler = cohorts.uniform_sampler(2, 2)
        >>> state = states.init_state(method, jnp.zeros(()), 2, jax.random.key(0))
        >>> state, metrics = run_rounds(method, training, state, data, sampler, num_rounds=3)
        >>> metrics.loss.shape
        (3,)
    """
    validation.integer("num_rounds", num_rounds, minimum=1)
    client_map = client_map or backends.vmap_clients()
    checks.check_run(algorithm, training, state, data, sampler, client_map, num_rounds=num_rounds)

    def one(state, _):
        state, metrics = federated_round(algorithm, training, state, data, sampler, client_map)
        evaluation = None if evaluate is None else evaluate(*evaluated(algorithm, state))
        return state, metrics._replace(evaluation=evaluation)

    return lax.scan(one, state, length=num_rounds)


def _client_round(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    *,
    full: bool,
    equal: bool,
    keep_local: bool,
) -> backends.ClientFunction:
    """What a client of a round does: local steps, report and bookkeeping."""

    def client_round(broadcast, held, client):
        params, shared, round, key, pool = broadcast
        anchor = _relaxed_start(algorithm, params, held)
        own = client.examples if client.index is None else pool
        rows = client.index if client.index is not None else jax.tree.leaves(own)[0]

        def take(chosen):
            places = chosen if client.index is None else client.index[chosen]
            return jax.tree.map(lambda leaf: leaf[places], own)

        batches = local_steps.plan_batches(
            training, rows.shape[0], client.num_examples,
            jax.random.fold_in(key, client.identity),
        )  # fmt: skip
        memory = held["memory"]
        place = {"shared": shared, "local": memory}.get(algorithm.model_state or "", {})
        kept = held.get("optimizer_state")
        start = local_steps.Trained(
            anchor,
            algorithm.descent.init(anchor) if kept is None else kept,
            memory,
            place.get("model_state"),
        )
        end = local_steps.train_locally(
            training, algorithm, start, shared, round, take, batches,
            full=full, equal=equal,
        )  # fmt: skip
        relaxed = algorithm.relaxation is not None
        result = algorithms.LocalResult(
            delta=_difference(end.params, anchor),
            offset={"offset": _difference(anchor, params)} if relaxed else {},
            num_steps=end.num_steps,
            params=end.params,
            round=round,
            model_state=end.model_state,
        )
        message, memory = algorithm.report(shared, end.memory, result)
        row = {"memory": memory}
        if relaxed:
            row["last_params"] = end.params
        if algorithm.keep_optimizer_state:
            row["optimizer_state"] = end.optimizer_state
        local = {
            "params": end.params, "message": message, "loss": end.loss, "num_steps": end.num_steps
        }  # fmt: skip

        one = jnp.ones_like(end.loss)
        by_size = algorithm.weighting == "examples"
        weight = client.num_examples.astype(one.dtype) if by_size else one
        moved = result.moved
        finite = jnp.isfinite(perturbation.global_norm(moved))
        weighted = jax.tree.map(lambda leaf: weight * leaf, message) if by_size else message
        sums = {
            "message": weighted,
            "weight": weight,
            "loss": end.loss,
            "nonfinite": jnp.where(finite, 0, 1),
        }
        spread = backends.Spread(one, moved, jnp.zeros_like(one))
        counted = jax.tree.map(lambda leaf: jnp.where(client.active, leaf, 0), (sums, spread))
        return (row, local if keep_local else ()), *counted

    return client_round


def evaluated(
    algorithm: algorithms.FederatedAlgorithm, state: states.FederatedState
) -> tuple[Any, ...]:
    """What an evaluation gets: the model, and its state where that is shared."""
    if algorithm.model_state != "shared":
        return (state.params,)
    return state.params, state.shared["model_state"]


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


def _round_keys(
    algorithm: algorithms.FederatedAlgorithm, state: states.FederatedState
) -> tuple[Any, Any, Any]:
    draw, clients, noise = jax.random.split(jax.random.fold_in(state.key, state.round), 3)
    if algorithm.privacy is not None:
        draw, noise = algorithm.privacy.secretly(draw), algorithm.privacy.secretly(noise)
    return draw, clients, noise


def _keep_placed(
    state: states.FederatedState, client_map: backends.ClientMap
) -> states.FederatedState:
    """Hold the state where it came from, so that it can be donated."""
    if client_map.mesh is None:
        return state
    by_client = NamedSharding(client_map.mesh, P(backends.AXIS))
    everywhere = NamedSharding(client_map.mesh, P())
    clients = lax.with_sharding_constraint(state.clients, by_client)
    rest = lax.with_sharding_constraint(state._replace(clients=()), everywhere)
    return rest._replace(clients=clients)
