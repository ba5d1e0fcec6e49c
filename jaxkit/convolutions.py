"""Convolutions as XLA has fast CPU code for them.

XLA's CPU compiler brings the axes of convolutions into the order of its fast code only in the main
part of a program. In the body of a loop, such as a scan over local steps or microbatches, gradients
of convolutions run 20 times slower (https://github.com/jax-ml/jax/issues/12868). A convolution with
a kernel larger than the image, as in the last blocks of a ResNet, runs 50 times slower anywhere.
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


def channels_last(function: Callable[..., T]) -> Callable[..., T]:
    """The same function, its convolutions channels last or, for large kernels, matrix products.

    To be wrapped around a gradient: those of convolutions come in other orders of axes. Values are
    those of `function` to rounding; accelerators fold the transpositions away.
    """

    def run(*args: Any) -> T:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        program = _rewritten(closed)
        leaves = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run


def _convolves(held: Any) -> bool:
    if isinstance(held, core.Jaxpr | core.ClosedJaxpr):
        return any(
            eqn.primitive is jax.lax.conv_general_dilated_p
            # Its body names axes of a mesh that are bound nowhere else.
            or (eqn.primitive.name != "shard_map" and any(map(_convolves, eqn.params.values())))
            for eqn in held.eqns
        )
    return isinstance(held, tuple | list) and any(map(_convolves, held))


def _rewritten(held: Any) -> Any:
    """A program, or a parameter of an equation that holds programs, with convolutions rewritten."""
    if not _convolves(held):
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
        if eqn.primitive is jax.lax.conv_general_dilated_p:
            outs = [_convolution(*map(read, eqn.invars), **eqn.params)]
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
    """A convolution (batch, *space, channels), (*space, in, out) -> (batch, *space, channels)."""
    lhs, rhs, out = dimension_numbers
    rank = images.ndim
    images = images.transpose(lhs[0], *lhs[2:], lhs[1])
    kernel = kernel.transpose(*rhs[2:], rhs[1], rhs[0])
    last = (0, rank - 1, *range(1, rank - 1))
    numbers = jax.lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
    convolve = functools.partial(
        jax.lax.conv_general_dilated_p.bind, dimension_numbers=numbers, **params
    )
    groups = params["feature_group_count"] * params["batch_group_count"]
    if groups == 1 and any(k > n for k, n in zip(kernel.shape, images.shape[1:-1], strict=False)):
        product = functools.partial(_product_with_patches, **params)
        result = jax.lax.platform_dependent(images, kernel, cpu=product, default=convolve)
    else:
        result = convolve(images, kernel)
    return result.transpose(np.argsort((out[0], *out[2:], out[1])))


def _product_with_patches(
    images: jax.Array,
    kernel: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    precision: Any,
    preferred_element_type: Any,
    **groups: Any,
) -> jax.Array:
    """A convolution as one matrix product, for kernels larger than what they slide over."""
    zero = jnp.zeros((), images.dtype)
    edges = [(low, high, by - 1) for (low, high), by in zip(padding, lhs_dilation, strict=True)]
    padded = jax.lax.pad(images, zero, [(0, 0, 0), *edges, (0, 0, 0)])
    del groups
    sides, width = kernel.shape[:-2], kernel.shape[-1]
    ends = [
        size - by * (side - 1)
        for size, side, by in zip(padded.shape[1:-1], sides, rhs_dilation, strict=True)
    ]
    patches = [
        padded[
            :,
            *(
                slice(by * at, by * at + end, stride)
                for by, at, end, stride in zip(
                    rhs_dilation, place, ends, window_strides, strict=True
                )
            ),
        ]
        for place in np.ndindex(*sides)
    ]
    return jax.lax.dot_general(
        jnp.concatenate(patches, -1),
        kernel.reshape(-1, width),
        (((images.ndim - 1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
