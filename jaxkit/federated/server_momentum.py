"""FedCM and MoFedSAM: clients follow the server's last direction."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit.federated import algorithm, client_step, corrections, perturbation


def fedcm(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    alpha: Any = 0.1,
) -> algorithm.FederatedAlgorithm:
    """FedCM: each local step mixes the gradient with the mean direction of the last round.

    Local: w <- w - eta (clip(alpha g + (1-alpha) M) + wd w). Server: x <- x + eta_g mean_S(Delta),
    M <- -mean_S(Delta_i / K_i)/eta; M = 0 in round 0, which therefore moves by alpha g alone.

    Args:
        client: local step, by default `local_sgd()`; its learning rate must be known.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        alpha: weight of the client's own gradient, in [0, 1].

    Returns:
        The algorithm; no state on clients.

    Raises:
        ValueError: if `alpha` is not allowed or `client` has no learning rate.

    Source: Xu et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedcm().name
        'FedCM'
    """
    return _client_momentum("FedCM", (), alpha, client, server_optimizer)


def mofedsam(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.1,
    alpha: Any = 0.1,
) -> algorithm.FederatedAlgorithm:
    """MoFedSAM: FedCM on sharpness-aware gradients.

    As `fedcm`, with g taken at w + rho g/||g||.

    Args:
        client: local step, by default `local_sgd()`; its learning rate must be known.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        rho: length of the ascent step, >= 0.
        alpha: weight of the client's own gradient, in [0, 1].

    Returns:
        The algorithm; no state on clients, two gradients a step.

    Raises:
        ValueError: if a number is not allowed or `client` has no learning rate.

    Source: Qu et al. 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> mofedsam().name
        'MoFedSAM'
    """
    direction = (perturbation.quasi_gradient(rho),)
    return _client_momentum("MoFedSAM", direction, alpha, client, server_optimizer)


def _client_momentum(
    name: str,
    direction: tuple[optax.GradientTransformation, ...],
    alpha: Any,
    client: client_step.ClientStep | None,
    server_optimizer: optax.GradientTransformation | None,
) -> algorithm.FederatedAlgorithm:
    client = client or client_step.local_sgd()
    rate = client_step.known_rate(name, client)

    def init_shared(params):
        return {"momentum": algorithm.zeros(params)}

    def report(shared, memory, result):
        del shared
        scale = -1 / (result.num_steps * rate(result.round))
        direction = jax.tree.map(lambda delta: scale * delta, result.delta)
        return {"delta": result.delta, "momentum": direction}, memory

    def absorb(shared, mean, fraction):
        del shared, fraction
        return mean["delta"], {"momentum": mean["momentum"]}

    chain = (*direction, corrections.mix_client_momentum(alpha), client.clip)
    plain = algorithm.displacement_algorithm(name, chain, client, server_optimizer)
    return plain._replace(init_shared=init_shared, report=report, absorb=absorb)
