"""What a client adds to its gradient: the proximal term, duals, control variates, momentum.

Each is an optax transformation that reads the round's vectors from extra arguments of `update`:
`anchor` (where the client started), `memory` (what the client remembers) and `shared` (what the
server sent beside the model). The federated drivers pass them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxkit import validation


def add_prox_correction(prox_coef: Any) -> optax.GradientTransformationExtraArgs:
    """Add the proximal term with its correction.

    out = g + mu (h + w - w0), with mu = 1/lambda. With h = 0 it is the plain proximal term.

    Args:
        prox_coef: mu = 1/lambda (**not** lambda), >= 0.

    Returns:
        The transformation; `update` needs `anchor` (w0), and `memory` with entry `"dual"` (h, in
        units of the parameters) unless there is none.

    Raises:
        ValueError: if `prox_coef` is negative or not finite, or `anchor` is missing.

    Source: arXiv 2302.10429 eq. of the local step, with h = -lambda ghat.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = add_prox_correction(0.5)
        >>> w0, w, memory = jnp.array(2.0), jnp.array(3.0), {"dual": jnp.array(1.0)}
        >>> updates, _ = optimizer.update(jnp.array(1.0), (), w, anchor=w0, memory=memory)
        >>> float(updates)
        2.0
    """
    validation.number("prox_coef", prox_coef, minimum=0)

    def update_fn(updates, state, params=None, *, anchor=None, memory=None, **_):
        _require("add_prox_correction", params=params, anchor=anchor)
        pulled = jax.tree.map(
            lambda g, w, w0: (g + prox_coef * (w - w0)).astype(g.dtype), updates, params, anchor
        )
        return _add_dual(pulled, prox_coef, memory), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def add_prox_offset(prox_coef: Any) -> optax.GradientTransformationExtraArgs:
    """Add only the part of the proximal term that does not move: mu (h - w0).

    With `optax.add_decayed_weights(mu)` after it, the sum is that of `add_prox_correction`; the
    official simulator clips the gradient between the two.

    Args:
        prox_coef: mu = 1/lambda (**not** lambda), >= 0.

    Returns:
        The transformation; extra arguments as `add_prox_correction`.

    Raises:
        ValueError: if `prox_coef` is negative or not finite, or `anchor` is missing.

    Source: official simulator of arXiv 2302.10429.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = add_prox_offset(0.5)
        >>> w0, w, memory = jnp.array(2.0), jnp.array(3.0), {"dual": jnp.array(1.0)}
        >>> updates, _ = optimizer.update(jnp.array(1.0), (), w, anchor=w0, memory=memory)
        >>> float(updates)
        0.5
    """
    validation.number("prox_coef", prox_coef, minimum=0)

    def update_fn(updates, state, params=None, *, anchor=None, memory=None, **_):
        del params
        _require("add_prox_offset", anchor=anchor)
        pulled = jax.tree.map(lambda g, w0: (g - prox_coef * w0).astype(g.dtype), updates, anchor)
        return _add_dual(pulled, prox_coef, memory), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def add_control_variate() -> optax.GradientTransformationExtraArgs:
    """Add SCAFFOLD's correction: out = g + c - c_i.

    Returns:
        The transformation; `update` needs `shared["control"]` (c) and `memory["control"]` (c_i).

    Source: Karimireddy et al. 2020, Algorithm 1 (as arXiv 2302.10429 compares with).

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = add_control_variate()
        >>> c, c_i = {"control": jnp.array(3.0)}, {"control": jnp.array(1.0)}
        >>> updates, _ = optimizer.update(jnp.array(1.0), (), shared=c, memory=c_i)
        >>> float(updates)
        3.0
    """

    def update_fn(updates, state, params=None, *, memory: Any = None, shared: Any = None, **_):
        del params
        _require("add_control_variate", memory=memory, shared=shared)
        corrected = jax.tree.map(
            lambda g, c, c_i: (g + c - c_i).astype(g.dtype),
            updates,
            shared["control"],
            memory["control"],
        )
        return corrected, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def mix_client_momentum(alpha: Any) -> optax.GradientTransformationExtraArgs:
    """Mix the gradient with the server's last direction: out = alpha g + (1 - alpha) M.

    Args:
        alpha: weight of the gradient, in [0, 1].

    Returns:
        The transformation; `update` needs `shared["momentum"]` (M, in units of a gradient).

    Raises:
        ValueError: if `alpha` is out of range.

    Source: official simulator of arXiv 2302.10429, method FedCM.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = mix_client_momentum(0.25)
        >>> shared = {"momentum": jnp.array(8.0)}
        >>> updates, _ = optimizer.update(jnp.array(4.0), (), shared=shared)
        >>> float(updates)
        7.0
    """
    validation.number("alpha", alpha, minimum=0, maximum=1)

    def update_fn(updates, state, params=None, *, shared: Any = None, **_):
        del params
        _require("mix_client_momentum", shared=shared)
        mixed = jax.tree.map(
            lambda g, m: (alpha * g + (1 - alpha) * m).astype(g.dtype),
            updates,
            shared["momentum"],
        )
        return mixed, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def scale_by_round_rate(
    learning_rate: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """Descend at a learning rate that is constant within a round: out = -eta(round) g.

    Args:
        learning_rate: schedule over rounds.

    Returns:
        The transformation; `update` needs the extra argument `round`.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = scale_by_round_rate(lambda t: 0.5**t)
        >>> updates, _ = optimizer.update(jnp.array(8.0), (), round=2)
        >>> float(updates)
        -2.0
    """

    def update_fn(updates, state, params=None, *, round: Any = None, **_):
        del params
        _require("scale_by_round_rate", round=round)
        rate = learning_rate(round)
        return jax.tree.map(lambda g: (-rate * g).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _require(name: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        if value is None:
            raise ValueError(f"{name} needs the argument {argument} in update, got None")


def _add_dual(updates: Any, prox_coef: Any, memory: Any) -> Any:
    if not memory or "dual" not in memory:
        return updates
    return jax.tree.map(lambda g, h: (g + prox_coef * h).astype(g.dtype), updates, memory["dual"])
