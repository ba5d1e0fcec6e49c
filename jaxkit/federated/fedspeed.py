"""FedSpeed and FedDyn: a proximal term, and the dual vector that removes its bias.

In displacement form: h_i, in units of the parameters, is the sum of all displacements that client i
has produced; -h_i/lambda is the paper's prox-correction.
"""

from __future__ import annotations

from typing import Any

import optax

from jaxkit import validation
from jaxkit.federated import algorithm, client_step
from jaxkit.federated.fedavg import fedavg

#: Over which clients the server averages the duals.
DUAL_AVERAGES = ("all", "active")


def fedspeed(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    rho: Any = 0.1,
    alpha: Any = 1.0,
    normalize: bool = True,
    dual_average: str = "all",
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedSpeed: a proximal term with its correction, on gradients taken after an ascent step.

    Local, with mu = 1/lambda and q the `quasi_gradient`:
    w <- w - eta (clip(q) + mu (h_i + w - w0) + wd w). Then h_i <- h_i + w_K - w0, and the server
    sets x <- mean_S(w_K) + mean(h), the second mean over all clients or the active ones.

    Args:
        client: local step, by default `simulator_sgd()`.
        prox_coef: mu = 1/lambda, **not** lambda; >= 0.
        rho: length of the ascent step (or its factor, without `normalize`), >= 0.
        alpha: weight of the gradient after the ascent step, in [0, 1].
        normalize: whether the ascent step is normalised (official code) or not (Algorithm 1).
        dual_average: `"all"` (official code, recommended) or `"active"` (Algorithm 1 as printed,
            which breaks down under partial participation unless rates are decayed).
        clip_mode: `"gradient"` clips q alone; `"simulator"` clips q + mu (h_i - w0), to replay
            trajectories of the official code.

    Returns:
        The algorithm; one vector a client, one vector each way, two gradients a step.

    Raises:
        ValueError: if a number or a name is not allowed.

    Warns:
        UserWarning: if learning rate times `prox_coef` exceeds 1: the proximal step overshoots.

    Source: arXiv 2302.10429 Algorithm 1, with the official simulator's server.

    Example:
        >>> fedspeed(client_step.local_sgd(0.05), rho=0.05).name
        'FedSpeed'
    """
    client = client_step.chosen(client)
    pulled = client_step.proximal(client, prox_coef, clip_mode)
    validation.choice("dual_average", dual_average, DUAL_AVERAGES)

    def local_step(quasi, at):
        return pulled(quasi, at, at.memory["dual"]), at.memory

    def report(shared, memory, result):
        dual = optax.tree.add(memory["dual"], result.delta)
        return {"delta": result.delta, **result.offset}, {**memory, "dual": dual}

    def absorb(shared, mean, fraction):
        dual_mean = optax.tree.add_scale(shared["dual_mean"], fraction, mean["delta"])
        start = [mean["offset"]] if "offset" in mean else []
        return optax.tree.add(mean["delta"], dual_mean, *start), {"dual_mean": dual_mean}

    def report_active(shared, memory, result):
        dual = optax.tree.add(memory["dual"], result.delta)
        return {"delta": optax.tree.add(result.moved, dual)}, {**memory, "dual": dual}

    plain = fedavg(client)._replace(
        name="FedSpeed",
        local_step=local_step,
        init_memory=lambda params: {"dual": algorithm.zeros(params)},
    )
    made = algorithm.with_quasi_gradient(plain, rho, alpha, normalize=normalize)
    if dual_average == "active":
        return made._replace(report=report_active)
    return made._replace(
        init_shared=lambda params: {"dual_mean": algorithm.zeros(params)},
        report=report,
        absorb=absorb,
    )


def feddyn(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    dual_average: str = "all",
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedDyn: FedSpeed on plain gradients, whose arguments, errors and warnings it has.

    Source: Acar et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> feddyn().name
        'FedDyn'
    """
    options = {"prox_coef": prox_coef, "dual_average": dual_average, "clip_mode": clip_mode}
    return fedspeed(client, alpha=0.0, **options)._replace(name="FedDyn")
