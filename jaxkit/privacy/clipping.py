"""Bounding what one example can contribute: the clipping modes, on gradients already at hand."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from jaxkit import validation

Mode = Literal["flat", "per_layer", "automatic", "normalised"]
MODES = ("flat", "per_layer", "automatic", "normalised")
#: Stabiliser of the automatic mode (AUTO-S).
AUTOMATIC_GAMMA = 0.01


class ClippedExamples(NamedTuple):
    """Gradients of single examples, each bounded.

    Attributes:
        gradients: tree of float32 arrays ``[B, ...]``; no example's norm exceeds the clip norm.
        norms: norms before clipping ``[B]``, infinite where a gradient is not finite.
        clipped: which examples were scaled down ``[B]``.
        non_finite: which examples had a norm that is not finite and now are exactly 0 ``[B]``.

    Example:
        >>> result = clip_per_example(jnp.array([[3.0, 4.0], [0.5, 0.0]]), 1.0)
        >>> result.norms.tolist(), result.clipped.tolist()
        ([5.0, 0.5], [True, False])
    """

    gradients: PyTree[Float[Array, "B ..."]]
    norms: Float[Array, " B"]
    clipped: Bool[Array, " B"]
    non_finite: Bool[Array, " B"]


class Bound(NamedTuple):
    """What keeps one gradient within its bound.

    Attributes:
        scales: tree of scalars, the factor of each array of the gradient.
        norm: the norm before clipping.
        clipped: whether a factor is below 1.
        non_finite: whether the norm is not finite and all factors are therefore 0.
    """

    scales: PyTree[Float[Array, ""]]
    norm: Float[Array, ""]
    clipped: Bool[Array, ""]
    non_finite: Bool[Array, ""]


def check_clip_norm(clip_norm: Any, mode: str) -> None:
    """Raise if the bound or the mode is not allowed (used by everything that clips).

    Example:
        >>> check_clip_norm(1.0, "flat")
    """
    validation.number("clip_norm", clip_norm, minimum=0, open_minimum=True)
    validation.choice("mode", mode, MODES)


def clip_scales(
    norms: Float[Array, " ..."], clip_norm: Any, mode: Mode = "flat"
) -> Float[Array, " ..."]:
    r"""The factor that bounds a vector of given norm.

    .. math::
        \text{flat: } \min(1, C/\|g\|), \quad
        \text{automatic: } C/(\|g\| + 0.01), \quad \text{normalised: } C/\|g\|

    A norm that is not finite has factor 0, and so has norm 0 when it cannot be normalised.

    Args:
        norms: norms of the vectors, any shape.
        clip_norm: C > 0; may be traced.
        mode: as above; `"per_layer"` is flat clipping of each layer and takes the flat factor.

    Returns:
        Factors of the same shape.

    Source: Abadi et al. 2016 (flat), Bu et al. 2023 (automatic, AUTO-S).

    Example:
        >>> clip_scales(jnp.array([0.5, 4.0, jnp.inf]), 1.0).tolist()
        [1.0, 0.25, 0.0]
    """
    positive = jnp.where(norms > 0, norms, 1)
    if mode == "automatic":
        scales = clip_norm / (norms + AUTOMATIC_GAMMA)
    elif mode == "normalised":
        scales = jnp.where(norms > 0, clip_norm / positive, 0)
    else:
        scales = jnp.where(norms > 0, jnp.minimum(1, clip_norm / positive), 1)
    return jnp.where(jnp.isfinite(norms), scales, 0)


def clip_per_example(
    gradients: PyTree[Shaped[Array, "B ..."]], clip_norm: Any, *, mode: Mode = "flat"
) -> ClippedExamples:
    r"""Bound the gradient of each example of a batch.

    Flat, automatic and normalised clipping scale the whole gradient (`clip_scales`); per-layer
    clipping bounds each of the K arrays of the tree by :math:`C/\sqrt K`. In every mode
    :math:`\|\mathrm{clip}(g)\| \le C`, and a gradient whose norm is not finite becomes exactly 0.

    Args:
        gradients: tree of arrays ``[B, ...]`` with one leading size B >= 1.
        clip_norm: C > 0; may be traced.
        mode: `"flat"`, `"per_layer"`, `"automatic"` or `"normalised"`.

    Returns:
        The clipped gradients in float32 with what was done to each.

    Raises:
        ValueError: if the clip norm or mode is not allowed, or sizes differ.

    Source: arXiv 2206.00846 assumes bounded gradients; modes as in `clip_scales`.

    Example:
        >>> result = clip_per_example({"w": jnp.array([[3.0, 4.0], [jnp.nan, 0.0]])}, 1.0)
        >>> print(result.gradients["w"], result.non_finite)
        [[0.6 0.8]
         [0.  0. ]] [False  True]
    """
    check_clip_norm(clip_norm, mode)
    batch_size("gradients", gradients)
    return jax.vmap(lambda gradient: clip_one(gradient, clip_norm, mode))(gradients)


def clip_one(
    gradient: PyTree[Shaped[Array, " ..."]], clip_norm: Any, mode: Mode
) -> ClippedExamples:
    """Bound one gradient without a batch axis; the fields of the result are scalars.

    Example:
        >>> float(clip_one(jnp.array([3.0, 4.0]), 1.0, "flat").norms)
        5.0
    """
    gradient = finite_stand_in(gradient)
    bounds = one_bound(gradient, clip_norm, mode)
    clipped = jax.tree.map(lambda scale, leaf: scale * leaf, bounds.scales, gradient)
    return ClippedExamples(clipped, bounds.norm, bounds.clipped, bounds.non_finite)


def finite_stand_in(gradient: PyTree[Shaped[Array, " ..."]]) -> PyTree[Float[Array, " ..."]]:
    """A gradient in float32 whose infinities and NaNs are the largest number instead.

    Its norm still overflows, so that the example is seen and its factor is 0; but 0 times it is 0,
    and a weighted sum over examples needs no second look at each entry.

    Example:
        >>> stand_in = finite_stand_in(jnp.array([jnp.nan, 2.0]))
        >>> print(0 * stand_in, jnp.sum(stand_in**2))
        [0. 0.] inf
    """
    largest = float(jnp.finfo(jnp.float32).max)

    def finite(leaf):
        leaf = leaf.astype(jnp.float32)
        return jnp.nan_to_num(leaf, nan=largest, posinf=largest, neginf=-largest)

    return jax.tree.map(finite, gradient)


def one_bound(gradient: PyTree[Float[Array, " ..."]], clip_norm: Any, mode: Mode) -> Bound:
    """The factors that bound one gradient, a `finite_stand_in`.

    Example:
        >>> float(one_bound(jnp.array([3.0, 4.0]), 1.0, "flat").scales)
        0.20000000298023224
    """
    squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), gradient)
    leaves, structure = jax.tree.flatten(squares)
    norm = jnp.sqrt(sum(leaves))
    finite = jnp.isfinite(norm)
    if mode == "per_layer":
        limit = clip_norm / len(leaves) ** 0.5
        factors = [clip_scales(jnp.sqrt(square), limit) for square in leaves]
    else:
        factors = [clip_scales(norm, clip_norm, mode)] * len(leaves)
    clipped = finite & jnp.any(jnp.stack(factors) < 1)
    scales = jax.tree.unflatten(structure, [jnp.where(finite, f, 0) for f in factors])
    return Bound(scales, norm, clipped, ~finite)


def batch_size(name: str, tree: PyTree) -> int:
    """The one leading size of all arrays of a tree, or raise.

    Example:
        >>> batch_size("batch", {"x": jnp.zeros((3, 2)), "y": jnp.zeros(3)})
        3
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {tree!r}")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    sizes = sorted({shape[0] if shape else -1 for shape in shapes})
    if len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(
            f"every array of {name} must have the same leading size >= 1, got shapes "
            + ", ".join(map(str, shapes))
        )
    return sizes[0]
