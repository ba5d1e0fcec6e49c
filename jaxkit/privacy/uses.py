"""How an equation of a program uses a parameter, and the factors of the gradient that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode

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
        kind: `"product"` or `"lookup"`.
        rows: axes of the base that meet the other operand, or the one that is looked up.
        columns: the axes that are left.
        operand: from the other operand to inputs ``[T, I]``, or to the rows read ``[T]``.
        arrange: from an array like the result to ``[T, O]``.
        result: shape and type of the result.
        positions: T.
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


def joinable(uses: Sequence[Use]) -> bool:
    """Whether factors are known for the sum of these uses of one parameter."""
    if len({(use.view.steps, use.view.base, use.view.stack) for use in uses}) > 1:
        return False
    # A product may meet the rows of another with its columns: the factors change places.
    sides = {frozenset((use.rows, use.columns)) for use in uses}
    return len(sides) <= 1


def factors_of(uses: Sequence[tuple[Use, Any, Any]]) -> factors.Factors:
    """The factors of a parameter's gradient, from its uses, their operands and derivatives."""
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


def transpose_back(total, stack: tuple[int, ...], axes: Sequence[int]):
    """Undo a transposition of the axes after those of the loops."""
    loops = len(stack)
    inverse = sorted(range(len(axes)), key=lambda axis: axes[axis])
    return jnp.transpose(total, [*range(loops), *(loops + axis for axis in inverse)])
