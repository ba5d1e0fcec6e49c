"""Convolutions as XLA has fast CPU code for them.

XLA's CPU compiler brings the axes of convolutions into the order of its fast code only in the main
part of a program. In the body of a loop, such as a scan over local steps or microbatches, gradients
of convolutions run 20 times slower (https://github.com/jax-ml/jax/issues/12868). A convolution with
a kernel larger than the image, as in the last blocks of a ResNet, runs 50 times slower anywhere,
and the gradient of a pooling is one slow scatter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

T = TypeVar("T")

#: Sides of a window, added up, above which its gradient stays one operation.
_LARGEST_WINDOW = 32


def channels_last(function: Callable[..., T]) -> Callable[..., T]:
    """The same function, its convolutions channels last or, for large kernels, matrix products.

    To be wrapped around a gradient: those of convolutions come in other orders of axes; that of
    `max_pool` is made of slices. Values are those of `function` to rounding; accelerators fold the
    transpositions away.
    """

    def run(*args: Any) -> T:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        program = _rewritten(closed)
        leaves = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run


def _is_slow(held: Any) -> bool:
    if isinstance(held, core.Jaxpr | core.ClosedJaxpr):
        return any(
            eqn.primitive in _REPLACED
            # Its body names axes of a mesh that are bound nowhere else.
            or (eqn.primitive.name != "shard_map" and any(map(_is_slow, eqn.params.values())))
            for eqn in held.eqns
        )
    return isinstance(held, tuple | list) and any(map(_is_slow, held))


def _rewritten(held: Any) -> Any:
    """A program, or a parameter of an equation that holds programs, with convolutions rewritten."""
    if not _is_slow(held):
        return held
    if isinstance(held, core.ClosedJaxpr):
        return jax.make_jaxpr(lambda *values: _evaluate(held, values))(*held.in_avals)
    if isinstance(held, core.Jaxpr):
        return _rewritten(core.ClosedJaxpr(held, ())).jaxpr
    return type(held)(map(_rewritten, held))


def _evaluate(closed: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        if eqn.primitive in _REPLACED:
            outs = [_REPLACED[eqn.primitive](*map(read, eqn.invars), **eqn.params)]
        else:
            outs = _bound(jaxpr, eqn, read)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bound(jaxpr: core.Jaxpr, eqn: core.JaxprEqn, read: Callable[[Any], Any]) -> list[Any]:
    """Evaluate one equation as a program: how primitives bind is JAX's private matter."""
    if eqn.primitive.name != "shard_map":
        eqn = eqn.replace(params={name: _rewritten(held) for name, held in eqn.params.items()})
    given = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, core.Literal)))
    debug = jaxpr.debug_info.with_unknown_names()
    alone = core.Jaxpr((), given, eqn.outvars, [eqn], eqn.effects, debug)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*map(read, given))


def _convolution(
    images: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any
) -> jax.Array:
    """A convolution with the axes of images and result (batch, *space, channels)."""
    lhs, rhs, out = dimension_numbers
    rank = images.ndim
    images = images.transpose(lhs[0], *lhs[2:], lhs[1])

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        last = (0, rank - 1, *range(1, rank - 1))
        numbers = jax.lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
        kernel = kernel.transpose(*rhs[2:], rhs[1], rhs[0])
        return jax.lax.conv_general_dilated_p.bind(
            images, kernel, dimension_numbers=numbers, **params
        )

    groups = params["feature_group_count"] * params["batch_group_count"]
    sides = [kernel.shape[axis] for axis in rhs[2:]]
    if groups == 1 and any(k > n for k, n in zip(sides, images.shape[1:-1], strict=True)):
        product = functools.partial(_products_with_slices, axes=rhs, **params)
        result = jax.lax.platform_dependent(images, kernel, cpu=product, default=convolve)
    else:
        result = convolve(images, kernel)
    return result.transpose(np.argsort((out[0], *out[2:], out[1])))


def _products_with_slices(
    images: jax.Array,
    kernel: jax.Array,
    *,
    axes: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    precision: Any,
    preferred_element_type: Any,
    **groups: Any,
) -> jax.Array:
    """A convolution as matrix products, for kernels larger than what they slide over.

    One for each entry of the kernel that meets more than padding; at 1 x 1 pixels that is one.
    """
    del groups
    zero = jnp.zeros((), images.dtype)
    edges = [(low, high, by - 1) for (low, high), by in zip(padding, lhs_dilation, strict=True)]
    padded = jax.lax.pad(images, zero, [(0, 0, 0), *edges, (0, 0, 0)])
    # The matrices stay as they are: to transpose them takes longer than the products.
    kernel = jnp.moveaxis(kernel, axes[2:], range(len(axes) - 2))
    inputs = int(axes[1] > axes[0])
    sides, wide = kernel.shape[:-2], jnp.promote_types(images.dtype, jnp.float32)
    ends = [
        size - by * (side - 1)
        for size, side, by in zip(padded.shape[1:-1], sides, rhs_dilation, strict=True)
    ]
    spaces = [range(0, end, stride) for end, stride in zip(ends, window_strides, strict=True)]
    total = jnp.zeros((len(images), *map(len, spaces), kernel.shape[-1 - inputs]), wide)
    for place in np.ndindex(*sides):
        starts = [by * at for by, at in zip(rhs_dilation, place, strict=True)]
        if not all(
            any(0 <= start + at - low < padded_size - low - high for at in space)
            for start, space, (low, high), padded_size in zip(
                starts, spaces, padding, padded.shape[1:-1], strict=True
            )
        ):
            continue
        read = tuple(
            slice(start, start + end, stride)
            for start, end, stride in zip(starts, ends, window_strides, strict=True)
        )
        total += jax.lax.dot_general(
            padded[:, *read],
            kernel[place],
            (((images.ndim - 1,), (inputs,)), ((), ())),
            precision=precision,
            preferred_element_type=wide,
        )
    return total.astype(preferred_element_type or images.dtype)


def _gradient_of_pooling(
    source: jax.Array,
    operand: jax.Array,
    *,
    select_prim: core.Primitive,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Each entry of `source`, added where its window of `operand` has its first largest entry."""
    whole = functools.partial(
        jax.lax.select_and_scatter_add_p.bind,
        select_prim=select_prim,
        window_dimensions=window_dimensions,
        window_strides=window_strides,
        padding=padding,
    )
    if sum(window_dimensions) > _LARGEST_WINDOW:
        return whole(source, operand)
    worst = jnp.asarray(-jnp.inf if select_prim is jax.lax.ge_p else jnp.inf, operand.dtype)

    pooled = zip(window_dimensions, window_strides, padding, strict=True)
    axes = [axis for axis, given in enumerate(pooled) if given != (1, 1, (0, 0))]

    def by_axes(source: jax.Array, operand: jax.Array) -> jax.Array:
        firsts: list[jax.Array] = []
        best = operand
        for axis in reversed(axes):
            edges = [padding[axis] if i == axis else (0, 0) for i in range(operand.ndim)]
            padded = jax.lax.pad(best, worst, [(*edge, 0) for edge in edges])
            stride, size = window_strides[axis], window_dimensions[axis]
            end = stride * (source.shape[axis] - 1) + 1
            entry = functools.partial(jax.lax.slice_in_dim, padded, stride=stride, axis=axis)
            best, first = entry(0, end), jnp.zeros((), jnp.int8)
            for at in range(1, size):
                after = entry(at, at + end)
                kept = select_prim.bind(best, after)
                best, first = jnp.where(kept, best, after), jnp.where(kept, first, at)
            firsts.insert(0, first)
        total, zero = source, jnp.zeros((), source.dtype)
        for axis, first in zip(axes, firsts, strict=True):
            stride, low = window_strides[axis], padding[axis][0]
            end, length = stride * (total.shape[axis] - 1) + 1, operand.shape[axis]
            parts = [
                jax.lax.pad(
                    jnp.where(first == at, total, zero),
                    zero,
                    [
                        (at - low, length - at + low - end, stride - 1) if i == axis else (0, 0, 0)
                        for i in range(operand.ndim)
                    ],
                )
                for at in range(window_dimensions[axis])
            ]
            total = sum(parts[1:], start=parts[0])
        return total

    return jax.lax.platform_dependent(source, operand, cpu=by_axes, default=whole)


_REPLACED: dict[core.Primitive, Callable[..., jax.Array]] = {
    jax.lax.conv_general_dilated_p: _convolution,
    jax.lax.select_and_scatter_add_p: _gradient_of_pooling,
}
