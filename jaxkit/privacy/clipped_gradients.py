"""Sums of clipped per-example gradients, and of their differences, as values that know their bound.

Two ways to the same sum: from the program of any loss (`clipped_grad_sum`), and in closed form for
generalised linear models (`glm`). Both return a `ClippedGradient`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import pytrees, validation
from jaxkit.privacy import clipping
from jaxkit.privacy.factors import Factors
from jaxkit.privacy.ghost import ROW_AXES, RowProgram

Neighbours = Literal["add_or_remove", "zero_out", "replace"]
NEIGHBOURS = ("add_or_remove", "zero_out", "replace")
Method = Literal["auto", "ghost", "vmap"]
Mask = Bool[Array, " B"] | Int[Array, " B"] | None
LossFunction = Callable[[Any, Any, Any], Any]

#: Bytes of per-example gradients in memory at once. A CPU is fastest with several examples at a
#: time that stay near it, in its second or third cache (scripts/benchmarks/privacy.py).
_CPU_BYTES = 2**23
_ACCELERATOR_BYTES = 2**28


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
        own = self.verified()
        total, bound = optax.tree.scale(factor, own.total), abs(factor) * own.clip_norm
        return dataclasses.replace(own, total=total, clip_norm=bound).sealed()

    def sealed(self) -> BoundedSum:
        """The same, of which whoever calls this has proved the bound."""
        same = dataclasses.replace(self, total=jax.lax.optimization_barrier(self.total))
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
        count = _multiplicity(batch, mask)
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


def clipped_grad_sum(
    loss_fn: LossFunction,
    clip_norm: Any,
    *,
    mode: clipping.Mode = "flat",
    method: Method = "auto",
    microbatch_size: int | None = None,
    has_aux: bool = False,
    unit: str = "example",
    mesh: jax.sharding.Mesh | None = None,
) -> ClippedGradient:
    r"""Clip the gradient of each example of any loss, and sum.

    .. math:: \sum_i m_i\, \mathrm{clip}_C(\nabla_w f(w; x_i))

    Matrices and tables need no gradients of single examples (ghost clipping): the norm follows from
    their inputs and the derivatives of their outputs,

    .. math:: \|g_i\|^2 = \|\textstyle\sum_t a_{it}\delta_{it}^\top\|^2, \qquad
        \sum_i c_i g_i = \sum_{i,t} a_{it}(c_i\delta_{it})^\top

    Every norm is an upper bound, rounding included, so that no example adds more than C. Parameters
    used in any other way have their gradients made example by example, in microbatches. Any
    function will do: parameters in one tree (Linen, NNX after `nnx.split`, Equinox after
    `eqx.partition`), frozen ones and other collections closed over.

    Args:
        loss_fn: `loss_fn(params, batch, key)`, the mean over rows; it is called on single rows
            (leading size 1), so that a loss written for batches needs no change.
        clip_norm: C > 0, or a tree of bounds for the arrays of the parameters; may be traced.
        mode: see `clip_per_example`.
        method: `"ghost"` wherever there is a rule, `"vmap"` nowhere, or `"auto"` where it is less
            work. Does not change the result beyond rounding.
        microbatch_size: examples whose gradients are in memory at once; by default as many as fit
            in 8 MiB (CPU) or 256 MiB. Does not change the result beyond rounding.
        has_aux: whether `loss_fn` returns `(loss, aux)`; `aux` is then in `BoundedSum.aux`, for
            each row, and is not private.
        unit: what one row is. `"user"` rows ``[E, ...]`` are the examples of one person and reach
            the loss as they are, so that the person's mean gradient is what is clipped.
        mesh: of devices among which the rows are split along `data`, `fsdp` or `clients`: each
            then sums its own, and sums cross devices once.

    Returns:
        The function, which knows its sensitivity.

    Raises:
        ValueError: if a number or a choice is not allowed.
        TypeError: if `loss_fn` does not take three arguments.

    Source: Abadi et al. 2016; Goodfellow 2015, Li et al. 2022 (norms); Bu et al. 2023 (sums from
        the factors); differences arXiv 2206.00846 Algorithm 2.

    Example:
        >>> loss = lambda params, batch, key: jnp.mean((params["w"] - batch) ** 2) / 2
        >>> gradient = clipped_grad_sum(loss, clip_norm=1.0)
        >>> result = gradient({"w": jnp.zeros(())}, jnp.array([0.5, -3.0, jnp.nan]))
        >>> float(result.total["w"].round(3)), int(result.clipped), int(result.non_finite)
        (0.5, 1, 1)
    """
    clipping.check_clip_norm(clip_norm, mode)
    validation.choice("method", method, ("auto", "ghost", "vmap"))
    validation.choice("unit", unit, ("example", "user"))
    if microbatch_size is not None:
        validation.integer("microbatch_size", microbatch_size, minimum=1)
    _check_signature(loss_fn)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    limit = _CPU_BYTES if platform == "cpu" else _ACCELERATOR_BYTES

    def program(params, batch, key) -> RowProgram:
        kept = limit if platform == "cpu" else 0
        return row_program(
            loss_fn, params, batch, key, unit, has_aux=has_aux, method=method, kept_bytes=kept
        )

    def bounded(found, params, bound, mode, direct, count, losses, aux, gradients):
        limits = clipping.leaf_bounds(bound, params)
        gradients = clipping.computed_once(gradients)
        norms = _norms(gradients, direct, count, mode == "per_layer" or isinstance(limits, list))
        scales = clipping.bound_leaves(norms, limits, mode)
        each = scales.scales if len(norms) == len(gradients) else scales.scales[:1] * len(gradients)
        totals = [
            found.weighted_sum(index, gradient, scale * count)
            for index, (gradient, scale) in enumerate(zip(gradients, each, strict=True))
        ]
        total = jax.tree.unflatten(jax.tree.structure(params), totals)
        return counted_sum(total, losses, scales.clipped, scales.non_finite, count), aux

    def over_rows(summed, weights, batch, key, count, bound):
        """Sum `summed(program, weights, batch, keys, count, bound)` over all rows."""

        def held(weights, batch, index, count, key, bound):
            found = program(weights[0], batch, key)

            def rows_sum(batch, index, count):
                keys = key
                if key is not None:
                    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
                return summed(found, weights, batch, keys, count, bound)

            size = microbatch_size or default_microbatch_size(
                found.kept_size, count.shape[0], limit
            )
            return _in_microbatches(rows_sum, batch, index, count, size)

        index = jnp.arange(count.shape[0])
        if mesh is None:
            return held(weights, batch, index, count, key, bound)
        return _on_mesh(mesh, held, weights, batch, index, count, key, bound)

    def sum_fn(params, batch, key, count, bound):
        def summed(found, weights, batch, keys, count, bound):
            parts = found.gradients(weights[0], batch, keys)
            return bounded(found, weights[0], bound, mode, False, count, *parts)

        return over_rows(summed, (params,), batch, key, count, bound)

    def difference_fn(params, prev_params, batch, key, count, bound):
        def summed(found, weights, batch, keys, count, bound):
            losses, aux, here = found.gradients(weights[0], batch, keys)
            _, _, there = found.gradients(weights[1], batch, keys)
            change = [_minus(a, b) for a, b in zip(here, there, strict=True)]
            return bounded(found, weights[0], bound, "flat", True, count, losses, aux, change)

        return over_rows(summed, (params, prev_params), batch, key, count, bound)

    return ClippedGradient(clip_norm, mode, sum_fn, difference_fn, unit)


def row_program(
    loss_fn: LossFunction, params: PyTree, batch: PyTree, key: Any, unit: str, **options: Any
) -> RowProgram:
    """The program of one row of a batch; `options` as of `RowProgram`."""

    def row_loss(params, row, key):
        one = row if unit == "user" else jax.tree.map(lambda x: x[None], row)
        return loss_fn(params, one, key)

    row = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), batch)
    key = None if key is None else jax.eval_shape(lambda k: jax.random.fold_in(k, 0), key)
    return RowProgram(row_loss, params, row, key, **options)


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


def default_microbatch_size(size: int, rows: int, limit: int) -> int:
    """How many gradients of `size` numbers `clipped_grad_sum` keeps in memory at once.

    Of the sizes between half of what fits and all that fits, the one that needs the least padding.
    """
    fitting = max(1, min(rows, limit // max(1, 4 * size)))
    return max(range((fitting + 1) // 2, fitting + 1), key=lambda size: (-(-rows % size), size))


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


def _norms(gradients, direct: bool, count, apart: bool) -> list[Float[Array, " B"]]:
    """Norms of the gradients of each parameter, or, unless `apart`, of parts of the whole."""
    if not apart:  # a norm of many arrays compiles in a fraction of the time of a norm of each
        kept = [g for g in gradients if g is not None and not isinstance(g, Factors)]
        rest = [g for g in gradients if isinstance(g, Factors)]
        parts = [jax.vmap(clipping.norm_bound)(*kept)] if kept else []
        return parts + _norms(rest, direct, count, True) or [jnp.zeros(count.shape[0])]
    return [
        jnp.zeros(count.shape[0])
        if gradient is None
        else gradient.norms(direct)
        if isinstance(gradient, Factors)
        else jax.vmap(clipping.norm_bound)(gradient)
        for gradient in gradients
    ]


def _minus(here, there):
    if here is None:
        return None
    if isinstance(here, Factors):
        return here.minus(there)
    wide = clipping.wide(here.dtype)
    return here.astype(wide) - there.astype(wide)


def _in_microbatches(rows_sum, batch, index, count, size: int) -> BoundedSum:
    rows = count.shape[0]
    size = min(size, rows)
    # Rows that stand for no example fill the last microbatch; their gradients are multiplied by 0.
    padding = -rows % size
    batch, index, count = jax.tree.map(
        lambda x: (
            jnp.concatenate([x, jnp.broadcast_to(x[:1], (padding, *x.shape[1:]))]) if padding else x
        ),
        (batch, index, count),
    )
    count = count.at[rows:].set(0) if padding else count
    if size == rows:
        found, aux = rows_sum(batch, index, count)
        return dataclasses.replace(found, aux=aux)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (batch, index, count))
    like = jax.eval_shape(lambda part: rows_sum(*part)[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def add(sums, part):
        found, aux = rows_sum(*part)
        return [_two_sum(*each) for each in zip(sums, jax.tree.leaves(found), strict=True)], aux

    zeros = [(zero, zero) for zero in jax.tree.leaves(zeros)]
    sums, aux = jax.lax.scan(add, zeros, parts)
    found = jax.tree.unflatten(jax.tree.structure(like), [total + lost for total, lost in sums])
    aux = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], aux)
    return dataclasses.replace(found, aux=aux)


def _two_sum(sums, term):
    """Add to a sum, and what rounding lost in it to another: many terms then err as one does.

    Barriers keep the compiler from finding that nothing is lost but for rounding (Knuth's two-sum).
    """
    total, lost = sums
    if not jnp.issubdtype(total.dtype, jnp.floating):
        return total + term, lost
    after = jax.lax.optimization_barrier(total + term)
    share = jax.lax.optimization_barrier(after - total)
    rest = jax.lax.optimization_barrier(after - share)
    error = (total - rest) + (term - share)
    return after, lost + jnp.where(jnp.isfinite(after), error, 0)


def _on_mesh(mesh, held, weights, batch, index, count, key, bound) -> BoundedSum:
    """Each device sums the rows it holds; what crosses devices is one sum of the results."""
    axes = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names)

    def local(*arguments):
        found = held(*arguments)
        return jax.lax.psum(dataclasses.replace(found, aux=None), axes), found.aux

    # Weights are arguments: closed over, they would belong to the mesh as it is outside.
    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    found, aux = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, rows, rows, rows, everywhere, everywhere),
        out_specs=(everywhere, rows),
        axis_names=set(axes),
        check_vma=False,
    )(weights, batch, index, count, key, bound)
    return dataclasses.replace(found, aux=aux)


def _multiplicity(batch: PyTree, mask: Mask) -> Int[Array, " B"]:
    rows = clipping.batch_size("batch", batch)
    if mask is None:
        return jnp.ones(rows, jnp.int32)
    if jnp.shape(mask) != (rows,):
        raise ValueError(f"mask must have shape ({rows},) like the batch, got {jnp.shape(mask)}")
    if not jnp.issubdtype(mask.dtype, jnp.integer) and mask.dtype != bool:
        raise TypeError(f"mask must be boolean or integer counts, got {mask.dtype}")
    return mask.astype(jnp.int32)


def _check_signature(loss_fn: LossFunction) -> None:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function (params, batch, key), got {loss_fn!r}")
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # a built-in without one
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(
            f"loss_fn must take three arguments (params, batch, key), got {signature}"
        ) from None
