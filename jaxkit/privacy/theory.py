"""The paper's own parameters, to be compared with, not to train with.

Its universal constants are not given, and calibrated noise is both smaller and certified.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxkit import validation


class SpiderBoostTheory(NamedTuple):
    """Parameters of Theorem 4.2 for Private SpiderBoost.

    Attributes:
        alpha_bar: sqrt(d log(1/delta)) / (n epsilon).
        learning_rate: eta = 1/(2 L1).
        anchor_size: b1 = n.
        variation_size: b2.
        num_steps: T.
        phase_length: q.
        n_min: data sets must be at least this large for the theorem.
        rate: its bound on the gradient norm, without the constant.
    """

    alpha_bar: float
    learning_rate: float
    anchor_size: int
    variation_size: int
    num_steps: int
    phase_length: int
    n_min: float
    rate: float


def spiderboost_theory(
    *,
    num_examples: int,
    dimension: int,
    epsilon: float,
    delta: float,
    lipschitz: float,
    smoothness: float,
    suboptimality: float,
) -> SpiderBoostTheory:
    r"""Parameters of Theorem 4.2, with q from its proof (the statement prints an extra L1^2).

    .. math::
        T = \max(((F_0L_1)^{1/4}/(\sqrt{L_0}\bar\alpha))^{4/3}, 1/\bar\alpha), \quad
        b_2 = \max((L_0/(\sqrt{F_0L_1}\bar\alpha))^{2/3},
        L_0^{1/3} n \bar\alpha^{2/3}/(L_1F_0)^{1/6}), \quad q = 1/(T\bar\alpha^2)

    Args:
        num_examples: n.
        dimension: d.
        epsilon: in (0, 1].
        delta: in (0, 1).
        lipschitz: L0.
        smoothness: L1.
        suboptimality: F0 = F(w_0) - min F.

    Returns:
        The parameters; integers are rounded down.

    Raises:
        ValueError: if a number is not allowed.

    Source: arXiv 2206.00846 Theorems 4.2 and B.3.

    Example:
        >>> spiderboost_theory(
        ...     num_examples=510_663, dimension=28, epsilon=1.0, delta=1e-6, lipschitz=1.0,
        ...     smoothness=0.25, suboptimality=0.69,
        ... ).num_steps
        427982
    """
    _check_closed_form(epsilon, delta)
    n, d, l0, l1, f0 = num_examples, dimension, lipschitz, smoothness, suboptimality
    alpha = math.sqrt(d * math.log(1 / delta)) / (n * epsilon)
    scale = math.sqrt(f0 * l1)
    steps = math.floor(max((math.sqrt(scale) / (math.sqrt(l0) * alpha)) ** (4 / 3), 1 / alpha))
    size = math.floor(
        max(
            (l0 / (scale * alpha)) ** (2 / 3),
            l0 ** (1 / 3) * n * alpha ** (2 / 3) / (l1 * f0) ** (1 / 6),
        )
    )
    return SpiderBoostTheory(
        alpha_bar=alpha,
        learning_rate=1 / (2 * l1),
        anchor_size=n,
        variation_size=size,
        num_steps=steps,
        phase_length=math.floor(1 / (steps * alpha**2)),
        n_min=max(
            (l0 * epsilon) ** 2 / (f0 * l1 * d * math.log(1 / delta)),
            math.sqrt(d) * max(1, scale / l0) / epsilon,
        ),
        rate=(math.sqrt(f0 * l1 * l0) * alpha) ** (2 / 3) + l0 * alpha,
    )


def _check_closed_form(epsilon: float, delta: float) -> None:
    validation.number("epsilon", epsilon, minimum=0, open_minimum=True)
    validation.number("delta", delta, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    if epsilon > 1:
        raise ValueError(
            f"epsilon must be at most 1 for the paper's closed forms, got {epsilon}: calibrate the "
            "noise instead (spiderboost(epsilon=...))"
        )
