"""FedProx: FedAvg with a proximal term towards the broadcast model."""

from __future__ import annotations

from typing import Any

import optax

from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def fedprox(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    prox_coef: Any = 0.1,
    clip_mode: str = "gradient",
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedProx: FedAvg with a proximal term towards the broadcast model.

    Local: w <- w - eta (clip(g) + mu (w - w0) + wd w).

    Args:
        client: local step, by default `simulator_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        prox_coef: mu, >= 0.
        clip_mode: `"gradient"`, or `"simulator"`: clip(g - mu w0) + mu w, as the official code.
        weighting: as `fedavg`.

    Returns:
        The algorithm; no state on clients, one vector each way.

    Warns:
        UserWarning: as `fedspeed`.

    Raises:
        ValueError: if a number or a name is not allowed.

    Source: Li et al. 2020, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedprox(prox_coef=0.01).name
        'FedProx'
    """
    client = client or client_step.simulator_sgd()
    pulled = client_step.proximal(client, prox_coef, clip_mode)

    def local_step(gradient, at):
        return pulled(gradient, at, None), at.memory

    plain = fedavg(client, server_optimizer, weighting=weighting)
    return plain._replace(name="FedProx", local_step=local_step)
