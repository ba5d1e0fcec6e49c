"""From curves to the arrays that the solver reads; every check of a fit's input is here."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkit import validation
from jaxkit.losscurves import areas, curves, forms, solving


class Posed(NamedTuple):
    """A checked fit, ready to solve.

    Attributes:
        problem: float64 NumPy arrays, points padded to a power of two with weight 0.
        curves: the curves, with only the points that count.
        seen: the same as the form sees them.
        num_points: number of points, padding excluded.
    """

    problem: solving.Problem
    curves: tuple[curves.LossCurve, ...]
    seen: tuple[forms.Seen, ...]
    num_points: int
    warmup: areas.Warmup
    warmup_steps: tuple[float, ...]
    huber_delta: float


def pose(
    form: forms.Form,
    fitted: Sequence[Any],
    *,
    huber_delta: float = 1e-3,
    warmup: areas.Warmup | None = None,
    warmup_steps: float | Sequence[float] | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    allow_different_peaks: bool = False,
    prior: Mapping[str, tuple[float, float]] | None = None,
) -> Posed:
    """Check the input of `jaxkit.losscurves.fit` and gather the arrays of its problem."""
    validation.instance("form", form, forms.Form, "a form such as Annealing(0.999)")
    validation.number("huber_delta", huber_delta, minimum=0, open_minimum=True)
    warmup = form.warmup if warmup is None else warmup
    validation.choice("warmup", warmup, areas.WARMUPS)
    if not isinstance(fitted, Sequence) or isinstance(fitted, curves.LossCurve | str) or not fitted:
        got = "none" if isinstance(fitted, list | tuple) and not fitted else type(fitted).__name__
        raise ValueError(
            f"curves must be a sequence of at least one LossCurve, table or file, got {got}"
        )
    given = _per_curve(warmup_steps, len(fitted))
    checked = [curves.as_curve(curve, f"curves[{i}]", given[i]) for i, curve in enumerate(fitted)]
    warmups = tuple(
        curve.warmup_steps if steps is None else steps
        for curve, steps in zip(checked, given, strict=True)
    )
    kept = tuple(
        _select(f"curves[{i}]", curve, warmups[i], first_step, last_step)
        for i, curve in enumerate(checked)
    )
    seen = tuple(
        forms.Seen(
            *areas.warmed_up_rates(curve.learning_rates, warmup, steps),
            curve.steps,
            curve.model_size,
        )
        for curve, steps in zip(kept, warmups, strict=True)
    )
    check_identified(form, kept, seen, allow_different_peaks)
    num_points = sum(len(curve.steps) for curve in kept)
    padding = forms.bucket(num_points) - num_points
    points, shared = form.features(seen)
    # Repeats of the last point keep every logarithm finite; their weight is 0.
    pad = functools.partial(np.pad, pad_width=(0, padding), mode="edge")
    num_constants = form.model.num_linear + form.starts().shape[-1]
    centre, precision = np.zeros(num_constants), np.zeros(num_constants)
    for name, (middle, spread) in (prior or {}).items():
        index = form.constants._fields.index(
            validation.choice("prior", name, form.constants._fields)
        )
        for value in (middle, spread):
            validation.number(f"prior[{name!r}]", value, minimum=0, open_minimum=True)
        centre[index], precision[index] = np.log(middle), 1 / spread
    problem = solving.Problem(
        forms.Features(type(points)(*map(pad, points)), shared),
        pad(np.log(np.concatenate([curve.losses for curve in kept]))),
        np.pad(np.concatenate([curve.weights for curve in kept]), (0, padding)),
        centre,
        precision,
    )
    return Posed(problem, kept, seen, num_points, warmup, warmups, float(huber_delta))


def _per_curve(warmup_steps: float | Sequence[float] | None, count: int) -> Sequence[float | None]:
    if warmup_steps is None:
        return (None,) * count
    if not isinstance(warmup_steps, Sequence):
        warmup_steps = (warmup_steps,) * count
    if len(warmup_steps) != count:
        raise ValueError(
            f"warmup_steps must be one number, or one for each of {count} curves, got "
            f"{warmup_steps!r}"
        )
    return tuple(validation.number("warmup_steps", steps, minimum=0) for steps in warmup_steps)


def _select(
    name: str,
    curve: curves.LossCurve,
    warmup_steps: float,
    first_step: int | None,
    last_step: int | None,
) -> curves.LossCurve:
    inside = curve.steps <= warmup_steps if warmup_steps else np.zeros(len(curve.steps), bool)
    if first_step is None and inside.any():
        raise ValueError(
            f"{name}: step {curve.steps[0]} is inside the warm-up of {warmup_steps} steps: give "
            "first_step, the first step to fit"
        )
    low, high = -1, len(curve.learning_rates)
    if first_step is not None:
        low = validation.integer("first_step", first_step, minimum=math.ceil(warmup_steps))
    if last_step is not None:
        high = validation.integer("last_step", last_step, minimum=0)
    keep = (curve.steps >= low) & (curve.steps <= high)
    return curve._replace(
        steps=curve.steps[keep], losses=curve.losses[keep], weights=curve.weights[keep]
    )


def check_identified(
    form: forms.Form,
    kept: Sequence[curves.LossCurve],
    seen: Sequence[forms.Seen],
    allow_different_peaks: bool,
) -> None:
    """Raise unless the curves can tell the constants of the form apart; warn if they barely can."""
    needed = form.model.num_linear + form.starts().shape[-1] + 1
    usable = sum(int((curve.weights > 0).sum()) for curve in kept)
    if usable < needed:
        raise ValueError(
            f"curves must hold at least {needed} points of positive weight to fit "
            f"{needed - 1} constants, got {usable}"
        )
    for index, one in enumerate(seen):
        if len(one.steps) and np.cumsum(one.for_s1)[one.steps[0]] <= 0:
            raise ValueError(
                f"curves[{index}]: no learning rate up to step {one.steps[0]} is positive, where "
                "the power of their sum is infinite"
            )
    if isinstance(form, forms.StepPower) and any(0 in one.steps for one in seen):
        raise ValueError("curves must have no point at step 0 to fit a power of the step")
    peaks = [float(curve.learning_rates.max()) for curve in kept]
    if not allow_different_peaks and not np.allclose(peaks, peaks[0], rtol=1e-3):
        raise ValueError(
            f"curves must have one peak learning rate, got {peaks}: the law holds per peak; "
            "allow_different_peaks=True fits them together all the same"
        )
    if isinstance(form, forms.RateSumPower):
        return
    falls = [np.ptp(one.for_s2[: one.steps[-1] + 1]) for one in seen if len(one.steps)]
    if max(falls) <= 1e-9 * max(peaks):
        raise ValueError(
            "curves must hold one whose learning rate comes down: without any annealing the "
            "annealing constant is unknown. Add a decaying schedule, or fit RateSumPower (C = 0)"
        )
    first = seen[0]
    if all(np.array_equal(one.for_s2, first.for_s2) for one in seen):
        warnings.warn(
            "all curves share one schedule: on a single smooth curve the annealing constant and "
            "the exponent are nearly collinear; add a run with another schedule",
            stacklevel=4,
        )
