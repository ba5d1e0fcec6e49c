"""Generalised linear models: clipped gradients and differences in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit.privacy import clipping, factors
from jaxkit.privacy.bounded_sums import ClippedGradient, counted_sum

#: One example's loss as a function of its score <w, x> and its label.
ScalarLoss = Callable[[Float[Array, ""], Any], Float[Array, ""]]


def logistic_loss(score: Float[Array, ""], label: Any) -> Float[Array, ""]:
    r"""Logistic loss :math:`\log(1 + e^{-ys})` of a score s and a label y in {-1, 1}.

    For rows of norm at most R: Lipschitz with R, smooth with R^2 / 4.

    Example:
        >>> round(float(logistic_loss(jnp.zeros(()), 1.0)), 3)
        0.693
    """
    return jax.nn.softplus(-label * score)


def glm_clipped_grad_sum(
    scalar_loss: ScalarLoss, clip_norm: Any, *, mode: clipping.Mode = "flat"
) -> ClippedGradient:
    r"""Clipped gradient sums of :math:`f(w;(x,y)) = \varphi(\langle w,x\rangle, y)`.

    An example's gradient is :math:`\varphi' x`, so its norm is :math:`|\varphi'| \|x\|` and that of
    a difference :math:`|\varphi'_t - \varphi'_{t-1}| \|x\|`: two products with the data in all.

    Args:
        scalar_loss: `scalar_loss(score, label)` of one example.
        clip_norm: C > 0; may be traced.
        mode: `"flat"`, `"automatic"` or `"normalised"` (there is only one layer).

    Returns:
        The function; parameters are a vector ``[d]``, a batch is a tuple ``(x [B, d], y [B])``.

    Raises:
        ValueError: if the clip norm or mode is not allowed.

    Source: arXiv 2206.00846 section 6.

    Example:
        >>> gradient = glm_clipped_grad_sum(logistic_loss, clip_norm=1.0)
        >>> batch = (jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, -1.0]))
        >>> gradient(jnp.zeros(2), batch).total.tolist()
        [-0.5, 0.5]
    """
    clipping.check_clip_norm(clip_norm, mode)
    slope = jax.vmap(jax.value_and_grad(scalar_loss))

    def clipped_sum(x, slopes, losses, count, bound, mode):
        # One gradient is one outer product; entries that are not finite count as such.
        gradients = factors.outer_products(slopes[:, None, None], x[:, None, :])
        gradients = clipping.computed_once(gradients)
        bounds = clipping.bound_leaves([gradients.norms()], bound, mode)
        total = gradients.weighted_sum(bounds.scales[0] * count)[0]
        return counted_sum(total, losses, bounds.clipped, bounds.non_finite, count)

    def slopes_at(params, batch):
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((params, batch))]
        if [*map(len, shapes)] != [1, 2, 1] or isinstance(batch, dict) or isinstance(params, dict):
            raise ValueError(
                f"params must be a vector [d] and batch (x [B, d], y [B]), got shapes {shapes}"
            )
        if shapes[0][0] != shapes[1][1]:
            raise ValueError(f"x must have the {shapes[0][0]} columns of params, got {shapes[1]}")
        x, y = jnp.asarray(batch[0]), batch[1]
        losses, slopes = slope(jnp.matmul(x, params, precision=jax.lax.Precision.HIGHEST), y)
        return x, losses, slopes

    def sum_fn(params, batch, key, count, bound):
        del key
        x, losses, slopes = slopes_at(params, batch)
        return clipped_sum(x, slopes, losses, count, bound, mode)

    def difference_fn(params, prev_params, batch, key, count, bound):
        del key
        x, losses, slopes = slopes_at(params, batch)
        _, _, prev_slopes = slopes_at(prev_params, batch)
        return clipped_sum(x, slopes - prev_slopes, losses, count, bound, "flat")

    return ClippedGradient(clip_norm, mode, sum_fn, difference_fn)
