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


def draw_sample(function, settings, state, candidates, bucket, floor, room, key, draw) -> Sample:
    """Sample at most `room` candidates of a bucket whose gains are `floor` or more, by the mode."""
    zero, one = jnp.zeros((), room.dtype), jnp.ones((), room.dtype)

    def shuffled(draw):
        """The first k places of a uniformly random order of the bucket."""
        # Random bits belong to items, not places, so that padding does not change the draw.
        draw_key = jax.random.fold_in(key, draw)
        item_keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_key, candidates)
        bits = jax.vmap(jax.random.uniform)(item_keys)
        length = min(settings.k, candidates.shape[0])
        places = jax.lax.top_k(jnp.where(bucket, bits, -1), length)[1]
        return jnp.pad(places, (0, settings.k - length))

    def added(places, size):
        valid = jnp.arange(settings.k) < size
        return set_functions.add_all(function, state, candidates[places], valid)

    def sample(size, draw, asked):
        places = shuffled(draw)
        return Sample(places, size, added(places, size), draw + 1, asked)

    def single():
        return sample(one, draw, zero)

    def verified():
        """Halve the size until a fresh sample is worth `(1 - eps)` of size times the floor."""

        def rejected(found: Sample):
            worth = function.value(found.state) - function.value(state)
            enough = worth >= (1 - settings.inner_eps) * found.size * floor
            return (found.size > 1) & ~enough

        def attempt(found: Sample):
            size = jnp.maximum(found.size // 2, 1)
            return sample(size, found.num_draws, found.num_queries + (size > 1))

        # Twice the room and nothing added: rejected, and halved to the room at first.
        nothing = Sample(jnp.zeros(settings.k, jnp.int32), 2 * room, state, draw, zero)
        return jax.lax.while_loop(rejected, attempt, nothing)

    def montecarlo():
        """Grow the size while one more item would still keep its bucket, then draw afresh."""
        trials = settings.num_trials

        def growing(carry):
            size, stopped, _, _ = carry
            return ~stopped & (size < room)

        def grow(carry):
            size, _, draw, asked = carry
            grown = jnp.ceil(size * (1 + settings.inner_eps) - 1e-5).astype(size.dtype)
            larger = jnp.minimum(jnp.maximum(size + 1, grown), room)

            def hit(trial):
                places = shuffled(draw + trial)
                one_more = candidates[places[larger - 1]]
                return function.gains(added(places, larger - 1), one_more) >= floor

            hits = jnp.sum(jax.lax.map(hit, jnp.arange(trials)))
            stopped = hits < (1 - settings.inner_eps) * trials
            return jnp.where(stopped, size, larger), stopped, draw + trials, asked + 2 * trials

        begin = (one, jnp.zeros((), bool), draw, zero)
        size, _, last, asked = jax.lax.while_loop(growing, grow, begin)
        return sample(size, last, asked)

    modes = {"single": single, "verified": verified, "montecarlo": montecarlo}
    return modes[settings.mode]()
