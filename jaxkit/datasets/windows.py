"""Windows of a long array of tokens, and the fixed set of them for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from jaxkit.datasets.order import BatchRows
from jaxkit.validation import integer


class EvaluationBatches(Sequence[dict[str, np.ndarray]]):
    """A fixed sequence of batches; made by `evaluation_batches`.

    Attributes:
        num_windows: windows in all, over all processes.
    """

    def __init__(
        self, tokens: np.ndarray, sequence_length: int, starts: np.ndarray, rows: BatchRows
    ):
        self.num_windows = len(starts)
        self._tokens, self._length = tokens, sequence_length
        self._starts, self._rows = starts, rows

    def __len__(self) -> int:
        """Return the number of batches, the padded last one included."""
        return -(-self.num_windows // self._rows.batch_size)

    def __getitem__(self, batch):
        """Return one batch of this process."""
        if isinstance(batch, slice):
            return [self[b] for b in range(*batch.indices(len(self)))]
        if not -len(self) <= batch < len(self):
            raise IndexError(f"batch must be below {len(self)}, got {batch}")
        index = self._rows.rows(batch % len(self))
        # A row beyond the last window starts at the end, where nothing is left to predict.
        starts = np.append(self._starts, len(self._tokens))[np.minimum(index, self.num_windows)]
        positions = starts[:, None] + np.arange(self._length + 1)
        inside = positions < len(self._tokens)
        tokens = self._tokens[np.where(inside, positions, 0)]
        return {
            "tokens": np.where(inside, tokens, 0).astype(np.int32),
            "mask": inside[:, 1:],
            "index": index,
        }


def evaluation_batches(
    tokens: Integer[np.ndarray, " tokens"],
    *,
    sequence_length: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_windows: int | None = None,
) -> EvaluationBatches:
    """Cut tokens into windows in order, so that each token but the first is a target once.

    The last window and the last batch are padded; the mask says which targets count.

    Args:
        tokens: the tokens, `[tokens]`.
        sequence_length: targets in a window, S.
        batch_size: rows of the global batch, over all processes.
        process_index: this process.
        process_count: number of processes; divides `batch_size`.
        max_windows: at most so many windows, spread evenly over the tokens; None for all.

    Returns:
        A sequence of `{"tokens": int32 [batch_size / process_count, S + 1], "mask": bool
        [batch_size / process_count, S], "index": int64 [batch_size / process_count]}`, to go
        through as often as needed; `mask[i, t]` belongs to the target `tokens[i, t + 1]`.

    Raises:
        TypeError: if `tokens` is not a flat integer array.
        ValueError: if the tokens are shorter than one window, or the numbers do not fit together.

    Example:
        >>> batches = evaluation_batches(np.arange(8), sequence_length=3, batch_size=2)
        >>> [int(batch["mask"].sum()) for batch in batches]
        [6, 1]
    """
    tokens = check_tokens(tokens, sequence_length)
    starts = np.arange(0, len(tokens) - 1, sequence_length)
    if max_windows is not None and integer("max_windows", max_windows, minimum=1) < len(starts):
        starts = starts[np.arange(max_windows) * len(starts) // max_windows]
    rows = BatchRows(batch_size, process_index=process_index, process_count=process_count)
    return EvaluationBatches(tokens, sequence_length, starts, rows)


def check_tokens(
    tokens: Integer[np.ndarray, " tokens"], sequence_length: int
) -> Integer[np.ndarray, " tokens"]:
    """Return tokens that hold at least one window, or raise."""
    sequence_length = integer("sequence_length", sequence_length, minimum=1)
    # A plain view of a mapped array reads the same pages; indexing np.memmap itself is slower.
    tokens = np.asarray(tokens).view(np.ndarray)
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 1:
        raise TypeError(f"tokens must be a flat integer array, got {tokens.dtype}{tokens.shape}")
    if len(tokens) <= sequence_length:
        raise ValueError(
            f"tokens must be longer than one context: sequence_length = {sequence_length} needs "
            f"at least {sequence_length + 1} tokens, got {len(tokens)}"
        )
    return tokens
