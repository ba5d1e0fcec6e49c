"""How a client descends: SGD at a rate set by the round, or any optax chain."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.federated import algorithm

#: Where the proximal methods clip: the gradient only, or as the official simulator does.
CLIP_MODES = ("gradient", "simulator")


class ClientStep(NamedTuple):
    """The part of a client's local step that does not depend on the algorithm.

    Attributes:
        clip: of the (quasi-)gradient, before decay and descent.
        descent: what turns the corrected gradient into an update of the local model.
        learning_rate: schedule over rounds, or None where no single number describes `descent`.
        keep_state: whether the optimizer's state survives on the client between rounds.
    """

    clip: Callable[[PyTree], PyTree]
    descent: optax.GradientTransformation
    learning_rate: Callable[[Any], Any] | None
    keep_state: bool


def local_sgd(learning_rate: Any, *, weight_decay: Any = 0.0, clip_norm: Any = None) -> ClientStep:
    """Plain SGD: w <- w - eta_t (clip(direction) + wd w) in round t.

    Args:
        learning_rate: eta > 0, or a schedule over rounds (any `optax.Schedule`).
        weight_decay: wd >= 0, added to the direction after clipping and never to the gradient that
            an ascent step follows.
        clip_norm: largest global norm of the direction, or None for no clipping.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> local_sgd(0.1).learning_rate(7)
        0.1
    """
    if not callable(learning_rate):
        validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.number("weight_decay", weight_decay, minimum=0)
    if clip_norm is not None:
        validation.number("clip_norm", clip_norm, minimum=0, open_minimum=True)
    rate: Callable[[Any], Any] = (
        learning_rate if callable(learning_rate) else lambda count: learning_rate
    )

    def clip(direction):
        if clip_norm is None:
            return direction
        return optax.clip_by_global_norm(clip_norm).update(direction, optax.EmptyState())[0]

    def descend(updates, state, params=None, *, round: Any = None, **_):
        decayed = updates
        if validation.is_traced(weight_decay) or np.any(np.asarray(weight_decay) != 0):
            decayed = optax.tree.add_scale(updates, weight_decay, params)
        return optax.tree.scale(-rate(round), decayed), state

    return ClientStep(
        clip=clip,
        descent=optax.GradientTransformationExtraArgs(optax.init_empty_state, descend),
        learning_rate=rate,
        keep_state=False,
    )


def simulator_sgd(
    learning_rate: Any = 0.1,
    *,
    learning_rate_decay: Any = 0.998,
    weight_decay: Any = 1e-3,
    clip_norm: Any = 10.0,
) -> ClientStep:
    """`local_sgd` with the defaults of the paper's program: what algorithms use unless told.

    The rate of round t is eta decay^t; errors as `local_sgd`.

    Args:
        learning_rate: eta > 0 of round 0.
        learning_rate_decay: factor a round, in (0, 1].
        weight_decay: as `local_sgd`.
        clip_norm: as `local_sgd`.

    Source: arXiv 2302.10429, official simulator's defaults.

    Example:
        >>> round(float(simulator_sgd().learning_rate(2)), 6)
        0.0996
    """
    validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.number(
        "learning_rate_decay", learning_rate_decay, minimum=0, maximum=1, open_minimum=True
    )
    return local_sgd(
        lambda count: learning_rate * learning_rate_decay**count,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )


def local_optimizer(
    optimizer: optax.GradientTransformation, *, keep_state: bool = False
) -> ClientStep:
    """Let clients descend by any optax chain.

    The chain receives the corrected gradient and the extra arguments `value` (the loss), `round`,
    `anchor` (where the client started) and `grad_fn`. SCAFFOLD, FedGamma, FedCM, MoFedSAM and
    FedNova divide displacements by a learning rate or a number of steps, and need `local_sgd`.

    Args:
        optimizer: the chain, its learning rate included.
        keep_state: whether its state (moments, step count) survives on the client between rounds,
            at the cost of one such state a client; otherwise every round starts from a fresh one,
            and a schedule in the chain begins anew.

    Raises:
        TypeError: if `optimizer` is not an optax transformation.

    Example:
        >>> local_optimizer(optax.adamw(1e-3)).keep_state
        False
    """
    return ClientStep(
        lambda direction: direction, transformation("optimizer", optimizer), None, keep_state
    )


def chosen(client: ClientStep | None) -> ClientStep:
    """The local step of an algorithm: `simulator_sgd()` unless told."""
    if client is not None and not isinstance(client, ClientStep):
        raise TypeError(
            f"client must be made by local_sgd, simulator_sgd or local_optimizer, got {client!r}"
        )
    return simulator_sgd() if client is None else client


def transformation(name: str, value: Any) -> optax.GradientTransformation:
    """Refuse what is no optax transformation."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{name} must be an optax transformation, got {value!r}")
    return value


def known_rate(name: str, client: ClientStep) -> Callable[[Any], Any]:
    """The learning rate of a client step, for an algorithm that divides by it."""
    if client.learning_rate is None:
        raise ValueError(
            f"{name} divides displacements by the learning rate: client must be made by local_sgd, "
            "got local_optimizer"
        )
    return client.learning_rate


def proximal(
    client: ClientStep, prox_coef: Any, clip_mode: str
) -> Callable[[PyTree, algorithm.LocalStep, PyTree], PyTree]:
    """The direction of the proximal methods: `(q, at, h) -> clip(q) + mu (h + w - w0)`.

    `"simulator"` makes clip(q + mu (h - w0)) + mu w instead, as the official code. h may be None.
    Warns if learning rate times mu exceeds 1: the step overshoots its anchor.
    """
    validation.number("prox_coef", prox_coef, minimum=0)
    validation.choice("clip_mode", clip_mode, CLIP_MODES)
    if client.learning_rate is not None:
        contraction = client.learning_rate(0) * prox_coef
        # With NumPy, so that known numbers stay known where the algorithm is made under jit.
        if not validation.is_traced(contraction) and np.any(np.asarray(contraction) > 1):
            warnings.warn(
                "learning_rate * prox_coef should not exceed 1, got "
                f"{float(np.max(contraction)):g}: the proximal step overshoots its anchor",
                stacklevel=3,
            )

    def add(direction: PyTree, *terms: PyTree) -> PyTree:
        return jax.tree.map(lambda q, *t: q + prox_coef * sum(t[1:], t[0]), direction, *terms)

    def pulled(quasi, at, dual):
        duals = () if dual is None else (dual,)
        if clip_mode == "gradient":
            return add(client.clip(quasi), optax.tree.sub(at.params, at.anchor), *duals)
        return add(client.clip(add(quasi, optax.tree.scale(-1, at.anchor), *duals)), at.params)

    return pulled
