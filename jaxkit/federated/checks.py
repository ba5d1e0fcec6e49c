"""Whether the parts of a federated run fit each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import backends, clients, cohorts, perturbation
from jaxkit.federated import local_training as local_steps
from jaxkit.federated import state as states


def check_run(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    client_map: backends.ClientMap,
    *,
    num_rounds: int = 1,
) -> None:
    """Refuse parts of a run that do not fit each other; of traced numbers, only by their shapes."""
    check_kinds(training, data, sampler, client_map)
    promise = None if algorithm.privacy is None else algorithm.privacy.verified()
    found = algorithm.report, algorithm.aggregate
    if promise is not None and (found != promise.functions or algorithm.weighting != "equal"):
        raise ValueError(
            f"algorithm must be private as it is, got {algorithm.name} with messages changed after "
            "their clip: with_client_privacy comes last"
        )
    check_state(algorithm, state)
    _check_clients(state, data, sampler, client_map)
    if training.drop_remainder and (training.batch_size or 0) > data.smallest:
        raise ValueError(
            "batch_size must not exceed the smallest client when the remainder is dropped (it "
            f"would take no step): at most {data.smallest}, got {training.batch_size}"
        )
    _check_loss(algorithm, training, state, data)
    if algorithm.full_participation and sampler.cohort_size < sampler.num_clients:
        raise ValueError(
            f"{algorithm.name} needs every client in every round: cohort_size must be "
            f"{sampler.num_clients}, got {sampler.cohort_size}"
        )
    if promise is not None:
        if promise.sampler.law != sampler.law:
            raise ValueError(
                "sampler must be the one that client-level privacy was promised for, "
                f"{promise.sampler.law}, got {sampler.law}"
            )
        last = num_rounds + (0 if validation.is_traced(state.round) else int(state.round))
        if last > promise.num_rounds:
            raise ValueError(
                f"num_rounds must end within the {promise.num_rounds} rounds that client-level "
                f"privacy was promised for, got rounds up to {last}"
            )
    if sampler.allow_empty and promise is None:
        raise ValueError(
            "sampler must not allow empty cohorts (allow_empty): their mean is undefined without "
            "client-level privacy"
        )


def check_kinds(training: Any, data: Any, sampler: Any, client_map: Any) -> None:
    """Refuse parts of a run that are something else."""
    for name, part, kind, made in (
        ("training", training, local_steps.LocalTraining, "LocalTraining(loss_fn)"),
        ("data", data, clients.ClientData, "client_data or stack_clients"),
        ("sampler", sampler, cohorts.Sampler, "uniform_sampler or its like"),
        ("client_map", client_map, backends.ClientMap, "vmap_clients() or shard_clients()"),
    ):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be made by {made}, got {part!r:.200}")


def check_state(method: algorithms.FederatedAlgorithm, state: states.FederatedState) -> None:
    """Refuse a state that does not fit its algorithm and parameters, naming the difference."""
    algorithms.check_floating("params", state.params)
    row = jax.eval_shape(lambda params: states.client_row(method, params), state.params)
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients)
    shared = jax.eval_shape(method.init_shared, state.params)
    server = jax.eval_shape(
        lambda params: method.server_optimizer.init(jax.tree.map(perturbation.widen, params)),
        state.params,
    )
    for name, expected, got in (
        ("shared", shared, state.shared),
        ("clients", row, held),
        ("server_optimizer_state", server, state.server_optimizer_state),
    ):
        _check_alike(f"state.{name}", method.name, expected, got)


def _check_alike(name: str, method: str, expected: PyTree, got: PyTree) -> None:
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise ValueError(
            f"{name} must have the structure {jax.tree.structure(expected)} for {method} and these "
            f"params, got {jax.tree.structure(got)}"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    for (path, want), have in leaves:
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be {want.dtype}{list(want.shape)} for "
                f"{method} and these params, got {have.dtype}{list(have.shape)}"
            )


def _check_clients(
    state: states.FederatedState,
    data: clients.ClientData,
    sampler: cohorts.Sampler,
    client_map: backends.ClientMap,
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
    mesh = None if data.on_host else client_map.mesh
    for name, rows in (("data", {data.rows}), ("state.clients", held)):
        if mesh is not None and any(count % mesh.shape[backends.AXIS] for count in rows):
            raise ValueError(
                f"{name} must have a multiple of {mesh.shape[backends.AXIS]} rows for its mesh, "
                f"got {sorted(rows)}: pass the mesh to init_state and data.placed"
            )


def _check_loss(
    algorithm: algorithms.FederatedAlgorithm,
    training: local_steps.LocalTraining,
    state: states.FederatedState,
    data: clients.ClientData,
) -> None:
    full = training.always_full(data)
    if algorithm.model_state is not None and (not full or training.gradient_fn is not None):
        raise ValueError(
            "a model with state needs full mini-batches (its statistics would count padding) and "
            "no gradient_fn: use drop_remainder, or a batch_size that divides the clients' "
            f"numbers of examples, got batch_size = {training.batch_size}"
        )
    size = min(training.batch_size or data.examples_per_client, data.examples_per_client)
    batch, key = data.batch_shape(size), jax.eval_shape(lambda: jax.random.key(0))
    if training.augment is not None:
        batch = jax.eval_shape(training.augment, batch, key)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    if algorithm.model_state is not None:
        place = state.shared if algorithm.model_state == "shared" else state.clients["memory"]
        drop = 0 if algorithm.model_state == "shared" else 1
        model_state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[drop:], leaf.dtype), place["model_state"]
        )
        _check_arguments(training.loss_fn, params, model_state, batch, key)
        loss, after = jax.eval_shape(training.loss_fn, params, model_state, batch, key)
        _check_alike("the model state of loss_fn", algorithm.name, model_state, after)
    else:
        _check_arguments(training.loss_fn, params, batch, key)
        loss = jax.eval_shape(training.loss_fn, params, batch, key)
    leaves = jax.tree.leaves(loss)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape == () for leaf in leaves]
    if floating != [True]:
        raise TypeError(f"loss_fn must return a scalar of floating point, got {loss}")
    if not full and training.gradient_fn is None and size > 1:
        _check_mean(training, params, data)


def _check_arguments(loss_fn: Callable[..., Any], *arguments: Any) -> None:
    names = "params, batch, key" if len(arguments) == 3 else "params, model_state, batch, key"
    try:
        inspect.signature(loss_fn).bind(*arguments)
    except TypeError as error:
        raise TypeError(f"loss_fn must take ({names}): {error}") from None
    except ValueError:  # a function that tells no signature
        return


def _check_mean(training: local_steps.LocalTraining, params: Any, data: clients.ClientData) -> None:
    """Refuse a loss that is no mean over the examples of a batch where batches are not full.

    The mean over two examples has no mixed difference: L(a, c) - L(b, c) - L(a, d) + L(b, d) = 0,
    and that of one twice is its loss: L(a, a) = L(a), on average over what a loss draws.
    """
    leaves = jax.tree.leaves(data.examples)
    known = not any(
        validation.is_traced(leaf)
        or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable)
        for leaf in leaves
    )
    size = leaves[0].shape[0 if data.index is not None else 1]
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)
        if known and size >= 4:
            rows = np.array([0, size // 3, 2 * size // 3, size - 1])
            chosen = rows if data.index is not None else (0, rows)
            four = jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), data.examples)
        else:
            four = jax.tree.map(lambda leaf: _drawn(key, leaf), data.batch_shape(4))
        pairs = jnp.array([[0, 2], [1, 2], [0, 3], [1, 3], [0, 0], [0, 0]])
        # Any parameters show it, known or not.
        leaves, structure = jax.tree.flatten(params)
        drawn = [_drawn(jax.random.fold_in(key, i), leaf) for i, leaf in enumerate(leaves)]
        point = jax.tree.unflatten(structure, drawn)

        def losses_of(count, pairs, keys):
            def loss(asked):
                batch, key = jax.tree.map(lambda leaf: leaf[asked[0]], four), asked[1]
                batch = batch if training.augment is None else training.augment(batch, key)
                return training.loss_fn(point, jax.tree.map(lambda leaf: leaf[:count], batch), key)

            return jax.lax.map(loss, (pairs, keys))

        keys = jnp.stack([key] * 5 + [jax.random.fold_in(key, 1)])
        found = losses_of(2, pairs, keys)
        if validation.is_traced(found):  # a loss that closes over numbers being swept
            return
        losses, twice = np.split(np.asarray(found, np.float64), [4])
        once = losses_of(1, pairs[4:], keys[4:])
        if twice[0] != twice[1]:  # it draws: means of many tell
            keys = jax.random.split(key, 32)
            twice, once = (losses_of(n, jnp.zeros((32, 2), int), keys) for n in (2, 1))
        twice, once = np.asarray(twice, np.float64), np.asarray(once, np.float64)
        precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    mixed = abs(losses @ [1, -1, -1, 1])
    if np.isfinite(losses).all() and mixed > 100 * precision * np.abs(losses).sum():
        raise ValueError(
            "loss_fn couples the examples of a batch (BatchNorm, a contrast of examples), which "
            "needs full mini-batches: use drop_remainder, or a batch_size that divides the "
            f"clients' numbers of examples, got {training.batch_size} for clients of "
            f"{data.smallest} to {data.examples_per_client}"
        )
    # Far from a sum, whose difference is half of L(a, a), so that rounding of any type passes.
    unsure = abs(twice.mean()) / 16 + 6 * np.sqrt((twice.var() + once.var()) / len(once))
    if abs(twice.mean() - once.mean()) > unsure:
        raise ValueError(
            "loss_fn must be the mean over the examples of a batch where mini-batches are not "
            "full, because it is then evaluated on single ones, got "
            f"{once.mean():.4g} for an example and {twice.mean():.4g} for a batch of it twice: "
            "divide a sum by the number of examples of the batch"
        )


def _drawn(key: Any, like: Any) -> jax.Array:
    """Any numbers of a shape and type; integers are 0 or 1, which are classes everywhere."""
    if jnp.issubdtype(like.dtype, jnp.floating):
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.random.randint(key, like.shape, 0, 2).astype(like.dtype)
