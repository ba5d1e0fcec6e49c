"""Fit any form of law to loss curves, and predict by the fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkit import pytrees, validation
from jaxkit.losscurves import areas, curves, forms, multi_power, posing, solving


@pytrees.dataclass
class LawFit:
    """A fitted law and how far to trust it. Array fields are NumPy float64.

    Attributes:
        law: the constants, a NamedTuple of scalars in the units of the curves.
        objective: sum over points of weight x Huber(log predicted - log observed).
        residuals: log predicted - log observed of each point, curve after curve, `[n]`.
        converged: whether the solver met its tolerance.
        condition_number: of the residuals' Jacobian in the logarithms of the constants, after
            centring log time (so that units do not matter); above 1e3 the constants are weakly
            identified even where the prediction is good.
        peak: largest learning rate of the fitted curves; the law holds for this peak only.
        at_bound: names of constants that ran to 0.
        form: the form fitted.
        warmup: warm-up mode of the fit, which predictions must share.
        warmup_steps: last warm-up index of each fitted curve.
        huber_delta: corner of the Huber loss.

    Example:
        >>> rates, at = np.full(101, 0.1), np.arange(10, 101, 10)
        >>> run = curves.loss_curve(rates, at, 2 + np.cumsum(rates)[at] ** -0.5)
        >>> found = fit(forms.StepPower(), [run])
        >>> bool(found.converged), found.law._fields, bool(abs(found.residuals).max() < 0.01)
        (True, ('floor', 'scale', 'exponent'), True)
    """

    law: Any
    objective: Float[Any, ""]
    residuals: Float[Any, " n"]
    converged: Bool[Any, ""]
    condition_number: Float[Any, ""]
    peak: Float[Any, ""]
    at_bound: tuple[str, ...] = flax.struct.field(pytree_node=False)
    form: forms.Form = flax.struct.field(pytree_node=False)
    warmup: areas.Warmup = flax.struct.field(pytree_node=False)
    warmup_steps: tuple[int, ...] = flax.struct.field(pytree_node=False)
    huber_delta: float = flax.struct.field(pytree_node=False)

    @property
    def total_annealing(self) -> float:
        """`C / (1 - decay)`: the loss drop per unit of learning rate removed, after a while.

        Unlike C, it can be compared between decays (and with `drop` of the Multi-Power Law).
        """
        if isinstance(self.form, forms.Annealing):
            return float(self.law.annealing / (1 - self.form.decay))
        if isinstance(self.form, multi_power.MultiPower):
            return float(self.law.drop)
        raise ValueError(f"total_annealing is of laws with one annealing term, not {self.form}")


def fit(
    form: forms.Form,
    fitted: Sequence[curves.LossCurve],
    *,
    huber_delta: float = 1e-3,
    warmup: areas.Warmup | None = None,
    warmup_steps: int | Sequence[int] = 0,
    first_step: int | None = None,
    last_step: int | None = None,
    allow_different_peaks: bool = False,
    prior: posing.Prior | None = None,
) -> LawFit:
    r"""Fit the constants of a law to loss curves, in float64.

    $$\min_{\theta \ge 0} \sum_j w_j\,
      \mathrm{Huber}_\delta\bigl(\log \hat L_j(\theta) - \log L_j\bigr)$$

    The constants that enter linearly are eliminated on a grid of the others (variable projection);
    the best few are polished together by Levenberg-Marquardt in the logarithms of all constants.
    Two curves, one constant and one that decays, are what the law needs.

    Args:
        form: which law: `Annealing(decay)`, `InstantAnnealing()`, `RateSumPower()`, `StepPower()`,
            `MultiPower()` or `ModelSize(decay)`.
        fitted: the curves.
        huber_delta: corner of the Huber loss, in relative loss; > 0.
        warmup: `"peak"`, `"s2_peak"` or `"linear"` (`areas.warmed_up_rates`); None takes that of
            the law's authors.
        warmup_steps: last index of the warm-up, of all curves or of each.
        first_step: points before it are left out; by default none is, and a point inside the
            warm-up is an error.
        last_step: points after it are left out.
        allow_different_peaks: fit curves of different peak rates together (the law holds per peak).
        prior: for a law that the curves barely identify, as `MultiPower` on three curves.

    Returns:
        The fit.

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
        >>> found = fit(forms.Annealing(decay=0.99), pair).law
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
    with jax.enable_x64(True):
        found = solving.solve(form.model, posed.problem, form.starts(), posed.huber_delta)
        law = solving.law_of(form.model, posed.problem, found)
        law, found = jax.tree.map(np.asarray, (law, found))
    return LawFit(
        law=law,
        objective=found.objective,
        residuals=found.residuals[: posed.num_points],
        converged=found.converged,
        condition_number=found.condition_number,
        peak=np.float64(max(curve.learning_rates.max() for curve in posed.curves)),
        at_bound=_at_bound(form, law, found),
        form=form,
        warmup=posed.warmup,
        warmup_steps=posed.warmup_steps,
        huber_delta=posed.huber_delta,
    )


def predict(
    fitted: LawFit,
    learning_rates: Float[ArrayLike, "*batch steps"],
    *,
    steps: Int[ArrayLike, " n"] | None = None,
    warmup_steps: int | None = None,
    model_size: float | None = None,
) -> Float[Array, "*batch n"]:
    """Predict the loss under other schedules, from their learning rates alone.

    Traceable in the constants and the rates; concrete rates are checked, and the known defects of
    the laws are warned about where they bite.

    Args:
        fitted: what `fit` returned.
        learning_rates: schedules, `[*batch, steps]`, index 0 before the first counted step.
        steps: at which steps, `[n]`; every one if None.
        warmup_steps: last warm-up index of these schedules; that of the fitted curves if None.
        model_size: number of parameters, for `ModelSize` only.

    Returns:
        The loss, `[*batch, n]`, nats, in float32 (float64 where x64 is on); not finite at steps
        before which no rate was positive.

    Raises:
        ValueError: if a rate or a step is out of range, or the fitted curves had different
            warm-ups and none is given.

    Warns:
        UserWarning: if a peak is above the fitted one (the law always predicts lower for it), or
            if a schedule ends in zero rates (the annealing law goes on falling there, although
            training cannot change).

    Source: arXiv 2408.11029 eq. (1); the defects are those its reviewers named.

    Example:
        >>> rates = [np.full(1001, 0.01), np.linspace(0.01, 0.0, 1001)]
        >>> at = np.arange(100, 1001, 100)
        >>> runs = [curves.loss_curve(r, at, 2 + np.cumsum(r)[at] ** -0.5) for r in rates]
        >>> predict(fit(forms.RateSumPower(), runs), rates[0], steps=np.array([1000]))
        Array([2.3160698], dtype=float32)
    """
    areas.check_schedule("learning_rates", learning_rates)
    if isinstance(fitted.form, multi_power.MultiPower):
        multi_power.check_positive("learning_rates", learning_rates)
    if warmup_steps is None:
        if len(set(fitted.warmup_steps)) > 1:
            raise ValueError(
                f"warmup_steps must be given: the fitted curves had {fitted.warmup_steps}"
            )
        warmup_steps = fitted.warmup_steps[0]
    _warn_of_defects(fitted, learning_rates)
    total = np.shape(learning_rates)[-1]
    at = np.arange(total) if steps is None else steps
    if not validation.is_traced(at):
        at = np.asarray(at)
        if at.size and not (at.min() >= 0 and at.max() < total):
            raise ValueError(
                f"steps must be in [0, {total}), got {int(at.min())} to {int(at.max())}"
            )
    for_s1, for_s2 = areas.warmed_up_rates(learning_rates, fitted.warmup, warmup_steps)
    law = jax.tree.map(jnp.asarray, fitted.law)
    return fitted.form.loss(law, for_s1, for_s2, at, model_size)


def _at_bound(form: forms.Form, law: Any, found: solving.Solution) -> tuple[str, ...]:
    # A linear constant is 0 when it makes up none of the loss; a shape constant when it is small.
    shape = np.exp(found.log_constants[form.model.num_linear :])
    sizes = np.concatenate([found.contributions, shape])
    return tuple(name for name, size in zip(law._fields, sizes, strict=True) if size < 1e-6)


def _warn_of_defects(fitted: LawFit, learning_rates: Any) -> None:
    if any(map(validation.is_traced, jax.tree.leaves((learning_rates, fitted.law)))):
        return
    rates = np.asarray(learning_rates)
    if rates.max() > fitted.peak * (1 + 1e-6):
        warnings.warn(
            f"the schedule peaks at {rates.max():g}, above the {fitted.peak:g} of the fitted "
            "curves: the law holds for that peak only, and always predicts less for a larger one",
            stacklevel=3,
        )
    if isinstance(fitted.form, forms.Annealing | forms.ModelSize) and rates.shape[-1] > 1:
        zeros = int(np.max(np.argmax(rates[..., ::-1] > 0, axis=-1)))
        if zeros > 1:
            warnings.warn(
                f"the schedule ends in {zeros} steps of rate 0: the annealing law goes on falling "
                "there, although training cannot change",
                stacklevel=3,
            )
