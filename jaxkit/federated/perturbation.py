"""Gradients taken after an ascent step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxkit import validation

Gradient = PyTree[Float[Array, " ..."]]
GradientFunction = Callable[..., Gradient]

# Added to the norm that an ascent direction is divided by, so that a zero gradient gives no step.
_NORM_FLOOR = 1e-7


def ascent_step(gradient: Gradient, rho: Any, *, normalize: bool = True) -> Gradient:
    """The step uphill that a sharpness-aware gradient is taken after.

    e = rho g / (||g|| + 1e-7), or e = rho g without `normalize`; the norm runs over all leaves, in
    float32 or wider.

    Source: arXiv 2302.10429 Algorithm 1; normalised as in the official simulator.
    """
    validation.number("rho", rho, minimum=0)
    if not normalize:
        return jax.tree.map(lambda g: (rho * g).astype(g.dtype), gradient)
    scale = rho / (global_norm(gradient) + _NORM_FLOOR)
    return jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)


def global_norm(tree: PyTree[Shaped[Array, " ..."]]) -> Float[Array, ""]:
    """Global l2 norm of a pytree, summed in float32 or wider."""
    return jnp.asarray(optax.tree.norm(jax.tree.map(widen, tree)))


def widen(array: Shaped[Array, " *shape"]) -> Float[Array, " *shape"]:
    """`array` in float32, or in its own type if that is wider."""
    return jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))


def quasi_gradient(
    rho: Any = 0.1, alpha: Any = 1.0, *, normalize: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Mix each gradient with one taken after an ascent step: FedSpeed's perturbation.

    g1 = the gradient that comes in, g2 = grad_fn(params + e(g1)), out = (1 - alpha) g1 + alpha g2,
    with e of `ascent_step`. No gradient flows through the perturbation. `alpha=1` is
    sharpness-aware minimisation, `alpha=0` the gradient. It keeps no state, costs one more
    gradient a step, and belongs first in a chain.

    `update` needs the extra argument `grad_fn(params, step) -> gradient` on the same mini-batch
    (the contract of `optax.contrib.sam`; `step` is 0). The federated drivers pass it.

    Args:
        rho: length of the ascent step, >= 0.
        alpha: weight of the second gradient, in [0, 1].
        normalize: whether the ascent step has length `rho` (the official simulator) or is
            `rho` times the gradient (Algorithm 1 as printed).

    Raises:
        ValueError: if `rho` or `alpha` is out of range; in `update`, without `grad_fn` or `params`.

    Source: arXiv 2302.10429 Algorithm 1.

    Example:
        >>> optimizer = optax.chain(quasi_gradient(0.1), optax.sgd(0.5))
        >>> params = jnp.array(2.0)
        >>> gradient = jax.grad(lambda w: w**2)
        >>> updates, _ = optimizer.update(
        ...     gradient(params), optimizer.init(params), params,
        ...     grad_fn=lambda at, step: gradient(at),
        ... )
        >>> round(float(updates), 3)  # the gradient at 2.1, times -0.5
        -2.1
    """
    validation.number("rho", rho, minimum=0)
    validation.number("alpha", alpha, minimum=0, maximum=1)

    def update_fn(updates, state, params=None, *, grad_fn: GradientFunction | None = None, **_):
        if grad_fn is None:
            raise ValueError("update needs the extra argument grad_fn(params, step), got None")
        if params is None:
            raise ValueError("update needs params, got None")
        known = None if validation.is_traced(alpha) or jnp.ndim(alpha) else float(alpha)
        if known == 0:
            return updates, state
        ascended = optax.apply_updates(params, ascent_step(updates, rho, normalize=normalize))
        second = grad_fn(ascended, 0)
        if known != 1:
            second = jax.tree.map(
                lambda g1, g2: ((1 - alpha) * g1 + alpha * g2).astype(g1.dtype), updates, second
            )
        return second, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
