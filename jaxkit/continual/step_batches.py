"""The batches of a phase, drawn so that any step of it can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class StepBatches(NamedTuple):
    """Up to S steps of a phase.

    Attributes:
        inputs: `[S, B, ...]`.
        labels: `[S, B]`.
        num_valid: rows that count in each batch; the rest is padding, int32 `[S]`.
        learning_rate: `[S]`.
        step: number of each step within the phase, for random routings and augmentation, `[S]`.
        num_steps: steps to run, at most S.
    """

    inputs: Float[Array, "S B ..."]
    labels: Int[Array, "S B"]
    num_valid: Int[Array, " S"]
    learning_rate: Float[Array, " S"]
    step: Int[Array, " S"]
    num_steps: Int[Array, ""]


def draw_batches(
    inputs: Float[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    order: Sequence[int],
    learning_rates: Float[np.ndarray, " epochs"],
    first: int,
    count: int,
    *,
    batch_size: int,
    capacity: int,
) -> StepBatches:
    """Draw steps `first` to `first + count` of a phase.

    Each pass has an order of its own, and its last batch may be smaller.

    Args:
        inputs: of a task.
        labels: one an input.
        order: numbers that seed the orders of the phase.
        learning_rates: of each pass.
        first: first step, counted from the start of the phase.
        count: steps, at most `capacity`.
        batch_size: inputs of a step.
        capacity: `S`, steps that the arrays have room for.

    Returns:
        NumPy arrays; beyond `count` steps they hold padding.

    Example:
        >>> batches = draw_batches(np.arange(3.0), np.arange(3), (0,), np.ones(2), 1, 2,
        ...                        batch_size=2, capacity=4)
        >>> batches.num_valid.tolist(), int(batches.num_steps)
        ([1, 2, 1, 1], 2)
    """
    per_epoch = -(-len(labels) // batch_size)
    rows = np.zeros((capacity, batch_size), np.int64)
    valid, rate_of, step_of = np.ones(capacity, np.int32), np.zeros(capacity), np.zeros(capacity)
    for i, step in enumerate(range(first, first + count)):
        epoch, batch = divmod(step, per_epoch)
        shuffled = draw_order((*order, epoch), len(labels))
        drawn = shuffled[batch * batch_size : (batch + 1) * batch_size]
        rows[i, : len(drawn)], valid[i] = drawn, len(drawn)
        rate_of[i], step_of[i] = learning_rates[epoch], step
    chosen = np.asarray(inputs[rows.reshape(-1)], np.float32)
    return StepBatches(
        chosen.reshape(*rows.shape, *inputs.shape[1:]),  # type: ignore[arg-type]
        labels[rows].astype(np.int32),  # type: ignore[arg-type]
        valid,  # type: ignore[arg-type]
        rate_of.astype(np.float32),  # type: ignore[arg-type]
        step_of.astype(np.int32),  # type: ignore[arg-type]
        np.int32(count),  # type: ignore[arg-type]
    )


def draw_order(order: Sequence[int], length: int) -> Int[np.ndarray, " n"]:
    """A permutation that the numbers determine.

    Example:
        >>> sorted(draw_order((0, 1), 3).tolist())
        [0, 1, 2]
    """
    return np.random.default_rng(list(order)).permutation(length)
