"""Sums of clipped gradients as values that know their bound, and functions that make them."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key, PyTree

from jaxkit import pytrees, validation
from jaxkit.privacy import clipping

Neighbours = Literal["add_or_remove", "zero_out", "replace"]
NEIGHBOURS = ("add_or_remove", "zero_out", "replace")
Mask = Bool[Array, " B"] | Int[Array, " B"] | None


@pytrees.dataclass
class BoundedSum:
    """A sum over examples and the bound on what any one of them adds to it.

    Only `total` is protected, and only by noise that follows `clip_norm`; the rest is not private.
    Whatever changes a number but `scale`, such as `jax.tree.map`, voids the bound: noise is refused
    to such a sum, or, inside a program, makes it NaN.

    Attributes:
        total: sum of the clipped gradients, float32 or wider, shaped like the parameters.
        clip_norm: the largest norm of one example's part, C.
        loss: sum of the losses of the examples that count (those with a finite gradient).
        count: number of examples, int32.
        clipped: how many of them were scaled down, int32.
        non_finite: how many contributed 0 because their gradient was not finite, int32.
        aux: what the loss returned beside itself, for each row, or None.
        unit: what one row is: `"example"`, `"user"`, `"client"`.
        rows: size of the batch, masked rows included.
        seal: a hash of the sum, its bound and its counts.
    """

    total: PyTree
    clip_norm: Any
    loss: Any
    count: Any
    clipped: Any
    non_finite: Any
    aux: Any = None
    seal: Any = None
    unit: str = flax.struct.field(pytree_node=False, default="example")
    rows: int = flax.struct.field(pytree_node=False, default=0)

    def scale(self, factor: Any) -> BoundedSum:
        """The sum times a constant, and its bound with it."""
        validation.number("factor", factor)
        own, factor = self.verified(), clipping.single_numbers("factor", factor)
        total, bound = optax.tree.scale(factor, own.total), abs(factor) * own.clip_norm
        return dataclasses.replace(own, total=total, clip_norm=bound).sealed()

    def sealed(self) -> BoundedSum:
        """The same, of which whoever calls this has proved the bound."""
        total = jax.lax.optimization_barrier(self.total)
        # An array, so that what changes every number of a tree reaches the seal and is named there.
        bound = jnp.asarray(self.clip_norm, jnp.result_type(float))
        same = dataclasses.replace(self, total=total, clip_norm=bound)
        same = dataclasses.replace(same, seal=same._hash())
        object.__setattr__(same, "_sealed_numbers", jax.tree.leaves(same))
        return same

    def verified(self) -> BoundedSum:
        """The same if no number was changed since it was sealed; NaN in a program otherwise.

        Raises:
            ValueError: if one was, or it was never sealed.
        """
        # In the program that sealed it no number needs to be compared: it is this very object. The
        # compiler then leaves the hash out.
        numbers = getattr(self, "_sealed_numbers", ())
        if validation.is_traced(self.seal) and [*map(id, numbers)] == [
            *map(id, jax.tree.leaves(self))
        ]:
            return self
        intact = False if self.seal is None else self.seal == self._hash()
        if not validation.is_traced(intact):
            if not intact:
                raise ValueError(
                    "the sum was changed since its bound was proved (by jax.tree.map?): only its "
                    "`scale` keeps the bound, and `sealed` is for whoever has proved another"
                )
            return self
        void = lambda leaf: jnp.where(intact, leaf, jnp.nan)  # noqa: E731
        total, bound = jax.tree.map(void, (self.total, self.clip_norm))
        return dataclasses.replace(self, total=total, clip_norm=bound)

    def _hash(self) -> Any:
        counts = self.count, self.clipped, self.non_finite
        other = zlib.crc32(f"{self.unit} {self.rows}".encode())
        return _hash((self.total, self.clip_norm, counts), other)


@pytrees.dataclass
class ClippedGradient:
    """A function from parameters and a batch to the sum of clipped gradients.

    Call it as `gradient(params, batch, key, mask)`. The mask ``[B]`` says which rows are examples,
    or how many identical examples a row stands for; each of them is clipped on its own.

    Attributes:
        clip_norm: the largest norm C of one example's gradient, or a tree of those of its arrays.
        mode: the clipping mode.
        unit: what one row is.

    Example:
        >>> from jaxkit.privacy.clipped_gradients import clipped_grad_sum
        >>> loss = lambda params, batch, key: jnp.mean(params * batch)
        >>> gradient = clipped_grad_sum(loss, clip_norm=1.0)
        >>> gradient.sensitivity("add_or_remove"), gradient.sensitivity("replace")
        (1.0, 2.0)
    """

    clip_norm: Any
    mode: clipping.Mode = flax.struct.field(pytree_node=False)
    sum_fn: Callable[..., BoundedSum] = flax.struct.field(pytree_node=False, repr=False)
    difference_fn: Callable[..., BoundedSum] = flax.struct.field(pytree_node=False, repr=False)
    unit: str = flax.struct.field(pytree_node=False, default="example")

    # The bound may be an array or a tree, which have no hash.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(
        self, params: PyTree, batch: PyTree, key: Key[Array, ""] | None = None, mask: Mask = None
    ) -> BoundedSum:
        """Sum the clipped gradients of a batch.

        Args:
            params: parameters, any pytree of floating arrays.
            batch: tree of arrays ``[B, ...]``, B >= 1.
            key: for a random loss: example i uses ``fold_in(key, i)``.
            mask: which rows are examples ``[B]`` (all if None), or how many each stands for.

        Returns:
            The sum with its bound and its counts.

        Raises:
            ValueError: if the arrays of the batch differ in size or the mask has another shape, or
                the loss couples the rows of a batch.
        """
        count = _multiplicity(batch, mask)
        found = self.sum_fn(params, batch, key, count, self.clip_norm)
        return dataclasses.replace(
            found,
            clip_norm=clipping.total_clip_norm(self.clip_norm),
            unit=self.unit,
            rows=count.shape[0],
        ).sealed()

    def difference(
        self,
        params: PyTree,
        prev_params: PyTree,
        batch: PyTree,
        bound: Any,
        key: Key[Array, ""] | None = None,
        mask: Mask = None,
    ) -> BoundedSum:
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
        shapes = lambda tree: (jax.tree.structure(tree), [*map(jnp.shape, jax.tree.leaves(tree))])  # noqa: E731
        if shapes(params) != shapes(prev_params):
            raise ValueError("prev_params must be a tree of arrays shaped as those of params")
        count, bound = _multiplicity(batch, mask), clipping.single_numbers("bound", bound)
        found = self.difference_fn(params, prev_params, batch, key, count, bound)
        found = dataclasses.replace(found, clip_norm=bound, unit=self.unit, rows=count.shape[0])
        return found.sealed()

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
        clip_norm = clipping.total_clip_norm(self.clip_norm)
        return 2 * clip_norm if neighbours == "replace" else clip_norm


def widened(gradient: ClippedGradient, params: PyTree) -> tuple[ClippedGradient, PyTree, Any]:
    """A gradient at parameters of a wide type, for steps shorter than the last bit of their own.

    Returns:
        The gradient, the wide parameters, and the function back to the type they had.
    """

    def narrow(tree):
        return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), tree, params)

    wide = jax.tree.map(lambda leaf: leaf.astype(clipping.wide(leaf.dtype)), params)
    lifted = dataclasses.replace(
        gradient,
        sum_fn=lambda w, *rest: gradient.sum_fn(narrow(w), *rest),
        difference_fn=lambda w, v, *rest: gradient.difference_fn(narrow(w), narrow(v), *rest),
    )
    return lifted, wide, narrow


def counted_sum(total, losses, clipped, non_finite, count) -> BoundedSum:
    """Put a total together with the counts of what happened to the examples ``[B]``."""
    counts = lambda flags: jnp.sum(jnp.where(flags, count, 0))  # noqa: E731
    used = (count > 0) & ~non_finite
    loss = jnp.sum(jnp.where(used, losses.astype(jnp.float32) * count, 0))
    # The caller knows the bound.
    return BoundedSum(total, 0.0, loss, jnp.sum(count), counts(clipped), counts(non_finite))


@functools.partial(jax.jit, static_argnums=1)
def _hash(numbers: PyTree, start: int) -> Any:
    """A number that changes with any number of a tree and its place."""

    def mixed(x):
        for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # murmur3's finalizer
            x = (x ^ (x >> shift)) * jnp.uint32(odd)
        return x ^ (x >> 16)

    found = jnp.uint32(start)
    for leaf in map(jnp.asarray, jax.tree.leaves(numbers)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = jax.lax.bitcast_convert_type(leaf.astype(clipping.wide(leaf.dtype)), jnp.uint32)
        places = [jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, i) for i in range(leaf.ndim)]
        place = sum((p * jnp.uint32(0x9E3779B1 + 2 * i) for i, p in enumerate(places)), found)
        found = mixed(
            found + jnp.sum(mixed(leaf.astype(jnp.uint32) ^ mixed(place)), dtype="uint32")
        )
    return found


def _multiplicity(batch: PyTree, mask: Mask) -> Int[Array, " B"]:
    rows = clipping.batch_size("batch", batch)
    if mask is None:
        return jnp.ones(rows, jnp.int32)
    mask = mask if hasattr(mask, "dtype") else jnp.asarray(mask)
    if mask.shape != (rows,):
        raise ValueError(f"mask must have shape ({rows},) like the batch, got {mask.shape}")
    if not jnp.issubdtype(mask.dtype, jnp.integer) and mask.dtype != bool:
        raise TypeError(f"mask must be boolean or integer counts, got {mask.dtype}")
    if not validation.is_traced(mask):
        with jax.ensure_compile_time_eval():  # a constant of a traced caller has its numbers too
            least = int(mask.min())
        if least < 0:
            raise ValueError(f"mask must count examples, got {least}")
    return mask.astype(jnp.int32)
