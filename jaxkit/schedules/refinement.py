"""Refine a schedule from the gradient norms of an earlier run."""

from __future__ import annotations

import fractions
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from jaxkit import validation
from jaxkit.schedules import gap_filling, median_filter, profile_schedules, recorder
from jaxkit.schedules.profile_schedules import Schedule

#: Smallest norm told apart from 0, relative to the largest: its weight stays finite in float32.
_FLOOR = 2.0**-60


def refine_schedule(
    norms: Float[Array | np.ndarray, "*batch n"],
    *,
    norm: str = "l2",
    smoothing: float | None = 0.1,
    normalize: bool = True,
) -> Float[Array, "*batch n"]:
    r"""Turn gradient norms into the schedule that is worst-case optimal for them.

    With G the smoothed norms and $w_t = G_t^{-2}$ (l2) or $G_t^{-1}$ (l1),

    $$s_t = w_t \sum_{j > t} w_j,$$

    divided by its maximum. Constant norms give linear decay; norms that fall at the start give a
    warm-up. Pure: `jit` and `vmap` it over runs (`norm`, `smoothing`, `normalize` static).

    Entries that are not finite (overflowed steps) are interpolated between their neighbours, which
    keeps the others at their time. Zeros are treated as 2^-60 of the largest norm.

    Args:
        norms: gradient norms evenly spaced over one run; n >= 2, floating, >= 0.
        norm: the norm recorded, `"l2"` for SGD or `"l1"` for Adam.
        smoothing: width of the median filter as a fraction of n, in (0, 1); None for no filter.
        normalize: whether to scale the largest value to 1; otherwise the values are
            w_t w_{t+1:n} / w_{1:n}, in units of w.

    Returns:
        The schedule's values at the times of the norms; the last is exactly 0.

    Raises:
        TypeError: if `smoothing` is not a real number.
        ValueError: if an argument is out of range; if all norms are 0 or none is finite.

    Source: arXiv 2310.07831 §3 (Algorithm 1).

    Example:
        >>> refine_schedule(jnp.array([2.0, 2.0, 2.0, 2.0, 2.0])).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    validation.choice("norm", norm, recorder.NORMS)
    return _refine(smooth_norms(norms, smoothing), norm=norm, normalize=normalize)


@functools.partial(jax.jit, static_argnames=("norm", "normalize"))
def _refine(
    norms: Float[Array, "*batch n"], *, norm: str, normalize: bool
) -> Float[Array, "*batch n"]:
    weights, unit = _relative_weights(norms, norm)
    steps = weights * _sum_after(weights)
    if normalize:
        largest = steps.max(axis=-1, keepdims=True)
        # Compiled division may multiply by the reciprocal, and miss 1 by one rounding.
        return jnp.where(steps == largest, 1.0, steps / largest)
    return steps / weights.sum(axis=-1, keepdims=True) * unit


def refined_schedule(
    norms: Float[Array | np.ndarray, " n"],
    peak_value: Any,
    total_steps: Any,
    *,
    norm: str = "l2",
    smoothing: float | None = 0.1,
) -> Schedule:
    """Make the refined schedule of a recorded run, ready for an optimizer.

    Tune `peak_value` again: a refined schedule usually wants a larger one than the pilot run.

    Args:
        norms: gradient norms evenly spaced over the pilot run, as from `recorded_norms`.
        peak_value: largest value, >= 0.
        total_steps: updates of the new run, which need not be as long as the pilot.
        norm: the norm recorded, `"l2"` or `"l1"`.
        smoothing: width of the median filter as a fraction of n; None for none.

    Returns:
        The schedule, int step to float32; 0 from `total_steps` on.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: as `refine_schedule`, or if `norms` is not one series.

    Source: arXiv 2310.07831 §3.

    Example:
        >>> schedule = refined_schedule(jnp.ones(9), 0.5, 4)
        >>> [round(float(schedule(i)), 6) for i in range(5)]
        [0.5, 0.375, 0.25, 0.125, 0.0]
    """
    values = refine_schedule(norms, norm=norm, smoothing=smoothing)
    return profile_schedules.schedule_from_values(values, total_steps, peak_value)


def smooth_norms(
    norms: Float[Array | np.ndarray, "*batch n"], smoothing: float | None = 0.1
) -> Float[Array, "*batch n"]:
    """Fill the gaps of recorded norms and filter them by a sliding median.

    Args:
        norms: gradient norms evenly spaced over one run; n >= 2, floating, >= 0.
        smoothing: window as a fraction of n, in (0, 1), see `median_width`; None for no filter.

    Raises:
        TypeError: if `smoothing` is not a real number.
        ValueError: if an argument is out of range; if all norms are 0 or none is finite.

    Source: arXiv 2310.07831 §3 (Algorithm 1).

    Example:
        >>> smooth_norms(jnp.array([1.0, 1.0, 7.0, 1.0]), 0.75).tolist()
        [1.0, 1.0, 1.0, 7.0]
    """
    norms = check_norms(norms)
    filled = gap_filling.fill_gaps(norms, jnp.isfinite(norms))
    if smoothing is None:
        return filled
    return median_filter.sliding_median(filled, median_width(norms.shape[-1], smoothing))


def median_width(n: int, smoothing: float = 0.1) -> int:
    """Return the odd filter width 2 floor(floor(tau n) / 2) + 1 (arXiv 2310.07831 §3)."""
    n = validation.integer("n", n, minimum=1)
    if validation.is_traced(smoothing):
        raise TypeError("smoothing must be static: it sets the filter's width")
    validation.number(
        "smoothing", smoothing, minimum=0, maximum=1, open_minimum=True, open_maximum=True
    )
    # In decimals: 0.29 * 100 is 28.999999999999996 in binary.
    return int(fractions.Fraction(repr(float(smoothing))) * n) // 2 * 2 + 1


def check_norms(norms: Any) -> Float[Array, "*batch n"]:
    """Check recorded norms as far as they are known; return them in float32 or wider."""
    if not validation.is_traced(norms):
        try:
            norms = np.asarray(norms)
        except ValueError as error:
            raise ValueError(f"norms must be runs of one length: {error}") from None
        if norms.dtype == object:
            raise ValueError("norms must be runs of one length, got rows that differ")
    if not jnp.issubdtype(norms.dtype, jnp.floating):
        raise ValueError(f"norms must be floating, got dtype {norms.dtype}")
    if norms.ndim < 1 or norms.shape[-1] < 2:
        raise ValueError(f"norms must hold at least 2 entries, got shape {norms.shape}")
    if not validation.is_traced(norms):
        finite = np.isfinite(norms)
        if (np.where(finite, norms, 0) < 0).any() or np.isneginf(norms).any():
            raise ValueError(f"norms must be >= 0, got {np.nanmin(norms):g}")
        if not finite.any(axis=-1).all():
            raise ValueError("norms must hold finite entries, got none in a run")
        if not (np.where(finite, norms, 0) > 0).any(axis=-1).all():
            raise ValueError("norms must not all be 0 in a run")
    norms = jnp.asarray(norms)
    return norms.astype(jnp.promote_types(norms.dtype, jnp.float32))


def _relative_weights(
    norms: Float[Array, "*batch n"], norm: str
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch 1"]]:
    """Return weights over the largest weight, and the largest: the power itself may overflow."""
    floored = jnp.maximum(norms, _FLOOR * norms.max(axis=-1, keepdims=True))
    smallest = floored.min(axis=-1, keepdims=True)
    exponent = 2 if norm == "l2" else 1
    return (smallest / floored) ** exponent, (1 / smallest) ** exponent


def _sum_after(weights: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Return sum_{j>t} w_j, added from the end: total minus prefix would lose the last steps."""
    shifted = jnp.concatenate([weights[..., 1:], jnp.zeros_like(weights[..., :1])], axis=-1)
    return lax.cumsum(shifted, axis=weights.ndim - 1, reverse=True)
