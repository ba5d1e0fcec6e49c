"""FedProx (Li et al. 2020)."""

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

    `prox_coef` is mu >= 0; `clip_mode="simulator"` makes it clip(g - mu w0) + mu w, as the official
    code. Other arguments are those of `fedavg`, and errors too; warns as `fedspeed`.

    Source: Li et al. 2020, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedprox(prox_coef=0.01).name
        'FedProx'
    """
    client = client_step.chosen(client)
    pulled = client_step.proximal(client, prox_coef, clip_mode)

    def local_step(gradient, at):
        return pulled(gradient, at, None), at.memory

    plain = fedavg(client, server_optimizer, weighting=weighting)
    return plain._replace(name="FedProx", local_step=local_step)
