"""Sums of clipped per-example gradients, and of their differences, from the program of any loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxkit import validation
from jaxkit.privacy import clipping
from jaxkit.privacy.bounded_sums import BoundedSum, ClippedGradient, counted_sum
from jaxkit.privacy.factors import Factors, added_up
from jaxkit.privacy.ghost import ROW_AXES, RowProgram

Method = Literal["auto", "ghost", "vmap"]
LossFunction = Callable[[Any, Any, Any], Any]

#: Bytes of per-example gradients in memory at once. A CPU is fastest with several examples at a
#: time that stay near it, in its second or third cache (scripts/benchmarks/privacy.py).
_CPU_BYTES = 2**23
_ACCELERATOR_BYTES = 2**28


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
            work. Does not change the result beyond rounding. Factors of 8 positions and more are
            multiplied out once, for norm and sum, where all that takes at most 256 MiB.
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
            losses, aux, each = found.gradients(weights[0], batch, keys)
            each = added_up(each)
            return bounded(found, weights[0], bound, mode, False, count, losses, aux, each)

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


def default_microbatch_size(size: int, rows: int, limit: int) -> int:
    """How many gradients of `size` numbers `clipped_grad_sum` keeps in memory at once.

    Of the sizes between half of what fits and all that fits, the one that needs the least padding.
    """
    fitting = max(1, min(rows, limit // max(1, 4 * size)))
    return max(range((fitting + 1) // 2, fitting + 1), key=lambda size: (-(-rows % size), size))


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
    if not isinstance(here, jax.Array):
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
    groups = (rows + padding) // size, size
    parts = jax.tree.map(lambda x: x.reshape(*groups, *x.shape[1:]), (batch, index, count))
    like = jax.eval_shape(lambda part: rows_sum(*part)[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def add(sums, part):
        found, aux = rows_sum(*part)
        return [_two_sum(*each) for each in zip(sums, jax.tree.leaves(found), strict=True)], aux

    zeros = [(zero, zero) for zero in jax.tree.leaves(zeros)]
    sums, aux = jax.lax.scan(add, zeros, parts)
    found = jax.tree.unflatten(jax.tree.structure(like), [total + lost for total, lost in sums])
    aux = jax.tree.map(lambda x: x.reshape(rows + padding, *x.shape[2:])[:rows], aux)
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
