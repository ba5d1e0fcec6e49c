"""Whether the parts of a federated run fit each other."""

from __future__ import annotations

from typing import Any

import jax

from jaxkit import validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import clients as client_examples
from jaxkit.federated import cohorts, local_steps, mapping
from jaxkit.federated import state as states


def check_run(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: client_examples.ClientData,
    sampler: cohorts.Sampler,
    client_map: mapping.ClientMap,
    *,
    num_rounds: int = 1,
) -> None:
    """Check that the parts of a run fit each other; of traced numbers only the shapes.

    Args:
        algorithm: the federated algorithm.
        training: how clients train.
        state: of the run.
        data: of all clients.
        sampler: of cohorts.
        client_map: backend.
        num_rounds: rounds to make.

    Raises:
        TypeError: if the loss is not a scalar or a parameter not floating point.
        ValueError: if state, data, sampler and backend disagree on the clients, the state belongs
            to another model, a client would take no step, or the algorithm cannot work with the
            sampler.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.federated import averaging
        >>> fedavg, sampler = averaging.fedavg(), cohorts.uniform_sampler(3, 2)
        >>> training = local_steps.local_training(lambda w, batch, key: jnp.mean((w - batch) ** 2))
        >>> state = states.init_state(fedavg, jnp.zeros(()), 2, jax.random.key(0))
        >>> data = client_examples.stack_clients(jnp.ones((2, 4)))
        >>> check_run(fedavg, training, state, data, sampler, mapping.vmap_clients())
        Traceback (most recent call last):
        ValueError: sampler must draw from the 2 clients of the state, got num_clients = 3
    """
    states.check_state(algorithm, state)
    _check_clients(state, data, sampler, client_map)
    _check_steps(training, data)
    _check_loss(training, state, data)
    if algorithm.full_participation and sampler.cohort_size < sampler.num_clients:
        raise ValueError(
            f"{algorithm.name} needs every client in every round: cohort_size must be "
            f"{sampler.num_clients}, got {sampler.cohort_size}"
        )
    if algorithm.privacy is not None and _described(algorithm.privacy.sampler) != _described(
        sampler
    ):
        raise ValueError(
            f"sampler must be the one that client-level privacy was promised for, "
            f"{_described(algorithm.privacy.sampler)}, got {_described(sampler)}"
        )
    if algorithm.privacy is not None and not validation.is_traced(state.round):
        last, promised = int(state.round) + num_rounds, algorithm.privacy.num_rounds
        if last > promised:
            raise ValueError(
                f"num_rounds must end within the {promised} rounds that client-level privacy was "
                f"promised for, got rounds up to {last}"
            )
    if sampler.allow_empty and algorithm.privacy is None:
        raise ValueError(
            "sampler must not allow empty cohorts (allow_empty): their mean is undefined without "
            "client-level privacy"
        )
    if not client_map.pad and sampler.cohort_size % client_map.multiple:
        raise ValueError(
            f"cohort_size must be a multiple of {client_map.multiple} for {client_map.name} "
            f"without padding, got {sampler.cohort_size}"
        )


def _described(sampler: cohorts.Sampler) -> dict[str, Any]:
    """What decides how likely a client takes part."""
    return {name: value for name, value in sampler._asdict().items() if name != "sample"}


def _check_clients(
    state: states.FederatedState,
    data: client_examples.ClientData,
    sampler: cohorts.Sampler,
    client_map: mapping.ClientMap,
) -> None:
    num_clients = sampler.num_clients
    if not validation.is_traced(state.num_clients) and int(state.num_clients) != num_clients:
        raise ValueError(
            f"sampler must draw from the {int(state.num_clients)} clients of the state, got "
            f"num_clients = {num_clients}"
        )
    if data.num_clients != num_clients:
        raise ValueError(
            f"data must hold the {num_clients} clients of the sampler, got {data.num_clients}"
        )
    held = {leaf.shape[0] for leaf in jax.tree.leaves(state.clients)}
    if held and (len(held) > 1 or min(held) < num_clients):
        raise ValueError(
            f"state.clients must have one row at least for each of the {num_clients} clients, got "
            f"{sorted(held)}"
        )
    mesh = client_map.mesh
    for name, rows in (("data", {data.rows}), ("state.clients", held)):
        if mesh is not None and any(count % mesh.shape[mapping.AXIS] for count in rows):
            raise ValueError(
                f"{name} must have a multiple of {mesh.shape[mapping.AXIS]} rows for its mesh, got "
                f"{sorted(rows)}: pass the mesh to init_state and place_data"
            )


def _check_steps(training: local_steps.LocalTraining, data: client_examples.ClientData) -> None:
    if not training.drop_remainder or training.batch_size is None:
        return
    if training.batch_size > data.smallest:
        raise ValueError(
            "batch_size must not exceed the smallest client when the remainder is dropped (it "
            f"would take no step): at most {data.smallest}, got {training.batch_size}"
        )


def _check_loss(
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: client_examples.ClientData,
) -> None:
    size = min(training.batch_size or data.examples_per_client, data.examples_per_client)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[2:]), leaf.dtype), data.examples
    )
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = jax.eval_shape(training.loss_fn, params, batch, key)
    leaves = jax.tree.leaves(loss)
    if len(leaves) != 1 or leaves[0].shape != ():
        raise TypeError(f"loss_fn must return a scalar, got {loss}")
