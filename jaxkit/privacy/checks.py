"""Can a model and its loss be trained privately, and why not: asked before the first step."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxkit.privacy import clipping
from jaxkit.privacy.clipped_gradients import LossFunction, clipped_grad_sum, row_program

#: Interaction of two rows beyond rounding, relative to what they change alone.
_TOLERANCE = 1e-3
#: Above this an epsilon says nothing that anyone could use.
_MEANINGFUL = 20.0


class PrivateCheck(NamedTuple):
    """What `check_private` found.

    Attributes:
        problems: why the loss cannot be trained privately, or would not be what it seems.
        notes: what is worth knowing and no obstacle.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def check_private(
    loss_fn: LossFunction,
    params: PyTree,
    batch: PyTree,
    key: Key[Array, ""] | None = None,
    *,
    has_aux: bool = False,
    plan: Any = None,
    gradients: bool = True,
) -> PrivateCheck:
    r"""Say whether a model and loss can be trained privately, and why not.

    Rows that the loss joins are found by changing one and watching another: for rows i and j, the
    loss is asked at both, at either and at none of two changes,

    .. math:: L(x_i', x_j') - L(x_i', x_j) - L(x_i, x_j') + L(x_i, x_j),

    which is 0 if each row has a loss of its own, whatever it draws. The guarantee holds for any
    loss, as rows are clipped alone; but one that joins rows trains another model than was meant.

    Args:
        loss_fn: `loss_fn(params, batch, key)`, as for `clipped_grad_sum`.
        params: parameters.
        batch: at least two different rows ``[B, ...]`` that are public or made up: what is found
            is not private.
        key: for a random loss.
        has_aux: whether the loss returns `(loss, aux)`.
        plan: a plan whose claim is judged too.
        gradients: whether to make the gradients of the rows too, or only their program: what takes
            time is to compile them.

    Returns:
        Problems and notes.

    Example:
        >>> centred = lambda w, x, key: jnp.mean((x * w - jnp.mean(x * w)) ** 2)
        >>> rows = jnp.array([[1.0], [2.0], [4.0]])
        >>> check_private(centred, jnp.ones(1), rows).problems[0]
        'the loss joins rows: changing row 1 changes what row 0 adds; rows are trained alone'
        >>> check_private(lambda w, x, key: jnp.mean((x - w) ** 2), jnp.ones(1), rows).passed
        True
    """
    try:
        rows = clipping.batch_size("batch", batch)
        gradient = clipped_grad_sum(loss_fn, 1.0, has_aux=has_aux)
        if gradients:
            found = jax.jit(gradient)(params, batch, key)
        else:
            row_program(loss_fn, params, batch, key, "example", has_aux=has_aux)
    except (TypeError, ValueError) as error:
        return PrivateCheck((str(error),), ())
    problems, notes = _joined_rows(loss_fn, params, batch, key, rows), []
    if gradients:
        _judge(found, params, rows, problems, notes)
    if plan is not None:
        epsilon = plan.epsilon()
        if not epsilon <= _MEANINGFUL:
            problems.append(f"epsilon = {epsilon:.4g} is no meaningful guarantee")
    return PrivateCheck(tuple(problems), tuple(notes))


def _judge(found, params, rows, problems, notes) -> None:
    """What the sum of gradients tells."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    still = [
        name or "params"
        for name, leaf in zip(names, jax.tree.leaves(found.total), strict=True)
        if not np.any(leaf)
    ]
    broken = int(found.non_finite)
    if broken == rows:
        problems.append("no row has a finite gradient: nothing but noise would be released")
    elif len(still) == len(names):
        problems.append("no parameter has a gradient: nothing but noise would be released")
    else:
        if broken:
            notes.append(f"{broken} of {rows} rows have no finite gradient and count as 0")
        if still:
            notes.append(f"parameters without a gradient get noise alone: {', '.join(still)}")
    notes.append(f"{int(found.clipped)} of {rows} gradients are longer than 1")


def _joined_rows(loss_fn, params, batch, key, rows) -> list[str]:
    """Whether the loss of a batch is a sum over its rows, with the random numbers of one key."""
    if rows < 2:
        return ["batch must have at least two rows, to see whether the loss joins them, got 1"]

    def changed(leaf, which):
        # Another row's value, and for real numbers not quite it, so that equal rows differ too.
        leaf = jnp.asarray(leaf)
        other = jnp.roll(leaf, rows // 2, axis=0)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            other = (1.25 * other + 0.1).astype(leaf.dtype)
        return jnp.where(which.reshape(rows, *(1,) * (leaf.ndim - 1)), other, leaf)

    # It runs once: on a CPU, making it fast takes longer than all else.
    hasty = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=hasty)
    def losses(params, masks):
        def loss(which):
            value = loss_fn(params, jax.tree.map(lambda x: changed(x, which), batch), key)
            return value[0] if isinstance(value, tuple) else value

        return jax.lax.map(loss, masks)

    pairs = list(itertools.combinations(range(min(rows, 5)), 2))
    both = np.array([np.isin(np.arange(rows), pair) for pair in pairs])
    one, other = np.zeros_like(both), np.zeros_like(both)
    for index, (first, second) in enumerate(pairs):
        one[index, first] = other[index, second] = True
    try:
        masks = jnp.stack([np.zeros_like(both), one, other, both], 1).reshape(-1, rows)
        found = losses(params, masks)
    except (TypeError, ValueError) as error:
        return [f"the loss of a batch fails, though that of single rows does not: {error}"]
    found = np.asarray(found, np.float64).reshape(-1, 4)
    changes = np.abs(found[:, 1:3] - found[:, :1]).max(1)
    rounding = np.abs(found).max(1) * 2.0**-18
    interaction = np.abs(found @ [1, -1, -1, 1])
    joined = np.flatnonzero(interaction > _TOLERANCE * changes + rounding)
    if not joined.size:
        return []
    first, second = pairs[joined[0]]
    return [
        f"the loss joins rows: changing row {second} changes what row {first} adds; rows are "
        "trained alone"
    ]
