"""What a run releases, as an event that an accountant can judge.

Every builder fixes the neighbouring relation together with the event, because the same event means
different things under different relations. The noise multiplier z is always the standard deviation
of the noise on a *sum*, over the bound on one example's part of that sum.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxkit import validation
from jaxkit.privacy import batches
from jaxkit.privacy.bounded_sums import Neighbours


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """The privacy-relevant description of a run.

    Attributes:
        description: what is released, in words, with its numbers.
        event: the `dp_accounting` event.
        neighbours: the relation that the event is valid for.
        gaussian: mu if the run is exactly mu-Gaussian-DP, else None.
        lost: bound on the probability that a run differs from the event (overflowing batches).
        num_releases: how many noisy sums there are.
        usual_loss: size of the privacy loss: mu of its central limit, or the loss of one release
            ten standard deviations out where that is larger.
    """

    description: str
    event: Any
    neighbours: Neighbours
    gaussian: float | None = None
    lost: float = 0.0
    num_releases: int = 1
    usual_loss: float = 1.0


def dp_accounting() -> Any:
    """The accounting library, or an error that names the extra."""
    try:
        import dp_accounting as library
    except ImportError as error:
        raise ImportError(
            "accounting needs dp-accounting: pip install 'jaxkit[privacy]'"
        ) from error
    return library


def sampling_neighbours(*samplings: batches.Sampling) -> Neighbours:
    """The relation under which batches drawn like this are accounted for."""
    kinds = {sampling.kind for sampling in samplings}
    if "in_order" in kinds:
        raise ValueError("sampling must be random or of all examples, got batches in order")
    if {"poisson", "fixed"} <= kinds:
        raise ValueError(
            "sampling kinds must not mix 'poisson' (add_or_remove) and 'fixed' (replace): "
            "no event is valid for both"
        )
    sizes = {sampling.num_examples for sampling in samplings}
    if len(sizes) != 1:
        raise ValueError(f"samplings must have one num_examples, got {sorted(sizes)}")
    return "replace" if "fixed" in kinds else "add_or_remove"


def dp_sgd_mechanism(
    sampling: batches.Sampling,
    noise_multiplier: float,
    num_steps: int,
    *,
    neighbours: Neighbours | None = None,
) -> Mechanism:
    """DP-SGD and all that only post-processes its noisy sums: momentum, Adam, schedules.

    Args:
        sampling: how batches are drawn.
        noise_multiplier: z > 0.
        num_steps: number of updates T >= 1.
        neighbours: the relation claimed; by default the one that the sampling has.

    Returns:
        The mechanism.

    Raises:
        ValueError: if a number is not allowed, or no event is valid for the sampling under the
            relation.

    Example:
        >>> mechanism = dp_sgd_mechanism(batches.full_batches(100), 2.0, 4)
        >>> mechanism.gaussian, mechanism.neighbours
        (1.0, 'add_or_remove')
    """
    steps = validation.integer("num_steps", num_steps, minimum=1)
    what = f"{steps} noisy sums of clipped gradients ({_words(sampling)}, z = {noise_multiplier:g})"
    return _composed(what, [(sampling, noise_multiplier, steps)], neighbours)


def spiderboost_mechanism(
    anchor: batches.Sampling,
    variation: batches.Sampling,
    anchor_noise_multiplier: float,
    variation_noise_multiplier: float,
    *,
    num_steps: int,
    phase_length: int,
    neighbours: Neighbours | None = None,
) -> Mechanism:
    """Private SpiderBoost: ceil(T/q) anchors and the rest variations.

    Source: arXiv 2206.00846 Algorithm 2; multipliers are constant because the bound on a
        difference is proportional to a distance that is already public.
    """
    anchors, variations = spiderboost_counts(num_steps, phase_length)
    what = (
        f"{anchors} noisy sums of clipped gradients ({_words(anchor)}, "
        f"z = {anchor_noise_multiplier:g}) and {variations} of clipped gradient differences "
        f"({_words(variation)}, z = {variation_noise_multiplier:g})"
    )
    groups = [(anchor, anchor_noise_multiplier, anchors)]
    if variations:
        groups.append((variation, variation_noise_multiplier, variations))
    return _composed(what, groups, neighbours)


def spiderboost_counts(num_steps: int, phase_length: int) -> tuple[int, int]:
    """Number of anchors ceil(T/q) and of variations in T steps."""
    steps = validation.integer("num_steps", num_steps, minimum=1)
    phase = validation.integer("phase_length", phase_length, minimum=1)
    if phase > steps:
        raise ValueError(f"phase_length must be at most num_steps = {steps}, got {phase}")
    anchors = -(-steps // phase)
    return anchors, steps - anchors


def one_pass_mechanism(noise_multiplier: float) -> Mechanism:
    """A run in which every example enters one Gaussian release: mu = 2/z, exactly.

    Source: arXiv 2206.00846 Theorem 3.1.
    """
    z = validation.number("noise_multiplier", noise_multiplier, minimum=0, open_minimum=True)
    event = dp_accounting().GaussianDpEvent(z / 2)
    return Mechanism(f"one pass, each example in one release (z = {z:g})", event, "replace", 2 / z)


def dp_ftrl_mechanism(
    noise_multiplier: float, steps_per_tree: int, num_trees: int = 1
) -> Mechanism:
    """DP-FTRL: each example enters at most one update of each tree.

    Source: Kairouz et al. 2021, arXiv 2103.00039 appendix D.
    """
    z = validation.number("noise_multiplier", noise_multiplier, minimum=0, open_minimum=True)
    steps = validation.integer("steps_per_tree", steps_per_tree, minimum=1)
    trees = validation.integer("num_trees", num_trees, minimum=1)
    library = dp_accounting()
    tree = library.SingleEpochTreeAggregationDpEvent(z, steps)
    event = library.SelfComposedDpEvent(tree, trees)
    what = f"{trees} tree(s) of {steps} noisy sums, each example once in a tree (z = {z:g})"
    return Mechanism(what, event, "zero_out")


def _composed(what, groups, neighbours) -> Mechanism:
    library = dp_accounting()
    for _, z, _ in groups:
        validation.number("noise_multiplier", z, minimum=0, open_minimum=True)
    samplings = [sampling for sampling, _, _ in groups]
    natural = sampling_neighbours(*samplings)
    relation = neighbours or natural
    sampled = any(sampling.kind != "all" for sampling in samplings)
    if sampled and relation != natural:
        kind = next(sampling.kind for sampling in samplings if sampling.kind != "all")
        raise ValueError(
            f"neighbours must be {natural!r} for {kind} batches, got {relation!r}: no event is "
            "valid"
        )
    validation.choice("neighbours", relation, ("add_or_remove", "zero_out", "replace"))
    # Replacing an example moves a sum by twice its bound.
    effective = 2.0 if relation == "replace" else 1.0
    events = [
        library.SelfComposedDpEvent(_event(library, sampling, float(z) / effective), count)
        for sampling, z, count in groups
    ]
    mu = None
    if not sampled:
        mu = math.sqrt(sum(count * (effective / z) ** 2 for _, z, count in groups))
    losses = [
        sampling.rate * max(
            math.sqrt(count * math.expm1(min((effective / z) ** 2, 100))),
            math.expm1(min(10 * effective / z, 100)),
        )
        for sampling, z, count in groups
    ]  # fmt: skip
    lost = sum(count * sampling.overflow for sampling, _, count in groups)
    event = events[0] if len(events) == 1 else library.ComposedDpEvent(tuple(events))
    releases = sum(count for _, _, count in groups)
    return Mechanism(what, event, relation, mu, lost, releases, math.hypot(*losses))


def _event(library, sampling: batches.Sampling, z: float):
    gaussian = library.GaussianDpEvent(z)
    if sampling.kind == "all":
        return gaussian
    if sampling.kind == "poisson":
        return library.PoissonSampledDpEvent(sampling.rate, gaussian)
    return library.SampledWithoutReplacementDpEvent(
        sampling.num_examples, sampling.padded_size, gaussian
    )


def _words(sampling: batches.Sampling) -> str:
    return {
        "all": f"all {sampling.num_examples:,} examples",
        "poisson": f"Poisson batches, rate {sampling.rate:g} of {sampling.num_examples:,}",
        "fixed": f"{sampling.padded_size:,} of {sampling.num_examples:,} without replacement",
        "in_order": f"{sampling.padded_size:,} of {sampling.num_examples:,} in order",
    }[sampling.kind]
