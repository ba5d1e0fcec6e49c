"""FedCM and MoFedSAM: clients follow the server's last direction."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit import validation
from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def fedcm(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    alpha: Any = 0.1,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedCM: each local step mixes the gradient with the mean direction of the last round.

    Local: w <- w - eta (clip(alpha g + (1-alpha) M) + wd w). Server: x <- x + eta_g mean_S(Delta),
    M <- -mean_S(Delta_i / K_i)/eta; M = 0 in round 0, which therefore moves by alpha g alone.

    `alpha`, in [0, 1], is the weight of the client's own gradient; the learning rate of `client`
    must be known. Other arguments are those of `fedavg`, and errors too; `weighting` is of both
    means. Clients keep no state.

    Source: Xu et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedcm().name
        'FedCM'
    """
    client = client_step.chosen(client)
    rate = client_step.known_rate("FedCM", client)
    validation.number("alpha", alpha, minimum=0, maximum=1)

    def init_shared(params):
        return {"momentum": algorithm.zeros(params)}

    def local_step(gradient, at):
        momentum = at.shared["momentum"]
        mixed = jax.tree.map(lambda g, m: alpha * g + (1 - alpha) * m, gradient, momentum)
        return client.clip(mixed), at.memory

    def report(shared, memory, result):
        scale = -1 / (result.num_steps * rate(result.round))
        return {"delta": result.delta, "momentum": optax.tree.scale(scale, result.delta)}, memory

    def absorb(shared, mean, fraction):
        return mean["delta"], {"momentum": mean["momentum"]}

    return fedavg(client, server_optimizer, weighting=weighting)._replace(
        name="FedCM", local_step=local_step, init_shared=init_shared, report=report, absorb=absorb
    )


def mofedsam(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.1,
    alpha: Any = 0.1,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """MoFedSAM: FedCM on sharpness-aware gradients, at w + rho g/||g||, two a step.

    `rho`, >= 0, is the length of the ascent step. Other arguments are those of `fedcm`, and errors
    too.

    Source: Qu et al. 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> mofedsam().name
        'MoFedSAM'
    """
    plain = fedcm(client, server_optimizer, alpha=alpha, weighting=weighting)
    return algorithm.with_quasi_gradient(plain, rho)._replace(name="MoFedSAM")
