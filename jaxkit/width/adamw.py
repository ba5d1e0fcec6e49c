"""AdamW with a learning rate and a weight decay for each parameter's width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.width import paths, rules


def scale_by_width(multipliers: PyTree) -> optax.GradientTransformation:
    r"""Multiply each parameter's update by its own factor, :math:`u_i \leftarrow c_i u_i`.

    Args:
        multipliers: tree of floats > 0, `WidthScaling.learning_rate`. Parameters find their factor
            by path, so boxes, `FrozenDict` or frozen (`None`, masked) leaves make no difference.

    Raises:
        ValueError: if a factor is not a finite number > 0; on update, if a parameter has none.

    Source: arXiv 2510.15262, abstract (learning rate 1/m for matrices).

    Example:
        >>> tx = scale_by_width({"up": 0.25, "bias": 1.0})
        >>> updates = {"up": jnp.ones(2), "bias": jnp.ones(2)}
        >>> tx.update(updates, tx.init(updates))[0]["up"]
        Array([0.25, 0.25], dtype=float32)
    """
    factors = _factors("multipliers", multipliers, open_minimum=True)

    def scale(path: tuple[Any, ...], update: Any) -> Any:
        factor = paths.look_up("multipliers", factors, paths.path_name(path))
        # A Python float keeps bfloat16 bfloat16; skipping an exact 1 leaves optax.adamw's program.
        return update if factor == 1.0 else factor * update

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)


def add_width_scaled_decayed_weights(
    weight_decay: float | jax.Array | Callable, multipliers: PyTree
) -> optax.GradientTransformation:
    r"""Add each parameter times its own weight decay, :math:`u_i \leftarrow u_i + c_i \lambda W_i`.

    `optax.add_decayed_weights` with a factor instead of a boolean for each parameter.

    Args:
        weight_decay: base decay :math:`\lambda \ge 0`: a number, an array of rank 0 (may be
            traced) or a schedule of the step.
        multipliers: tree of floats >= 0, `WidthScaling.weight_decay`; 0 switches decay off.

    Returns:
        A transformation with the state of `optax.add_decayed_weights` (empty unless
        `weight_decay` is a schedule).

    Raises:
        ValueError: if a factor or a constant `weight_decay` is negative or not finite; on update,
            if `params` is missing or a parameter has no factor.

    Source: arXiv 2510.15262, abstract (weight decay sqrt(m) for matrices, 0 for vectors).

    Example:
        >>> tx = add_width_scaled_decayed_weights(0.1, {"up": 2.0, "bias": 0.0})
        >>> params = {"up": jnp.ones(2), "bias": jnp.ones(2)}
        >>> tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
        {'bias': Array([0., 0.], dtype=float32), 'up': Array([0.2, 0.2], dtype=float32)}
    """
    factors = _factors("multipliers", multipliers)
    if not callable(weight_decay):
        validation.number("weight_decay", weight_decay, minimum=0)

    plain = optax.add_decayed_weights(weight_decay)

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            return plain.update(updates, state, None)  # raises optax's own message
        if callable(weight_decay):
            decay = weight_decay(state.count)
            state = state._replace(count=optax.safe_increment(state.count))
        else:
            decay = weight_decay

        def add(path: tuple[Any, ...], update: Any, weight: Any) -> Any:
            factor = paths.look_up("multipliers", factors, paths.path_name(path))
            if factor == 0.0:
                return update
            return update + jnp.asarray(decay * factor, update.dtype) * weight

        return jax.tree_util.tree_map_with_path(add, updates, params), state

    return optax.GradientTransformation(plain.init, update_fn)


def adamw_width_scaled(
    learning_rate: float | jax.Array | Callable,
    weight_decay: float | jax.Array | Callable,
    scaling: rules.WidthScaling,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.95,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose base learning rate and weight decay hold at every width.

    With :math:`u_t` the Adam direction and :math:`(c^\eta, c^\lambda)` the parameter's multipliers,

    .. math:: W_{t+1} = W_t - s(t)\,\eta\, c^\eta \,(u_t + \lambda\, c^\lambda\, W_t) ,

    so for the `robust` rule a matrix trains as under `optax.adamw(lr / m, weight_decay=decay *
    sqrt(m))` and a vector as under `optax.adam(lr)`. The decay is coupled to the schedule. The
    state has exactly the tree of `optax.adamw`: checkpoints and sharding do not depend on width or
    rule. Clip gradients before it.

    Args:
        learning_rate: base learning rate :math:`s(t)\eta \ge 0`: a number, an array of rank 0 (may
            be traced) or a schedule.
        weight_decay: base weight decay :math:`\lambda \ge 0`, likewise.
        scaling: the multipliers, from `width_scaling`.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: dtype of the first moment; None for the parameter's.
        nesterov: whether to use Nesterov momentum.

    Raises:
        ValueError: if a constant is negative, not finite or out of range, or if learning rate times
            weight decay of a parameter reaches 1, where a decay step would flip its sign.

    Source: arXiv 2510.15262, abstract; Adam moments as in arXiv 1711.05101 Algorithm 2.

    Example:
        >>> shape = lambda d: {"up": jax.ShapeDtypeStruct((d, d), "float32")}
        >>> scaling = rules.width_scaling(shape(2), shape(8))
        >>> tx = adamw_width_scaled(0.01, 0.1, scaling)
        >>> params = {"up": jnp.ones((8, 8))}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> round(float(updates["up"][0, 0]), 6)  # -0.01/4 (1 + 0.1*2)
        -0.003
    """
    validation.instance("scaling", scaling, rules.WidthScaling, "what width_scaling returns")
    for name, value in (("b1", b1), ("b2", b2)):
        validation.number(name, value, minimum=0, maximum=1, open_maximum=True)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        validation.number(name, value, minimum=0)
    if not callable(learning_rate):
        validation.number("learning_rate", learning_rate, minimum=0)
    adam = optax.scale_by_adam(
        b1=b1, b2=b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype, nesterov=nesterov
    )
    decay = add_width_scaled_decayed_weights(weight_decay, scaling.weight_decay)
    _check_decay_per_step(learning_rate, weight_decay, scaling)
    return optax.chain(adam, decay, _width_scaled_step(learning_rate, scaling.learning_rate))


def _width_scaled_step(
    learning_rate: float | jax.Array | Callable, multipliers: PyTree
) -> optax.GradientTransformation:
    # One link of the chain rather than two, so that the state tree is the one of optax.adamw.
    width, step = scale_by_width(multipliers), optax.scale_by_learning_rate(learning_rate)

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        updates, _ = width.update(updates, optax.EmptyState(), params)
        return step.update(updates, state, params)

    return optax.GradientTransformation(step.init, update_fn)


def _factors(name: str, multipliers: PyTree, *, open_minimum: bool = False) -> dict[str, float]:
    factors = paths.named_leaves(multipliers)
    for path, factor in factors.items():
        validation.number(f"{name}[{path!r}]", factor, minimum=0, open_minimum=open_minimum)
    return {path: float(factor) for path, factor in factors.items()}


def _check_decay_per_step(
    learning_rate: Any, weight_decay: Any, scaling: rules.WidthScaling
) -> None:
    if any(callable(v) or validation.is_traced(v) for v in (learning_rate, weight_decay)):
        return
    rates = paths.named_leaves(scaling.learning_rate)
    for path, factor in paths.named_leaves(scaling.weight_decay).items():
        product = np.max(np.asarray(learning_rate) * np.asarray(weight_decay))
        product = float(product) * rates[path] * factor
        if product >= 1:
            raise ValueError(
                f"learning_rate * weight_decay must be < 1 for every parameter, got {product:g} "
                f"for {path!r}: each step would flip the sign of the weight"
            )
