"""The protocol of a federated algorithm: what a client does and sends, and what the server does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.federated import perturbation

#: Vectors by name; each is a pytree like the parameters.
Vectors = Mapping[str, PyTree]

#: How much a client counts in a mean: as any other, or by its number of examples.
WEIGHTINGS = ("equal", "examples")

#: What becomes of state that is not parameters: averaged with the model, or kept by each client.
POLICIES = ("shared", "local")


class LocalStep(NamedTuple):
    """Where a client stands when it takes a local step.

    Attributes:
        params: w.
        anchor: w0, where the round began for it.
        memory: what it remembers.
        shared: what the server sent beside the model.
        grad_fn: `(params, step) -> gradient` on the same mini-batch with the same key.
    """

    params: PyTree
    anchor: PyTree
    memory: Vectors
    shared: Vectors
    grad_fn: Callable[[PyTree, Any], PyTree]


class LocalResult(NamedTuple):
    """What a client has after its local steps.

    Attributes:
        delta: its displacement w_K - w0, in float32 or wider.
        offset: `{"offset": w0 - x}` under a relaxed start, else `{}`.
        num_steps: local steps that it made, float32 scalar.
        params: w_K.
        round: index of the round.
        model_state: state that is not parameters after the last step, or None.
    """

    delta: PyTree
    offset: Vectors
    num_steps: Float[Array, ""]
    params: PyTree
    round: Int[Array, ""]
    model_state: PyTree = None

    @property
    def moved(self) -> PyTree:
        """w_K - x."""
        return optax.tree.add(self.offset["offset"], self.delta) if self.offset else self.delta


class Aggregate(NamedTuple):
    """What the server has of a cohort's messages.

    Attributes:
        mean: mean message over the clients that took part.
        count: how much they weigh together: their number, or the number of their examples (the
            expected number of clients under client-level privacy).
    """

    mean: Vectors
    count: Float[Array, ""]


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions; `fedavg()._replace(...)` is where a new one starts.

    Attributes:
        name: its name.
        local_step: `(gradient, LocalStep) -> (direction, memory)`: what to descend along.
        descent: optax chain that makes an update of a direction; gets `grad_fn`, `anchor`, `round`
            and `value` (the loss) as extra arguments.
        server_optimizer: turns minus the server's displacement into an update of the model.
        init_memory: `(params) -> Vectors`, what a client holds before it first takes part.
        init_shared: `(params) -> Vectors`, what the server holds and sends beside the model.
        report: `(shared, memory, LocalResult) -> (message, memory)` on the client. Messages enter
            only through their mean.
        absorb: `(shared, mean message, fraction of clients) -> (displacement, shared)` on the
            server.
        aggregate: `(weighted sum of messages, sum of weights, key) -> Aggregate`.
        weighting: `"equal"`, or `"examples"`: a client counts by its number of examples.
        relaxation: beta of the relaxed start, or None.
        model_state: `"shared"` or `"local"` where the model has state that is not parameters, else
            None (see `with_model_state`).
        keep_optimizer_state: whether the state of `descent` survives between rounds.
        full_participation: whether the algorithm is defined for cohorts of all clients only.
        privacy: the client-level guarantee that travels with it, or None.
    """

    name: str
    local_step: Callable[[PyTree, LocalStep], tuple[PyTree, Vectors]]
    descent: optax.GradientTransformation
    server_optimizer: optax.GradientTransformation
    init_memory: Callable[[PyTree], Vectors]
    init_shared: Callable[[PyTree], Vectors]
    report: Callable[[Vectors, Vectors, LocalResult], tuple[Vectors, Vectors]]
    absorb: Callable[[Vectors, Vectors, Float[Array, ""]], tuple[PyTree, Vectors]]
    aggregate: Callable[[Vectors, Float[Array, ""], Key[Array, ""]], Aggregate]
    weighting: str = "equal"
    relaxation: Any = None
    model_state: str | None = None
    keep_optimizer_state: bool = False
    full_participation: bool = False
    privacy: Any = None


def mean_message(
    total: Vectors, count: Float[Array, ""], key: Key[Array, ""] | None = None
) -> Aggregate:
    """The weighted sum of messages over the sum of weights."""
    del key
    return Aggregate(jax.tree.map(lambda leaf: leaf / count, total), count)


def zeros(params: PyTree) -> PyTree:
    """Zeros like `params`, in float32 or wider."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(perturbation.widen(leaf)), params)


def with_quasi_gradient(
    algorithm: FederatedAlgorithm, rho: Any = 0.1, alpha: Any = 1.0, *, normalize: bool = True
) -> FederatedAlgorithm:
    """Let the local steps of an algorithm begin with `quasi_gradient` in place of the gradient."""
    perturb = perturbation.quasi_gradient(rho, alpha, normalize=normalize)

    def local_step(gradient, at):
        quasi, _ = perturb.update(gradient, optax.EmptyState(), at.params, grad_fn=at.grad_fn)
        return algorithm.local_step(quasi, at)

    return algorithm._replace(local_step=local_step)


def with_relaxed_start(algorithm: FederatedAlgorithm, beta: Any = 0.1) -> FederatedAlgorithm:
    """Let clients start away from their own last model, which any algorithm can use.

    w0 = x + beta (x - last_i), where last_i is the client's final model when it last took part, and
    the initial global model before that; one more model a client. The proximal anchor and the
    displacement refer to w0.

    Args:
        algorithm: any federated algorithm.
        beta: strength, >= 0.

    Raises:
        ValueError: if `beta` is negative or not finite.

    Source: official simulator of arXiv 2302.10429, option use-RI (FedInit).

    Example:
        >>> from jaxkit.federated.fedavg import fedavg
        >>> with_relaxed_start(fedavg()).relaxation
        0.1
    """
    validation.number("beta", beta, minimum=0)
    return algorithm._replace(relaxation=beta)


def with_model_state(
    algorithm: FederatedAlgorithm, model_state: PyTree, policy: str
) -> FederatedAlgorithm:
    """Give state that is not parameters a place: the running statistics of BatchNorm, say.

    The loss is then `loss_fn(params, model_state, batch, key) -> (loss, model_state)`, and every
    mini-batch must be full: statistics over padding would be wrong.

    Args:
        algorithm: any federated algorithm.
        model_state: the first state, a pytree of floating-point arrays.
        policy: `"shared"`: clients start from the server's and it averages theirs, as with
            parameters. `"local"`: each client keeps its own and the server sees none.

    Returns:
        The algorithm; the server's state is `state.shared["model_state"]`, the clients' own are
        `state.clients["memory"]["model_state"]`.

    Raises:
        TypeError: if a leaf is not floating point.
        ValueError: if the policy is unknown, or the algorithm has a model state.

    Source: McMahan et al. 2017 average statistics with weights; Li et al. 2021 (FedBN) keep them.

    Example:
        >>> from jaxkit.federated.fedavg import fedavg
        >>> with_model_state(fedavg(), {"mean": jnp.zeros(4)}, "local").model_state
        'local'
    """
    validation.choice("policy", policy, POLICIES)
    check_floating("model_state", model_state)
    if algorithm.model_state is not None:
        raise ValueError("algorithm must have no model state yet: join the two in one pytree")

    def beside(init):
        first = jax.tree.map(perturbation.widen, model_state)
        # Copies: a state may be donated, and the algorithm starts another run.
        return lambda params: {**init(params), "model_state": jax.tree.map(jnp.copy, first)}

    def report(shared, memory, result):
        message, memory = algorithm.report(shared, memory, result)
        if policy == "local":
            return message, {**memory, "model_state": result.model_state}
        change = optax.tree.sub(result.model_state, shared["model_state"])
        return {**message, "model_state": change}, memory

    def absorb(shared, mean, fraction):
        moved, absorbed = algorithm.absorb(shared, mean, fraction)
        if policy == "local":
            return moved, absorbed
        state = optax.tree.add(shared["model_state"], mean["model_state"])
        return moved, {**absorbed, "model_state": state}

    place = {"shared": "init_shared", "local": "init_memory"}[policy]
    return algorithm._replace(
        report=report,
        absorb=absorb,
        model_state=policy,
        **{place: beside(getattr(algorithm, place))},
    )


def check_floating(name: str, tree: PyTree) -> None:
    """Refuse a pytree with a leaf that is no array or not floating point, or without any."""
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} must hold at least one array, got {tree!r}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float):
            raise TypeError(
                f"{name} must be arrays, got {type(leaf).__name__} at {place}: pass the arrays of "
                "the model alone, and put the rest into loss_fn"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name} must be floating point, got {jnp.result_type(leaf)} at {place}"
            )
