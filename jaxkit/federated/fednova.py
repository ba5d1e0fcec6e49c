"""FedNova (Wang et al. 2020)."""

from __future__ import annotations

import jax
import optax

from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def fednova(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedNova: each client's displacement is divided by its own number of steps.

    Server: x <- x + eta_g mean_S(K_i) mean_S((w_K - w0)/K_i), so that clients with many steps pull
    no harder than others; FedAvg where all make as many.

    Clients send one vector and one number; `client` must be SGD by a known learning rate. Other
    arguments are those of `fedavg`, and errors too; `weighting` is of both means.

    Source: Wang et al. 2020, eq. 10, for SGD without momentum.

    Example:
        >>> fednova().name
        'FedNova'
    """
    client = client_step.chosen(client)
    client_step.known_rate("FedNova", client)

    def report(shared, memory, result):
        per_step = jax.tree.map(lambda delta: delta / result.num_steps, result.delta)
        return {"delta": per_step, "num_steps": result.num_steps}, memory

    def absorb(shared, mean, fraction):
        return jax.tree.map(lambda delta: mean["num_steps"] * delta, mean["delta"]), shared

    plain = fedavg(client, server_optimizer, weighting=weighting)
    return plain._replace(name="FedNova", report=report, absorb=absorb)
