"""The protocol of a federated algorithm: what a client remembers, sends, and the server does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.federated import client_step, perturbation

#: Vectors by name; each is a pytree like the parameters.
Vectors = Mapping[str, PyTree]


class LocalResult(NamedTuple):
    """What a client has after its local steps.

    Attributes:
        offset: where it started, seen from the global model: w0 - x. Zero without relaxed start.
        delta: its displacement w_K - w0, in float32 or wider.
        num_steps: local steps that it made, float32 scalar.
        params: w_K.
        optimizer_state: state of the client optimizer after the last step.
        round: index of the round.
        relaxed: whether the start is relaxed (static).
    """

    offset: PyTree
    delta: PyTree
    num_steps: Float[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    round: Int[Array, ""]
    relaxed: bool


class Aggregate(NamedTuple):
    """What the server has of a cohort's messages.

    Attributes:
        mean: mean message over the clients that took part.
        count: how many they are (their expected number under client-level privacy).
    """

    mean: Vectors
    count: Float[Array, ""]


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions.

    Attributes:
        name: its name.
        client_optimizer: local step, an optax chain; gets `grad_fn`, `anchor`, `memory`, `shared`,
            `round` and `value` as extra arguments.
        server_optimizer: turns minus the server's displacement into an update of the model.
        init_memory: `(params) -> Vectors`, what a client holds before it first takes part.
        init_shared: `(params) -> Vectors`, what the server holds and sends beside the model.
        report: `(shared, memory, LocalResult) -> (message, memory)` on the client. Messages enter
            only through their mean.
        absorb: `(shared, mean message, fraction of clients) -> (displacement, shared)` on the
            server.
        aggregate: `(total message, count, key) -> Aggregate`.
        relaxation: beta of the relaxed start, or None.
        keep_optimizer_state: whether the client optimizer's state survives between rounds.
        full_participation: whether the algorithm is defined for cohorts of all clients only.
        privacy: the client-level guarantee that travels with it, or None.
    """

    name: str
    client_optimizer: optax.GradientTransformation
    server_optimizer: optax.GradientTransformation
    init_memory: Callable[[PyTree], Vectors]
    init_shared: Callable[[PyTree], Vectors]
    report: Callable[[Vectors, Vectors, LocalResult], tuple[Vectors, Vectors]]
    absorb: Callable[[Vectors, Vectors, Float[Array, ""]], tuple[PyTree, Vectors]]
    aggregate: Callable[[Vectors, Float[Array, ""], Key[Array, ""]], Aggregate]
    relaxation: Any = None
    keep_optimizer_state: bool = False
    full_participation: bool = False
    privacy: Any = None


def widened(params: PyTree) -> PyTree:
    """`params` in float32 or wider, as the server's optimizer sees them.

    Example:
        >>> widened({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype.name
        'float32'
    """
    return jax.tree.map(perturbation.widen, params)


def zeros(params: PyTree) -> PyTree:
    """Zeros like `params`, in float32 or wider.

    Example:
        >>> zeros({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype.name
        'float32'
    """
    return jax.tree.map(lambda leaf: jnp.zeros_like(perturbation.widen(leaf)), params)


def nothing(params: PyTree) -> Vectors:
    """No vectors: the memory of a stateless client.

    Example:
        >>> nothing({"w": jnp.ones(2)})
        {}
    """
    del params
    return {}


def mean_message(
    total: Vectors, count: Float[Array, ""], key: Key[Array, ""] | None = None
) -> Aggregate:
    """The plain average: every client that took part weighs the same.

    Example:
        >>> float(mean_message({"delta": jnp.array(6.0)}, jnp.array(3.0)).mean["delta"])
        2.0
    """
    del key
    return Aggregate(jax.tree.map(lambda leaf: leaf / count, total), count)


def displacement_message(
    shared: Vectors, memory: Vectors, result: LocalResult
) -> tuple[Vectors, Vectors]:
    """Send the displacement and remember nothing new: FedAvg's client."""
    del shared
    return {"delta": result.delta}, memory


def mean_displacement(
    shared: Vectors, mean: Vectors, fraction: Float[Array, ""]
) -> tuple[PyTree, Vectors]:
    """Move by the mean displacement: FedAvg's server."""
    del fraction
    return mean["delta"], shared


def displacement_algorithm(
    name: str,
    direction: tuple[optax.GradientTransformation, ...],
    client: client_step.ClientStep,
    server_optimizer: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """An algorithm whose clients only send their displacement: where a new method starts.

    Args:
        name: its name.
        direction: transformations of the gradient, the clip included, up to the descent.
        client: local step.
        server_optimizer: by default `optax.sgd(1.0)`.

    Returns:
        The algorithm.

    Example:
        >>> sign = (optax.scale_by_sign(),)
        >>> displacement_algorithm("FedSign", sign, client_step.local_sgd()).name
        'FedSign'
    """
    return FederatedAlgorithm(
        name=name,
        client_optimizer=optax.chain(*direction, client.descent),
        server_optimizer=server_optimizer or optax.sgd(1.0),
        init_memory=nothing,
        init_shared=nothing,
        report=displacement_message,
        absorb=mean_displacement,
        aggregate=mean_message,
        keep_optimizer_state=client.keep_state,
    )


def with_relaxed_start(algorithm: FederatedAlgorithm, beta: Any = 0.1) -> FederatedAlgorithm:
    """Let clients start away from their own last model, which any algorithm can use.

    w0 = x + beta (x - last_i), where last_i is the client's final model when it last took part, and
    the initial global model before that. The proximal anchor and the displacement refer to w0.

    Args:
        algorithm: any federated algorithm.
        beta: strength, >= 0.

    Returns:
        The algorithm with relaxed start; its state holds one more model a client.

    Raises:
        ValueError: if `beta` is negative or not finite.

    Source: official simulator of arXiv 2302.10429, option use-RI (FedInit).

    Example:
        >>> from jaxkit.federated import averaging
        >>> with_relaxed_start(averaging.fedavg()).relaxation
        0.1
    """
    validation.number("beta", beta, minimum=0)
    return algorithm._replace(relaxation=beta)
