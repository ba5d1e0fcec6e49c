"""Gaussian noise as optax transformations whose state carries the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from jaxkit import validation
from jaxkit.privacy import clipping

#: From a key, the number of a release and a tree: standard normals shaped like the tree.
Draw = Callable[[Key[Array, ""], Any, PyTree], PyTree]


class NoiseState(NamedTuple):
    """State of a transformation that adds noise.

    Attributes:
        step: number of updates made, int32.
        key: typed key; update t draws from ``fold_in(key, t)``, so a key must serve one run only.

    Example:
        >>> noise = add_gaussian_noise(2.0, jax.random.key(0))
        >>> int(noise.init(jnp.zeros(4)).step)
        0
    """

    step: Int[Array, ""]
    key: Key[Array, ""]


def gaussian_draw(
    key: Key[Array, ""], index: Int[Array, ""] | int, like: PyTree[Shaped[Array, " ..."]]
) -> PyTree[Float[Array, " ..."]]:
    """Standard normals of release number `index`, in float32, shaped like a tree.

    The draw depends on the key, the number and the shapes alone: not on devices or sharding.

    Args:
        key: typed key of the run.
        index: number of the release, >= 0.
        like: tree of arrays.

    Returns:
        Tree of float32 arrays.

    Example:
        >>> gaussian_draw(jax.random.key(0), 3, {"w": jnp.zeros((2, 3))})["w"].shape
        (2, 3)
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.fold_in(key, index), len(leaves))
    draws = [
        jax.random.normal(k, leaf.shape, jnp.float32) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def _first_state(key: Any) -> NoiseState:
    # A copy of the key: the state may be donated, and the next one still needs it.
    return NoiseState(jnp.zeros((), jnp.int32), jax.random.clone(key))


def add_gaussian_noise(stddev: Any, key: Key[Array, ""]) -> optax.GradientTransformation:
    r"""Add :math:`N(0, \mathtt{stddev}^2 I)` to the updates, once for all devices.

    Put it after the sum over all devices and microbatches, before anything else. Noise and sum are
    float32; the result is cast to the type of the updates.

    Args:
        stddev: standard deviation; noise multiplier times `ClippedGradient.sensitivity()`.
        key: typed key for this run alone.

    Returns:
        An optax transformation with state `NoiseState`.

    Raises:
        ValueError: if `stddev` is negative or not finite.
        TypeError: if `key` is not a typed key.

    Example:
        >>> noise = add_gaussian_noise(2.0, jax.random.key(0))
        >>> updates, state = noise.update(jnp.zeros(4), noise.init(jnp.zeros(4)))
        >>> updates.shape, int(state.step)
        ((4,), 1)
    """
    validation.number("stddev", stddev, minimum=0)
    check_key(key)

    def init(params):
        del params
        return _first_state(key)

    def update(updates, state, params=None):
        del params
        noisy = _add(updates, stddev, gaussian_draw(state.key, state.step, updates))
        return noisy, NoiseState(state.step + 1, state.key)

    return optax.GradientTransformation(init, update)


def add_tree_noise(
    stddev: Any, steps_per_tree: int, key: Key[Array, ""]
) -> optax.GradientTransformation:
    r"""Add noise whose running sum is that of binary-tree aggregation.

    After t updates the noise in the sum of the updates is :math:`\sum_l N_{l}` over the set bits l
    of t: one draw for each node of the tree that covers updates 1..t. Update t adds

    .. math:: N_{c,t} - \sum_{l < c} N_{l,t-1}, \qquad c = \text{trailing zeros of } t.

    No memory: a node is drawn again from its own key (two draws an update on average).

    Args:
        stddev: standard deviation of one node.
        steps_per_tree: a new tree begins after this many updates (an epoch).
        key: typed key for this run alone.

    Returns:
        An optax transformation with state `NoiseState`.

    Raises:
        ValueError: if a number is not allowed.
        TypeError: if `key` is not a typed key.

    Source: Kairouz et al. 2021 (DP-FTRL), arXiv 2103.00039.

    Example:
        >>> noise = add_tree_noise(1.0, 8, jax.random.key(0))
        >>> updates, state = noise.update(jnp.zeros(4), noise.init(jnp.zeros(4)))
        >>> updates.shape
        (4,)
    """
    validation.number("stddev", stddev, minimum=0)
    validation.integer("steps_per_tree", steps_per_tree, minimum=1)
    check_key(key)

    def init(params):
        del params
        return _first_state(key)

    def update(updates, state, params=None):
        del params
        tree, before = jnp.divmod(state.step, steps_per_tree)
        tree_key = jax.random.fold_in(state.key, tree)

        def node(level, position):
            return gaussian_draw(jax.random.fold_in(tree_key, level), position >> level, updates)

        opened = jax.lax.population_count(before ^ (before + 1)) - 1
        fresh = node(opened, before + 1)
        drawn = jax.lax.fori_loop(
            0, opened, lambda level, sofar: optax.tree.sub(sofar, node(level, before)), fresh
        )
        return _add(updates, stddev, drawn), NoiseState(state.step + 1, state.key)

    return optax.GradientTransformation(init, update)


def privatize_sum(
    clip_norm: Any, noise_multiplier: Any, expected_batch_size: Any, key: Key[Array, ""]
) -> optax.GradientTransformation:
    r"""Turn a sum of clipped gradients into a private mean: :math:`(s + z C \xi) / B`.

    B is the size that batches have on average, a constant: dividing by the number of examples
    drawn would leak it.

    Args:
        clip_norm: C that the sum was clipped with.
        noise_multiplier: z >= 0; 0 gives no privacy.
        expected_batch_size: B > 0.
        key: typed key for this run alone.

    Returns:
        An optax transformation.

    Raises:
        ValueError: if a number is not allowed.

    Example:
        >>> mean = privatize_sum(1.0, 0.0, 4, jax.random.key(0))
        >>> mean.update(jnp.array([2.0]), mean.init(jnp.zeros(1)))[0].tolist()
        [0.5]
    """
    clipping.check_clip_norm(clip_norm, "flat")
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    validation.number("expected_batch_size", expected_batch_size, minimum=0, open_minimum=True)
    return optax.chain(
        add_gaussian_noise(noise_multiplier * clip_norm, key), optax.scale(1 / expected_batch_size)
    )


def dp_aggregate(
    clip_norm: Any,
    noise_multiplier: Any,
    expected_batch_size: Any,
    key: Key[Array, ""],
    *,
    mode: clipping.Mode = "flat",
) -> optax.GradientTransformationExtraArgs:
    r"""Turn per-example gradients into a private mean: :math:`(\sum_i clip(g_i) + z C \xi) / B`.

    For code that has the gradients of all examples in memory; `clipped_grad_sum` with
    `privatize_sum` gives the same numbers without that.

    Args:
        clip_norm: C > 0.
        noise_multiplier: z >= 0; 0 gives no privacy.
        expected_batch_size: B > 0, a constant.
        key: typed key for this run alone.
        mode: see `clip_per_example`.

    Returns:
        An optax transformation; updates have a leading batch axis and `update` takes an optional
        boolean `mask` ``[B]`` of the rows that are examples.

    Raises:
        ValueError: if a number or the mode is not allowed.

    Example:
        >>> mean = dp_aggregate(1.0, 0.0, 2, jax.random.key(0))
        >>> rows = jnp.array([[3.0, 4.0], [0.0, 0.5]])
        >>> mean.update(rows, mean.init(jnp.zeros(2)))[0].round(3).tolist()
        [0.30000001192092896, 0.6500000357627869]
    """
    clipping.check_clip_norm(clip_norm, mode)
    noisy_mean = privatize_sum(clip_norm, noise_multiplier, expected_batch_size, key)

    def update(updates, state, params=None, *, mask=None, **_):
        rows = clipping.batch_size("updates", updates)
        keep = jnp.ones(rows, bool) if mask is None else mask
        clipped = clipping.clip_per_example(updates, clip_norm, mode=mode).gradients
        total = jax.tree.map(lambda g: jnp.einsum("b,b...->...", keep.astype(g.dtype), g), clipped)
        return noisy_mean.update(total, state, params)

    return optax.GradientTransformationExtraArgs(noisy_mean.init, update)


def check_key(key: Any) -> None:
    """Raise unless `key` is a typed key.

    Example:
        >>> check_key(jax.random.key(0))
    """
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key such as jax.random.key(0), got {key!r}")


def _add(updates, stddev, draws):
    return jax.tree.map(
        lambda u, xi: (u.astype(jnp.float32) + stddev * xi).astype(u.dtype), updates, draws
    )
