"""What a policy sees: the place and the time alone, or also what has been visited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Memory = Any


class View(NamedTuple):
    """What features are made from; `place` is of the position alone, `element` -1 for none."""

    place: Float[Array, " d"]
    element: Int[Array, ""]
    time: Int[Array, ""]
    memory: Memory
    horizon: int


def _place_and_time(view: View) -> Any:
    time = 2 * view.time / max(view.horizon - 2, 1) - 1
    return jnp.concatenate([view.place, jnp.reshape(time, 1).astype(jnp.float32)])


def _with_mask(view: View) -> Any:
    return jnp.concatenate([_place_and_time(view), view.memory.astype(jnp.float32)])


class Features(NamedTuple):
    """A way to see: observations of a `View`, and what is kept of the past.

    `start(num_items, horizon)` is the memory before the first state, `remember(memory, element,
    time)` that with one more; `finite` ones need states that are numbers.
    """

    observe: Callable[[View], Float[Array, " o"]]
    start: Callable[[int, int], Memory] = lambda num_items, horizon: ()
    remember: Callable[[Memory, Any, Any], Memory] = lambda memory, element, time: memory
    finite: bool = False


#: The ways to see, by name.
FEATURES: dict[str, Features] = {
    "position": Features(_place_and_time),
    "visited": Features(
        _with_mask,
        lambda num_items, horizon: jnp.zeros(num_items, bool),
        lambda memory, element, time: memory | (jnp.arange(memory.shape[0]) == element),
    ),
    "official_position": Features(
        lambda view: jnp.stack([view.element, view.time]).astype(jnp.float32), finite=True
    ),
    "official_history": Features(
        lambda view: view.memory.astype(jnp.float32),
        lambda num_items, horizon: jnp.full(horizon - 1, -1, jnp.int32),
        lambda memory, element, time: memory.at[time].set(element, mode="drop"),
        finite=True,
    ),
}
