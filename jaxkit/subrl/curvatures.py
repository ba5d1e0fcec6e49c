"""Curvature of a set function, and what it promises of modular plans."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit import submodular


def curvature(function: submodular.SetFunction) -> Float[Array, ""]:
    r"""Compute $c = 1 - \min_{v: F(v) > 0} F(v \mid V \setminus v) / F(v)$, in `[0, 1]`.

    For sets of distinct items $(1 - c) \sum F(v) \le F(\tau) \le \sum F(v)$, so a plan
    that is optimal for the sum reaches $(1 - c)$ of the optimum of F. Where a repeated visit counts
    once, the items of the sum must be time-stamped, and c is 1: the bound says nothing. It says
    something for `measurements`, where each visit has noise of its own.

    Args:
        function: F over n items; n chains of n items are built.

    Returns:
        c; 0 for a modular F.

    Source: arXiv 2307.13372, curvature; Conforti and Cornuejols 1984.

    Example:
        >>> float(curvature(submodular.modular(jnp.array([1.0, 2.0]))))
        0.0
    """
    n = function.num_items
    items = jnp.arange(n)

    def last_gain(item):
        rest = submodular.set_functions.add_all(function, function.init(), items, items != item)
        return function.gains(rest, item)

    alone = function.gains(function.init())
    ratio = jax.lax.map(last_gain, items) / jnp.where(alone > 0, alone, 1)
    return 1 - jnp.min(jnp.where(alone > 0, ratio, 1))


def modular_guarantee(curvature: Float[Array, ""]) -> submodular.Guarantee:
    """State what the modular optimum promises of the true one.

    Args:
        curvature: c over time-stamped items.

    Returns:
        The ratio 1 - c; 0 says nothing.

    Source: arXiv 2307.13372, the bound by curvature.

    Example:
        >>> modular_guarantee(jnp.array(0.25)).ratio
        0.75
    """
    return submodular.Guarantee(1 - float(curvature), "always")
