"""Sums of clipped per-example gradients, and of their differences, as values that know their bound.

Three ways to the same sum: by `vmap` for any loss (here), by ghost norms for Flax models (`ghost`)
and in closed form for generalised linear models (`glm`). All return a `ClippedGradient`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import pytrees, validation
from jaxkit.privacy import clipping

Neighbours = Literal["add_or_remove", "zero_out", "replace"]
NEIGHBOURS = ("add_or_remove", "zero_out", "replace")
Mask = Bool[Array, " B"] | Int[Array, " B"] | None
LossFunction = Callable[[Any, Any, Any], Float[Array, ""]]

#: Bytes of per-example gradients in memory at once. A CPU is fastest with several examples at a
#: time that stay near it, in its second or third cache (scripts/benchmarks/privacy.py).
_CPU_BYTES = 2**23
_ACCELERATOR_BYTES = 2**28


class ClippedSum(NamedTuple):
    """A sum over examples, each bounded. Only `total` is protected, and only after noise.

    Attributes:
        total: sum of the clipped gradients, float32, shaped like the parameters.
        loss: sum of the losses of the examples that count (those with a finite gradient).
        count: number of examples, int32.
        clipped: how many of them were scaled down, int32.
        non_finite: how many contributed 0 because their gradient was not finite, int32.

    Example:
        >>> from jaxkit.privacy import glm
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 0.25)
        >>> batch = (jnp.array([[1.0], [1.0]]), jnp.array([1.0, 1.0]))
        >>> found = jax.jit(gradient)(jnp.zeros(1), batch)
        >>> found.total.tolist(), int(found.count), int(found.clipped)
        ([-0.5], 2, 2)
    """

    total: PyTree[Float[Array, " ..."]]
    loss: Float[Array, ""]
    count: Int[Array, ""]
    clipped: Int[Array, ""]
    non_finite: Int[Array, ""]


class Example(NamedTuple):
    """The gradient of an example and what bounds it; with a batch axis in a microbatch.

    Attributes:
        loss: its loss.
        gradient: its gradient, a `clipping.finite_stand_in`.
        bound: the factors of its arrays.
    """

    loss: Float[Array, "*B"]
    gradient: PyTree[Float[Array, " ..."]]
    bound: clipping.Bound


@pytrees.dataclass
class ClippedGradient:
    """A function from parameters and a batch to the sum of clipped gradients.

    Call it as `gradient(params, batch, key, mask)`. The mask ``[B]`` says which rows are examples,
    or how many identical examples a row stands for; each of them is clipped on its own.

    Attributes:
        clip_norm: the largest norm C of one example's gradient.
        mode: the clipping mode.

    Example:
        >>> loss = lambda params, batch, key: jnp.mean(params * batch)
        >>> gradient = clipped_grad_sum(loss, clip_norm=1.0)
        >>> gradient.sensitivity("add_or_remove"), gradient.sensitivity("replace")
        (1.0, 2.0)
    """

    clip_norm: Any
    mode: clipping.Mode = flax.struct.field(pytree_node=False)
    sum_fn: Callable[..., ClippedSum] = flax.struct.field(pytree_node=False, repr=False)
    difference_fn: Callable[..., ClippedSum] = flax.struct.field(pytree_node=False, repr=False)

    def __call__(
        self, params: PyTree, batch: PyTree, key: Key[Array, ""] | None = None, mask: Mask = None
    ) -> ClippedSum:
        """Sum the clipped gradients of a batch.

        Args:
            params: parameters, any pytree of floating arrays.
            batch: tree of arrays ``[B, ...]``, B >= 1.
            key: for a random loss: example i uses ``fold_in(key, i)``.
            mask: which rows are examples ``[B]`` (all if None), or how many each stands for.

        Returns:
            The sum with its counts.

        Raises:
            ValueError: if the arrays of the batch differ in size or the mask has another shape.
        """
        return self.sum_fn(params, batch, key, _multiplicity(batch, mask), self.clip_norm)

    def difference(
        self,
        params: PyTree,
        prev_params: PyTree,
        batch: PyTree,
        bound: Any,
        key: Key[Array, ""] | None = None,
        mask: Mask = None,
    ) -> ClippedSum:
        r"""Sum the clipped differences :math:`\nabla f(w;x) - \nabla f(w';x)` (flat clipping).

        Args:
            params: w.
            prev_params: w'.
            batch: tree of arrays ``[B, ...]``.
            bound: largest norm of one example's difference, >= 0; at 0 everything is 0.
            key: both gradients of example i use ``fold_in(key, i)``.
            mask: as in the call.

        Returns:
            The sum with its counts; `loss` is that at w.
        """
        return self.difference_fn(
            params, prev_params, batch, key, _multiplicity(batch, mask), bound
        )

    def sensitivity(self, neighbours: Neighbours = "add_or_remove") -> Any:
        """How far the sum moves between neighbouring data sets.

        Args:
            neighbours: `"add_or_remove"` or `"zero_out"` one example: C; `"replace"` one: 2 C.

        Returns:
            The l2 sensitivity of `total`.

        Raises:
            ValueError: if the relation is unknown.
        """
        validation.choice("neighbours", neighbours, NEIGHBOURS)
        return 2 * self.clip_norm if neighbours == "replace" else self.clip_norm


def clipped_grad_sum(
    loss_fn: LossFunction,
    clip_norm: Any,
    *,
    mode: clipping.Mode = "flat",
    microbatch_size: int | None = None,
) -> ClippedGradient:
    r"""Clip the gradient of each example of any loss, and sum.

    .. math:: \sum_i m_i\, \mathrm{clip}_C(\nabla_w f(w; x_i))

    Args:
        loss_fn: `loss_fn(params, batch, key)`, the mean over rows; it is called on single rows
            (leading size 1), so that a loss written for batches needs no change.
        clip_norm: C > 0; may be traced.
        mode: see `clip_per_example`.
        microbatch_size: examples whose gradients are in memory at once; by default as many as fit
            in 8 MiB (CPU) or 256 MiB. Does not change the result beyond rounding.

    Returns:
        The function, which knows its sensitivity.

    Raises:
        ValueError: if a number or the mode is not allowed.

    Source: Abadi et al. 2016; differences arXiv 2206.00846 Algorithm 2.

    Example:
        >>> loss = lambda params, batch, key: jnp.mean((params["w"] - batch) ** 2) / 2
        >>> gradient = clipped_grad_sum(loss, clip_norm=1.0)
        >>> result = gradient({"w": jnp.zeros(())}, jnp.array([0.5, -3.0, jnp.nan]))
        >>> float(result.total["w"]), int(result.clipped), int(result.non_finite)
        (0.5, 1, 1)
    """
    clipping.check_clip_norm(clip_norm, mode)
    if microbatch_size is not None:
        validation.integer("microbatch_size", microbatch_size, minimum=1)

    def gradient(params, row, index, key):
        one = jax.tree.map(lambda x: x[None], row)
        example_key = None if key is None else jax.random.fold_in(key, index)
        return jax.value_and_grad(loss_fn)(params, one, example_key)

    def sum_fn(params, batch, key, count, bound):
        def example(row, index):
            loss, grad = gradient(params, row, index, key)
            return _bounded(loss, grad, bound, mode)

        return _sum_rows(example, batch, count, params, microbatch_size)

    def difference_fn(params, prev_params, batch, key, count, bound):
        def example(row, index):
            loss, grad = gradient(params, row, index, key)
            _, prev_grad = gradient(prev_params, row, index, key)
            difference = optax.tree.sub(grad, prev_grad)
            return _bounded(loss, difference, bound, "flat")

        return _sum_rows(example, batch, count, params, microbatch_size)

    return ClippedGradient(clip_norm, mode, sum_fn, difference_fn)


def default_microbatch_size(params: PyTree, rows: int) -> int:
    """How many per-example gradients `clipped_grad_sum` keeps in memory at once.

    Of the sizes between half of what fits and all that fits, the one that needs the least padding.

    Example:
        >>> default_microbatch_size(jnp.zeros(1000), 4)
        4
        >>> default_microbatch_size(jnp.zeros(2**19), 6)
        3
    """
    limit = _CPU_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    gradient_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    fitting = max(1, min(rows, limit // max(1, gradient_bytes)))
    return max(range((fitting + 1) // 2, fitting + 1), key=lambda size: (-(-rows % size), size))


def _bounded(loss, gradient, clip_norm, mode) -> Example:
    gradient = clipping.finite_stand_in(gradient)
    return Example(loss, gradient, clipping.one_bound(gradient, clip_norm, mode))


def _sum_rows(example, batch, count, params, microbatch_size):
    rows = count.shape[0]
    size = microbatch_size or default_microbatch_size(params, rows)
    size = min(size, rows)
    index = jnp.arange(rows)
    # Rows that stand for no example fill the last microbatch; their gradients are multiplied by 0.
    padding = -rows % size
    batch, index, count = jax.tree.map(
        lambda x: (
            jnp.concatenate([x, jnp.broadcast_to(x[:1], (padding, *x.shape[1:]))]) if padding else x
        ),
        (batch, index, count),
    )
    count = count.at[rows:].set(0) if padding else count

    def microbatch_sum(batch, index, count):
        return weighted_total(jax.vmap(example)(batch, index), count)

    if size == count.shape[0]:
        return microbatch_sum(batch, index, count)
    add = optax.microbatching.AccumulationType.SUM
    return optax.microbatching.microbatch(microbatch_sum, (0, 1, 2), size, add)(batch, index, count)


def weighted_total(examples: Example, count: Int[Array, " B"]) -> ClippedSum:
    """Sum gradients ``[B, ...]``, each times its scale and its multiplicity."""

    def add(scales, leaf):
        # As a product, because XLA's CPU backend is slow at sums over the leading axis; in full
        # precision, because that of accelerators could exceed the bound.
        weights = scales * count
        return jnp.einsum("b,b...->...", weights, leaf, precision=jax.lax.Precision.HIGHEST)

    bound = examples.bound
    total = jax.tree.map(add, bound.scales, examples.gradient)
    return counted_sum(total, examples.loss, bound.clipped, bound.non_finite, count)


def counted_sum(total, losses, clipped, non_finite, count) -> ClippedSum:
    """Put a total together with the counts of what happened to the examples ``[B]``."""
    counts = lambda flags: jnp.sum(jnp.where(flags, count, 0))  # noqa: E731
    used = (count > 0) & ~non_finite
    loss = jnp.sum(jnp.where(used, losses.astype(jnp.float32) * count, 0))
    return ClippedSum(total, loss, jnp.sum(count), counts(clipped), counts(non_finite))


def _multiplicity(batch: PyTree, mask: Mask) -> Int[Array, " B"]:
    rows = clipping.batch_size("batch", batch)
    if mask is None:
        return jnp.ones(rows, jnp.int32)
    if jnp.shape(mask) != (rows,):
        raise ValueError(f"mask must have shape ({rows},) like the batch, got {jnp.shape(mask)}")
    if not jnp.issubdtype(mask.dtype, jnp.integer) and mask.dtype != bool:
        raise TypeError(f"mask must be boolean or integer counts, got {mask.dtype}")
    return mask.astype(jnp.int32)
