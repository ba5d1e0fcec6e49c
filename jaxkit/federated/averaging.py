"""Algorithms whose clients send displacements and remember nothing: FedAvg and its kin."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.federated import algorithm, client_step, corrections, perturbation

#: Where the proximal methods clip: the gradient only, or as the official simulator does.
CLIP_MODES = ("gradient", "simulator")


def fedavg(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
) -> algorithm.FederatedAlgorithm:
    """FedAvg: clients descend, the server moves by their mean displacement.

    Local: w <- w - eta (clip(g) + wd w). Server: x <- x + eta_g mean_S(w_K - x).

    Args:
        client: local step, by default `local_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.

    Returns:
        The algorithm; no state on clients, one vector each way.

    Source: McMahan et al. 2017, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedavg().name
        'FedAvg'
    """
    client = client or client_step.local_sgd()
    return algorithm.displacement_algorithm("FedAvg", (client.clip,), client, server_optimizer)


def fedprox(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    prox_coef: Any = 0.1,
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedProx: FedAvg with a proximal term towards the broadcast model.

    Local: w <- w - eta (clip(g) + mu (w - w0) + wd w).

    Args:
        client: local step, by default `local_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        prox_coef: mu, >= 0.
        clip_mode: `"gradient"`, or `"simulator"`: clip(g - mu w0) + mu w, as the official code.

    Returns:
        The algorithm; no state on clients, one vector each way.

    Raises:
        ValueError: if `prox_coef` or `clip_mode` is not allowed.

    Source: Li et al. 2020, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedprox(prox_coef=0.01).name
        'FedProx'
    """
    client = client or client_step.local_sgd()
    direction = prox_chain((), client, prox_coef, clip_mode)
    return algorithm.displacement_algorithm("FedProx", direction, client, server_optimizer)


def fedsam(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.1,
) -> algorithm.FederatedAlgorithm:
    """FedSAM: FedAvg on sharpness-aware gradients.

    Local: w <- w - eta (clip(grad at w + rho g/||g||) + wd w).

    Args:
        client: local step, by default `local_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        rho: length of the ascent step, >= 0.

    Returns:
        The algorithm; two gradients a step.

    Raises:
        ValueError: if `rho` is not allowed.

    Source: Qu et al. 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedsam().name
        'FedSAM'
    """
    client = client or client_step.local_sgd()
    direction = (perturbation.quasi_gradient(rho), client.clip)
    return algorithm.displacement_algorithm("FedSAM", direction, client, server_optimizer)


def fedadam(
    client: client_step.ClientStep | None = None,
    *,
    server_learning_rate: Any = 0.1,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 0.01,
) -> algorithm.FederatedAlgorithm:
    """FedAdam: FedAvg's clients, Adam without bias correction at the server.

    m <- b1 m + (1-b1) D, v <- b2 v + (1-b2) D^2, x <- x + eta_g m / (sqrt(v) + eps), D the mean
    displacement.

    Args:
        client: local step, by default `local_sgd()`.
        server_learning_rate: eta_g > 0 (0.1 or 0.05 in the official experiments).
        b1: decay of the mean, in [0, 1).
        b2: decay of the square, in [0, 1).
        eps: outside the root, > 0.

    Returns:
        The algorithm; no state on clients.

    Raises:
        ValueError: if a number is out of range.

    Source: Reddi et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedadam(server_learning_rate=0.05).name
        'FedAdam'
    """
    validation.number("server_learning_rate", server_learning_rate, minimum=0, open_minimum=True)
    server_optimizer = optax.chain(
        scale_by_uncorrected_adam(b1, b2, eps), optax.scale(-1.0 * server_learning_rate)
    )
    client = client or client_step.local_sgd()
    return algorithm.displacement_algorithm("FedAdam", (client.clip,), client, server_optimizer)


class UncorrectedAdamState(NamedTuple):
    """State of `scale_by_uncorrected_adam`.

    Attributes:
        mean: m, like the parameters.
        square: v, like the parameters.
    """

    mean: PyTree
    square: PyTree


def scale_by_uncorrected_adam(
    b1: Any = 0.9, b2: Any = 0.99, eps: Any = 0.01
) -> optax.GradientTransformation:
    """Adam without bias correction, from m = v = 0, which `optax.scale_by_adam` cannot be.

    Args:
        b1: decay of the mean, in [0, 1).
        b2: decay of the square, in [0, 1).
        eps: outside the root, > 0.

    Returns:
        The transformation, with an `UncorrectedAdamState`.

    Raises:
        ValueError: if a number is out of range.

    Source: Reddi et al. 2021, Algorithm 2, with v from 0 as the simulator of arXiv 2302.10429.

    Example:
        >>> optimizer = scale_by_uncorrected_adam(0.5, 0.75, 1.0)
        >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(jnp.array(0.0)))
        >>> float(updates)  # 1 / (1 + 1)
        0.5
    """
    for name, value in (("b1", b1), ("b2", b2)):
        validation.number(name, value, minimum=0, maximum=1, open_maximum=True)
    validation.number("eps", eps, minimum=0, open_minimum=True)

    def init_fn(params):
        return UncorrectedAdamState(algorithm.zeros(params), algorithm.zeros(params))

    def update_fn(updates, state, params=None):
        del params
        mean = optax.tree.update_moment(updates, state.mean, b1, 1)
        square = optax.tree.update_moment(updates, state.square, b2, 2)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        return scaled, UncorrectedAdamState(mean, square)

    return optax.GradientTransformation(init_fn, update_fn)


def prox_chain(
    direction: tuple[optax.GradientTransformation, ...],
    client: client_step.ClientStep,
    prox_coef: Any,
    clip_mode: str,
) -> tuple[optax.GradientTransformation, ...]:
    """The local step of the proximal methods, up to the descent.

    `"gradient"`: clip(q) + mu (h + w - w0). `"simulator"`: clip(q + mu (h - w0)) + mu w.

    Args:
        direction: what makes q of the gradient.
        client: the local step, for its clip.
        prox_coef: mu = 1/lambda, >= 0.
        clip_mode: `"gradient"` or `"simulator"`.

    Returns:
        Transformations for `optax.chain`.

    Raises:
        ValueError: if `prox_coef` or `clip_mode` is not allowed.

    Example:
        >>> len(prox_chain((), client_step.local_sgd(), 0.1, "simulator"))
        3
    """
    validation.number("prox_coef", prox_coef, minimum=0)
    if validation.choice("clip_mode", clip_mode, CLIP_MODES) == "gradient":
        return (*direction, client.clip, corrections.add_prox_correction(prox_coef))
    return (
        *direction,
        corrections.add_prox_offset(prox_coef),
        client.clip,
        optax.add_decayed_weights(prox_coef),
    )
