"""FedOpt: FedAvg's clients and an adaptive server: FedAvgM, FedAdam, FedYogi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def fedavgm(
    client: client_step.ClientStep | None = None,
    *,
    server_learning_rate: Any = 1.0,
    momentum: Any = 0.9,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedAvgM: momentum at the server.

    m <- b m + D, x <- x + eta_g m, D the mean displacement, with eta_g > 0 the
    `server_learning_rate` and b in [0, 1) the `momentum`. Other arguments are those of `fedavg`,
    and errors too.

    Source: Hsu et al. 2019.

    Example:
        >>> fedavgm(momentum=0.5).name
        'FedAvgM'
    """
    validation.number("server_learning_rate", server_learning_rate, minimum=0, open_minimum=True)
    validation.number("momentum", momentum, minimum=0, maximum=1, open_maximum=True)
    server = optax.chain(optax.trace(momentum), optax.scale(-1.0 * server_learning_rate))
    return fedavg(client, server, weighting=weighting)._replace(name="FedAvgM")


def fedadam(
    client: client_step.ClientStep | None = None,
    *,
    server_learning_rate: Any = 0.1,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 0.01,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedAdam: Adam without bias correction at the server.

    m <- b1 m + (1-b1) D, v <- b2 v + (1-b2) D^2, x <- x + eta_g m / (sqrt(v) + eps), D the mean
    displacement; m = v = 0 at first, which `optax.adam` cannot be. The `server_learning_rate` is
    eta_g > 0 (0.1 or 0.05 in the official experiments), `b1` and `b2` are in [0, 1), eps > 0.
    Other arguments are those of `fedavg`, and errors too.

    Source: Reddi et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedadam(server_learning_rate=0.05).name
        'FedAdam'
    """
    server = _adaptive(lambda v, square: square - v, server_learning_rate, b1, b2, eps)
    return fedavg(client, server, weighting=weighting)._replace(name="FedAdam")


def fedyogi(
    client: client_step.ClientStep | None = None,
    *,
    server_learning_rate: Any = 0.1,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 0.01,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedYogi: FedAdam with v <- v - (1-b2) D^2 sign(v - D^2), which forgets more slowly.

    Arguments are those of `fedadam`, and errors too.

    Source: Reddi et al. 2021, Algorithm 2, with v from 0.

    Example:
        >>> fedyogi().name
        'FedYogi'
    """
    server = _adaptive(
        lambda v, square: -square * jnp.sign(v - square), server_learning_rate, b1, b2, eps
    )
    return fedavg(client, server, weighting=weighting)._replace(name="FedYogi")


class AdaptiveState(NamedTuple):
    """State of an adaptive server: m and v, like the parameters."""

    mean: PyTree
    square: PyTree


def _adaptive(
    change: Callable[[Any, Any], Any], learning_rate: Any, b1: Any, b2: Any, eps: Any
) -> optax.GradientTransformation:
    """A server whose v moves by `(1-b2) change(v, D^2)`."""
    validation.number("server_learning_rate", learning_rate, minimum=0, open_minimum=True)
    for name, value in (("b1", b1), ("b2", b2)):
        validation.number(name, value, minimum=0, maximum=1, open_maximum=True)
    validation.number("eps", eps, minimum=0, open_minimum=True)

    def init_fn(params):
        return AdaptiveState(algorithm.zeros(params), algorithm.zeros(params))

    def update_fn(updates, state, params=None):
        del params
        mean = optax.tree.update_moment(updates, state.mean, b1, 1)
        squares = jax.tree.map(
            lambda v, moved: v + (1 - b2) * change(v, moved**2), state.square, updates
        )
        scaled = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + eps), mean, squares)
        return scaled, AdaptiveState(mean, squares)

    return optax.GradientTransformation(init_fn, update_fn)
