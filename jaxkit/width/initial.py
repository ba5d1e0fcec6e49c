"""What else muP asks of a wide model: the scale of initial weights, logits and attention scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxkit import validation
from jaxkit.width import paths, roles


def readout_multiplier(width: int, base_width: int) -> float:
    r"""Return the factor 1/m on the logits, :math:`\text{logits} = h W / m`.

    It acts in the forward pass and not on the weights, so it serves a tied embedding too.

    Args:
        width: size of the readout's input, d.
        base_width: the same at the base width.

    Raises:
        TypeError: if a width is not an integer.
        ValueError: if a width is not positive.

    Source: arXiv 2203.03466 Table 8.

    Example:
        >>> readout_multiplier(512, 64)
        0.125
    """
    width = validation.integer("width", width, minimum=1)
    return validation.integer("base_width", base_width, minimum=1) / width


def attention_scale(head_dim: int, base_head_dim: int | None = None) -> float:
    r"""Return the factor on the attention scores q·k.

    :math:`\sqrt{k_0} / k` where the head dimension k grows with the width, which equals the usual
    :math:`1/\sqrt{k}` at the base; :math:`1/\sqrt{k}` where only the number of heads grows.

    Args:
        head_dim: k.
        base_head_dim: :math:`k_0`, the head dimension at the base width; None if it is the same.

    Raises:
        TypeError: if a dimension is not an integer.
        ValueError: if a dimension is not positive.

    Source: arXiv 2203.03466, Definition 4.1.

    Example:
        >>> attention_scale(64), attention_scale(64, base_head_dim=16)
        (0.125, 0.0625)
    """
    head_dim = validation.integer("head_dim", head_dim, minimum=1)
    if base_head_dim is None:
        return head_dim**-0.5
    return validation.integer("base_head_dim", base_head_dim, minimum=1) ** 0.5 / head_dim


def match_initial_scale(params: PyTree, base_params: PyTree, init_std: PyTree) -> PyTree:
    r"""Rescale fresh parameters to the scale that the base model's have, times `init_std`.

    :math:`W \leftarrow W \cdot s\, \mathrm{rms}(W_0) / \mathrm{rms}(W)` with s the leaf's
    multiplier, whatever initialisers the model uses (a fan-in initialiser on the readout, say,
    would shrink it with the width, which muP does not want). Leaves of zeros stay zero.

    Args:
        params: fresh parameters at the target width.
        base_params: fresh parameters at the base width, same structure.
        init_std: `WidthScaling.init_std`.

    Returns:
        `params`, rescaled; same structure, shapes and dtypes.

    Raises:
        ValueError: if a parameter has no base parameter or no multiplier.

    Source: arXiv 2203.03466 Table 8.

    Example:
        >>> out = match_initial_scale({"w": jnp.full((4, 4), 9.0)}, {"w": jnp.full((1, 1), 2.0)},
        ...                           {"w": 0.5})
        >>> float(out["w"][0, 0])
        1.0
    """
    base_leaves, multipliers = paths.named_leaves(base_params), paths.named_leaves(init_std)

    def rescale(path: tuple[Any, ...], leaf: Any) -> Any:
        name = paths.path_name(path)
        multiplier = paths.look_up("init_std", multipliers, name)
        base_leaf = paths.look_up("base_params", base_leaves, name)
        if not roles.is_trained(leaf):
            return leaf
        rms, base_rms = _rms(leaf), _rms(base_leaf)
        factor = multiplier * base_rms / jnp.where(rms > 0, rms, 1.0)
        return (leaf * factor).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(rescale, params)


def _rms(leaf: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(leaf, jnp.float32))))
