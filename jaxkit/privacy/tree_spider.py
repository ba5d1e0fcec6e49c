"""Tree-based Private SPIDER: one pass over the data, estimates on a binary tree (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import clipping, noise
from jaxkit.privacy.bounded_sums import widened
from jaxkit.privacy.one_pass import OnePass

DifferenceBound = Literal["distance", "worst_case"]


class TreeSpiderRun(NamedTuple):
    """Result of `tree_spider`; N = rounds * 2^D leaves.

    Attributes:
        params: parameters of the last leaf, or of the leaf at which the run stopped.
        random_params: a uniformly random leaf iterate: the paper's output.
        best_params: the leaf iterate with the shortest estimate: the practical output.
        leaf_params: leaf iterates, leaves ``[N, ...]``.
        leaf_norms: norms of the directions at the leaves ``[N]``.
        leaf_directions: estimates with the regulariser's gradient, leaves ``[N, ...]``.
        visited: which leaves were reached before the stop ``[N]``.
        stopped: whether a leaf estimate fell under the threshold.
    """

    params: PyTree
    random_params: PyTree
    best_params: PyTree
    leaf_params: PyTree[Float[Array, "N ..."]]
    leaf_norms: Float[Array, " N"]
    leaf_directions: PyTree[Float[Array, "N ..."]]
    visited: Bool[Array, " N"]
    stopped: Bool[Array, ""]


def tree_visits(depth: int) -> Int[np.ndarray, "leaves 2"]:
    """The right child entered before each leaf k = 1..2^D - 1: its level, its first data row.

    Level l uses 1/2^l of a root batch; rows are counted in units of 2^-D root batches.

    Args:
        depth: D >= 1.

    Source: arXiv 2206.00846 Algorithm 1: depth-first order, right children take fresh data.
    """
    validation.integer("depth", depth, minimum=1)
    leaves = np.arange(1, 2**depth)
    trailing_zeros = np.log2(leaves & -leaves).astype(int)
    levels = depth - trailing_zeros
    sizes = 2**trailing_zeros
    offsets = 2**depth + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.stack([levels, offsets], axis=1)


def tree_examples(root_size: int, depth: int) -> int:
    """Number of examples that one round uses: b (1 + D/2).

    Args:
        root_size: b, a multiple of 2^D.
        depth: D >= 1.

    Returns:
        The number.

    Raises:
        ValueError: if 2^D does not divide b.

    Example:
        >>> tree_examples(8, 2)
        16
    """
    validation.integer("depth", depth, minimum=1)
    size = validation.integer("root_size", root_size, minimum=1)
    if size % 2**depth:
        raise ValueError(f"root_size must be a multiple of 2^depth = {2**depth}, got {size}")
    return size + depth * size // 2


def tree_spider(
    plan: OnePass,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    *,
    depth: int,
    root_size: int,
    num_rounds: int,
    smoothness: Any,
    beta: Any,
    stop_threshold: Any = 0.0,
    difference_bound: DifferenceBound = "distance",
    carry_last_step: bool = False,
    regulariser_gradient: Callable[[PyTree], PyTree] | None = None,
    draw: noise.Draw = noise.gaussian_draw,
) -> TreeSpiderRun:
    r"""Walk the leaves of binary trees, each example used in one release.

    A root estimates the gradient from b examples; a right child at level l adds the difference to
    its parent's estimate over b/2^l fresh examples; a leaf makes a step of fixed length
    :math:`\beta/(2^{D/2}L_1)`. The stack of the current path is the only memory.

    .. math::
        \nabla_{root} = \frac1b\Big(\sum\mathrm{clip}_{C}(\nabla f) + zC\xi\Big), \quad
        \nabla_s = \nabla_{parent} + \frac{2^l}{b}\Big(\sum\mathrm{clip}_{B}
        (\nabla f(w_s) - \nabla f(w_{parent})) + zB\xi\Big)

    with B the actual :math:`L_1\|w_s-w_{parent}\|` (both are public), or the largest it can be,
    :math:`2^{D-l}\beta/2^{D/2}`, as in the paper; never above 2C.

    Args:
        plan: from `one_pass`: gradients, whose clip norm is C (the paper's L0), and noise.
        params: w_0.
        data: tree of arrays ``[n, ...]`` in random order, n >= num_rounds * b (1 + D/2).
        key: typed key of the noise and of the random output, from `plan.key(source)`.
        depth: D >= 1, static.
        root_size: b, a multiple of 2^D, static.
        num_rounds: trees, one after the other, static.
        smoothness: L1 > 0: the bound on a difference per unit of distance.
        beta: sets the step length.
        stop_threshold: stop at the first leaf whose estimate is at most this long. 0 never stops:
            the theorem's value exceeds every gradient.
        difference_bound: `"distance"` or the paper's `"worst_case"`.
        carry_last_step: start the next round after the last leaf's step, which the paper discards.
        regulariser_gradient: gradient of a regulariser independent of the data, added at leaves.
        draw: source of the standard normals; replace it only to replay recorded noise.

    Returns:
        The outputs and the leaves. Under `vmap` every level's batch is evaluated at every leaf.

    Raises:
        ValueError: if a number is not allowed, 2^D does not divide b, or there are too few
            examples.

    Source: arXiv 2206.00846 Algorithm 1.

    Example:
        >>> from jaxkit import privacy
        >>> gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
        >>> plan = privacy.one_pass(gradient, noise_multiplier=4.0, delta=1e-5)
        >>> data = (jnp.ones((3, 1)), jnp.ones(3))
        >>> settings = dict(depth=1, root_size=2, num_rounds=1, smoothness=0.25, beta=0.1)
        >>> def run(key):
        ...     return tree_spider(plan, jnp.zeros(1), data, key, **settings)
        >>> jax.eval_shape(run, jax.random.key(0)).leaf_params.shape
        (2, 1)
    """
    per_round = tree_examples(root_size, depth)
    validation.integer("num_rounds", num_rounds, minimum=1)
    validation.number("smoothness", smoothness, minimum=0, open_minimum=True)
    validation.number("beta", beta, minimum=0, open_minimum=True)
    validation.number("stop_threshold", stop_threshold, minimum=0)
    validation.choice("difference_bound", difference_bound, ("distance", "worst_case"))
    rows = clipping.batch_size("data", data)
    if rows < num_rounds * per_round:
        raise ValueError(
            f"data must have at least num_rounds * root_size * (1 + depth/2) = "
            f"{num_rounds * per_round} examples, got {rows}"
        )
    leaves, unit = 2**depth, root_size // 2**depth
    length = beta / (2 ** (depth / 2) * smoothness)
    gradient, params, narrow = widened(plan.gradient, params)
    noise_multiplier = plan.noise_multiplier
    noise_key, example_key, choice_key = jax.random.split(key, 3)

    def release(index, total, scale, size):
        xi = draw(noise_key, index, total)
        return optax.tree.scale(1 / size, optax.tree.add_scale(total, scale, xi))

    def root(params, data, index):
        batch = jax.tree.map(lambda x: x[:root_size], data)
        total = gradient(params, batch, jax.random.fold_in(example_key, index))
        return release(index, total.total, noise_multiplier * total.clip_norm, root_size)

    def right_child(level):
        size = root_size >> level

        def estimate(params, stack, data, offset, index):
            parent, parent_estimate = jax.tree.map(lambda x: x[level - 1], stack)
            reach = (
                optax.tree.norm(optax.tree.sub(params, parent))
                if difference_bound == "distance"
                else 2 ** (depth - level) * length
            )
            bound = jnp.minimum(
                smoothness * reach, 2 * clipping.total_clip_norm(gradient.clip_norm)
            )
            batch = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, offset * unit, size), data
            )
            total = gradient.difference(
                params, parent, batch, bound, jax.random.fold_in(example_key, index)
            )
            change = release(index, total.total, noise_multiplier * total.clip_norm, size)
            return optax.tree.add(parent_estimate, change)

        return estimate

    def leaf(params, estimate, stopped):
        """Make the step of a leaf; the record says whether the run had not stopped before."""
        direction = estimate
        if regulariser_gradient is not None:
            direction = optax.tree.add(estimate, regulariser_gradient(params))
        norm = optax.tree.norm(direction)
        after = optax.tree.add_scale(params, -length / jnp.where(norm > 0, norm, 1), direction)
        stops = (norm <= stop_threshold) & (stop_threshold > 0)
        return after, stopped | stops, (params, direction, norm, ~stopped)

    levels = jnp.arange(depth + 1)
    branches = [right_child(level) for level in range(1, depth + 1)]
    visits = jnp.asarray(tree_visits(depth))

    def one_round(carry, round_xs):
        params, stopped = carry
        data, round_index = round_xs
        start = round_index * leaves

        def next_leaf(carry, xs):
            stack, params, stopped = carry
            leaf_index, (level, offset) = xs
            estimate = jax.lax.switch(
                level - 1, branches, params, stack, data, offset, start + leaf_index
            )
            stack = jax.tree.map(
                lambda old, new: jnp.where(
                    (levels >= level).reshape(-1, *(1,) * new.ndim), new[None], old
                ),
                stack,
                (params, estimate),
            )
            params, stopped, record = leaf(params, estimate, stopped)
            return (stack, params, stopped), record

        estimate = root(params, data, start)
        stack = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (depth + 1, *x.shape)), (params, estimate)
        )
        after, stopped, first = leaf(params, estimate, stopped)
        (stack, after, stopped), rest = jax.lax.scan(
            next_leaf, (stack, after, stopped), (jnp.arange(1, leaves), visits)
        )
        record = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        last = jax.tree.map(lambda x: x[-1], stack[0])
        return (after if carry_last_step else last, stopped), record

    used = num_rounds * per_round
    rounds = jax.tree.map(lambda x: x[:used].reshape(num_rounds, per_round, *x.shape[1:]), data)
    (_, stopped), record = jax.lax.scan(
        one_round, (params, jnp.zeros((), bool)), (rounds, jnp.arange(num_rounds))
    )
    leaf_params, directions, norms, visited = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), record
    )

    def take(index):
        return narrow(jax.tree.map(lambda x: x[index], leaf_params))

    last_visited = jnp.sum(visited) - 1
    chosen = jax.random.randint(choice_key, (), 0, last_visited + 1)
    return TreeSpiderRun(
        params=take(last_visited),
        random_params=take(jnp.where(stopped, last_visited, chosen)),
        best_params=take(jnp.argmin(jnp.where(visited, norms, jnp.inf))),
        leaf_params=narrow(leaf_params),
        leaf_norms=norms,
        leaf_directions=directions,
        visited=visited,
        stopped=stopped,
    )
