"""What a policy sees: the place and the time alone, or also what has been visited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Memory = Any


class View(NamedTuple):
    """What features are made from.

    Attributes:
        place: features of the position alone, `[d]`.
        element: the item of the ground set at the position, -1 outside of it.
        time: actions taken so far.
        memory: what was kept of the past.
        horizon: H, states of an episode.
    """

    place: Float[Array, " d"]
    element: Int[Array, ""]
    time: Int[Array, ""]
    memory: Memory
    horizon: int


class Features(NamedTuple):
    """A way to see.

    Attributes:
        start: `start(num_items, horizon)`, the memory before the first state.
        remember: `remember(memory, element, time)`, the memory with one more state.
        observe: from a `View` to an observation.
        finite: whether it needs states that are numbers.
    """

    start: Callable[[int, int], Memory]
    remember: Callable[[Memory, Any, Any], Memory]
    observe: Callable[[View], Float[Array, " o"]]
    finite: bool


def _nothing(num_items: int, horizon: int) -> Memory:
    return ()


def _forget(memory: Memory, element: Any, time: Any) -> Memory:
    return memory


def _place_and_time(view: View) -> Any:
    time = 2 * view.time / max(view.horizon - 2, 1) - 1
    return jnp.concatenate([view.place, jnp.reshape(time, 1).astype(jnp.float32)])


def _mask(num_items: int, horizon: int) -> Memory:
    return jnp.zeros(num_items, bool)


def _mark(memory: Memory, element: Any, time: Any) -> Memory:
    return memory | (jnp.arange(memory.shape[0]) == element)


def _with_mask(view: View) -> Any:
    return jnp.concatenate([_place_and_time(view), view.memory.astype(jnp.float32)])


def _numbers(view: View) -> Any:
    return jnp.stack([view.element, view.time]).astype(jnp.float32)


def _blank_list(num_items: int, horizon: int) -> Memory:
    return jnp.full(horizon - 1, -1, jnp.int32)


def _append(memory: Memory, element: Any, time: Any) -> Memory:
    return memory.at[time].set(element, mode="drop")


def _list(view: View) -> Any:
    return view.memory.astype(jnp.float32)


#: The ways to see, by name.
FEATURES: dict[str, Features] = {
    "position": Features(_nothing, _forget, _place_and_time, False),
    "visited": Features(_mask, _mark, _with_mask, False),
    "official_position": Features(_nothing, _forget, _numbers, True),
    "official_history": Features(_blank_list, _append, _list, True),
}
