"""How much not knowing the alphabet can cost."""

from __future__ import annotations

import math

from jaxkit import validation


def regret_bound(vocab_size: int, num_distinct: int | None = None) -> float:
    r"""Largest loss of the associated lexinvariant model on any sequence, at any length.

    .. math:: \log p(x) - \log p'(x) \le \log \frac{d!}{(d - k)!}

    because :math:`p'` is a uniform mixture of :math:`d!/(d-k)!` ways to read the ``k`` symbols
    seen, one of which is right.

    Args:
        vocab_size: number of symbols ``d``.
        num_distinct: number ``k`` of different symbols in the sequence; None for all of them.

    Returns:
        The bound in nats.

    Raises:
        ValueError: if ``k`` is not in ``[0, d]`` or ``d`` not positive.

    Example:
        >>> round(regret_bound(27), 4), round(regret_bound(6, 2), 4)
        (64.5575, 3.4012)

    Source: follows from arXiv 2305.16349 §2.1; sharper than its appendix A, for every sequence.
    """
    d = validation.integer("vocab_size", vocab_size, minimum=1)
    k = d if num_distinct is None else validation.integer("num_distinct", num_distinct, minimum=0)
    if k > d:
        raise ValueError(f"num_distinct must be at most vocab_size={d}, got {k}")
    return math.lgamma(d + 1) - math.lgamma(d - k + 1)


def expected_l1_bound(vocab_size: int, length: int) -> float:
    r"""Bound on the expected mean L1 distance of predictions over ``T`` steps.

    .. math::
        \mathbb{E}\, \frac1T \sum_t \| p(\cdot \mid x_{< t}) - p'(\cdot \mid x_{< t}) \|_1
        \le \sqrt{2 \log(d!) / T}

    Args:
        vocab_size: number of symbols ``d``.
        length: number of steps ``T``.

    Returns:
        The bound (an L1 distance is at most 2).

    Raises:
        ValueError: if an argument is not positive.

    Example:
        >>> [round(expected_l1_bound(6, t), 3) for t in (16, 32, 64)]
        [0.907, 0.641, 0.453]

    Source: Pinsker and Jensen on `regret_bound`; arXiv 2305.16349 theorem 2.1 is the version with
    high probability, with a slower rate.
    """
    length = validation.integer("length", length, minimum=1)
    return math.sqrt(2 * regret_bound(vocab_size) / length)


def sufficient_length(vocab_size: int, epsilon: float, delta: float) -> int:
    r"""Length from which the theorem holds with probability ``1 - delta``, constants included.

    The smallest ``T`` with

    .. math::
        T \ge \frac{512}{\epsilon^4} \log\frac{2}{\delta}\, \log^2\frac{dT}{\delta\epsilon'}\,
        \log d!, \qquad \epsilon' = \frac{\epsilon}{2\sqrt2\,(2 \log(2/\delta))^{1/4}}

    Args:
        vocab_size: number of symbols ``d``, at least 2.
        epsilon: mean L1 distance to reach, in (0, 1/2).
        delta: probability of failure, in (0, 1/2).

    Returns:
        The length ``T``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> sufficient_length(2, 0.4, 0.1) > 10**6
        True

    Source: arXiv 2305.16349 theorem 2.1 and appendix A.
    """
    d = validation.integer("vocab_size", vocab_size, minimum=2)
    limits = {"open_minimum": True, "open_maximum": True}
    validation.number("epsilon", epsilon, minimum=0, maximum=0.5, **limits)
    validation.number("delta", delta, minimum=0, maximum=0.5, **limits)
    inner = epsilon / (2 * math.sqrt(2) * (2 * math.log(2 / delta)) ** 0.25)
    factor = 512 * math.log(2 / delta) * regret_bound(d) / epsilon**4

    def needed(length: float) -> float:
        return factor * math.log(d * length / (delta * inner)) ** 2

    # `needed` grows far slower than its argument here, so that iterating it from below converges
    # to the smallest length that satisfies it.
    length = factor
    while needed(length) > length * (1 + 1e-12):
        length = needed(length)
    return math.ceil(length)
