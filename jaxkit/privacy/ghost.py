"""Per-example gradients from the program of a loss: which equations use a parameter, and how.

The program is that of *one* row; `jax.vmap` makes it many. So rows cannot mix, positions, shared
inputs and constants need no rule, and whatever `vmap` can do is right: a parameter that is used in
a way without a rule (`_use`) has its gradient made for every row. For the others, the derivative
of each use's result and its other operand are the factors of the gradient.
"""

from __future__ import annotations

import traceback as tb
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import jax
import jax.extend as jex
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxkit.convolutions import channels_last
from jaxkit.privacy import clipping, factors, uses

#: Axes of a mesh that rows may be split over.
ROW_AXES = ("data", "fsdp", "clients")


class RowProgram:
    """The loss of one row, and which of its parameters need no gradients of single rows.

    Args:
        loss_fn: `loss_fn(params, row, key)`, a scalar, or with `has_aux` a pair of it and a tree.
        params: tree of parameters.
        row: one row of the batch, arrays or their shapes.
        key: a typed key or its shape, or None.
        has_aux: whether the loss comes with more.
        method: `"vmap"`, `"ghost"` or `"auto"`.
        kept_bytes: with `"auto"`, parameters up to this size have gradients of single rows where
            that is no more work.

    Raises:
        TypeError: if a parameter is not an array of real numbers.
        ValueError: if the loss is not a scalar, or a layer couples the rows of a batch.
    """

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        params: PyTree,
        row: PyTree,
        key: Any,
        *,
        has_aux: bool,
        method: str = "auto",
        kept_bytes: float = 0,
    ):
        self.leaves, self._structure = jax.tree.flatten(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            array = hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)
            kind = jnp.result_type(leaf) if array else f"a {type(leaf).__name__}"
            if not array or not jnp.issubdtype(kind, jnp.floating):
                raise TypeError(
                    f"params must hold arrays of real numbers, got {kind} at "
                    f"{jax.tree_util.keystr(path) or 'its root'}: close over what is not trained"
                )

        def program(leaves, row, key):
            found = loss_fn(jax.tree.unflatten(self._structure, leaves), row, key)
            if has_aux and not (isinstance(found, tuple) and len(found) == 2):
                raise ValueError(f"loss_fn must return (loss, aux) with has_aux, got {found}")
            return found if has_aux else (found, None)

        trace = jax.make_jaxpr(program, return_shape=True)
        try:
            self._traced, (loss, aux) = trace(self.leaves, row, key)
        except (flax.errors.TraceContextError, NameError) as error:
            # An NNX layer that updates its statistics, or one that shares them over an axis.
            frames = [frame.f_code.co_qualname for frame, _ in tb.walk_tb(error.__traceback__)]
            layer = _batch_normalisation(frames)
            if layer is None and isinstance(error, NameError):
                raise
            if layer is None:
                raise ValueError(
                    "loss_fn must not change what it closes over, such as the counts of NNX's "
                    f"random streams: {error}"
                ) from error
            raise ValueError(_COUPLED.format(layer)) from error
        if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"loss_fn must return one real number for a row, got {loss}"
                + ("" if has_aux else "; for more than a loss, has_aux=True")
            )
        self._aux = jax.tree.structure(aux)
        refuse_coupled(self._traced.jaxpr)
        # An abstract pass finds the uses.
        search = _Run(frozenset(), None)
        inputs = (*jax.tree.leaves(row), *jax.tree.leaves(key))
        jax.eval_shape(lambda leaves, rest: self._values(leaves, rest, search), self.leaves, inputs)
        self.uses = search.uses
        self.ghost = frozenset(
            index
            for index, leaf in enumerate(self.leaves)
            if method != "vmap"
            and index not in search.unknown
            and uses.joinable(own := [use for use in search.uses if use.view.param == index])
            and (method == "ghost" or not _kept_is_cheaper(leaf, own, kept_bytes))
        )
        # `vmap` makes rows into groups of one convolution, and those of a convolution that has
        # groups already are computed together: 0 times one row's NaN would reach the others.
        grouped = sum(
            eqn.primitive.name == "conv_general_dilated"
            and max(eqn.params["feature_group_count"], eqn.params["batch_group_count"]) > 1
            for eqn in _equations(self._traced.jaxpr)
        )
        self._one_by_one = grouped > sum(
            use.groups > 1 for use in self.uses if use.view.param in self.ghost
        )

    @property
    def kept_size(self) -> int:
        """How many numbers are in the parameters whose gradients are made for every row."""
        factored = {use.view.param for use in self.uses if use.gradient is None} & self.ghost
        return sum(jnp.size(leaf) for i, leaf in enumerate(self.leaves) if i not in factored)

    def gradients(self, params: PyTree, rows: PyTree, keys: Any):
        """Losses ``[B]``, what came with them, and the gradients of each parameter.

        Returns:
            (losses, aux, gradients): for each parameter `factors.Factors`, or an array ``[B, ...]``
            of its gradients, or None if the loss does not use it.
        """
        leaves = jax.tree.leaves(params)
        kept = {i: leaf for i, leaf in enumerate(leaves) if i not in self.ghost}

        def loss(kept, deltas, row, key):
            run = _Run(self.ghost, deltas)
            values = [kept.get(i, leaf) for i, leaf in enumerate(leaves)]
            rest = (*jax.tree.leaves(row), *jax.tree.leaves(key))
            loss, *aux = self._values(values, rest, run)
            return loss, (jax.tree.unflatten(self._aux, aux), run.operands)

        zeros = [
            jnp.zeros((*use.view.stack, *use.result.shape), use.result.dtype)
            for use in self.uses
            if use.view.param in self.ghost
        ]
        derivative = channels_last(jax.value_and_grad(loss, (0, 1), has_aux=True))
        if self._one_by_one:
            found = jax.lax.map(lambda row: derivative(kept, zeros, *row), (rows, keys))
        else:
            axes = (None, None, 0, None if keys is None else 0)
            found = jax.vmap(derivative, axes)(kept, zeros, rows, keys)
        (losses, (aux, operands)), (gradients, deltas) = found
        ghost = [use for use in self.uses if use.view.param in self.ghost]
        for index in self.ghost:
            mine = [
                (use, operand, delta)
                for use, operand, delta in zip(ghost, operands, deltas, strict=True)
                if use.view.param == index
            ]
            gradients[index] = uses.factors_of(mine) if mine else None
        return losses, aux, [gradients[index] for index in range(len(leaves))]

    def weighted_sum(self, index: int, gradient: Any, weights: Float[Array, " B"]):
        """The sum over rows of the gradients of a parameter, each times its weight."""
        leaf = self.leaves[index]
        if gradient is None:
            return jnp.zeros(jnp.shape(leaf), clipping.wide(jnp.result_type(leaf)))
        if not isinstance(gradient, factors.Factors):
            # As a product, because XLA's CPU backend is slow at sums over the leading axis.
            return jnp.einsum(
                "b,b...->...",
                weights,
                clipping.finite_entries(gradient),
                precision=jax.lax.Precision.HIGHEST,
            )
        use = next(use for use in self.uses if use.view.param == index)
        if isinstance(gradient, factors.Tied):
            use = next(u for u in self.uses if u.view.param == index and u.kind == "lookup")
        axes, stack = use.rows + use.columns, use.view.stack
        total = gradient.weighted_sum(weights).reshape(*stack, *(use.view.base[a] for a in axes))
        total = uses.unviewed(uses.transpose_back(total, stack, axes), use.view)
        return total.astype(clipping.wide(jnp.result_type(leaf)))

    def _values(self, leaves, rest, run):
        views = [uses.View.whole(index, jnp.shape(leaf)) for index, leaf in enumerate(leaves)]
        values, views = _evaluate(
            self._traced.jaxpr,
            self._traced.consts,
            [*leaves, *rest],
            [*views, *[None] * len(rest)],
            run,
        )
        run.unknown.update(view.param for view in views if view is not None)
        return values


class _Run:
    """What one evaluation meets: uses, what they multiply, and parameters used otherwise."""

    def __init__(self, ghost: frozenset[int], deltas: Sequence[Any] | None):
        self.ghost, self.deltas = ghost, deltas
        self.uses: list[uses.Use] = []
        self.unknown: set[int] = set()
        self.operands: list[Any] = []

    def meet(self, use: uses.Use, operand: Any, result: Any) -> Any:
        """Note a use; where its parameter is ghost, the result takes up its perturbation."""
        self.uses.append(use)
        if use.view.param not in self.ghost or self.deltas is None:
            return result
        delta = self.deltas[len(self.operands)]
        self.operands.append(use.operand(operand))
        return result + delta


_CALLS = ("jit", "pjit", "closed_call", "core_call")
_CHECKPOINTS = ("checkpoint", "remat", "remat2")


def _evaluate(jaxpr, consts, values, views, run: _Run):
    """Evaluate a program, following parameters through changes of shape and inner programs."""
    env: dict[Any, tuple[Any, uses.View | None]] = {}

    def read(atom):
        return (atom.val, None) if isinstance(atom, jex.core.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, [(const, None) for const in consts], strict=True))
    env.update(zip(jaxpr.invars, zip(values, views, strict=True), strict=True))
    for eqn in jaxpr.eqns:
        values, views = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
        found = [view for view in views if view is not None]
        new_views: Sequence[uses.View | None] = [None] * len(eqn.outvars)
        if found and eqn.primitive.name in _CALLS:
            inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            outs, new_views = _evaluate(inner.jaxpr, inner.consts, values, views, run)
        elif found and eqn.primitive.name == "scan":
            outs = _scanned(eqn, values, views, run)
        elif found and eqn.primitive.name in _CHECKPOINTS:
            outs, new_views = _rematerialised(eqn, values, views, run)
        else:
            outs = _bind(jaxpr, eqn, values)
            if len(found) == 1:
                view = uses.reshaped(eqn, found[0])
                use = None if view else uses.use_of(eqn, views)
                if view is not None:
                    new_views = [view]
                elif use is not None:
                    (operand,) = [v for v, seen in zip(values, views, strict=True) if seen is None]
                    outs = [run.meet(use, operand, outs[0])]
                else:
                    run.unknown.add(found[0].param)
            else:
                run.unknown.update(view.param for view in found)
        env.update(zip(eqn.outvars, zip(outs, new_views, strict=True), strict=True))
    return map(list, zip(*map(read, jaxpr.outvars), strict=True)) if jaxpr.outvars else ([], [])


def _bind(jaxpr, eqn, values):
    """Evaluate one equation as a program: how primitives bind is JAX's private matter."""
    given = {
        atom: value
        for atom, value in zip(eqn.invars, values, strict=True)
        if not isinstance(atom, jex.core.Literal)
    }
    debug = jaxpr.debug_info.with_unknown_names()
    alone = jex.core.Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, debug)
    return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(alone, ()))(*given.values())


def _rematerialised(eqn, values, views, run: _Run):
    """A checkpointed part, still checkpointed: what its uses multiply are further results."""
    seen = []

    def inner(values):
        part = _Run(run.ghost, None if run.deltas is None else run.deltas[len(run.operands) :])
        outs, new_views = _evaluate(eqn.params["jaxpr"], (), values, views, part)
        seen[:] = [part, new_views]
        return outs, part.operands

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    outs, operands = jax.checkpoint(inner, **options)(list(values))
    part, new_views = seen
    run.uses += part.uses
    run.unknown |= part.unknown
    run.operands += operands
    return outs, new_views


def _scanned(eqn, values, views, run: _Run):
    """A loop: of the parameters that it slices, each step's uses are uses of a slice."""
    # JAX 0.12 stores groups where versions before it store their sizes.
    groups = eqn.params.get("ft_in")
    sizes = (
        [eqn.params["num_consts"], eqn.params["num_carry"]]
        if groups is None
        else [len(group) for group in groups.unpack()[:2]]
    )
    first, body = sum(sizes), eqn.params["jaxpr"]
    consts, carry, xs = values[: sizes[0]], values[sizes[0] : first], values[first:]
    slices: list[uses.View | None] = []
    for view in views[first:]:
        sliced = view is not None and view == uses.View.whole(view.param, view.base, view.stack)
        length = eqn.params["length"]
        slices.append(
            uses.View.whole(view.param, view.base[1:], (*view.stack, length))  # type: ignore[union-attr]
            if sliced
            else None
        )
    other = (*views[:first], *(v for v, s in zip(views[first:], slices, strict=True) if s is None))
    run.unknown.update(view.param for view in other if view is not None)

    def step(carry, xs, deltas):
        part = _Run(run.ghost, deltas)
        outs, new_views = _evaluate(
            body.jaxpr, body.consts, [*consts, *carry, *xs], [*[None] * first, *slices], part
        )
        part.unknown.update(view.param for view in new_views if view is not None)
        return outs, part

    seen = []

    def search(carry, xs):
        outs, part = step(carry, xs, None)
        seen[:] = [part]
        return outs

    jax.eval_shape(search, carry, [x[0] for x in xs])
    (found,) = seen
    run.uses += found.uses
    run.unknown |= found.unknown
    deltas = None
    if run.deltas is not None:
        mine = sum(use.view.param in run.ghost for use in found.uses)
        deltas = run.deltas[len(run.operands) : len(run.operands) + mine]

    def loop_body(carry, xs):
        outs, part = step(carry, *xs)
        return outs[: sizes[1]], (outs[sizes[1] :], part.operands)

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, operands) = jax.lax.scan(loop_body, list(carry), (list(xs), deltas), **options)
    run.operands += operands
    return [*carry, *ys]


def _kept_is_cheaper(leaf, own: Sequence[uses.Use], kept_bytes: float) -> bool:
    products = [use for use in own if use.kind == "product"]
    many = sum(use.positions for use in products) >= factors.MANY_POSITIONS
    return bool(products) and many and 4 * jnp.size(leaf) <= kept_bytes


_COUPLED = (
    "loss_fn must give each row a loss of its own, but the layer {} normalises by statistics of "
    "the batch: use running averages (use_running_average=True) or GroupNorm"
)


def refuse_coupled(jaxpr: Any) -> None:
    """Raise if a program joins rows: over devices, or in batch normalisation's statistics.

    With single rows the latter would run, on batches of one, and train another model than the
    user's.
    """
    for eqn in _equations(jaxpr):
        over = [eqn.params.get(name, ()) for name in ("axes", "axis_name")]
        names = {axis for axes in over for axis in (axes if isinstance(axes, tuple) else (axes,))}
        if names & set(ROW_AXES):
            raise ValueError(
                "loss_fn must give each row a loss of its own, but "
                f"{eqn.primitive.name} reaches over the devices that share the rows"
            )
        if eqn.primitive.name != "reduce_sum" or eqn.source_info.traceback is None:
            continue
        names = [frame.function_name for frame in eqn.source_info.traceback.frames]
        layer = _batch_normalisation(names)
        if layer is not None and any("_compute_stats" in name for name in names):
            raise ValueError(_COUPLED.format(str(eqn.source_info.name_stack) or layer))


def _batch_normalisation(names: Sequence[str]) -> str | None:
    """The class of a layer of batch normalisation among names of functions."""
    classes = (name.split(".")[0] for name in names if "." in name)
    return next((name for name in classes if name.endswith("BatchNorm")), None)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if isinstance(inner, jex.core.Jaxpr):
                    yield from _equations(inner)
