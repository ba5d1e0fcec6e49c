"""FedSAM (Qu et al. 2022)."""

from __future__ import annotations

from typing import Any

import optax

from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def fedsam(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.1,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedSAM: FedAvg on sharpness-aware gradients.

    Local: w <- w - eta (clip(grad at w + rho g/||g||) + wd w).

    `rho`, >= 0, is the length of the ascent step; it costs a second gradient a step. Other
    arguments are those of `fedavg`, and errors too.

    Source: Qu et al. 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedsam().name
        'FedSAM'
    """
    plain = fedavg(client, server_optimizer, weighting=weighting)
    return algorithm.with_quasi_gradient(plain, rho)._replace(name="FedSAM")
