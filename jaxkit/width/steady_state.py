"""The steady state of AdamW, where learning rate and weight decay set the scale of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxkit import validation
from jaxkit.width import rules


def steady_state_time(learning_rate: ArrayLike, weight_decay: ArrayLike) -> Float[Array, "*shape"]:
    r"""Return the steps over which a weight forgets its past, :math:`\tau = 1/(\eta\lambda)`.

    After it, noise of unit variance holds a weight at a root mean square of
    :math:`\sqrt{\eta / (\lambda (2 - \eta\lambda))} \to \sqrt{\eta / 2\lambda}`. Under the `robust`
    rule it grows as :math:`\sqrt m`; a run much shorter never gets there and behaves like muP.

    Args:
        learning_rate: eta > 0, the parameter's own.
        weight_decay: lambda > 0, likewise, with eta * lambda < 2.

    Raises:
        ValueError: if a value is not positive, or eta * lambda >= 2.

    Source: arXiv 2405.13698 (weights as a moving average of updates).

    Example:
        >>> round(float(steady_state_time(0.01, 0.1)))
        1000
    """
    eta, decay = _positive_step(learning_rate, weight_decay)
    return 1 / (eta * decay)


def _positive_step(learning_rate: Any, weight_decay: Any) -> tuple[Any, Any]:
    validation.number("learning_rate", learning_rate, minimum=0, open_minimum=True)
    validation.number("weight_decay", weight_decay, minimum=0, open_minimum=True)
    eta, decay = jnp.asarray(learning_rate), jnp.asarray(weight_decay)
    validation.number("learning_rate * weight_decay", eta * decay, maximum=2, open_maximum=True)
    return eta, decay


def predicted_singular_value_ratio(
    width_mult: float,
    *,
    rule: rules.WidthRule | str = "robust",
    singular_value_exponent: float = rules.SINGULAR_VALUE_EXPONENT,
) -> float:
    r"""Predict by how much a matrix's top singular value grows from base to target width.

    .. math:: \sigma_1(m d) / \sigma_1(d) = m^{(p - q)/2 + a}

    Args:
        width_mult: m.
        rule: the exponents p (learning rate) and q (weight decay), by name or value.
        singular_value_exponent: a.

    Raises:
        ValueError: if m is not positive, an exponent not finite or the rule unknown.

    Source: arXiv 2510.15262, abstract, solved for the ratio.

    Example:
        >>> predicted_singular_value_ratio(4.0, rule="mup_fixed")
        1.4142135623730951
    """
    validation.number("width_mult", width_mult, minimum=0, open_minimum=True)
    validation.number("singular_value_exponent", singular_value_exponent)
    if not isinstance(rule, rules.WidthRule):
        rule = rules.RULES[validation.choice("rule", rule, rules.RULES)]
    ratio_exponent = rule.learning_rate_exponent - rule.weight_decay_exponent
    return float(width_mult) ** (ratio_exponent / 2 + singular_value_exponent)


class SingularValueLaw(NamedTuple):
    """Fit of `sigma_1 = constant * sqrt(learning_rate / weight_decay) * width**exponent`."""

    exponent: float
    constant: float


def fit_singular_value_exponent(
    widths: Sequence[int] | np.ndarray,
    singular_values: Any,
    learning_rates: Any,
    weight_decays: Any,
) -> SingularValueLaw:
    r"""Fit the exponent a with which the top singular value grows with width.

    Least squares of :math:`\log(\sigma_1 / \sqrt{\eta/\lambda})` on :math:`\log d`, on the host in
    float64. `weight_decay_exponent(singular_value_exponent=a)` then gives the rule that fits the
    model: 0.75 is what language-like features show, isotropic ones give 1/2, a few dominant
    directions nearly 1.

    Args:
        widths: N widths d, at least two different ones.
        singular_values: N top singular values at the end of training (of one kind of matrix, mean
            over its layers).
        learning_rates: the matrix's own learning rate, one or N values.
        weight_decays: the matrix's own weight decay, one or N values.

    Raises:
        ValueError: if a value is not positive, lengths differ or all widths are the same.

    Source: arXiv 2510.15262, abstract.

    Example:
        >>> law = fit_singular_value_exponent([64, 256], [2.0, 2.0 * 2**0.5], [0.02, 0.005], 0.5)
        >>> round(law.exponent, 6)
        0.75
    """
    columns = {
        "widths": widths,
        "singular_values": singular_values,
        "learning_rates": learning_rates,
        "weight_decays": weight_decays,
    }
    for name, values in columns.items():
        validation.number(name, jax.device_get(values), minimum=0, open_minimum=True)
    d, sigma, eta, decay = (np.asarray(values, np.float64) for values in columns.values())
    for name, values in (("learning_rates", eta), ("weight_decays", decay)):
        if values.shape not in ((), d.shape):
            raise ValueError(f"{name} must be one or {d.size} values, got shape {values.shape}")
    if d.ndim != 1 or sigma.shape != d.shape or np.unique(d).size < 2:
        raise ValueError(
            "widths and singular_values must be as many, at least two different widths, got shapes "
            f"{d.shape} and {sigma.shape}, widths {widths!r}"
        )
    x, y = np.log(d), np.log(sigma / np.sqrt(eta / decay))
    centred = x - x.mean()
    exponent = float(centred @ (y - y.mean()) / (centred @ centred))
    return SingularValueLaw(exponent, float(np.exp(y.mean() - exponent * x.mean())))
