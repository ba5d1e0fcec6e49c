"""By how much a sublayer amplifies its input, and whether that stays the same at another width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxkit import validation
from jaxkit.width import paths, roles, rules


def sublayer_gain(
    x: Float[Array, "... n_in"],
    y: Float[Array, "... n_out"],
    *,
    per_example: bool = False,
    eps: float = 0.0,
) -> Float[Array, "*shape"]:
    r"""Return the gain :math:`\|y\|_\text{rms} / \|x\|_\text{rms}` of a sublayer y = f(x).

    For a linear sublayer y = xW it is at most :math:`\sigma_1(W) \sqrt{n_\text{in}/n_\text{out}}`,
    and :math:`\|W\|_F / \sqrt{n_\text{out}}` for isotropic x.

    Args:
        x: input of the sublayer.
        y: its output, same leading axes.
        per_example: take the mean square over the features only, instead of over all axes.
        eps: added to both mean squares, against division by zero.

    Returns:
        The gain, f32: one number, or one for each example (shape of the leading axes).

    Raises:
        ValueError: if the leading axes differ or eps is negative.

    Source: arXiv 2510.15262, Figure 1 caption.

    Example:
        >>> float(sublayer_gain(jnp.ones((2, 4)), 3 * jnp.ones((2, 6))))
        3.0
    """
    validation.number("eps", eps, minimum=0)
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"x and y must have the same leading axes, got {x.shape} and {y.shape}")
    axes = -1 if per_example else None

    def mean_square(z: Array) -> Array:
        return jnp.mean(jnp.square(z.astype(jnp.float32)), axis=axes) + eps

    return jnp.sqrt(mean_square(y) / mean_square(x))


def gain_invariance(
    base: PyTree, target: PyTree, *, scaling: rules.WidthScaling | None = None
) -> PyTree:
    r"""Compare the top singular values of two trained models of different width.

    .. math:: r = \frac{\langle\sigma_1(\text{target})\rangle}{\langle\sigma_1(\text{base})\rangle}
                  \sqrt{\frac{m_\text{in}}{m_\text{out}}}

    with the mean over stacked layers. r near 1 says that gains match and hyper-parameters transfer;
    r > 1 that the target has too little weight decay (see `corrected_weight_decay`).

    Args:
        base: `top_singular_values` of the base model, f32[..., k] for each matrix; only the first
            of the k is used.
        target: the same of the target model.
        scaling: gives the growth of the two sides of each matrix; without it they are taken to
            grow alike.

    Returns:
        Tree of f32[], r for each matrix; None where the parameter is no matrix.

    Raises:
        ValueError: if a matrix of one tree is missing in the other.

    Source: arXiv 2510.15262, abstract (matching top singular values as a diagnostic).

    Example:
        >>> r = gain_invariance({"up": jnp.array([2.0])}, {"up": jnp.array([3.0])})
        >>> float(r["up"])
        1.5
    """
    bases, targets = paths.named_leaves(base), paths.named_leaves(target)
    infos = paths.named_leaves(scaling.info) if scaling is not None else {}
    for path in bases:
        paths.look_up("target", targets, path)

    def ratio(path: tuple, values: Array) -> Array:
        name = paths.path_name(path)
        r = jnp.mean(values[..., 0]) / jnp.mean(paths.look_up("base", bases, name)[..., 0])
        if scaling is None:
            return r
        info: roles.WidthInfo = paths.look_up("scaling", infos, name)
        return r * (info.width_mult / info.fan_out_mult) ** 0.5

    return jax.tree_util.tree_map_with_path(ratio, target)


def corrected_weight_decay(weight_decay: ArrayLike, ratio: ArrayLike) -> Float[Array, "*shape"]:
    r"""Return the weight decay that would have made the gains match, :math:`\lambda r^2`.

    Follows from :math:`\sigma_1 \sim \sqrt{\eta/\lambda}` at fixed learning rate.

    Args:
        weight_decay: the decay the target was trained with.
        ratio: r from `gain_invariance`.

    Returns:
        The corrected decay.

    Raises:
        ValueError: if the decay is negative or the ratio not positive.

    Source: arXiv 2510.15262, abstract, solved for the decay.

    Example:
        >>> float(corrected_weight_decay(0.1, 2.0))
        0.4000000059604645
    """
    validation.number("weight_decay", weight_decay, minimum=0)
    validation.number("ratio", ratio, minimum=0, open_minimum=True)
    return jnp.asarray(weight_decay) * jnp.square(jnp.asarray(ratio))
