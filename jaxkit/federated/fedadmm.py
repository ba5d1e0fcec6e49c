"""FedPD and FedADMM: clients that send their model with its dual."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxkit import validation
from jaxkit.federated import algorithm, client_step, perturbation
from jaxkit.federated.fedspeed import feddyn

#: What a FedADMM client measures its message from.
FORMS = ("tracked", "reset")


def fedpd(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedPD: every client takes part in every round, the server averages w_K + y_i/mu.

    Local: w <- w - eta (clip(g) + y_i + mu (w - x) + wd w), y_i <- y_i + mu (w_K - x); here
    h_i = y_i/mu, one vector a client. The drivers refuse cohorts of fewer than all clients.
    Arguments are those of `fedspeed`, and errors and warnings too.

    Source: Zhang et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedpd().full_participation
        True
    """
    dual = feddyn(client, prox_coef=prox_coef, dual_average="active", clip_mode=clip_mode)
    return dual._replace(name="FedPD", full_participation=True)


def fedadmm(
    client: client_step.ClientStep | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    prox_coef: Any = 0.1,
    clip_mode: str = "gradient",
    form: str = "tracked",
) -> algorithm.FederatedAlgorithm:
    """FedADMM: clients send how much w_K + y_i/mu changed.

    Local step and dual as `fedpd`. Message d_i = (w_K + h_i)_new - (w_K + h_i)_old, "old" being the
    client's last participation (x^0 before the first); x <- x + eta_s mean_S(d_i). With
    eta_s = S/m, x is the mean of w_K + h_i over all clients; a larger step counts the clients of a
    round for those that were left out too, and breaks down where they differ much.

    `server_optimizer` is applied to minus the mean message, `optax.sgd(eta_s)` say; by default
    eta_s is S/m, the share of clients that took part. `form="reset"` reproduces the published code,
    where "old" is the broadcast model; it converges to a biased point. Other arguments are those of
    `fedspeed`, and errors and warnings too. A client keeps two vectors, one goes each way.

    Source: Gong, Li & Freris 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedadmm(form="reset").name
        'FedADMM'
    """
    validation.choice("form", form, FORMS)
    server = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    dual = feddyn(client, prox_coef=prox_coef, dual_average="active", clip_mode=clip_mode)

    def init_memory(params):
        return {**dual.init_memory(params), "augmented": jax.tree.map(perturbation.widen, params)}

    def report(shared, memory, result):
        h = optax.tree.add(memory["dual"], result.delta)
        augmented = optax.tree.add(jax.tree.map(perturbation.widen, result.params), h)
        if form == "tracked":
            change = optax.tree.sub(augmented, memory["augmented"])
        else:  # (w_K + h + delta) - (x + h)
            change = optax.tree.add(result.moved, result.delta)
        return {"delta": change}, {"dual": h, "augmented": augmented}

    def absorb(shared, mean, fraction):
        step = fraction if server_optimizer is None else 1.0
        return optax.tree.scale(step, mean["delta"]), shared

    return dual._replace(
        name="FedADMM",
        absorb=absorb,
        server_optimizer=client_step.transformation("server_optimizer", server),
        init_memory=init_memory,
        report=report,
    )
