"""FedSMOO (official simulator of arXiv 2302.10429)."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit.federated import algorithm, client_step, perturbation
from jaxkit.federated.fedspeed import feddyn


def fedsmoo(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    rho: Any = 0.1,
    dual_average: str = "all",
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedSMOO: FedDyn on gradients after an ascent step that all clients are tied to.

    Each step: u = g - nu_i - s, e = rho u/(||u|| + 1e-7), q = gradient at w + e,
    nu_i <- nu_i + e - s, and q goes on as in `feddyn`. After the round the server sets
    s = rho n/(||n|| + 1e-7), n the mean of nu_i over the cohort.

    A client keeps two vectors, two go each way, and a step takes two gradients. Arguments are those
    of `fedspeed`, and errors and warnings too.

    Source: official simulator of arXiv 2302.10429, method FedSMOO.

    Example:
        >>> fedsmoo().name
        'FedSMOO'
    """
    options = {"prox_coef": prox_coef, "dual_average": dual_average, "clip_mode": clip_mode}
    dual = feddyn(client, **options)
    perturbation.ascent_step({}, rho)  # refuses a wrong rho here

    def init_memory(params):
        return {**dual.init_memory(params), "tie": algorithm.zeros(params)}

    def init_shared(params):
        return {**dual.init_shared(params), "perturbation": algorithm.zeros(params)}

    def local_step(gradient, at):
        nu, s = at.memory["tie"], at.shared["perturbation"]
        uphill = jax.tree.map(lambda g, nu, s: g - nu - s, gradient, nu, s)
        step = perturbation.ascent_step(uphill, rho)
        second = at.grad_fn(optax.apply_updates(at.params, step), 0)
        direction, memory = dual.local_step(second, at)
        nu = jax.tree.map(lambda nu, e, s: nu + e - s, nu, step, s)
        return direction, {**memory, "tie": nu}

    def report(shared, memory, result):
        message, memory = dual.report(shared, memory, result)
        return {**message, "tie": memory["tie"]}, memory

    def absorb(shared, mean, fraction):
        displacement, absorbed = dual.absorb(shared, mean, fraction)
        tied = perturbation.ascent_step(mean["tie"], rho)
        return displacement, {**absorbed, "perturbation": tied}

    return dual._replace(
        name="FedSMOO",
        local_step=local_step,
        init_memory=init_memory,
        init_shared=init_shared,
        report=report,
        absorb=absorb,
    )
