"""Algorithms whose clients remember a dual vector: FedSpeed, FedDyn, FedSMOO, FedPD, FedADMM.

All are written in displacement form: h_i, in units of the parameters, is the sum of all
displacements that client i has produced; -h_i/lambda is the paper's prox-correction.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import validation
from jaxkit.federated import algorithm, averaging, client_step, perturbation

#: Over which clients the server averages the duals.
DUAL_AVERAGES = ("all", "active")

#: What a FedADMM client measures its message from.
ADMM_FORMS = ("tracked", "reset")


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
        client: local step, by default `local_sgd()`.
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
    direction = (perturbation.quasi_gradient(rho, alpha, normalize=normalize),)
    return _dual_algorithm("FedSpeed", direction, client, prox_coef, clip_mode, dual_average)


def feddyn(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    dual_average: str = "all",
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedDyn: FedSpeed on plain gradients.

    Args:
        client: local step, by default `local_sgd()`.
        prox_coef: mu, >= 0.
        dual_average: as `fedspeed`.
        clip_mode: as `fedspeed`.

    Returns:
        The algorithm; one vector a client, one vector each way.

    Raises:
        ValueError: if a number or a name is not allowed.

    Warns:
        UserWarning: as `fedspeed`.

    Source: Acar et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> feddyn().name
        'FedDyn'
    """
    return _dual_algorithm("FedDyn", (), client, prox_coef, clip_mode, dual_average)


def fedsmoo(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    rho: Any = 0.1,
    dual_average: str = "all",
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedSMOO: FedDyn on gradients after an ascent step that all clients are tied to.

    The ascent step is that of `tied_perturbation`; after the round the server sets
    s = rho n/(||n|| + 1e-7), n the mean of nu_i over the cohort.

    Args:
        client: local step, by default `local_sgd()`.
        prox_coef: mu, >= 0.
        rho: length of the ascent step, >= 0.
        dual_average: as `fedspeed`.
        clip_mode: as `fedspeed`.

    Returns:
        The algorithm; two vectors a client, two vectors each way, two gradients a step.

    Raises:
        ValueError: if a number or a name is not allowed.

    Warns:
        UserWarning: as `fedspeed`.

    Source: official simulator of arXiv 2302.10429, method FedSMOO.

    Example:
        >>> fedsmoo().name
        'FedSMOO'
    """
    direction = (perturbation.tied_perturbation(rho),)
    dual = _dual_algorithm("FedSMOO", direction, client, prox_coef, clip_mode, dual_average)

    def init_shared(params):
        return {**dual.init_shared(params), "perturbation": algorithm.zeros(params)}

    def report(shared, memory, result):
        message, memory = dual.report(shared, memory, result)
        return {**message, "perturbation_dual": result.optimizer_state[0].dual}, memory

    def absorb(shared, mean, fraction):
        tied = perturbation.ascent_step(mean["perturbation_dual"], rho)
        displacement, absorbed = dual.absorb(shared, mean, fraction)
        return displacement, {**absorbed, "perturbation": tied}

    return dual._replace(
        init_shared=init_shared, report=report, absorb=absorb, keep_optimizer_state=True
    )


def fedpd(
    client: client_step.ClientStep | None = None,
    *,
    prox_coef: Any = 0.1,
    clip_mode: str = "gradient",
) -> algorithm.FederatedAlgorithm:
    """FedPD: every client takes part in every round, the server averages w_K + y_i/mu.

    Local: w <- w - eta (clip(g) + y_i + mu (w - x) + wd w), y_i <- y_i + mu (w_K - x); here
    h_i = y_i/mu.

    Args:
        client: local step, by default `local_sgd()`.
        prox_coef: mu, >= 0.
        clip_mode: as `fedspeed`.

    Returns:
        The algorithm; one vector a client. The drivers refuse cohorts of fewer than all clients.

    Raises:
        ValueError: if a number or a name is not allowed.

    Warns:
        UserWarning: as `fedspeed`.

    Source: Zhang et al. 2021, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedpd().full_participation
        True
    """
    dual = _dual_algorithm("FedPD", (), client, prox_coef, clip_mode, "active")
    return dual._replace(full_participation=True)


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
    eta_s = S/m, x is the mean of w_K + h_i over all clients.

    Args:
        client: local step, by default `local_sgd()`.
        server_optimizer: applied to minus the mean message, by default `optax.sgd(1.0)`.
        prox_coef: mu, >= 0.
        clip_mode: as `fedspeed`.
        form: `"tracked"`, or `"reset"` to reproduce the published code, where "old" is the
            broadcast model; it converges to a biased point.

    Returns:
        The algorithm; two vectors a client, one vector each way.

    Raises:
        ValueError: if a number or a name is not allowed.

    Warns:
        UserWarning: as `fedspeed`.

    Source: Gong, Li & Freris 2022, as the baseline of arXiv 2302.10429.

    Example:
        >>> fedadmm(form="reset").name
        'FedADMM'
    """
    validation.choice("form", form, ADMM_FORMS)
    dual = _dual_algorithm("FedADMM", (), client, prox_coef, clip_mode, "active")

    def init_memory(params):
        augmented = jax.tree.map(lambda leaf: jnp.array(perturbation.widen(leaf)), params)
        return {"dual": algorithm.zeros(params), "augmented": augmented}

    def report(shared, memory, result):
        del shared
        duals = optax.tree.add(memory["dual"], result.delta)
        augmented = optax.tree.add(jax.tree.map(perturbation.widen, result.params), duals)
        if form == "tracked":
            moved = optax.tree.sub(augmented, memory["augmented"])
        else:  # (w_K + h + delta) - (x + h)
            moved = jax.tree.map(lambda o, d: o + 2 * d, result.offset, result.delta)
        return {"delta": moved}, {"dual": duals, "augmented": augmented}

    return dual._replace(
        server_optimizer=server_optimizer or optax.sgd(1.0), init_memory=init_memory, report=report
    )


def _dual_algorithm(
    name: str,
    direction: tuple[optax.GradientTransformation, ...],
    client: client_step.ClientStep | None,
    prox_coef: Any,
    clip_mode: str,
    dual_average: str,
) -> algorithm.FederatedAlgorithm:
    client = client or client_step.local_sgd()
    validation.choice("dual_average", dual_average, DUAL_AVERAGES)
    chain = averaging.prox_chain(direction, client, prox_coef, clip_mode)
    _warn_of_overshoot(client, prox_coef)

    def init_memory(params):
        return {"dual": algorithm.zeros(params)}

    def report_active(shared, memory, result):
        del shared
        duals = optax.tree.add(memory["dual"], result.delta)
        # x + mean_S(offset + delta + h) is mean_S(w_K + h).
        moved = optax.tree.add(result.offset, result.delta) if result.relaxed else result.delta
        return {"delta": optax.tree.add(moved, duals)}, {"dual": duals}

    def init_shared(params):
        return {"dual_mean": algorithm.zeros(params)}

    def report(shared, memory, result):
        del shared
        offset = {"offset": result.offset} if result.relaxed else {}
        message = {"delta": result.delta, **offset}
        return message, {"dual": optax.tree.add(memory["dual"], result.delta)}

    def absorb(shared, mean, fraction):
        dual_mean = optax.tree.add_scale(shared["dual_mean"], fraction, mean["delta"])
        displacement = optax.tree.add(mean["delta"], dual_mean)
        if "offset" in mean:
            displacement = optax.tree.add(displacement, mean["offset"])
        return displacement, {"dual_mean": dual_mean}

    plain = algorithm.displacement_algorithm(name, chain, client)
    if dual_average == "active":
        return plain._replace(init_memory=init_memory, report=report_active)
    return plain._replace(
        init_memory=init_memory, init_shared=init_shared, report=report, absorb=absorb
    )


def _warn_of_overshoot(client: client_step.ClientStep, prox_coef: Any) -> None:
    if client.learning_rate is None:
        return
    contraction = client.learning_rate(0) * prox_coef
    # With NumPy, so that known numbers stay known where the algorithm is made under jit.
    if not validation.is_traced(contraction) and np.any(np.asarray(contraction) > 1):
        warnings.warn(
            f"learning_rate * prox_coef should not exceed 1, got {float(np.max(contraction)):g}: "
            "the proximal step overshoots its anchor",
            stacklevel=4,
        )
