"""The best schedule of any shape within limits on how low and how fast the rate may fall."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation
from jaxkit.losscurves import areas, choosing, fitting, forms, laws, multi_power, precision


class OptimizedSchedule(NamedTuple):
    """A schedule chosen by a law, beside those a user would take otherwise.

    Attributes:
        learning_rates: rate of every step, warm-up included, `[total_steps + 1]`.
        loss: final loss that the fit predicts for it, nats.
        baselines: final losses it predicts, by name, for the constant rate, for the cosine to a
            tenth of the peak, and for the best length of each `wsd_*` shape: those within the
            same limits.
    """

    learning_rates: np.ndarray
    loss: float
    baselines: dict[str, float]


def optimal_schedule(
    law: fitting.Law,
    total_steps: int,
    *,
    peak_value: float | None = None,
    minimum_value: float = 0.0,
    max_drop_per_step: float | None = None,
    warmup_rates: Float[ArrayLike, " warmup"] | None = None,
    levels: int = 400,
) -> OptimizedSchedule:
    r"""Find the schedule of lowest predicted final loss between limits, at the fitted peak.

    For the annealing law the optimum is exact: its final loss is convex in the rates and late
    rates cost most, so among schedules of one sum the best holds the peak, then falls as fast as
    allowed to the minimum; the start of the fall is found in one dimension. For the Multi-Power Law
    non-increasing piecewise linear schedules of `levels` pieces are searched by L-BFGS-B from the
    best decay family: a local optimum.

    Args:
        law: of `Annealing` or `MultiPower`, fitted or published.
        total_steps: last step, warm-up included.
        peak_value: the peak rate; that of the fitted curves if None.
        minimum_value: lowest rate; > 0 for the Multi-Power Law.
        max_drop_per_step: largest fall of the rate in one step; no limit if None.
        warmup_rates: rates of the warm-up, index 0 first, before the peak is reached, `[warmup]`.
        levels: number of pieces, for the Multi-Power Law.

    Returns:
        The schedule, its predicted loss and those of the baselines.
        `schedule_from_values(found.learning_rates, total_steps)` trains with it.

    Raises:
        ValueError: if neither limit is given (the optimum would be the degenerate one of
            `optimal_zero_tail`), or a number is out of range.
        TypeError: if the law has no annealing term to optimise.

    Warns:
        UserWarning: as `predict`, if the schedule ends in steps of rate 0.

    Source: the optimum by an exchange argument; arXiv 2503.12811 (optimised schedules).

    Example:
        >>> known = dict(floor=2.0, scale=1.0, annealing=1.0, exponent=0.5)
        >>> law = fitting.law(forms.Annealing(0.99), peak_value=1e-3, **known)
        >>> chosen = optimal_schedule(law, 2000, minimum_value=1e-4, max_drop_per_step=5e-6)
        >>> chosen.loss < min(chosen.baselines.values())
        True
    """
    total_steps = validation.integer("total_steps", total_steps, minimum=2)
    validation.instance("law", law, fitting.Law, "a Law, as fit and law make it")
    levels = validation.integer("levels", levels, minimum=2)
    peak = law.peak_value(peak_value)
    validation.number("minimum_value", minimum_value, minimum=0, maximum=peak, open_maximum=True)
    if max_drop_per_step is not None:
        validation.number("max_drop_per_step", max_drop_per_step, minimum=0, open_minimum=True)
    if minimum_value == 0 and max_drop_per_step is None:
        raise ValueError(
            "minimum_value or max_drop_per_step must be given: without a limit the law's optimum "
            "is to stop training (optimal_zero_tail)"
        )
    drop = peak if max_drop_per_step is None else float(max_drop_per_step)
    front = np.zeros(0) if warmup_rates is None else np.asarray(warmup_rates, np.float64)
    free_steps = total_steps - len(front)
    if free_steps < 2:
        raise ValueError(
            f"warmup_rates must leave steps to optimise of {total_steps}, got {len(front)}"
        )
    families = {
        name: rates
        for name, rates in _families(free_steps, peak, float(minimum_value)).items()
        if np.diff(rates).min() >= -drop * (1 + 1e-9)
    }
    stacked = np.stack([np.append(front, rates) for rates in families.values()])
    losses = choosing.final_losses(law, stacked, warmup_steps=len(front))
    if isinstance(law.form, forms.Annealing):
        rates = _ramp(law, peak, front, free_steps, float(minimum_value), drop)
    elif isinstance(law.form, multi_power.MultiPower):
        validation.number("minimum_value", minimum_value, minimum=0, open_minimum=True)
        start = list(families.values())[int(np.argmin(losses))]
        rates = _levels(law, peak, front, start, float(minimum_value), drop, levels)
    else:
        raise TypeError(f"law must be of Annealing or MultiPower, got {law.form}")
    whole = np.append(front, rates)
    baselines: dict[str, float] = {}
    for (name, _), loss in zip(families, losses, strict=True):
        baselines[name] = min(float(loss), baselines.get(name, np.inf))
    loss = choosing.final_losses(law, whole[None], warmup_steps=len(front))[0]
    return OptimizedSchedule(whole, float(loss), baselines)


def _families(steps: int, peak: float, minimum: float) -> dict[tuple[str, int], np.ndarray]:
    lengths = [max(1, round(steps * percent / 100)) for percent in range(5, 65, 5)]
    names = ["linear", "sqrt", "cosine", "sqrtcube", *(["exponential"] if minimum > 0 else [])]

    def held(shape: str, length: int, end: float) -> np.ndarray:
        fall = choosing.cooldown_rates(length, peak, shape=shape, end_value=end)
        return np.concatenate([np.full(steps - length, peak), fall])

    return {
        ("constant", 0): np.full(steps + 1, peak),
        ("cosine", 0): held("cosine", steps, max(minimum, peak / 10)),
        **{(f"wsd_{s}", length): held(s, length, minimum) for s in names for length in lengths},
    }


def _ramp(
    law: fitting.Law, peak: float, front: np.ndarray, steps: int, minimum: float, drop: float
) -> np.ndarray:
    """Hold the peak until the best (real) time, then fall by `drop` a step to the minimum."""
    form: Any = law.form
    constants: laws.AnnealingLaw = law.constants
    for_s1, _ = areas.warmed_up_rates(
        np.append(front, np.full(steps + 1, peak)), law.warmup, len(front)
    )
    before = for_s1[: len(front) + 1].sum()
    index = np.arange(steps + 1)
    weights = form.decay ** (steps - index[1:]).astype(np.float64)

    def rates(start: float) -> np.ndarray:
        return np.clip(peak - drop * np.maximum(index - start, 0.0), minimum, peak)

    def loss(start: float) -> float:
        after = rates(start)[1:]
        power = constants.scale * (before + after.sum()) ** -constants.exponent
        return float(power + constants.annealing * np.sum(weights * after))

    # Unimodal in the start, for the loss is convex in the rates; a hold to the end is its bound.
    found: Any = scipy.optimize.minimize_scalar(
        loss, bounds=(0.0, float(steps)), method="bounded", options={"xatol": 1e-6}
    )
    return rates(min((found.x, 0.0, float(steps)), key=loss))


def _levels(
    law: fitting.Law,
    peak_value: float,
    front: np.ndarray,
    start: np.ndarray,
    minimum: float,
    drop: float,
    levels: int,
) -> np.ndarray:
    """Search non-increasing piecewise linear schedules, each piece a share of its largest fall."""
    steps = len(start) - 1
    corners = np.linspace(0, steps, min(levels, steps) + 1)
    piece_drop = drop * np.diff(corners)
    index = np.arange(steps + 1)

    def rates(shares: Any) -> jax.Array:
        def fall(rate: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            share, largest = piece
            lower = rate - share * jnp.minimum(largest, rate - minimum)
            return lower, lower

        peak = jnp.asarray(peak_value)
        _, after = jax.lax.scan(fall, peak, (shares, jnp.asarray(piece_drop)))
        return jnp.interp(index, corners, jnp.concatenate([peak[None], after]))

    @jax.jit
    @jax.value_and_grad
    def objective(shares: jax.Array) -> jax.Array:
        whole = jnp.concatenate([jnp.asarray(front), rates(shares)])
        last = np.array([len(front) + steps])
        found = fitting.predict(law, whole, steps=last, warmup_steps=len(front))
        # In thousandths of a nat: differences that matter are above SciPy's stopping rule.
        return 1e3 * found[0]

    at_corners = np.interp(corners, index, start)
    largest = np.minimum(piece_drop, np.maximum(at_corners[:-1] - minimum, 1e-30))
    shares = np.clip(-np.diff(at_corners) / largest, 0.0, 1.0)
    with precision.float64_on_cpu():
        found = scipy.optimize.minimize(
            lambda x: tuple(np.asarray(part) for part in objective(x)),
            shares,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * len(shares),
            options={"maxiter": 500, "ftol": 1e-12},
        )
        return np.asarray(rates(found.x))
