"""Record gradient norms while training, in fixed memory, inside the optimizer state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Float, Int, PyTree

from jaxkit import validation
from jaxkit.schedules import gap_filling

NORMS = ("l2", "l1")


class GradientNormState(NamedTuple):
    """Norms gathered so far.

    Attributes:
        count: int32[], updates seen.
        total: float32[bins], sum of the finite norms of each bin.
        hits: int32[bins], how many they are.
    """

    count: Int[Array, ""]
    total: Float[Array, " bins"]
    hits: Int[Array, " bins"]


def gradient_norm(gradient: PyTree, norm: str = "l2", *, axis_name: Any = None) -> Float[Array, ""]:
    """Norm of a whole gradient, summed in float32.

    l2: sqrt(sum_i g_i^2); l1: sum_i |g_i|.

    Args:
        gradient: pytree of arrays; a complex one counts by its modulus.
        norm: `"l2"` or `"l1"`.
        axis_name: mesh axes over which the *parameters* are split inside `shard_map` or `pmap`;
            under plain `jit`, sharded arrays need none.

    Raises:
        ValueError: if `norm` is unknown.

    Source: arXiv 2310.07831 §3 (l2 for SGD, l1 for Adam).

    Example:
        >>> float(gradient_norm({"w": jnp.array([3.0, -4.0])}))
        5.0
    """
    validation.choice("norm", norm, NORMS)
    power = 2 if norm == "l2" else 1
    gradient = jax.tree.map(_real, gradient)
    size = jnp.asarray(optax.tree.norm(gradient, ord=power, squared=norm == "l2"), jnp.float32)
    if axis_name is not None:
        size = lax.psum(size, axis_name)
    return jnp.sqrt(size) if norm == "l2" else size


def record_gradient_norms(
    total_steps: int, num_bins: int = 1024, norm: str = "l2", axis_name: Any = None
) -> optax.GradientTransformation:
    """Record the norm of every gradient that passes, leaving the updates as they are.

    The norms are averaged in at most `num_bins` bins of equal length over the run, so that memory
    is 8 bytes a bin whatever the length. Update i falls in bin floor(i bins / T); updates from T
    on are not recorded; one whose norm is not finite is counted and skipped.

    It must be **first** in `optax.chain`, before clipping, decay and preconditioning, and inside
    `optax.MultiSteps`, so that it sees one accumulated gradient an update.

    Args:
        total_steps: T, updates of the run; not micro-batches.
        num_bins: most bins to keep; a run shorter than that keeps one bin an update.
        norm: `"l2"` to refine a schedule for SGD, `"l1"` for Adam and its kin.
        axis_name: mesh axes that split the *parameters* inside `shard_map`. Average the gradient
            over the data axes before: the mean of per-device norms is biased upwards.

    Returns:
        The transformation, with a `GradientNormState`.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if a count is not positive or `norm` unknown.

    Source: arXiv 2310.07831 §3.

    Example:
        >>> optimizer = optax.chain(record_gradient_norms(2), optax.sgd(0.1))
        >>> state = optimizer.init(jnp.zeros(2))
        >>> for _ in range(2):
        ...     _, state = optimizer.update(jnp.array([3.0, 4.0]), state)
        >>> recorded_norms(state).tolist()
        [5.0, 5.0]
    """
    total_steps = validation.integer("total_steps", total_steps, minimum=1)
    num_bins = min(validation.integer("num_bins", num_bins, minimum=1), total_steps)
    validation.choice("norm", norm, NORMS)
    # floor(i bins / T) overflows int32; the first update of each bin is exact on the host.
    first = np.array([-(-b * total_steps // num_bins) for b in range(num_bins)], np.int32)

    def init_fn(params):
        del params
        return GradientNormState(
            count=jnp.zeros([], jnp.int32),
            total=jnp.zeros([num_bins], jnp.float32),
            hits=jnp.zeros([num_bins], jnp.int32),
        )

    def update_fn(updates, state, params=None):
        del params
        size = gradient_norm(updates, norm, axis_name=axis_name)
        keep = jnp.isfinite(size) & (state.count < total_steps)
        bin_ = jnp.searchsorted(jnp.asarray(first), state.count, side="right") - 1
        return updates, GradientNormState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            total=state.total.at[bin_].add(jnp.where(keep, size, 0.0)),
            hits=state.hits.at[bin_].add(keep.astype(jnp.int32)),
        )

    return optax.GradientTransformation(init_fn, update_fn)


def recorded_norms(state: PyTree) -> Float[Array, "*batch bins"]:
    """Read the mean gradient norm of each bin out of an optimizer state.

    Bins without a norm (skipped steps, or the part of the run still to come) are interpolated
    between their neighbours, or hold the nearest value at the ends.

    Args:
        state: any pytree that holds exactly one recorder's state, such as that of the whole chain,
            a train state, an `nnx.Optimizer` or its `nnx.state`; may be stacked by `vmap`.

    Returns:
        Norms, evenly spaced over the run.

    Raises:
        ValueError: if `state` holds no recorder or several, or nothing was recorded yet.

    Source: arXiv 2310.07831 §3.

    Example:
        >>> transformation = record_gradient_norms(4)
        >>> _, state = transformation.update(jnp.ones(4), transformation.init(jnp.ones(4)))
        >>> recorded_norms(state).tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    found = _recorders(state)
    if len(found) != 1:
        raise ValueError(
            f"state must hold exactly one recorder (put record_gradient_norms first in the chain, "
            f"and give the optimizer's state), found {len(found)}"
        )
    (recorded,) = found
    known = recorded.hits > 0
    if not validation.is_traced(known) and not bool(known.any(axis=-1).all()):
        raise ValueError("state must hold at least one recorded norm, got 0 finite norms")
    means = recorded.total / jnp.maximum(recorded.hits, 1)
    return gap_filling.fill_gaps(means, known)


def lengthen_recorder(state: PyTree, total_steps: int, new_total_steps: int) -> PyTree:
    """Make room in a recorder for the updates of a run that was made longer.

    Each norm goes to the bin of the update in the middle of its old one.

    Args:
        state: any pytree that holds a recorder's state, such as a train state.
        total_steps: T that the recorder was made for, with at most 1024 bins.
        new_total_steps: the longer T.

    Returns:
        The state, its recorder like that of `record_gradient_norms(new_total_steps)`.

    Raises:
        ValueError: if `new_total_steps` is less than `total_steps`.

    Example:
        >>> recorder = record_gradient_norms(2)
        >>> _, state = recorder.update(jnp.array([3.0, 4.0]), recorder.init(jnp.zeros(2)))
        >>> lengthen_recorder(state, 2, 4).total.tolist()
        [5.0, 0.0, 0.0, 0.0]
    """
    validation.integer("new_total_steps", new_total_steps, minimum=total_steps)

    def is_recorder(node: Any) -> bool:
        return isinstance(node, GradientNormState)

    def longer(node: Any) -> Any:
        if new_total_steps == total_steps or not is_recorder(node):
            return node
        old, new = len(node.total), min(new_total_steps, 1024)
        middles = ((np.arange(old) + 0.5) * total_steps / old).astype(int)
        bins = middles * new // new_total_steps
        total, hits = np.zeros(new, np.float32), np.zeros(new, np.int32)
        np.add.at(total, bins, np.asarray(node.total))
        np.add.at(hits, bins, np.asarray(node.hits))
        place = node.total.sharding
        return node._replace(total=jax.device_put(total, place), hits=jax.device_put(hits, place))

    return jax.tree.map(longer, state, is_leaf=is_recorder)


def _real(leaf: Array) -> Array:
    return jnp.asarray(jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf, jnp.float32)


def _recorders(state: PyTree) -> list[GradientNormState]:
    """Find the states of recorders by the names of their fields, whatever boxes or dicts hold them.

    NNX keeps an optimizer's arrays in variables, and a restored checkpoint is plain dictionaries.
    """
    nodes: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if names and names[-1] == "value":
            names.pop()
        if names and names[-1] in GradientNormState._fields:
            nodes.setdefault(tuple(names[:-1]), {})[names[-1]] = leaf
    fields = set(GradientNormState._fields)
    return [GradientNormState(**node) for node in nodes.values() if set(node) == fields]
