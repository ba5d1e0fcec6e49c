"""FedAvg (McMahan et al. 2017)."""

from __future__ import annotations

import optax

from jaxkit import validation
from jaxkit.federated import algorithm, client_step


def fedavg(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    weighting: str = "equal",
) -> algorithm.FederatedAlgorithm:
    """FedAvg: clients descend, the server moves by their mean displacement.

    Local: w <- w - eta (clip(g) + wd w). Server: x <- x + eta_g mean_S(w_K - x).

    Args:
        client: local step, by default `simulator_sgd()`.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        weighting: `"equal"` (the paper's program), or `"examples"`: the mean weighs each client by
            its number of examples (McMahan et al.).

    Returns:
        The algorithm; no state on clients, one vector each way.

    Raises:
        ValueError: if `weighting` is unknown.

    Source: McMahan et al. 2017, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedavg(weighting="examples").name
        'FedAvg'
    """
    client = client_step.chosen(client)
    validation.choice("weighting", weighting, algorithm.WEIGHTINGS)

    server = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def local_step(gradient, at):
        return client.clip(gradient), at.memory

    def report(shared, memory, result):
        return {"delta": result.delta}, memory

    def absorb(shared, mean, fraction):
        return mean["delta"], shared

    return algorithm.FederatedAlgorithm(
        name="FedAvg",
        local_step=local_step,
        descent=client.descent,
        server_optimizer=client_step.transformation("server_optimizer", server),
        init_memory=lambda params: {},
        init_shared=lambda params: {},
        report=report,
        absorb=absorb,
        aggregate=algorithm.mean_message,
        weighting=weighting,
        keep_optimizer_state=client.keep_state,
    )
