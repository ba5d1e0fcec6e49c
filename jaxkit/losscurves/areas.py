"""The two areas of a learning-rate curve on which the annealing law rests."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxkit import validation

#: How the steps of a warm-up enter the areas; see `warmed_up_rates`.
Warmup = Literal["peak", "s2_peak", "linear"]
WARMUPS: tuple[str, ...] = get_args(Warmup)


class AnnealingAreas(NamedTuple):
    """The areas after every step.

    Attributes:
        forward: S1, the area under the learning rate: how far training moved, `[*batch, steps]`,
            learning rate x steps.
        annealing: S2, how much the rate has come down, delayed: `[*batch, steps]`, learning rate
            x steps.
    """

    forward: Float[Array, "*batch"]
    annealing: Float[Array, "*batch"]


def annealing_areas(
    learning_rates: Float[ArrayLike, "*batch steps"],
    decay: float | np.ndarray | Float[Array, "*decays"],
    *,
    initial_rate: float | Float[ArrayLike, "*initials"] | None = None,
) -> AnnealingAreas:
    r"""Compute both areas after every step, in O(steps) work and logarithmic depth.

    $$S_1(s) = \sum_{i \le s} \eta_i, \qquad
      S_2(s) = \sum_{i \le s} \sum_{k \le i} (\eta_{k-1} - \eta_k)\,\lambda^{i-k}
             = \lambda S_2(s-1) + (\eta_0 - \eta_s).$$

    The last form is scanned in parallel over pairs (logarithm of the decay, value), which keeps
    float32 within 5e-7 of the exact areas after a million steps. Differentiable in the rates and,
    for 0 < decay < 1, in the decay.

    Args:
        learning_rates: rate in force at each step, `[*batch, steps]`, >= 0. Index 0 is the rate
            before the first counted step; it counts in S1.
        decay: lambda in [0, 1] *per step*; 1 makes S2 the plain sum of `eta_0 - eta_i`. A number
            or a concrete array keeps its full precision; a traced float32 one is known only to
            6e-8, an error of `6e-8 / (1 - decay)` in S2. An array broadcasts against `batch`.
        initial_rate: rate before index 0, if it is not `learning_rates[..., 0]`; the drop from it
            then counts at index 0. Broadcasts against `batch`.

    Returns:
        `AnnealingAreas` of two arrays, `[*batch, steps]`, in the dtype of `learning_rates`
        (float32, or float64 where x64 is on).

    Raises:
        ValueError: if a rate is negative or not finite, if `decay` is outside [0, 1], or if there
            is no step.
        TypeError: if an argument is not a real number.

    Source: arXiv 2408.11029 §3 (the law's two areas); the recursion follows by summing its
        momentum form.

    Example:
        >>> rates = jnp.array([4.0, 4.0, 2.0, 2.0])
        >>> annealing_areas(rates, 0.5).annealing
        Array([0., 0., 2., 3.], dtype=float32)
    """
    rates = _check_rates("learning_rates", learning_rates)
    first = rates[..., :1]
    if initial_rate is not None:
        validation.number("initial_rate", initial_rate, minimum=0)
        first = jnp.asarray(initial_rate, rates.dtype)[..., None]
    log_decay = _log_decay(decay, rates.dtype)[..., None]
    shape = jnp.broadcast_shapes(log_decay.shape, rates.shape)
    fallen = jnp.broadcast_to(first - rates, shape)
    # One decay for the whole batch is scanned once: only the time axis must be as long.
    thin = (1,) * (len(shape) - log_decay.ndim) + log_decay.shape
    log_decays = jnp.broadcast_to(log_decay.reshape(thin), (*thin[:-1], shape[-1]))
    annealing = _scan(log_decays, fallen)
    forward = jnp.broadcast_to(jnp.cumsum(rates, axis=-1), annealing.shape)
    return AnnealingAreas(forward, annealing)


def final_areas(
    learning_rates: Float[ArrayLike, "*batch steps"], decay: float | np.ndarray | Array
) -> AnnealingAreas:
    r"""Compute both areas after the last step: $S_2 = \sum_i \lambda^{T-i} (\eta_0 - \eta_i)$."""
    rates = _check_rates("learning_rates", learning_rates)
    log_decay = _log_decay(decay, rates.dtype)[..., None]
    remaining = np.arange(rates.shape[-1] - 1, -1, -1)
    # The last step has weight 1 whatever the decay; -inf * 0 would be NaN.
    exponents = jnp.where(remaining == 0, 0.0, log_decay * np.maximum(remaining, 1))
    annealing = jnp.sum(jnp.exp(exponents) * (rates[..., :1] - rates), axis=-1)
    return AnnealingAreas(jnp.broadcast_to(rates.sum(axis=-1), annealing.shape), annealing)


def warmup_at_peak(
    learning_rates: Float[ArrayLike, "*batch steps"], warmup_steps: float
) -> Float[Any, "*batch steps"]:
    """Replace the warm-up by the peak rate: the paper's convention for both areas.

    Otherwise the rise from 0 would enter S2 as a huge negative anneal. Indices 0 to `warmup_steps`,
    that one included, are set; it need not be whole.

    Source: arXiv 2408.11029 §3.4.
    """
    xp: Any = np if isinstance(learning_rates, np.ndarray) else jnp
    rates = xp.asarray(learning_rates)
    validation.number("warmup_steps", warmup_steps, minimum=0)
    if warmup_steps >= rates.shape[-1]:
        raise ValueError(
            f"warmup_steps must be inside the schedule of {rates.shape[-1]} values, "
            f"got {warmup_steps}"
        )
    inside = np.arange(rates.shape[-1]) <= warmup_steps
    return xp.where(inside, rates.max(axis=-1, keepdims=True), rates)


def warmed_up_rates(
    learning_rates: Float[ArrayLike, "*batch steps"], warmup: str, warmup_steps: float
) -> tuple[Float[Any, "*batch steps"], Float[Any, "*batch steps"]]:
    """Return the rates that S1 and S2 see under a warm-up mode.

    | mode | S1 sees | S2 sees | when |
    |---|---|---|---|
    | `peak` | warm-up at peak | warm-up at peak | the paper; a short warm-up |
    | `s2_peak` | true rates | warm-up at peak | better when the warm-up is long |
    | `linear` | true rates | true rates | the Multi-Power Law code; the floor absorbs an offset |

    Raises:
        ValueError: if `warmup` is unknown, or if a schedule starts at rate 0, which only a warm-up
            does, while the mode needs to know where the warm-up ends.

    Source: arXiv 2408.11029 §3.4; arXiv 2503.12811 (`linear`).
    """
    validation.choice("warmup", warmup, WARMUPS)
    if warmup == "linear":
        return learning_rates, learning_rates
    if (
        warmup_steps == 0
        and not validation.is_traced(learning_rates)
        and np.any(np.asarray(learning_rates)[..., 0] == 0)
    ):
        raise ValueError(
            "learning_rates start at 0, as a warm-up does, but warmup_steps is 0: give the length "
            f"of the warm-up, or use warmup='linear' instead of {warmup!r}"
        )
    raised = warmup_at_peak(learning_rates, warmup_steps) if warmup_steps else learning_rates
    return (raised if warmup == "peak" else learning_rates), raised


def check_schedule(name: str, learning_rates: Any) -> Any:
    """Return learning rates unchanged if they are one a law can read, or raise."""
    if validation.is_traced(learning_rates):
        return learning_rates
    rates = np.asarray(learning_rates)
    if rates.ndim == 0 or rates.shape[-1] == 0:
        raise ValueError(f"{name} must have one value a step, got shape {rates.shape}")
    validation.number(name, rates[..., :0])  # the type; a bad value is reported by its index
    bad = ~(np.isfinite(rates) & (rates >= 0))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite and >= 0, got {float(rates[where])!r} at index "
            f"{where[0] if len(where) == 1 else where}"
        )
    if not np.all(rates.max(axis=-1) > 0):
        raise ValueError(f"{name} must have a positive rate somewhere, all {rates.shape[-1]} are 0")
    return learning_rates


def _check_rates(name: str, learning_rates: Any) -> jax.Array:
    if not validation.is_traced(learning_rates):
        rates = np.asarray(learning_rates)
        if rates.ndim == 0 or rates.shape[-1] == 0:
            raise ValueError(f"{name} must have one value a step, got shape {rates.shape}")
        validation.number(name, learning_rates, minimum=0)
    rates = jnp.asarray(learning_rates)
    return rates.astype(jnp.promote_types(rates.dtype, jnp.float32))


def _log_decay(decay: Any, dtype: Any) -> jax.Array:
    validation.number("decay", decay, minimum=0, maximum=1)
    if validation.is_traced(decay):
        return jnp.log1p(jnp.asarray(decay, dtype) - 1)
    # In float32 the decay itself would already be off by 6e-8, which 1 / (1 - decay) magnifies.
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log1p(np.asarray(decay, np.float64) - 1), dtype)


@jax.jit
def _scan(log_decays: jax.Array, fallen: jax.Array) -> jax.Array:
    """Scan `S2 <- exp(log_decay) * S2 + fallen` over the last axis, in logarithmic depth."""

    def decay_then_add(
        earlier: tuple[jax.Array, jax.Array], later: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + later[0], jnp.exp(later[0]) * earlier[1] + later[1]

    axis = fallen.ndim - 1
    return lax.associative_scan(decay_then_add, (log_decays, fallen), axis=axis)[1]
