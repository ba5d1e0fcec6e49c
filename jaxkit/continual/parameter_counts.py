"""How many parameters a run costs, at inference and for noticing shifts."""

from __future__ import annotations

from typing import NamedTuple

from jaxkit import validation
from jaxkit.continual.expandable_state import SEMAConfig


class ParameterCounts(NamedTuple):
    """How large SEMA is.

    Attributes:
        adapters: adapters in use, over all blocks.
        inference: parameters of adapters and head, as the paper's table 5 counts.
        routers: parameters of the router columns in use, needed at inference too.
        descriptors: parameters of the descriptors in use, needed to notice shifts.
    """

    adapters: int
    inference: int
    routers: int
    descriptors: int


def parameter_counts(config: SEMAConfig, num_added: int) -> ParameterCounts:
    """Count parameters after `num_added` expansions.

    `adapters (2dr + r + d) + C (d + 1)` at inference.

    Args:
        config: shapes.
        num_added: adapters added after the first task, over all blocks.

    Source: arXiv 2403.18886 table 5.

    Example:
        >>> from jaxkit import models
        >>> cifar100 = SEMAConfig(models.VisionTransformer(), num_classes=100)
        >>> parameter_counts(cifar100, 9 * 3).inference
        1065940
    """
    validation.integer("num_added", num_added, minimum=0)
    d, r, m = config.model.width, config.adapter_dim, config.descriptor_dim
    adapters = config.model.depth + num_added
    growing = config.num_expandable + num_added
    return ParameterCounts(
        adapters,
        adapters * (2 * d * r + r + d) + config.num_classes * (d + 1),
        growing * (d + 1),
        growing * (2 * d * m + m + d),
    )
