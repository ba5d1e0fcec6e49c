r"""The constants of the annealing law and its relatives, and the loss they predict.

Every law here is *separable*: a weighted sum of columns, whose weights (loss-like constants) enter
linearly and whose few shape constants do not. `jaxkit.losscurves.forms` relies on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jaxkit.losscurves import areas

#: A Python, NumPy or JAX scalar, or an array of them under `vmap`.
Scalar = Any


class AnnealingLaw(NamedTuple):
    """Constants of `L = floor + scale * S1^-exponent - annealing * S2`.

    Attributes:
        floor: L0, nats.
        scale: A, nats x (learning rate x steps)^exponent.
        annealing: C, nats per learning rate x step. Only `C / (1 - decay)` can be compared between
            decays: the whole loss drop per unit of learning rate removed.
        exponent: alpha.
    """

    floor: Scalar
    scale: Scalar
    annealing: Scalar
    exponent: Scalar


class PowerLaw(NamedTuple):
    """Constants of `L = floor + scale * x^-exponent`, with x the sum of rates or the step."""

    floor: Scalar
    scale: Scalar
    exponent: Scalar


class SizeLaw(NamedTuple):
    """Constants of the annealing law over model sizes N.

    `L = floor + scale * S1^-exponent + size_scale * N^-size_exponent
    - annealing * N^annealing_exponent * S2`.

    Attributes:
        floor: L0, nats.
        scale: A.
        size_scale: B, nats x parameters^size_exponent.
        annealing: C, nats per learning rate x step x parameters^annealing_exponent.
        exponent: alpha.
        size_exponent: beta.
        annealing_exponent: gamma; bigger models gain more from annealing.
    """

    floor: Scalar
    scale: Scalar
    size_scale: Scalar
    annealing: Scalar
    exponent: Scalar
    size_exponent: Scalar
    annealing_exponent: Scalar


def annealing_loss(law: AnnealingLaw, at: areas.AnnealingAreas) -> Float[Array, "*batch"]:
    r"""Evaluate $L_0 + A S_1^{-\alpha} - C S_2$ (arXiv 2408.11029 eq. (1)), `[*batch]`, nats."""
    return law.floor + law.scale * at.forward**-law.exponent - law.annealing * at.annealing
