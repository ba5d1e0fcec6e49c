"""FedSAM: FedAvg on sharpness-aware gradients."""

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

    Args:
        client: local step, by default `simulator_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        rho: length of the ascent step, >= 0.
        weighting: as `fedavg`.

    Returns:
        The algorithm; two gradients a step.

    Raises:
        ValueError: if a number or a name is not allowed.

    Source: Qu et al. 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedsam().name
        'FedSAM'
    """
    plain = fedavg(client, server_optimizer, weighting=weighting)
    return algorithm.with_quasi_gradient(plain, rho)._replace(name="FedSAM")
