"""SCAFFOLD and FedGamma: clients corrected by control variates."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg


def scaffold(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
) -> algorithm.FederatedAlgorithm:
    """SCAFFOLD (option II): each client's drift is corrected by control variates.

    Local: w <- w - eta (clip(g + c - c_i) + wd w). Then c_i+ = c_i - c - (w_K - w0)/(K_i eta), and
    at the server x <- x + eta_g mean_S(w_K - w0), c <- c + (S/m) mean_S(c_i+ - c_i). K_i is the
    number of steps that the client itself made. A client keeps one vector, two go each way; the
    learning rate of `client` must be known. Arguments are those of `fedavg`, and errors too.

    Source: Karimireddy et al. 2020, Algorithm 1, as the baseline of arXiv 2302.10429.

    Example:
        >>> scaffold().name
        'SCAFFOLD'
    """
    client = client_step.chosen(client)
    rate = client_step.known_rate("SCAFFOLD", client)

    def init(params):
        return {"control": algorithm.zeros(params)}

    def local_step(gradient, at):
        c, c_i = at.shared["control"], at.memory["control"]
        corrected = jax.tree.map(lambda g, c, c_i: g + c - c_i, gradient, c, c_i)
        return client.clip(corrected), at.memory

    def report(shared, memory, result):
        # The mean corrected gradient of the round, less the two corrections.
        change = jax.tree.map(
            lambda c, delta: -c - delta / (result.num_steps * rate(result.round)),
            shared["control"],
            result.delta,
        )
        control = optax.tree.add(memory["control"], change)
        return {"delta": result.delta, "control": change}, {"control": control}

    def absorb(shared, mean, fraction):
        control = optax.tree.add_scale(shared["control"], fraction, mean["control"])
        return mean["delta"], {"control": control}

    return fedavg(client, server_optimizer)._replace(
        name="SCAFFOLD",
        local_step=local_step,
        init_memory=init,
        init_shared=init,
        report=report,
        absorb=absorb,
    )


def fedgamma(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.01,
) -> algorithm.FederatedAlgorithm:
    """FedGamma: SCAFFOLD on sharpness-aware gradients, at w + rho g/||g||, two a step.

    `rho`, >= 0, is the length of the ascent step. Other arguments are those of `scaffold`, and
    errors too.

    Source: official simulator of arXiv 2302.10429, method FedGamma.

    Example:
        >>> fedgamma().name
        'FedGamma'
    """
    plain = scaffold(client, server_optimizer)
    return algorithm.with_quasi_gradient(plain, rho)._replace(name="FedGamma")
