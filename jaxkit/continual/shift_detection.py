"""From scores to the block that grows, and the check that scores can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxkit.continual.error_records import record_statistics
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState


class Trigger(NamedTuple):
    """Where a block asks to grow.

    Attributes:
        batch: index of the batch.
        block: index among the expandable blocks.
        score: the score there.
    """

    batch: int
    block: int
    score: float


def first_trigger(
    scores: Float[np.ndarray, "n E"], closed: Bool[np.ndarray, " E"], threshold: float
) -> Trigger | None:
    """Find the first batch with a score above the threshold, and there the shallowest block.

    Scores before a trigger do not depend on it, so that this is the official order, in which each
    batch walks the blocks from shallow to deep and stops at the first that grows.

    Args:
        scores: of each batch and expandable block.
        closed: blocks that have grown for this task already.
        threshold: score above which a block grows.

    Returns:
        The trigger, or None.

    Raises:
        FloatingPointError: if a score is NaN: it would be below every threshold, and the model
            would never grow again without a word.

    Source: the official program; arXiv 2403.18886 section 3.6.

    Example:
        >>> first_trigger(np.array([[0.5, 0.7], [2.0, 3.0]]), np.array([True, False]), 1.0)
        Trigger(batch=1, block=1, score=3.0)
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise FloatingPointError(f"scores of shifts must be numbers, got {scores.tolist()}")
    above = (scores > threshold) & ~np.asarray(closed)
    if not above.any():
        return None
    batch, block = np.argwhere(above)[0]
    return Trigger(int(batch), int(block), float(scores[batch, block]))


def require_finite_statistics(config: SEMAConfig, sema: SEMAState, task_name: str) -> None:
    """Refuse descriptors whose statistics are not finite.

    A NaN is below every threshold, so a model with one would silently never grow again.

    Args:
        config: shapes.
        sema: descriptors and records.
        task_name: for the message.

    Raises:
        FloatingPointError: naming the blocks.

    Example:
        >>> import jax
        >>> from jaxkit import models
        >>> from jaxkit.continual import init_sema
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> require_finite_statistics(config, init_sema(jax.random.key(0), config), "first")
    """
    mean, deviation = record_statistics(sema.records)
    active = np.arange(config.capacity) < np.asarray(sema.num_active)[:, None]
    broken = active & ~(np.isfinite(mean) & np.isfinite(deviation))
    if broken.any():
        blocks = [config.expand_from + int(e) for e in np.flatnonzero(broken.any(1))]
        raise FloatingPointError(
            f"descriptors of blocks {blocks} have statistics that are not finite after task "
            f"{task_name!r}: lower describe_learning_rate"
        )
