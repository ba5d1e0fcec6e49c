"""Fit any form of law to loss curves, and predict by the fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxkit import pytrees, validation
from jaxkit.losscurves import areas, curves, forms, multi_power, posing, precision, solving


class Extent(NamedTuple):
    """How far the curves of a fit went: a prediction beyond it extrapolates.

    Attributes:
        forward: largest S1, learning rate x steps.
        lowest: lowest learning rate that an S2 saw.
        sizes: smallest and largest number of parameters, or None.
    """

    forward: float
    lowest: float
    sizes: tuple[float, float] | None


@pytrees.dataclass
class Law:
    """A law with its constants, fitted (`fit`) or published (`law`); every function takes it.

    What only a fit knows is None in a published law. Array fields are NumPy float64.

    Attributes:
        form: which law.
        constants: a NamedTuple of scalars in the units of the curves.
        warmup: warm-up mode that the constants belong to, which predictions share.
        warmup_steps: last warm-up index of each fitted curve.
        peak: largest learning rate of the fitted curves, or None; the law holds for this peak only.
        objective: sum over points of weight x Huber(log predicted - log observed).
        residuals: log predicted - log observed of each point, curve after curve, `[n]`.
        converged: whether the solver met its tolerance.
        condition_number: of the residuals' Jacobian in the logarithms of the constants, after
            centring log time (so that units do not matter); above 1e3 the constants are weakly
            identified even where the prediction is good.
        at_bound: names of constants that ran to 0.
        huber_delta: corner of the Huber loss.
        seen: how far the curves went.
        samples: constants of bootstrap refits, each `[k]`, or None (see `bootstrap_fit`).
        misfit: relative error to expect of an unseen schedule, or None (see `bootstrap_fit`).

    Example:
        >>> published = law(forms.StepPower(), floor=2.0, scale=1.0, exponent=0.5)
        >>> published.constants
        PowerLaw(floor=2.0, scale=1.0, exponent=0.5)
    """

    form: forms.Form = flax.struct.field(pytree_node=False)
    constants: Any
    warmup: areas.Warmup = flax.struct.field(pytree_node=False)
    warmup_steps: tuple[float, ...] = flax.struct.field(pytree_node=False)
    peak: Any = None
    objective: Any = None
    residuals: Any = flax.struct.field(default=None, repr=False)
    converged: Any = None
    condition_number: Any = None
    at_bound: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    huber_delta: float | None = flax.struct.field(pytree_node=False, default=None)
    seen: Extent | None = flax.struct.field(pytree_node=False, default=None)
    samples: Any = flax.struct.field(default=None, repr=False)
    misfit: float | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def total_annealing(self) -> float:
        """`C / (1 - decay)`: the loss drop per unit of learning rate removed, after a while.

        Unlike C, it can be compared between decays (and with `drop` of the Multi-Power Law).
        """
        if isinstance(self.form, forms.Annealing):
            return float(self.constants.annealing / (1 - self.form.decay))
        if isinstance(self.form, multi_power.MultiPower):
            return float(self.constants.drop)
        raise ValueError(f"total_annealing is of laws with one annealing term, not {self.form}")

    def peak_value(self, given: float | None = None) -> float:
        """The peak to ask about: the one given, or else the one fitted."""
        found = self.peak if given is None else given
        if found is None:
            raise ValueError("peak_value must be given: the law does not know its peak rate")
        return float(validation.number("peak_value", found, minimum=0, open_minimum=True))


def law(
    form: forms.Form,
    *,
    peak_value: float | None = None,
    warmup: areas.Warmup | None = None,
    **constants: Any,
) -> Law:
    """Make a law of constants that are known, such as published ones.

    Args:
        form: which law.
        peak_value: largest learning rate of the curves behind the constants, if known.
        warmup: warm-up mode they were fitted in; None takes that of the law's authors.
        **constants: every constant of the form, by name, >= 0; may be traced.

    Raises:
        TypeError: if a constant is missing or unknown, or no number.
        ValueError: if one is negative or not finite, or the mode is unknown.

    Source: arXiv 2408.11029 eq. (1); arXiv 2503.12811.

    Example:
        >>> known = dict(floor=2.6, scale=0.4, annealing=0.4, exponent=0.5)
        >>> published = law(forms.Annealing(0.999), **known)
        >>> round(float(predict(published, np.full(20001, 2e-4))[-1]), 5)
        2.79999
    """
    names = form.constants._fields
    if set(constants) != set(names):
        raise TypeError(
            f"constants of {type(form).__name__} must be {', '.join(names)}, got "
            f"{', '.join(constants) or 'none'}"
        )
    for name in names:
        validation.number(name, constants[name], minimum=0)
    if peak_value is not None:
        validation.number("peak_value", peak_value, minimum=0, open_minimum=True)
    mode: Any = validation.choice("warmup", warmup or form.warmup, areas.WARMUPS)
    return Law(form, form.constants(**constants), mode, (0,), peak_value)


def fit(
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
) -> Law:
    r"""Fit the constants of a law to loss curves, in float64.

    $$\min_{\theta \ge 0} \sum_j w_j\,
      \mathrm{Huber}_\delta\bigl(\log \hat L_j(\theta) - \log L_j\bigr)$$

    The constants that enter linearly are eliminated on a grid of the others (variable projection);
    the best few are polished together by Levenberg-Marquardt in the logarithms of all constants.
    Two curves, one constant and one that decays, are what the law needs.

    Args:
        form: which law: `Annealing(decay)`, `RateSumPower()`, `StepPower()`, `MultiPower()` or
            `ModelSize(decay)`.
        fitted: the curves, each a `LossCurve`, a DataFrame or mapping of columns, or a file.
        huber_delta: corner of the Huber loss, in relative loss; > 0.
        warmup: `"peak"`, `"s2_peak"` or `"linear"` (`areas.warmed_up_rates`); None takes that of
            the law's authors.
        warmup_steps: last index of the warm-up, of all curves or of each; None takes what the
            curves say.
        first_step: points before it are left out; by default none is, and a point inside the
            warm-up is an error.
        last_step: points after it are left out.
        allow_different_peaks: fit curves of different peak rates together (the law holds per peak).
        prior: for a law that the curves barely identify, as `MultiPower` on three curves: by the
            name of a constant, its middle and the standard deviation of its logarithm, which add
            `(log(value / middle) / sd)^2 / 2` in units of `huber_delta^2`.

    Raises:
        ValueError: if a curve is faulty, too few points are left, a point lies in the warm-up, no
            curve anneals (C is then unknown), or the peaks differ.
        TypeError: if an argument has the wrong type.
        ImportError: if optimistix is not installed, naming the extra that brings it.

    Source: arXiv 2408.11029 (objective of the published script); the method is ours.

    Example:
        >>> steps = np.arange(100, 2001, 100)
        >>> def run(rates):
        ...     at = forms.host_annealing(rates, 0.99)[steps]
        ...     losses = 2.0 + 0.5 * np.cumsum(rates)[steps] ** -0.5 - 0.3 * at
        ...     return curves.loss_curve(rates, steps, losses)
        >>> pair = [run(np.full(2001, 1e-3)), run(np.linspace(1e-3, 0.0, 2001))]
        >>> found = fit(forms.Annealing(decay=0.99), pair).constants
        >>> [round(float(constant), 4) for constant in found]
        [2.0, 0.5, 0.3, 0.5]
    """
    posed = posing.pose(
        form,
        fitted,
        huber_delta=huber_delta,
        warmup=warmup,
        warmup_steps=warmup_steps,
        first_step=first_step,
        last_step=last_step,
        allow_different_peaks=allow_different_peaks,
        prior=prior,
    )
    with precision.float64_on_cpu():
        found = solving.solve(form.model, posed.problem, form.starts(), posed.huber_delta)
        constants = solving.law_of(form.model, posed.problem, found)
        constants, found = jax.tree.map(np.asarray, (constants, found))
    return Law(
        form=form,
        constants=constants,
        warmup=posed.warmup,
        warmup_steps=posed.warmup_steps,
        peak=np.float64(max(curve.learning_rates.max() for curve in posed.curves)),
        objective=found.objective,
        residuals=found.residuals[: posed.num_points],
        converged=found.converged,
        condition_number=found.condition_number,
        at_bound=_at_bound(form, constants, found),
        huber_delta=posed.huber_delta,
        seen=_seen(posed),
    )


def predict(
    law: Law,
    schedule: Any,
    *,
    steps: Int[ArrayLike, " n"] | None = None,
    total_steps: int | None = None,
    warmup_steps: float | None = None,
    model_size: float | None = None,
    prior_sum: float = 0.0,
) -> Float[Array, "*batch n"]:
    """Predict the loss under other schedules, from their learning rates alone.

    Traceable in the constants and the rates; concrete rates are checked, and the known defects of
    the laws are warned about where they bite.

    Args:
        law: fitted or published.
        schedule: learning rates `[*batch, steps]`, index 0 before the first counted step; an optax
            schedule; or a curve in any form that `fit` takes, whose steps, warm-up and model size
            are then the defaults.
        steps: at which steps, `[n]`; every one if None.
        total_steps: last step of an optax schedule that does not know its own.
        warmup_steps: last warm-up index of these schedules; that of the fitted curves if None.
        model_size: number of parameters, for `ModelSize` only.
        prior_sum: sum of the learning rates of training before index 0, where areas continue.

    Returns:
        The loss, `[*batch, n]`, in the unit of the curves, in float32 (float64 where x64 is on);
        not finite at steps before which no rate was positive.

    Raises:
        ValueError: if a rate or a step is out of range, or the fitted curves had different
            warm-ups and none is given.
        TypeError: if steps are not integers.

    Warns:
        UserWarning: if the prediction extrapolates: another peak than the fitted one (the law
            always predicts lower for a higher), a sum of rates, a lowest rate or a model size a
            tenth beyond those of the fit, or a schedule that ends in zero rates (the annealing law
            goes on falling there, although training cannot change).

    Source: arXiv 2408.11029 eq. (1); the defects are those its reviewers named.

    Example:
        >>> rates = [np.full(1001, 0.01), np.linspace(0.01, 0.0, 1001)]
        >>> at = np.arange(100, 1001, 100)
        >>> runs = [curves.loss_curve(r, at, 2 + np.cumsum(r)[at] ** -0.5) for r in rates]
        >>> predict(fit(forms.RateSumPower(), runs), rates[0], steps=np.array([1000]))
        Array([2.3160698], dtype=float32)
    """
    validation.instance("law", law, Law, "a Law, as fit and law make it")
    alike = law.warmup_steps[0] if len(set(law.warmup_steps)) == 1 else 0
    told = alike or None if warmup_steps is None else warmup_steps
    schedule = curves.if_curve(schedule, "schedule", told)
    if isinstance(schedule, curves.LossCurve):
        steps = schedule.steps if steps is None else steps
        warmup_steps = schedule.warmup_steps or None if warmup_steps is None else warmup_steps
        model_size = schedule.model_size if model_size is None else model_size
    learning_rates = curves.rates_of(schedule, total_steps)
    validation.number("prior_sum", prior_sum, minimum=0)
    if isinstance(law.form, multi_power.MultiPower):
        multi_power.check_positive("learning_rates", learning_rates)
    if warmup_steps is None:
        if len(set(law.warmup_steps)) > 1:
            raise ValueError(
                f"warmup_steps must be given: the fitted curves had {law.warmup_steps}"
            )
        warmup_steps = law.warmup_steps[0]
    total = np.shape(learning_rates)[-1]
    at = np.arange(total) if steps is None else steps
    if not validation.is_traced(at):
        at = np.asarray(at)
        if at.size and at.dtype.kind not in "iu":
            raise TypeError(f"steps must be integers, got dtype {at.dtype}")
        if at.size and not (at.min() >= 0 and at.max() < total):
            raise ValueError(
                f"steps must be in [0, {total}), got {int(at.min())} to {int(at.max())}"
            )
    for_s1, for_s2 = areas.warmed_up_rates(learning_rates, law.warmup, warmup_steps)
    _warn_of_defects(law, learning_rates, for_s1, for_s2, prior_sum, model_size)
    if validation.is_traced(prior_sum) or prior_sum:
        for_s1 = jnp.asarray(for_s1).at[..., 0].add(prior_sum)
    constants = jax.tree.map(jnp.asarray, law.constants)
    return law.form.loss(constants, for_s1, for_s2, at, model_size)


def _seen(posed: posing.Posed) -> Extent:
    ends = [(one, int(one.steps[-1]) + 1) for one in posed.seen if len(one.steps)]
    sizes = [one.model_size for one in posed.seen if one.model_size is not None]
    return Extent(
        float(max(one.for_s1[:end].sum() for one, end in ends)),
        float(min(one.for_s2[:end].min() for one, end in ends)),
        (float(min(sizes)), float(max(sizes))) if sizes else None,
    )


def _at_bound(form: forms.Form, law: Any, found: solving.Solution) -> tuple[str, ...]:
    # A linear constant is 0 when it makes up none of the loss; a shape constant when it is small.
    shape = np.exp(found.log_constants[form.model.num_linear :])
    sizes = np.concatenate([found.contributions, shape])
    return tuple(name for name, size in zip(law._fields, sizes, strict=True) if size < 1e-6)


def _warn_of_defects(
    law: Law, learning_rates: Any, for_s1: Any, for_s2: Any, prior_sum: Any, model_size: Any
) -> None:
    values = (learning_rates, law.constants, prior_sum, model_size)
    if any(map(validation.is_traced, jax.tree.leaves(values))):
        return
    rates, after = np.asarray(learning_rates), np.asarray(for_s2)[..., 1:]
    said = []
    if law.peak is not None:
        fitted = f"the {float(law.peak):g} of the fitted curves: the law holds for that peak only"
        if rates.max() > law.peak * (1 + 1e-6):
            said.append(
                f"the schedule peaks at {rates.max():g}, above {fitted}, and always predicts less "
                "for a larger one"
            )
        if rates.max() < law.peak * (1 - 1e-3):
            said.append(f"the schedule peaks at {rates.max():g}, below {fitted}")
    if law.seen is not None:
        extrapolates = "of the fitted curves: the prediction extrapolates"
        forward = float(np.asarray(for_s1).sum(axis=-1).max() + prior_sum)
        if forward > 1.1 * law.seen.forward:
            said.append(
                f"the schedule sums its rates to {forward:g}, beyond the {law.seen.forward:g} "
                f"{extrapolates}"
            )
        if law.peak is not None and after.min(initial=np.inf) < law.seen.lowest - 0.1 * law.peak:
            said.append(
                f"the schedule falls to {after.min():g}, below the {law.seen.lowest:g} "
                f"{extrapolates}"
            )
        low, high = law.seen.sizes or (0.0, np.inf)
        if model_size is not None and not low / 1.1 <= model_size <= 1.1 * high:
            said.append(
                f"model_size {model_size:g} is outside the {low:g} to {high:g} {extrapolates}"
            )
    if isinstance(law.form, forms.Annealing | forms.ModelSize) and rates.shape[-1] > 1:
        zeros = int(np.max(np.argmax(rates[..., ::-1] > 0, axis=-1)))
        if zeros > 1:
            said.append(
                f"the schedule ends in {zeros} steps of rate 0: the annealing law goes on falling "
                "there, although training cannot change"
            )
    for text in said:
        warnings.warn(text, stacklevel=3)
