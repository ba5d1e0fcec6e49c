"""Bounding what one example can contribute: norms that are never too small, and clipping modes.

Every norm here is an *upper bound* of the true one: the computed value plus the most that rounding
can have taken from it. A factor C / norm then keeps the rounded result within C.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from jaxkit import validation

Mode = Literal["flat", "per_layer", "automatic", "normalised"]
MODES = ("flat", "per_layer", "automatic", "normalised")
#: Stabiliser of the automatic mode (AUTO-S).
AUTOMATIC_GAMMA = 0.01
#: Numbers added in one go: the error of a sum grows with how many follow each other.
_BLOCK = 64


class ClippedExamples(NamedTuple):
    """Gradients of single examples, each bounded.

    Attributes:
        gradients: tree of arrays ``[B, ...]``; no example's norm exceeds the clip norm.
        norms: norms before clipping ``[B]``, infinite where a gradient is not finite.
        clipped: which examples were scaled down ``[B]``.
        non_finite: which examples had a norm that is not finite and now are exactly 0 ``[B]``.
    """

    gradients: PyTree[Float[Array, "B ..."]]
    norms: Float[Array, " B"]
    clipped: Bool[Array, " B"]
    non_finite: Bool[Array, " B"]


def check_clip_norm(clip_norm: Any, mode: str) -> None:
    """Raise if the bound, or one of the bounds of a tree, or the mode is not allowed."""
    leaves = jax.tree.leaves(clip_norm)
    if not leaves:
        raise ValueError(f"clip_norm must hold at least one number, got {clip_norm!r}")
    for leaf in leaves:
        validation.number("clip_norm", leaf, minimum=0, open_minimum=True)
    single_numbers("clip_norm", clip_norm)
    validation.choice("mode", mode, MODES)
    if mode != "flat" and jax.tree.structure(clip_norm) != jax.tree.structure(0):
        raise ValueError(f"mode must be 'flat' where clip_norm is a tree, got {mode!r}")


def single_numbers(name: str, tree: PyTree) -> PyTree:
    """A number or a tree of them, none so narrow that its products with others round away noise.

    An array of several would give rows, or entries, bounds of their own that the noise misses.
    """
    for leaf in jax.tree.leaves(tree):
        if jnp.shape(leaf):
            raise ValueError(f"{name} must be a single number, got an array of {jnp.shape(leaf)}")
    narrow = lambda n: hasattr(n, "dtype") and n.dtype.itemsize < 4  # noqa: E731
    return jax.tree.map(lambda n: n.astype(jnp.float32) if narrow(n) else n, tree)


def total_clip_norm(clip_norm: Any) -> Any:
    """The bound on a whole gradient, C, or the root of the sum of squares of a tree of bounds."""
    leaves = jax.tree.leaves(single_numbers("clip_norm", clip_norm))
    if len(leaves) == 1:
        return leaves[0]
    return joint_norm([jnp.asarray(leaf, jnp.result_type(float)) for leaf in leaves])


def wide(dtype: Any) -> Any:
    """The type that sums are kept in: float64 for float64 (under x64), else float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def rounding(count: float, dtype: Any) -> float:
    r"""Relative error of a sum of products of `count` terms: :math:`\gamma_n = nu/(1-nu)`."""
    unit = float(jnp.finfo(dtype).eps) / 2
    return count * unit / (1 - min(count * unit, 0.5))


@jax.jit
def norm_bound(*leaves: Shaped[Array, " ..."]) -> Float[Array, ""]:
    """The norm of all entries of arrays, never below the true one; infinite or NaN where one is.

    The largest entry is divided out first, so that squares neither vanish nor overflow, and sums
    are made in blocks, so that small entries are not lost beside a long sum.
    """
    leaves = tuple(leaf.astype(wide(leaf.dtype)) for leaf in leaves)
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves])
    unit = divisor(largest)
    scale = jnp.where(jnp.isfinite(largest), unit, largest)
    return scale * unit_norm_bound(*(leaf / unit for leaf in leaves))


def unit_norm_bound(*leaves: Float[Array, " ..."]) -> Float[Array, ""]:
    """As `norm_bound`, where the largest entry is about 1 or all are 0: nothing is divided."""
    parts, added = [jnp.square(leaf).ravel() for leaf in leaves], 0
    while len(parts) > 1 or parts[0].size > 1:
        block = min(_BLOCK, max(1, *(part.size for part in parts)))
        parts = [jnp.pad(part, (0, -part.size % block)).reshape(-1, block).sum(1) for part in parts]
        # Without a barrier the compiler joins the levels to one long sum.
        total, added = jax.lax.optimization_barrier(jnp.concatenate(parts)), added + block
        parts = [total]
    # A root has half the relative error of its square.
    error = rounding(added / 2 + 5, leaves[0].dtype)
    return jnp.sqrt(parts[0].sum()) * (1 + error)


def joint_norm(norms: list[Float[Array, " *B"]]) -> Float[Array, " *B"]:
    """The norm of a vector from bounds on the norms of its parts."""
    if len(norms) == 1:
        return norms[0]
    stacked = jnp.stack(norms)
    largest = jnp.max(stacked, 0)
    unit = divisor(largest)
    error = rounding(len(norms) / 2 + 5, stacked.dtype)
    scaled = jnp.sqrt(jnp.sum(jnp.square(stacked / unit), 0))
    return jnp.where(jnp.isfinite(largest), unit, largest) * scaled * (1 + error)


def clip_scales(
    norms: Float[Array, " ..."], clip_norm: Any, mode: Mode = "flat"
) -> Float[Array, " ..."]:
    r"""The factor that bounds a vector of given norm; 0 where the norm is not finite.

    .. math::
        \text{flat: } \min(1, C/\|g\|), \quad
        \text{automatic: } C/(\|g\| + 0.01), \quad \text{normalised: } C/\|g\|
    """
    # A quotient and its product with an entry are each rounded, perhaps up.
    norms = norms * (1 + rounding(4, norms.dtype))
    positive = jnp.where(norms > 0, norms, 1)
    if mode == "automatic":
        scales = clip_norm / (norms + AUTOMATIC_GAMMA)
    elif mode == "normalised":
        scales = jnp.where(norms > 0, clip_norm / positive, 0)
    else:
        scales = jnp.where(norms > 0, jnp.minimum(1, clip_norm / positive), 1)
    return jnp.where(jnp.isfinite(norms) & jnp.isfinite(scales), scales, 0)


class Bound(NamedTuple):
    """What keeps gradients within their bounds.

    Attributes:
        scales: one factor ``[*B]`` for each array of the gradient, in order.
        norm: the norms before clipping ``[*B]``.
        clipped: whether a factor is below 1 ``[*B]``.
        non_finite: whether the norm is not finite and all factors are therefore 0 ``[*B]``.
    """

    scales: list[Float[Array, " *B"]]
    norm: Float[Array, " *B"]
    clipped: Bool[Array, " *B"]
    non_finite: Bool[Array, " *B"]


def bound_leaves(norms: list[Float[Array, " *B"]], clip_norm: Any, mode: Mode) -> Bound:
    """The factors that bound gradients whose arrays have at most these norms.

    Args:
        norms: one for each array of the gradient, ``[*B]``.
        clip_norm: C, or the list of bounds of the arrays.
        mode: see `clip_per_example`.
    """
    norm = joint_norm(norms)
    finite = jnp.isfinite(norm)
    if isinstance(clip_norm, list):
        factors = [clip_scales(n, limit) for n, limit in zip(norms, clip_norm, strict=True)]
    elif mode == "per_layer":
        factors = [clip_scales(n, clip_norm / len(norms) ** 0.5) for n in norms]
    else:
        factors = [clip_scales(norm, clip_norm, mode)] * len(norms)
    clipped = finite & jnp.any(jnp.stack(factors) < 1, axis=0)
    return Bound([jnp.where(finite, f, 0) for f in factors], norm, clipped, ~finite)


def leaf_bounds(clip_norm: Any, params: PyTree) -> Any:
    """A tree of bounds as the list that belongs to the arrays of a tree; a number stays itself."""
    clip_norm = single_numbers("clip_norm", clip_norm)
    if jax.tree.structure(clip_norm) == jax.tree.structure(0):
        return clip_norm
    if jax.tree.structure(clip_norm) != jax.tree.structure(params):
        raise ValueError(
            "clip_norm must be a number or a tree of numbers like the parameters, got "
            f"{jax.tree.structure(clip_norm)} for {jax.tree.structure(params)}"
        )
    return jax.tree.leaves(clip_norm)


def clip_per_example(
    gradients: PyTree[Shaped[Array, "B ..."]], clip_norm: Any, *, mode: Mode = "flat"
) -> ClippedExamples:
    r"""Bound the gradient of each example of a batch.

    .. math::
        \text{flat: } \min(1, C/\|g\|)g, \quad \text{automatic: } C g/(\|g\| + 0.01), \quad
        \text{normalised: } C g/\|g\|

    Per-layer clipping bounds each of the K arrays of the tree by :math:`C/\sqrt K`. In every mode
    :math:`\|\mathrm{clip}(g)\| \le C`, and a gradient whose norm is not finite becomes exactly 0.

    Args:
        gradients: tree of arrays ``[B, ...]`` with one leading size B >= 1.
        clip_norm: C > 0, or a tree of bounds, one for each array; may be traced.
        mode: `"flat"`, `"per_layer"`, `"automatic"` or `"normalised"`.

    Returns:
        The clipped gradients, in float32 (float64 for float64), with what was done to each.

    Raises:
        ValueError: if the clip norm or mode is not allowed, or sizes differ.

    Source: Abadi et al. 2016 (flat), Bu et al. 2023 (automatic, AUTO-S).

    Example:
        >>> result = clip_per_example({"w": jnp.array([[3.0, 4.0], [jnp.nan, 0.0]])}, 1.0)
        >>> print(result.gradients["w"].round(3), result.non_finite)
        [[0.6 0.8]
         [0.  0. ]] [False  True]
    """
    check_clip_norm(clip_norm, mode)
    batch_size("gradients", gradients)
    leaves, structure = jax.tree.flatten(gradients)
    bounds = leaf_bounds(clip_norm, gradients)
    leaves = computed_once(leaves)
    norms = [jax.vmap(norm_bound)(leaf) for leaf in leaves]
    bound = bound_leaves(norms, bounds, mode)
    clipped = [
        scale.reshape(-1, *(1,) * (leaf.ndim - 1)) * finite_entries(leaf)
        for scale, leaf in zip(bound.scales, leaves, strict=True)
    ]
    return ClippedExamples(
        jax.tree.unflatten(structure, clipped),
        jnp.where(bound.non_finite, jnp.inf, bound.norm),
        bound.clipped,
        bound.non_finite,
    )


def computed_once(tree: PyTree) -> PyTree:
    """The same values, made once: readers see them rounded alike, so a norm holds for a sum.

    A compiler may put what computes an array into each of its readers and contract it differently
    there; where terms cancel, as in differences of gradients, the two then differ visibly. XLA's
    CPU compiler drops `optimization_barrier` before it fuses, but keeps a loop of unknown length.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = [index for index, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    for index, leaf in zip(arrays, _held([leaves[i] for i in arrays]), strict=True):
        leaves[index] = leaf
    return jax.tree.unflatten(structure, leaves)


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)  # once, also where a clip itself is not compiled
def _held(arrays: list[jax.Array]) -> list[jax.Array]:
    if not arrays:
        return []

    def looped(*arrays):
        # No turn is made, which the compiler cannot know: constants, or parts that are, are not all
        # of these entries.
        some = [array.ravel()[:: max(1, array.size // 3)] for array in arrays]
        turns = jnp.minimum(0, sum(jnp.sum(entries > 0) for entries in some))
        step = lambda i, held: [array + i.astype(array.dtype) for array in held]  # noqa: E731
        return jax.lax.fori_loop(0, turns, step, list(arrays))

    barrier = lambda *arrays: list(jax.lax.optimization_barrier(arrays))  # noqa: E731
    return jax.lax.platform_dependent(*arrays, cpu=looped, default=barrier)


@_held.defjvp
def _(primals, tangents):
    return _held(*primals), tangents[0]


def finite_entries(leaf: Shaped[Array, " ..."]) -> Float[Array, " ..."]:
    """An array in its wide type with 0 for what is not finite, so that 0 times it is 0."""
    leaf = leaf.astype(wide(leaf.dtype))
    return jnp.where(jnp.isfinite(leaf), leaf, 0)


def batch_size(name: str, tree: PyTree) -> int:
    """The one leading size of all arrays of a tree, or raise."""
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


def divisor(largest: Float[Array, " *B"]) -> Float[Array, " *B"]:
    """What to divide entries by: about the largest, never 0, and with a normal reciprocal.

    Compilers make a product with the reciprocal of a division, and subnormal numbers are zeros.
    """
    tiny = float(jnp.finfo(largest.dtype).tiny)
    usable = (largest >= tiny) & jnp.isfinite(largest)
    return jnp.where(usable, jnp.minimum(largest, 1 / tiny), 1)
