"""How many items a level samples, and which: uniform draws from the fullest bucket of gains.

Each draw takes its own random bits, and the sample that is kept is drawn after its size is decided:
given the past, it is a uniform subset of its bucket.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxkit.submodular import set_functions


def fullest_bucket(settings, gains, active, tau):
    """Members of the bucket that holds most items (the lowest on ties), and its lower end."""
    width = math.log1p(settings.inner_eps)
    ratio = jnp.log(jnp.where(active, gains, tau) / tau)
    bucket = jnp.clip(jnp.floor(ratio / width + 1e-6), 0, settings.num_buckets - 1).astype(int)
    sizes = jnp.zeros(settings.num_buckets, jnp.int32).at[bucket].add(active.astype(jnp.int32))
    fullest = jnp.argmax(sizes)
    return active & (bucket == fullest), tau * jnp.exp(width * fullest)


class Sample(NamedTuple):
    """A uniform sample of a bucket: the first `size` of `places` among the candidates `[k]`."""

    places: Int[Array, " k"]
    size: Int[Array, ""]
    state: Any
    num_draws: Int[Array, ""]
    num_queries: Int[Array, ""]


def _shuffle(settings, candidates, bucket, key, draw):
    """The first k places of a uniformly random order of the bucket.

    Random bits belong to items, not places, so that padding does not change the draw.
    """
    draw_key = jax.random.fold_in(key, draw)
    item_keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_key, candidates)
    bits = jax.vmap(jax.random.uniform)(item_keys)
    length = min(settings.k, candidates.shape[0])
    places = jax.lax.top_k(jnp.where(bucket, bits, -1), length)[1]
    return jnp.pad(places, (0, settings.k - length))


def _added(function, settings, state, candidates, places, size):
    valid = jnp.arange(settings.k) < size
    return set_functions.add_all(function, state, candidates[places], valid)


def _draw_single(function, settings, state, candidates, bucket, floor, room, key, draw):
    places = _shuffle(settings, candidates, bucket, key, draw)
    one = jnp.ones((), room.dtype)
    added = _added(function, settings, state, candidates, places, one)
    return Sample(places, one, added, draw + 1, jnp.zeros((), room.dtype))


def _draw_verified(function, settings, state, candidates, bucket, floor, room, key, draw):
    """Halve the size until a fresh sample is worth `(1 - eps)` of size times the bucket's floor."""

    def rejected(sample: Sample):
        worth = function.value(sample.state) - function.value(state)
        enough = worth >= (1 - settings.inner_eps) * sample.size * floor
        return (sample.size > 1) & ~enough

    def attempt(sample: Sample):
        size = jnp.maximum(sample.size // 2, 1)
        places = _shuffle(settings, candidates, bucket, key, sample.num_draws)
        added = _added(function, settings, state, candidates, places, size)
        asked = sample.num_queries + (size > 1)
        return Sample(places, size, added, sample.num_draws + 1, asked)

    # Twice the room and nothing added: rejected, and halved to the room for the first attempt.
    zero = jnp.zeros((), room.dtype)
    nothing = Sample(jnp.zeros(settings.k, jnp.int32), 2 * room, state, draw, zero)
    return jax.lax.while_loop(rejected, attempt, nothing)


def _draw_montecarlo(function, settings, state, candidates, bucket, floor, room, key, draw):
    """Grow the size while one more item would still keep its bucket, then draw afresh."""
    trials = settings.num_trials

    def next_size(size):
        grown = jnp.ceil(size * (1 + settings.inner_eps) - 1e-5).astype(size.dtype)
        return jnp.minimum(jnp.maximum(size + 1, grown), room)

    def growing(carry):
        size, stopped, _, _ = carry
        return ~stopped & (size < room)

    def grow(carry):
        size, _, draw, asked = carry
        larger = next_size(size)

        def hit(trial):
            places = _shuffle(settings, candidates, bucket, key, draw + trial)
            added = _added(function, settings, state, candidates, places, larger - 1)
            return function.gains(added, candidates[places[larger - 1]]) >= floor

        hits = jnp.sum(jax.lax.map(hit, jnp.arange(trials)))
        stopped = hits < (1 - settings.inner_eps) * trials
        size = jnp.where(stopped, size, larger)
        return size, stopped, draw + trials, asked + 2 * trials

    zero = jnp.zeros((), room.dtype)
    begin = (jnp.ones((), room.dtype), jnp.zeros((), bool), draw, zero)
    size, _, draw, asked = jax.lax.while_loop(growing, grow, begin)
    places = _shuffle(settings, candidates, bucket, key, draw)
    added = _added(function, settings, state, candidates, places, size)
    return Sample(places, size, added, draw + 1, asked)


#: The draw of each mode.
DRAW = {
    "verified": _draw_verified,
    "montecarlo": _draw_montecarlo,
    "single": _draw_single,
}
