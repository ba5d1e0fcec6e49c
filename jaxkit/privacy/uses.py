"""How an equation of a program uses a parameter, and the factors of the gradient that follow."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode
from jaxtyping import Array, Float

from jaxkit.privacy import clipping, factors


class View(NamedTuple):
    """A parameter seen through changes of shape.

    Attributes:
        param: its number.
        steps: ("reshape" or "transpose", argument, shape before) up to the base.
        base: shape of the base.
        axes: the view is the base with its axes in this order.
        stack: lengths of the loops that it is a slice in, the outermost first.
    """

    param: int
    steps: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    base: tuple[int, ...]
    axes: tuple[int, ...]
    stack: tuple[int, ...] = ()

    @classmethod
    def whole(cls, param: int, shape: tuple[int, ...], stack: tuple[int, ...] = ()) -> View:
        """A parameter, or its slice in a loop, as it is."""
        return cls(param, (), shape, tuple(range(len(shape))), stack)


class Use(NamedTuple):
    """An equation that multiplies a parameter, or reads rows of it.

    Attributes:
        view: how it sees the parameter.
        kind: `"product"`, `"lookup"` or `"convolution"`.
        rows: axes of the base that meet the other operand, or the one that is looked up.
        columns: the axes that are left.
        operand: from the other operand to inputs ``[T, I]``, or to the rows read ``[T]``.
        arrange: from an array like the result to ``[T, O]``.
        result: shape and type of the result.
        positions: T.
        gradient: of a convolution, from its operand and arranged derivative to that of the base.
        groups: of a convolution.
        drop: whether positions outside the table read nothing instead of its nearest row.
    """

    view: View
    kind: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    operand: Callable[[Any], Any]
    arrange: Callable[[Any], Any]
    result: Any
    positions: int
    drop: bool = False
    gradient: Callable[[Any, Any], Any] | None = None
    groups: int = 1


_NORM_PRESERVING = ("copy", "copy_p", "sharding_constraint", "optimization_barrier")


def reshaped(eqn, view: View) -> View | None:
    """The view after an equation that keeps all numbers of a parameter, or None."""
    name, before = eqn.primitive.name, tuple(view.base[axis] for axis in view.axes)
    if len(eqn.invars) != 1:
        return None
    after = eqn.outvars[0].aval.shape
    if name in _NORM_PRESERVING:
        return view
    if name == "convert_element_type":
        floating = jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        return view if floating else None
    if name == "transpose":
        return view._replace(axes=tuple(view.axes[axis] for axis in eqn.params["permutation"]))
    added = name == "broadcast_in_dim" and math.prod(after) == math.prod(before)
    if name in ("squeeze", "expand_dims") or added or _plain_reshape(eqn):
        steps = view.steps
        if view.axes != tuple(range(len(view.axes))):
            steps = (*steps, ("transpose", view.axes, view.base))
        steps = (*steps, ("reshape", tuple(after), before))
        after = tuple(after)
        return View(view.param, steps, after, tuple(range(len(after))), view.stack)
    return None


def _plain_reshape(eqn) -> bool:
    return eqn.primitive.name == "reshape" and eqn.params["dimensions"] is None


def use_of(eqn, views: Sequence[View | None]) -> Use | None:
    """How an equation uses a parameter, if there is a rule for it."""
    if eqn.primitive.name == "dot_general":
        return _product(eqn, views)
    if eqn.primitive.name == "gather" and views[0] is not None:
        return _lookup(eqn, views[0])
    if eqn.primitive.name == "conv_general_dilated" and views[1] is not None:
        return _convolution(eqn, views[1])
    return None


def _product(eqn, views) -> Use | None:
    contracted, batch = eqn.params["dimension_numbers"]
    mine = next(i for i, view in enumerate(views) if view is not None)
    view, other = views[mine], eqn.invars[1 - mine].aval
    result = eqn.outvars[0].aval
    if batch[0] or not jnp.issubdtype(other.dtype, jnp.floating):
        return None
    rows = tuple(view.axes[axis] for axis in contracted[mine])
    columns = tuple(axis for axis in view.axes if axis not in rows)
    met = tuple(contracted[1 - mine])
    free = tuple(axis for axis in range(other.ndim) if axis not in met)
    fan_in = math.prod(view.base[axis] for axis in rows)
    positions = math.prod(other.shape[axis] for axis in free)
    fan_out = math.prod(view.base[axis] for axis in columns)
    if not (fan_in and fan_out and positions):
        return None

    def operand(x):
        return jnp.transpose(x, free + met).reshape(positions, fan_in)

    def arrange(delta):
        shape = (fan_out, positions) if mine == 0 else (positions, fan_out)
        delta = delta.reshape(shape)
        return delta.T if mine == 0 else delta

    return Use(view, "product", rows, columns, operand, arrange, result, positions)


def _lookup(eqn, view: View) -> Use | None:
    numbers, indices = eqn.params["dimension_numbers"], eqn.invars[1].aval
    result, width = eqn.outvars[0].aval, view.base[1:]
    leading = indices.ndim - 1
    whole_rows = (
        not view.stack
        and view.axes == tuple(range(len(view.base)))
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and tuple(numbers.offset_dims) == tuple(range(leading, leading + len(width)))
        and tuple(eqn.params["slice_sizes"]) == (1, *width)
    )
    mode, positions = eqn.params["mode"], math.prod(indices.shape[:-1])
    if not whole_rows or mode == GatherScatterMode.ONE_HOT or not positions or not view.base[0]:
        return None

    def operand(x):
        # The row after the last, for what reads nothing, must fit too.
        return x.reshape(positions).astype(jnp.promote_types(x.dtype, jnp.int32))

    def arrange(delta):
        return delta.reshape(positions, math.prod(width))

    columns = tuple(range(1, len(view.base)))
    drop = mode == GatherScatterMode.FILL_OR_DROP
    return Use(view, "lookup", (0,), columns, operand, arrange, result, positions, drop)


def _convolution(eqn, view: View) -> Use | None:
    """A kernel: the gradient of a row is made whole, a product for each offset in the kernel.

    Its norm is then that of the vector which is added. `vmap` alone makes the same gradients by a
    convolution with a group for each row, in 1.9 to 7 times a plain gradient's time where offsets
    take 1 to 1.6, and in 9 to 78 times for few rows (a CPU); the product of two positions' inputs
    (Gram) loses small norms to rounding.
    """
    numbers, other = eqn.params["dimension_numbers"], eqn.invars[0].aval
    groups, result = eqn.params["feature_group_count"], eqn.outvars[0].aval
    if (
        view.stack
        or eqn.params["batch_group_count"] > 1
        or not jnp.issubdtype(other.dtype, jnp.floating)
        or not (math.prod(other.shape) and math.prod(result.shape) and math.prod(view.base))
    ):
        return None
    last = lambda spec: (spec[0], *spec[2:], spec[1])  # noqa: E731  features
    kernel = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    *window, fan_in, fan_out = (view.base[view.axes[axis]] for axis in kernel)
    strides, spread = eqn.params["window_strides"], eqn.params["rhs_dilation"]
    inside = zip(eqn.params["padding"], eqn.params["lhs_dilation"], strict=True)
    padding = [(0, 0, 0), *((*ends, step - 1) for ends, step in inside), (0, 0, 0)]
    positions = math.prod(result.shape) // fan_out
    # Few channels make thin products: then all offsets along the last axis are one.
    together = window[-1] if window and fan_in < 16 else 1

    def operand(x):
        x = jnp.transpose(x, last(numbers.lhs_spec)).astype(clipping.wide(x.dtype))
        return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)

    def arrange(delta):
        return jnp.transpose(delta, last(numbers.out_spec)).astype(clipping.wide(delta.dtype))

    def gradient(x, delta):
        length = delta.shape[1:-1]

        def met(offset):
            start = [o * step for o, step in zip(offset, spread, strict=True)]
            stop = [
                s + (n - 1) * step + 1 for s, n, step in zip(start, length, strides, strict=True)
            ]
            part = jax.lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))
            return part.reshape(positions, groups, 1, fan_in)

        delta = delta.reshape(positions, groups, fan_out // groups)
        offsets = list(itertools.product(*map(range, window)))
        parts = [
            jnp.einsum(
                "tgki,tgo->kigo",
                jnp.concatenate([met(offset) for offset in offsets[first : first + together]], 2),
                delta,
                precision=jax.lax.Precision.HIGHEST,
            )
            for first in range(0, len(offsets), together)
        ]
        whole = jnp.concatenate(parts).reshape(*window, fan_in, fan_out)
        return transpose_back(transpose_back(whole, (), kernel), (), view.axes)

    rest = {"gradient": gradient, "groups": groups}
    return Use(view, "convolution", (), (), operand, arrange, result, positions, **rest)


def joinable(uses: Sequence[Use]) -> bool:
    """Whether factors are known for the sum of these uses of one parameter."""
    if {use.kind for use in uses} == {"convolution"}:
        return True
    if len({(use.view.steps, use.view.base, use.view.stack) for use in uses}) > 1:
        return False
    # A product may meet the rows of another with its columns: the factors change places.
    sides = {frozenset((use.rows, use.columns)) for use in uses}
    return len(sides) <= 1 and all(use.kind != "convolution" for use in uses)


def factors_of(uses: Sequence[tuple[Use, Any, Any]]) -> factors.Factors | Float[Array, "B ..."]:
    """The factors of a parameter's gradient, from its uses, their operands and derivatives.

    Of a kernel, the gradients themselves.
    """
    if uses[0][0].kind == "convolution":

        def of_kernel(use, x, delta):
            return unviewed(use.gradient(x, use.arrange(delta)), use.view)

        each = [jax.vmap(functools.partial(of_kernel, use))(x, delta) for use, x, delta in uses]
        return sum(each[1:], each[0])
    stack = uses[0][0].view.stack
    if stack:
        plain = [
            (use._replace(view=use.view._replace(stack=())), operand, delta)
            for use, operand, delta in uses
        ]

        def layers(x):
            flat = x.reshape(len(x), math.prod(stack), *x.shape[1 + len(stack) :])
            return jnp.moveaxis(flat, 1, 0)

        def of_layer(operands, deltas):
            return factors_of(
                [(use, o, d) for (use, _, _), o, d in zip(plain, operands, deltas, strict=True)]
            )

        operands, deltas = ([layers(use[part]) for use in uses] for part in (1, 2))
        layered: Any = jax.vmap(of_layer)(operands, deltas)
        return factors.Stacked(layered)
    lookups = [(use, *rest) for use, *rest in uses if use.kind == "lookup"]
    rows = (lookups or uses)[0][0].rows
    products, found = [], []
    for use, operand, delta in uses:
        delta = jax.vmap(use.arrange)(delta)
        if use.kind == "lookup":
            count = use.view.base[0]
            inside = (operand >= 0) & (operand < count)
            if use.drop:
                operand = jnp.where(inside, operand, count)
                delta = jnp.where(inside[:, :, None], delta, 0)
            found.append((jnp.clip(operand, 0, count - (not use.drop)), delta))
        else:
            products.append((operand, delta) if use.rows == rows else (delta, operand))
    join = lambda parts: [jnp.concatenate(side, 1) for side in zip(*parts, strict=True)]  # noqa: E731
    outer = factors.outer_products(*join(products)) if products else None
    if not found:
        assert outer is not None
        return outer
    tokens, delta = join(found)
    delta = delta.astype(clipping.wide(delta.dtype))
    looked = factors.Lookups(tokens, delta, lookups[0][0].view.base[0])
    return looked if outer is None else factors.Tied(looked, outer)


def unviewed(total: Float[Array, " *base"], view: View) -> Float[Array, " *param"]:
    """A gradient with respect to the base of a view, with respect to the parameter."""
    for kind, argument, before in reversed(view.steps):
        total = (
            total.reshape(*view.stack, *before)
            if kind == "reshape"
            else transpose_back(total, view.stack, argument)
        )
    return total


def transpose_back(total, stack: tuple[int, ...], axes: Sequence[int]):
    """Undo a transposition of the axes after those of the loops."""
    loops = len(stack)
    inverse = sorted(range(len(axes)), key=lambda axis: axes[axis])
    return jnp.transpose(total, [*range(loops), *(loops + axis for axis in inverse)])
