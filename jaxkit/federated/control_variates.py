"""SCAFFOLD and FedGamma: clients corrected by control variates."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit.federated import algorithm, client_step, corrections, perturbation


def scaffold(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
) -> algorithm.FederatedAlgorithm:
    """SCAFFOLD (option II): each client's drift is corrected by control variates.

    Local: w <- w - eta (clip(g + c - c_i) + wd w). Then c_i+ = c_i - c - (w_K - w0)/(K_i eta), and
    at the server x <- x + eta_g mean_S(w_K - w0), c <- c + (S/m) mean_S(c_i+ - c_i). K_i is the
    number of steps that the client itself made.

    Args:
        client: local step, by default `local_sgd()`; its learning rate must be known.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.

    Returns:
        The algorithm; one vector a client, two vectors each way.

    Raises:
        ValueError: if `client` has no learning rate (`local_optimizer`).

    Source: Karimireddy et al. 2020, Algorithm 1, as the baseline of arXiv 2302.10429.

    Example:
        >>> scaffold().name
        'SCAFFOLD'
    """
    return _control_variates("SCAFFOLD", (), client, server_optimizer)


def fedgamma(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rho: Any = 0.01,
) -> algorithm.FederatedAlgorithm:
    """FedGamma: SCAFFOLD on sharpness-aware gradients.

    As `scaffold`, with g taken at w + rho g/||g||.

    Args:
        client: local step, by default `local_sgd()`; its learning rate must be known.
        server_optimizer: applied to minus the mean displacement, by default `optax.sgd(1.0)`.
        rho: length of the ascent step, >= 0.

    Returns:
        The algorithm; one vector a client, two gradients a step.

    Raises:
        ValueError: if `rho` is not allowed or `client` has no learning rate.

    Source: official simulator of arXiv 2302.10429, method FedGamma.

    Example:
        >>> fedgamma().name
        'FedGamma'
    """
    direction = (perturbation.quasi_gradient(rho),)
    return _control_variates("FedGamma", direction, client, server_optimizer)


def _control_variates(
    name: str,
    direction: tuple[optax.GradientTransformation, ...],
    client: client_step.ClientStep | None,
    server_optimizer: optax.GradientTransformation | None,
) -> algorithm.FederatedAlgorithm:
    client = client or client_step.local_sgd()
    rate = client_step.known_rate(name, client)

    def init(params):
        return {"control": algorithm.zeros(params)}

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

    chain = (*direction, corrections.add_control_variate(), client.clip)
    plain = algorithm.displacement_algorithm(name, chain, client, server_optimizer)
    return plain._replace(init_memory=init, init_shared=init, report=report, absorb=absorb)
