"""Every schedule: a profile or a table of values, read at a sampling rate, after a warm-up."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from jaxkit import validation
from jaxkit.schedules import profiles

#: Largest horizon: update counts are int32.
MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """An `optax.Schedule` that knows its horizon.

    Attributes:
        value_at: non-negative int32 step (any shape) to value.
        total_steps: number of updates it spans, warm-up included; it stays at its last value after.

    Example:
        >>> schedule = Schedule(lambda step: 0.1 * step, total_steps=3)
        >>> round(float(schedule(2)), 6), schedule.total_steps
        (0.2, 3)
    """

    value_at: Callable[[Array], Any]
    total_steps: Any

    def __call__(self, step: Real[ArrayLike, "*steps"]) -> Float[Array, "*values"]:
        """Return the value at update `step` (the first is 0; a negative one counts as 0)."""
        value = self.value_at(jnp.maximum(jnp.asarray(step), 0))
        # float32, but for whoever switched 64 bits on.
        return jnp.asarray(value, jnp.result_type(float))


def schedule_from_profile(
    profile: str | Callable[[Array], Any],
    peak_value: Float[ArrayLike, "*peaks"],
    total_steps: Int[ArrayLike, ""],
    *,
    init_value: Float[ArrayLike, ""] = 0.0,
    end_value: Float[ArrayLike, ""] = 0.0,
    warmup_steps: Real[ArrayLike, ""] = 0,
    sample_every: int = 1,
    sample_points: Sequence[float] | None = None,
    **options: Any,
) -> Schedule:
    """Make a schedule: a profile, read at a sampling rate, after a linear warm-up.

    With W = `warmup_steps`, T = `total_steps` and z_k the last sampling point not after
    (i - W)/(T - W), z = 0 always being one:

        value(i) = init + (peak - init) i/W           for i < W
                   end + (peak - end) profile(z_k)    for W <= i < T
                   end + (peak - end) profile(1)      for i >= T

    Counts are subtracted before they are divided, so that the last updates of 1e8 keep six digits,
    where `optax.linear_schedule` and `optax.cosine_decay_schedule` keep none; the curves that optax
    has agree with optax's to the rounding of 1. Every number may be traced; only the profile and
    the sampling are static.

    Args:
        profile: a name of `profile_by_name`, or any function of progress, as it makes them.
        peak_value: value at the end of the warm-up, >= 0.
        total_steps: number of optimizer updates T, **warm-up included**; not epochs, and not
            micro-batches when gradients are accumulated.
        init_value: value of the first update of the warm-up, >= 0; unused without one.
        end_value: value that a profile of 0 stands for, in [0, `peak_value`].
        warmup_steps: W, in [0, T); need not be whole.
        sample_every: updates between two readings of the profile; 1 reads it at every update.
        sample_points: progress values in (0, 1) at which the profile is read, such as
            `(0.5, 0.75)`, instead of `sample_every`.
        **options: of the profile named, such as `d=0.9` for `"rex"`.

    Raises:
        TypeError: if a count is not an integer, a value not a real number, or the profile has no
            such option.
        ValueError: if an argument is out of its range, a name unknown, or both samplings are given.

    Source: arXiv 2107.04197 §3 (profile and sampling rate).

    Example:
        >>> schedule = schedule_from_profile("linear", 1.0, 8, sample_every=4)
        >>> [float(schedule(i)) for i in (0, 3, 4, 8)]
        [1.0, 1.0, 0.5, 0.0]
        >>> schedule = schedule_from_profile("rex", 1.0, 5, warmup_steps=1)
        >>> [round(float(schedule(i)), 6) for i in range(6)]
        [0.0, 1.0, 0.857143, 0.666667, 0.4, 0.0]
    """
    shape = _shape(profile, options)
    sample_every = validation.integer("sample_every", sample_every, minimum=1)
    points = shape.corners
    if sample_points is not None:
        points = profiles.increasing_fractions("sample_points", sample_points)
        if sample_every != 1:
            raise ValueError(
                f"sample_points and sample_every exclude each other, got {sample_points!r} "
                f"and {sample_every}"
            )
    total, warmup = check_horizon(total_steps, warmup_steps)
    check_values(peak_value, init_value=init_value, end_value=end_value)
    peak, first, last = (_as_number(v) for v in (peak_value, init_value, end_value))
    decay_steps = total - warmup

    def multiplier(step):
        done = jnp.maximum(step - warmup, 0)
        if sample_every != 1:
            step = jnp.minimum(done // sample_every * sample_every + warmup, step)
            done = jnp.maximum(step - warmup, 0)
        if points:
            # A point p is reached at update ceil(p n), in exact integers: comparing p with a
            # float32 count / n would move it by one update whenever p n is whole.
            z = jnp.zeros(jnp.shape(done))
            for point in points:
                z = jnp.where(done >= first_step_at(point, decay_steps), point, z)
            return shape.value(z, 1 - z)
        # Whole counts are subtracted first: near the end 1 - z has lost what (T - i)/n keeps.
        left = jnp.minimum(total - step, decay_steps)
        return shape.value(done / decay_steps, left / decay_steps)

    def value_at(step):
        decayed = multiplier(jnp.minimum(step, total))
        if points or sample_every != 1:  # which need not read the end
            at_end = shape.value(jnp.ones(()), jnp.zeros(()))
            decayed = jnp.where(step >= total, at_end, decayed)
        decayed = last + (peak - last) * decayed
        if isinstance(warmup, int) and warmup == 0:
            return decayed
        warmed = step / jnp.where(warmup == 0, 1, warmup)
        return jnp.where(step < warmup, first + (peak - first) * warmed, decayed)

    return Schedule(value_at, total)


def schedule_from_values(
    values: Float[Array | np.ndarray, " n"], total_steps: Any, peak_value: Any = 1.0
) -> Schedule:
    """Interpolate a table over a run: update i of N reads it at position i (n - 1)/N.

        value(i) = peak * interp(i (n - 1)/N)   for i < N,   peak * last from N on.

    The last entry belongs to time N, after the last update, so that no update is spent on the 0
    that refined schedules end with. A table with one entry an update and one more, n = N + 1, is
    read without interpolation: what `losscurves` chooses trains as it stands.

    Args:
        values: multipliers evenly spaced over the run, n >= 2, finite and >= 0.
        total_steps: N, number of updates; may be traced.
        peak_value: scale of the table, >= 0; may be traced.

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if a value is negative or not finite, there are fewer than 2, or a number is
            out of range.

    Source: arXiv 2310.07831 §3 (the refined schedule of a run of another length).

    Example:
        >>> schedule = schedule_from_values(jnp.array([1.0, 0.5, 0.0]), 4, 0.1)
        >>> [round(float(schedule(i)), 6) for i in range(5)]
        [0.1, 0.075, 0.05, 0.025, 0.0]
    """
    if not validation.is_traced(values):
        values = np.asarray(values)
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(f"values must be one series of at least 2, got shape {values.shape}")
    validation.number("values", values, minimum=0)
    validation.number("peak_value", peak_value, minimum=0)
    total_steps, _ = check_horizon(total_steps, 0)
    table = jnp.asarray(values, jnp.result_type(float))
    last = table.shape[0] - 1

    def value_at(step):
        entry, rest = _times_over(jnp.minimum(step, total_steps), last, total_steps)
        below = jnp.minimum(entry, last - 1)
        after = (rest + (entry - below) * total_steps) / total_steps
        before = (total_steps - rest - (entry - below) * total_steps) / total_steps
        return peak_value * (table[below] * before + table[below + 1] * after)

    return Schedule(value_at, total_steps)


def _times_over(step: Any, factor: int, total_steps: Any) -> tuple[Array, Array]:
    """Return floor(step factor / total_steps) and what remains of the product, for step <= total.

    Exact, bit by bit of the factor: the product overflows int32, and rounds in float32.
    """
    total, step = jnp.asarray(total_steps, jnp.uint32), jnp.asarray(step).astype(jnp.uint32)
    entry, rest = jnp.zeros_like(step), jnp.zeros_like(step)
    for bit in f"{factor:b}":
        for added in (rest, step) if bit == "1" else (rest,):
            over = rest + added >= total
            rest = rest + added - jnp.where(over, total, 0)
            entry = entry + (entry if added is not step else 0) + over
    return entry.astype(jnp.int32), rest.astype(jnp.int32)


def standard_schedules(
    peak_value: float, total_steps: int, *, cooldown: float = 0.2, warmup_steps: float = 0
) -> dict[str, Schedule]:
    """Make the schedules that people choose between, by name.

    Args:
        peak_value: largest value, >= 0.
        total_steps: updates in all, warm-up included.
        cooldown: share of the run over which the `wsd_*` schedules fall, in (0, 1].
        warmup_steps: updates of the warm-up.

    Returns:
        `constant`, `linear`, `cosine`, `rex`, `wsd_linear`, `wsd_sqrt`, `wsd_cosine`,
        `wsd_sqrtcube`, `wsd_exponential` (to 1/100), `multi_step` (to 1/sqrt(10) at 80 %, 1/10 at
        90 %) and `two_stage` (to 1/10 at 50 %).

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if a number is out of range.

    Source: arXiv 2408.11029 §4; arXiv 2503.12811 (`sqrtcube`, `two_stage`).

    Example:
        >>> list(standard_schedules(1e-3, 100))[:4]
        ['constant', 'linear', 'cosine', 'rex']
    """
    shapes: dict[str, dict[str, Any]] = {
        **{name: {"profile": name} for name in ("constant", "linear", "cosine", "rex")},
        **{
            f"wsd_{shape}": {"profile": "wsd", "cooldown": cooldown, "shape": shape, "ratio": 0.01}
            for shape in profiles.COOLDOWNS
        },
        "multi_step": {"profile": "step", "boundaries": (0.8, 0.9), "factor": 0.1**0.5},
        "two_stage": {"profile": "step", "boundaries": (0.5,), "factor": 0.1},
    }
    shared = {
        "peak_value": peak_value, "total_steps": total_steps, "warmup_steps": warmup_steps
    }  # fmt: skip
    return {name: schedule_from_profile(**options, **shared) for name, options in shapes.items()}


def onecycle_momentum_schedule(
    total_steps: Int[ArrayLike, ""],
    b_min: Float[ArrayLike, ""] = 0.85,
    b_max: Float[ArrayLike, ""] = 0.95,
) -> Schedule:
    """OneCycle's momentum: down from `b_max` to `b_min` at half time and back.

    Use it through `optax.inject_hyperparams`, as the momentum of SGD or the `b1` of Adam.

    Args:
        total_steps: T, updates in all.
        b_min: smallest momentum, in [0, 1).
        b_max: largest momentum, in [`b_min`, 1).

    Raises:
        TypeError: if `total_steps` is not an integer.
        ValueError: if an argument is out of range.

    Source: arXiv 2107.04197 §4.1.

    Example:
        >>> import optax
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(
        ...     learning_rate=schedule_from_profile("onecycle", 0.1, 8),
        ...     momentum=onecycle_momentum_schedule(8),
        ... )
        >>> [round(float(onecycle_momentum_schedule(8)(i)), 6) for i in (0, 2, 4)]
        [0.95, 0.9, 0.85]
    """
    low = validation.number("b_min", b_min, minimum=0, maximum=1, open_maximum=True)
    high = validation.number("b_max", b_max, minimum=0, maximum=1, open_maximum=True)
    if not (validation.is_traced(low) or validation.is_traced(high)) and low > high:
        raise ValueError(f"b_min must be <= b_max = {b_max!r}, got {b_min!r}")
    rise = schedule_from_profile(profiles.onecycle(0.0), 1.0, total_steps)
    return Schedule(lambda step: high - (high - low) * rise(step), rise.total_steps)


def _as_number(value: Any) -> Any:
    # A list of peaks is one of the array-likes allowed; a Python float keeps its weak type.
    return value if isinstance(value, int | float) else jnp.asarray(value)


def _shape(profile: str | Callable[[Array], Any], options: dict[str, Any]) -> profiles.Profile:
    if isinstance(profile, str):
        return profiles.profile_by_name(profile, **options)
    if options:
        raise TypeError(f"options are of a profile named, got {sorted(options)} for {profile!r}")
    if isinstance(profile, profiles.Profile):
        return profile
    if not callable(profile):
        raise TypeError(f"profile must be a name or a function of progress, got {profile!r}")
    return profiles.Profile(lambda z, r: profile(z))


def first_step_at(point: float, decay_steps: Any) -> Any:
    """Return ceil(p n) without rounding: the first update whose progress i/n is at least p.

    p counts as the decimal (or simple fraction) that it prints as; an n that is not whole gives
    p n. A traced n takes only fractions with a denominator up to 10,000.
    """
    if not jnp.issubdtype(jnp.result_type(decay_steps), jnp.integer):
        return point * decay_steps
    exact = fractions.Fraction(repr(float(point)))
    simple = exact.limit_denominator(10_000)
    if abs(simple - exact) < fractions.Fraction(1, 10**15):
        exact = simple
    elif not isinstance(decay_steps, int):
        raise ValueError(
            f"sample_points must be fractions with a denominator <= 10,000 when total_steps is "
            f"traced, got {point!r}"
        )
    a, b = exact.numerator, exact.denominator
    return decay_steps // b * a - (-(decay_steps % b) * a) // b


def check_horizon(total_steps: Any, warmup_steps: Any) -> tuple[Any, Any]:
    """Return both counts checked, whole ones as ints, or unchanged where traced."""
    if not validation.is_traced(total_steps):
        total_steps = validation.integer("total_steps", total_steps, minimum=1)
        if total_steps > MAX_STEPS:
            raise ValueError(f"total_steps must be an integer <= {MAX_STEPS}, got {total_steps}")
    if not validation.is_traced(warmup_steps):
        warmup_steps = float(validation.number("warmup_steps", warmup_steps, minimum=0))
        warmup_steps = int(warmup_steps) if warmup_steps.is_integer() else warmup_steps
        if isinstance(total_steps, int) and warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be < total_steps = {total_steps}, got {warmup_steps}"
            )
    return total_steps, warmup_steps


def check_values(peak_value: Any, *, init_value: Any, end_value: Any) -> None:
    """Check the values of a schedule, as far as they are known."""
    validation.number("peak_value", peak_value, minimum=0)
    validation.number("init_value", init_value, minimum=0)
    validation.number("end_value", end_value, minimum=0)
    if validation.is_traced(peak_value) or validation.is_traced(end_value):
        return
    if np.any(np.asarray(end_value) > np.asarray(peak_value)):
        raise ValueError(f"end_value must be <= peak_value = {peak_value!r}, got {end_value!r}")
