"""The paper's own constants: noise scales and parameters of its theorems.

They are here to be compared with, not to train with: the universal constants are not given, and
calibrated noise (`spiderboost` with an epsilon) is both smaller and certified.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxkit import validation


class NoiseScales(NamedTuple):
    """Standard deviations of Algorithm 2, on the mean over a batch.

    Attributes:
        anchor: sigma_1.
        variation: sigma_2, per unit of ||w_t - w_{t-1}||.
        variation_cap: the largest noise of a variation.
    """

    anchor: float
    variation: float
    variation_cap: float


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


class TreeSpiderTheory(NamedTuple):
    """Parameters of Theorem 3.2 for tree-based Private SPIDER, as real numbers.

    Attributes:
        root_size: b.
        depth: D, the solution of D 2^(D+1) = b.
        num_rounds: T.
        alpha: the target accuracy.
        beta: controls the step length beta / (2^(D/2) L1).
        stop_threshold: 2 alpha-tilde; where it exceeds L0 the run stops at once.
        bound: 3 C-tilde alpha.
        n_min: data sets must be at least this large for the theorem.
    """

    root_size: float
    depth: float
    num_rounds: float
    alpha: float
    beta: float
    stop_threshold: float
    bound: float
    n_min: float


def spiderboost_paper_noise(
    *,
    epsilon: float,
    delta: float,
    lipschitz: float,
    smoothness: float,
    num_examples: int,
    anchor_size: int,
    variation_size: int,
    num_steps: int,
    phase_length: int,
    constant: float,
) -> NoiseScales:
    r"""Noise of Algorithm 2 with its unspecified constant c.

    .. math::
        \sigma_1 = c L_0 s \max(1/b_1, \sqrt{T/q}/n), \quad
        \sigma_2 = c L_1 s \max(1/b_2, \sqrt T/n), \quad
        \hat\sigma_2 = 2 c L_0 s \max(1/b_2, \sqrt T/n), \quad s = \sqrt{\log(1/\delta)}/\epsilon

    Source: arXiv 2206.00846 Algorithm 2, lines 2-4.
    """
    _check_closed_form(epsilon, delta)
    for name, value in (
        ("lipschitz", lipschitz), ("smoothness", smoothness), ("constant", constant)
    ):  # fmt: skip
        validation.number(name, value, minimum=0, open_minimum=True)
    scale = constant * math.sqrt(math.log(1 / delta)) / epsilon
    anchor = max(1 / anchor_size, math.sqrt(num_steps / phase_length) / num_examples)
    variation = max(1 / variation_size, math.sqrt(num_steps) / num_examples)
    return NoiseScales(
        scale * lipschitz * anchor,
        scale * smoothness * variation,
        2 * scale * lipschitz * variation,
    )


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


def tree_spider_theory(
    *,
    num_examples: int,
    dimension: int,
    epsilon: float,
    delta: float,
    lipschitz: float,
    smoothness: float,
    suboptimality: float,
    failure: float,
) -> TreeSpiderTheory:
    """Parameters of Theorem 3.2; its stop rule is vacuous unless n is astronomically large.

    Source: arXiv 2206.00846 Theorem 3.2.
    """
    from scipy import optimize

    _check_closed_form(epsilon, delta)
    n, d, l0, l1, f0 = num_examples, dimension, lipschitz, smoothness, suboptimality
    b = max(n ** (2 / 3), math.sqrt(n) * d**0.25 / math.sqrt(epsilon))
    depth: Any = optimize.brentq(lambda x: math.log2(x) + x + 1 - math.log2(b), 1e-9, 64)
    rounds = n / (b * (depth / 2 + 1))
    alpha = math.sqrt(2) * l0 * max(n ** (-1 / 3), math.sqrt(math.sqrt(d) / (n * epsilon)))
    c_tilde = 256 * math.log(1.25 / delta) * math.log(
        2 * rounds * 2 ** (depth + 1) / failure
    ) + 8 * l1 * f0 * math.sqrt(2 * depth) * (depth / 2 + 1) / (2 * l0**2)
    return TreeSpiderTheory(
        root_size=b,
        depth=depth,
        num_rounds=rounds,
        alpha=alpha,
        beta=alpha * min(1, math.sqrt(b) * epsilon / math.sqrt(d)),
        stop_threshold=2 * c_tilde * alpha,
        bound=3 * c_tilde * alpha,
        n_min=max(math.sqrt(d) * (depth / 2 + 1) ** 2 / epsilon, (depth / 2 + 1) ** 3),
    )


def _check_closed_form(epsilon: float, delta: float) -> None:
    validation.number("epsilon", epsilon, minimum=0, open_minimum=True)
    validation.number("delta", delta, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    if epsilon > 1:
        raise ValueError(
            f"epsilon must be at most 1 for the paper's closed forms, got {epsilon}: calibrate the "
            "noise instead (spiderboost(epsilon=...), calibrate_one_pass)"
        )
