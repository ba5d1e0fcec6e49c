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
