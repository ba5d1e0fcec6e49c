"""Gaussian noise on bounded sums, as optax transformations: the sum says how much it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from jaxkit import training, validation
from jaxkit.privacy import clipping
from jaxkit.privacy.bounded_sums import BoundedSum

#: From a key, the number of a release and a tree: standard normals shaped like the tree.
Draw = Callable[[Key[Array, ""], Any, PyTree], PyTree]
#: Numbers of the arrays that are drawn as parts of one vector (4 MiB).
_DRAWN_TOGETHER = 2**20


class NoiseState(NamedTuple):
    """State of a transformation that adds noise; no key is in it, nor in a checkpoint of it.

    Attributes:
        step: number of updates made, int32.
    """

    step: Int[Array, ""]


# Compiled once, where an update that is not compiled would compile the loop at each step.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _normals(pair, half, dtype):
    # A loop is not fused into its readers, each of which would compile, and make, normals anew.
    return jax.lax.map(functools.partial(jax.random.normal, shape=(half,), dtype=dtype), pair)


def gaussian_draw(
    key: Key[Array, ""], index: Int[Array, ""] | int, like: PyTree[Shaped[Array, " ..."]]
) -> PyTree[Float[Array, " ..."]]:
    """Standard normals of release number `index`, float32 or wider, shaped like a tree.

    The draw depends on the key, the number and the shapes alone: not on devices or sharding.
    """
    leaves, structure = jax.tree.flatten(like)
    types = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    # Small arrays are parts of one vector, which compiles in a fraction of the time; a large one
    # is drawn alone, so that devices may hold parts of it.
    groups: list[list[int]] = []
    for place in sorted(range(len(leaves)), key=lambda place: leaves[place].size):
        together = groups[-1] if groups else []
        size = sum(leaves[i].size for i in together) + leaves[place].size
        if together and size <= _DRAWN_TOGETHER and types[together[0]] == types[place]:
            together.append(place)
        else:
            groups.append([place])
    keys = jax.random.split(jax.random.fold_in(key, index), (len(groups), 2))
    draws: list[Any] = [None] * len(leaves)
    for pair, places in zip(keys, groups, strict=True):
        dtype, sizes = types[places[0]], [leaves[place].size for place in places]
        if sizes[0] > _DRAWN_TOGETHER:
            draws[places[0]] = jax.random.normal(pair[0], leaves[places[0]].shape, dtype)
            continue
        flat = _normals(pair, -(-sum(sizes) // 2), dtype).reshape(-1)
        for place, part in zip(places, jnp.split(flat, np.cumsum(sizes)), strict=False):
            draw = part.reshape(leaves[place].shape)
            # Each device makes all of it: parts would have to be exchanged.
            draws[place] = training.constrain(draw, *[None] * draw.ndim)
    return jax.tree.unflatten(structure, draws)


def privatize_sum(
    noise_multiplier: Any, expected_batch_size: Any, key: Key[Array, ""] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Turn a sum of clipped gradients into a private mean: :math:`(s + z C \xi) / B`.

    C is the bound that the sum carries. B is the size that batches have on average, a constant:
    dividing by the number of examples drawn would leak it. Put it first in a chain; noise is added
    once, to the sum over all devices and microbatches.

    Args:
        noise_multiplier: z >= 0, the standard deviation of the noise over C; 0 gives no privacy.
        expected_batch_size: B > 0.
        key: typed key for this run alone, for simulations; without it, every `update` takes a
            fresh one as `key=`, from `PrivacyPlan.noise_key`.

    Returns:
        An optax transformation whose updates are a `BoundedSum`.

    Raises:
        ValueError: if a number is not allowed.
        TypeError: if `key` is not a typed key; at an update, if what is given is no `BoundedSum`
            or there is no key; a ValueError if its numbers were changed.

    Source: Abadi et al. 2016, Algorithm 1.

    Example:
        >>> from jaxkit.privacy import glm
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> mean = privatize_sum(0.0, 4, jax.random.key(0))
        >>> total = gradient(jnp.zeros(1), (jnp.ones((2, 1)), jnp.ones(2)))
        >>> mean.update(total, mean.init(jnp.zeros(1)))[0].tolist()
        [-0.25]
    """

    def draw(state, key, like):
        return gaussian_draw(key, state.step, like)

    return _privatize(noise_multiplier, expected_batch_size, key, draw)


def privatize_tree_sum(
    noise_multiplier: Any,
    expected_batch_size: Any,
    steps_per_tree: int,
    key: Key[Array, ""] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `privatize_sum`, with noise whose running sum is that of binary-tree aggregation.

    The noise of DP-FTRL: it needs no random batches, only that each example takes part in at most
    one update of each tree (`dp_ftrl_mechanism`). After t updates the noise in their sum is
    :math:`\sum_l N_{l}` over the set bits l of t: one draw for each node of the tree that covers
    updates 1..t. Update t adds

    .. math:: N_{c,t} - \sum_{l < c} N_{l,t-1}, \qquad c = \text{trailing zeros of } t.

    No memory: a node is drawn again from its own key (two draws an update on average), which is why
    one key must serve the run.

    Args:
        noise_multiplier: z >= 0: a node has standard deviation z C.
        expected_batch_size: B > 0.
        steps_per_tree: a new tree begins after this many updates (an epoch).
        key: typed key for this run alone; without it, every `update` takes the same one as `key=`.

    Source: Kairouz et al. 2021 (DP-FTRL), arXiv 2103.00039.
    """
    validation.integer("steps_per_tree", steps_per_tree, minimum=1)

    def draw(state, key, like):
        tree, before = jnp.divmod(state.step, steps_per_tree)
        tree_key = jax.random.fold_in(key, tree)

        def node(level, position):
            return gaussian_draw(jax.random.fold_in(tree_key, level), position >> level, like)

        opened = jax.lax.population_count(before ^ (before + 1)) - 1
        fresh = node(opened, before + 1)
        return jax.lax.fori_loop(
            0, opened, lambda level, sofar: optax.tree.sub(sofar, node(level, before)), fresh
        )

    return _privatize(noise_multiplier, expected_batch_size, key, draw)


def _privatize(noise_multiplier, expected_batch_size, key, draw):
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    noise_multiplier = clipping.single_numbers("noise_multiplier", noise_multiplier)
    validation.number("expected_batch_size", expected_batch_size, minimum=0, open_minimum=True)
    if key is not None:
        check_key(key)
    run_key = key

    def init(params):
        del params
        return NoiseState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, key=None, **_):
        del params
        if not isinstance(updates, BoundedSum):
            raise TypeError(
                f"updates must be a BoundedSum, which knows its bound, got {type(updates).__name__}"
                ": noise comes first in a chain, and averaging over calls goes around it"
            )
        if (key is None) == (run_key is None):
            raise TypeError("key must be given either to the transformation or to each update")
        updates = updates.verified()
        draws = draw(state, run_key if key is None else key, updates.total)
        scale = noise_multiplier * clipping.single_numbers("clip_norm", updates.clip_norm)
        mean = jax.tree.map(
            lambda leaf, xi: (leaf + scale * xi) / expected_batch_size, updates.total, draws
        )
        return mean, NoiseState(state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def check_key(key: Any) -> None:
    """Raise unless `key` is a typed key."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key such as jax.random.key(0), got {key!r}")
