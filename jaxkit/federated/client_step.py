"""How a client descends: SGD at a rate set by the round, or any optax chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from jaxkit import validation
from jaxkit.federated import corrections


class ClientStep(NamedTuple):
    """The part of a client's local step that does not depend on the algorithm.

    Attributes:
        clip: transformation of the (quasi-)gradient, before decay and descent.
        descent: what turns the corrected gradient into an update of the local model.
        learning_rate: schedule over rounds, or None where no single number describes `descent`.
        keep_state: whether the optimizer's state survives on the client between rounds.
    """

    clip: optax.GradientTransformation
    descent: optax.GradientTransformation
    learning_rate: Callable[[Any], Any] | None
    keep_state: bool


def local_sgd(
    learning_rate: Any = 0.1,
    *,
    learning_rate_decay: Any = 0.998,
    weight_decay: Any = 1e-3,
    clip_norm: Any = 10.0,
) -> ClientStep:
    """SGD with coupled weight decay and clipping, as the official simulator trains its clients.

    w <- w - eta_t (clip(direction) + wd w), eta_t = eta decay^t in round t.

    Args:
        learning_rate: eta > 0, or a schedule over rounds (any `optax.Schedule`), which is then
            used as it is.
        learning_rate_decay: factor a round, in (0, 1]; not used with a schedule.
        weight_decay: wd >= 0, added to the direction after clipping and never to the gradient that
            an ascent step follows.
        clip_norm: largest global norm of the direction, or None for no clipping.

    Returns:
        The step.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv 2302.10429, official simulator's defaults.

    Example:
        >>> round(float(local_sgd(0.1).learning_rate(2)), 6)
        0.0996
    """
    if not callable(learning_rate):
        validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.number(
        "learning_rate_decay", learning_rate_decay, minimum=0, maximum=1, open_minimum=True
    )
    validation.number("weight_decay", weight_decay, minimum=0)
    if clip_norm is not None:
        validation.number("clip_norm", clip_norm, minimum=0, open_minimum=True)

    def decaying(count):
        return learning_rate * learning_rate_decay**count

    rate = learning_rate if callable(learning_rate) else decaying
    return ClientStep(
        clip=optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        descent=optax.chain(
            optax.add_decayed_weights(weight_decay), corrections.scale_by_round_rate(rate)
        ),
        learning_rate=rate,
        keep_state=False,
    )


def local_optimizer(
    optimizer: optax.GradientTransformation, *, keep_state: bool = False
) -> ClientStep:
    """Let clients descend by any optax chain.

    The chain receives the corrected gradient and the extra arguments `value` (the loss), `round`,
    `anchor` (where the client started) and `grad_fn`. SCAFFOLD, FedGamma, FedCM and MoFedSAM divide
    displacements by a learning rate and need `local_sgd`.

    Args:
        optimizer: the chain, its learning rate included.
        keep_state: whether its state (moments, step count) survives on the client between rounds,
            at the cost of one such state a client; otherwise every round starts from a fresh one,
            and a schedule in the chain begins anew.

    Returns:
        The step.

    Raises:
        TypeError: if `optimizer` is not an optax transformation.

    Example:
        >>> local_optimizer(optax.adamw(1e-3)).keep_state
        False
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax transformation, got {optimizer!r}")
    return ClientStep(optax.identity(), optimizer, None, keep_state)


def known_rate(name: str, client: ClientStep) -> Callable[[Any], Any]:
    """The learning rate of a client step, for an algorithm that divides by it.

    Args:
        name: name of the algorithm, for the message.
        client: its local step.

    Returns:
        The schedule over rounds.

    Raises:
        ValueError: if there is none.

    Example:
        >>> round(float(known_rate("SCAFFOLD", local_sgd(0.1))(0)), 3)
        0.1
    """
    if client.learning_rate is None:
        raise ValueError(
            f"{name} divides displacements by the learning rate: client must be made by local_sgd, "
            "got local_optimizer"
        )
    return client.learning_rate
