"""What theory promises a schedule on the last iterate, before any training.

For convex, Lipschitz problems: f(x_T) - f* after T - 1 subgradient steps from distance D of the
solution, with gradient norms G_t. Compare schedules by these bounds; they say nothing about a
particular non-convex loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation
from jaxkit.schedules import refinement


class ScheduleBound(NamedTuple):
    """One row of `bound_table`.

    Attributes:
        name: the schedule.
        peak_value: the peak at which its bound is smallest, in units of D/G.
        bound: that smallest bound on f(x_T) - f*, in units of D G.
        over_best: the bound over the smallest of the table.
    """

    name: str
    peak_value: float
    bound: float
    over_best: float


class LastIterateBound(NamedTuple):
    """A bound of f(x_T) - f*, `[*batch]` each, and what the best scale makes of it.

    Attributes:
        value: the bound of the steps as they are, in units of f.
        best_scale: the factor m for which m times the steps have the smallest bound.
        best_value: the bound at that scale.
    """

    value: Array
    best_scale: Array
    best_value: Array


def last_iterate_bound(
    steps: Float[ArrayLike, "*batch T"],
    norms: Float[ArrayLike, "*batch T"],
    distance: Float[ArrayLike, ""] = 1.0,
) -> LastIterateBound:
    r"""Bound the last iterate for any positive step sequence, as it is and at its best scale.

    $$\frac{D^2}{2 \eta_{1:T}} + \frac12 \sum_{t < T} \frac{\eta_t^2 G_t^2}{\eta_{t+1:T}} +
    \frac12 \eta_T G_T^2$$

    Scaling the steps by m makes it A/m + m B; the best m is sqrt(A/B), its bound 2 sqrt(A B). It
    diverges when the last step is 0: give the first T entries of a schedule that reaches 0 at
    T + 1, as `schedule(jnp.arange(total_steps))` does for every schedule of this room.

    Args:
        steps: eta, step sizes, >= 0, the last > 0.
        norms: G, bounds of the gradient norms, >= 0.
        distance: D, distance from the start to the solution, > 0.

    Raises:
        ValueError: if the shapes differ or a value is out of range.

    Source: arXiv 2310.07831 Theorem 10, in the form that takes O(T) and cancels nothing.

    Example:
        >>> found = last_iterate_bound(jnp.full(1, 7.0), jnp.ones(1))
        >>> round(float(found.best_value), 6)
        1.0
    """
    steps, norms = _same_shape("steps", steps, norms)
    validation.number("distance", distance, minimum=0, open_minimum=True)
    if not validation.is_traced(steps):
        validation.number("the last of steps", steps[..., -1], minimum=0, open_minimum=True)
    remaining = lax.cumsum(steps, axis=steps.ndim - 1, reverse=True)
    squares = (steps * norms) ** 2
    noise = jnp.sum(squares[..., :-1] / remaining[..., 1:], axis=-1)
    noise = (noise + steps[..., -1] * norms[..., -1] ** 2) / 2
    start = jnp.asarray(distance) ** 2 / (2 * remaining[..., 0])
    return LastIterateBound(
        start + noise, jnp.sqrt(start / noise), 2 * jnp.sqrt(start) * jnp.sqrt(noise)
    )


def refinement_gain(norms: Float[ArrayLike, "*batch T"]) -> Float[Array, "*batch"]:
    """How much smaller the refined bound is than that of linear decay.

    sqrt(mean(G^2) mean(G^-2)) >= 1, with equality only for constant norms.

    Args:
        norms: G, l2 bounds of the gradient norms, > 0.

    Raises:
        ValueError: if a value is out of range.

    Source: arXiv 2310.07831 §3.

    Example:
        >>> round(float(refinement_gain(jnp.array([1.0, 2.0]))), 6)
        1.25
    """
    norms = refinement.check_norms(norms)
    relative = norms / norms.max(axis=-1, keepdims=True)
    return jnp.sqrt(jnp.mean(relative**2, axis=-1) * jnp.mean(relative**-2, axis=-1))


def bound_table(
    schedules: Mapping[str, Callable[[Any], Any]],
    norms: Float[Array | np.ndarray, " n"],
    total_steps: int,
    distance: float = 1.0,
) -> list[ScheduleBound]:
    """Compare schedules in theory, each at its own best peak, best first.

    Args:
        schedules: schedules by name, each spanning `total_steps`.
        norms: gradient norms evenly spaced over the run, any number, > 0; ones for none known.
        total_steps: updates of the run.
        distance: D, > 0.

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if there is no schedule, or one is 0 throughout.

    Source: arXiv 2310.07831 Theorem 10.

    Example:
        >>> from jaxkit.schedules import profile_schedules
        >>> make = profile_schedules.schedule_from_profile
        >>> both = {name: make(name, 1.0, 100) for name in ("rex", "linear")}
        >>> rows = bound_table(both, np.ones(100), 100)
        >>> [row.name for row in rows]
        ['linear', 'rex']
    """
    validation.instance("schedules", schedules, Mapping, "a mapping from names to schedules")
    if not schedules:
        raise ValueError("schedules must name at least one schedule, got none")
    total_steps = validation.integer("total_steps", total_steps, minimum=1)
    norms = np.asarray(refinement.check_norms(norms), np.float64)
    at = np.linspace(0, 1, total_steps)
    norms = jnp.asarray(np.interp(at, np.linspace(0, 1, len(norms)), norms), jnp.float32)
    rows = []
    for name, schedule in schedules.items():
        steps = jnp.asarray(schedule(jnp.arange(total_steps)))
        if steps.shape != (total_steps,):  # a constant schedule need not broadcast
            steps = jnp.broadcast_to(steps, (total_steps,))
        moving = int(np.count_nonzero(np.cumsum(np.asarray(steps)[::-1])))
        if moving == 0:
            raise ValueError(f"schedules must have a positive value, got only 0 from {name!r}")
        # Updates of size 0 at the end leave the iterate, and so its bound, where they are.
        found = last_iterate_bound(steps[:moving], norms[:moving], distance)
        peak = float(steps.max()) * float(found.best_scale)
        rows.append((name, peak, float(found.best_value)))
    best = min(bound for _, _, bound in rows)
    rows.sort(key=lambda row: row[2])
    return [ScheduleBound(name, peak, bound, bound / best) for name, peak, bound in rows]


def _same_shape(name: str, values: ArrayLike, norms: ArrayLike) -> tuple[Array, Array]:
    validation.number(name, values, minimum=0)
    validation.number("norms", norms, minimum=0)
    values, norms = jnp.asarray(values), jnp.asarray(norms)
    if values.ndim < 1 or values.shape[-1] < 1 or values.shape != norms.shape:
        raise ValueError(
            f"{name} and norms must have one shape (..., T), T >= 1, got {values.shape} and "
            f"{norms.shape}"
        )
    return values, norms
