"""Runs in which every example enters one release, as one value."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxtyping import Array, Key

from jaxkit import validation
from jaxkit.privacy import accounting, clipping, mechanisms, statement
from jaxkit.privacy.bounded_sums import ClippedGradient
from jaxkit.privacy.randomness import NoiseSource


@dataclasses.dataclass(frozen=True, eq=False)
class OnePass:
    """Clipped gradients and the noise of a run that releases each example once.

    Made by `one_pass`; `tree_spider` and `recursive_regularization` run it.

    Attributes:
        gradient: clipped gradient sums; its clip norm is C.
        noise_multiplier: z, the standard deviation of the noise over the bound on one example's
            part of a release.
        delta: of the guarantee.
    """

    gradient: ClippedGradient
    noise_multiplier: Any
    delta: float

    @functools.cached_property
    def mechanism(self) -> mechanisms.Mechanism:
        """What the whole run releases: in parallel, as much as one Gaussian release."""
        return mechanisms.one_pass_mechanism(self.noise_multiplier)

    def key(self, source: NoiseSource) -> Key[Array, ""]:
        """The key of a run."""
        return source.key("one pass", f"{self.noise_multiplier!r} {self.delta!r}", 0)

    def epsilon(self) -> float:
        """Epsilon of the whole run."""
        return accounting.epsilon_spent(self.mechanism, self.delta)

    def statement(self, source: NoiseSource | None = None) -> str:
        """The guarantee in words; from a public source there is none, and the text says so."""
        return statement.of_run(self.mechanism, self.delta, self.gradient.unit, source)


def one_pass(
    gradient: ClippedGradient,
    *,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: Any = None,
) -> OnePass:
    """Plan a run that releases each example once, for a budget or a given noise.

    Its releases compose in parallel: replacing an example moves one sum, by 2 C at most, so that
    the run is exactly Gaussian-DP with mu = 2/z, whatever epsilon.

    Args:
        gradient: clipped gradient sums.
        delta: in (0, 1).
        epsilon: budget of the whole run, from which the noise follows.
        noise_multiplier: instead of `epsilon`: z >= 0, 0 without privacy; may be traced.

    Returns:
        The plan.

    Raises:
        ImportError: without the `privacy` extra.
        TypeError: unless one of `epsilon` and `noise_multiplier` is given.
        ValueError: if a number is not allowed.

    Source: arXiv 2206.00846 Theorem 3.1.

    Example:
        >>> from jaxkit.privacy import glm
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> plan = one_pass(gradient, epsilon=1.0, delta=1e-5)
        >>> round(plan.noise_multiplier, 4), round(plan.epsilon(), 4), plan.mechanism.neighbours
        (7.4613, 1.0, 'replace')
    """
    accounting.check_delta(delta)
    if (epsilon is None) == (noise_multiplier is None):
        raise TypeError("one of epsilon and noise_multiplier must be given")
    if epsilon is not None:
        validation.number("epsilon", epsilon, minimum=0, open_minimum=True)
        gaussian = mechanisms.dp_accounting().get_sigma_gaussian(epsilon, delta)
        noise_multiplier = 2 * float(gaussian)
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    noise_multiplier = clipping.single_numbers("noise_multiplier", noise_multiplier)
    return OnePass(gradient, noise_multiplier, delta)
