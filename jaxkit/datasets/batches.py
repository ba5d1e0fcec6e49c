"""Batches that are shuffled by seed, sharded by process and resumed at the exact example."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from jaxkit.datasets.extras import require
from jaxkit.datasets.order import BatchRows, ExampleOrder
from jaxkit.datasets.windows import check_tokens
from jaxkit.validation import integer

Batch = dict[str, np.ndarray]


class BatchIterator(Iterator[Batch]):
    """A stream of batches with its position as a small, JSON-able state.

    Made by `token_batches`, `array_batches` and `picture_batches`; a Grain iterator over whole
    batches underneath. The state is the number of batches taken: it does not depend on the process,
    on threads or on workers, so a run may be resumed on another number of them.

    Attributes:
        examples_per_epoch: examples in an epoch.
        stream: what defines the stream; a state of another stream is refused.

    Example:
        >>> batches = token_batches(np.arange(9), sequence_length=4, batch_size=1, seed=0)
        >>> position = batches.get_state()
        >>> first = next(batches)["tokens"]
        >>> batches.set_state(position)
        >>> bool((next(batches)["tokens"] == first).all())
        True
    """

    def __init__(
        self,
        source: BatchSource,
        stream: Mapping[str, Any],
        *,
        num_threads: int,
        num_workers: int = 0,
    ):
        self._grain = require("grain", "train")
        self.examples_per_epoch = source.order.num_examples
        self.stream = {**stream, **source.described()}
        self._source, self._num_workers = source, num_workers
        self._num_threads = integer("num_threads", num_threads, minimum=0)
        self._step, self._iterator = 0, None

    def __next__(self) -> Batch:
        """Return the next batch of this process."""
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position: a dictionary of JSON types, of constant size."""
        return {"step": self._step, "stream": self.stream}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a position, at once and without replay."""
        try:
            step, stream = integer("step", state["step"], minimum=0), dict(state["stream"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state must come from get_state, got {state!r}") from error
        for name in sorted(stream.keys() | self.stream.keys()):
            saved, own = stream.get(name), self.stream.get(name)
            if saved != own:
                raise ValueError(
                    f"state belongs to another stream: {name} was {saved!r} there, is {own!r} here"
                )
        self.close()
        self._step = step

    def close(self) -> None:
        """End threads and workers; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _dataset(self) -> Any:
        threads = self._num_threads
        options = self._grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        # The position is ours, not Grain's: its state has another form with workers.
        batches = self._grain.MapDataset.source(self._source)[self._step :].to_iter_dataset(options)
        if not self._num_workers:
            return batches
        from absl import flags

        # Grain reads command-line flags that a program without absl never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return batches.mp_prefetch(
            self._grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2)
        )


def token_batches(
    tokens: Integer[np.ndarray, " tokens"],
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_threads: int = 0,
) -> BatchIterator:
    """Iterate over windows of a long array of tokens, for next-token prediction.

    Window `w` of an epoch holds tokens `offset + w S` to `offset + (w + 1) S`, so that each token
    is a target at most once an epoch. Offset and order are drawn anew for each epoch from `seed`
    and the epoch's number; without `shuffle` the offset is 0 and the windows come in order.
    Batches run on across the end of an epoch.

    Args:
        tokens: the tokens, `[tokens]`; may be mapped from disk.
        sequence_length: targets in a window, S.
        batch_size: rows of the global batch, over all processes.
        seed: seed of offsets and orders, >= 0.
        process_index: this process.
        process_count: number of processes; divides `batch_size`.
        shuffle: whether to draw offset and order.
        num_epochs: how often to go through the tokens; None for ever. The last batch is left out
            unless it is full.
        num_threads: threads that read ahead; 0 reads when asked.

    Returns:
        An iterator over `{"tokens": int32 [batch_size / process_count, S + 1], "index": int64
        [batch_size / process_count]}`; `index` counts sequences since the start of the stream.
        Process 0's rows, then process 1's and so on, are the same batch for any `process_count`.

    Raises:
        ImportError: without the `train` extra.
        TypeError: if `tokens` is not a flat integer array.
        ValueError: if the tokens are shorter than one window, or the numbers do not fit together.

    Example:
        >>> batches = token_batches(np.arange(9), sequence_length=4, batch_size=2, seed=0)
        >>> next(batches)["tokens"].shape, next(batches)["index"].tolist()
        ((2, 5), [2, 3])
    """
    tokens = check_tokens(tokens, sequence_length)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)
    # One window less than fits leaves room for the offset to reach every alignment.
    num_examples = max((len(tokens) - (sequence_length if shuffle else 1)) // sequence_length, 1)
    slack = len(tokens) - 1 - num_examples * sequence_length

    @functools.lru_cache(maxsize=2)
    def offset(epoch: int) -> int:
        # The third word keeps this draw apart from that of the permutation.
        return int(np.random.default_rng([seed, epoch, 1]).integers(slack + 1)) if shuffle else 0

    def gather(epoch: np.ndarray, example: np.ndarray) -> Batch:
        starts = example * sequence_length
        for e in range(epoch[0], epoch[-1] + 1):
            starts[epoch == e] += offset(e)
        return {"tokens": windows[starts].astype(np.int32)}

    order = ExampleOrder(num_examples, seed=seed, shuffle=shuffle)
    rows = BatchRows(batch_size, process_index=process_index, process_count=process_count)
    source = BatchSource(order, rows, gather, num_epochs)
    stream = {"num_tokens": len(tokens), "sequence_length": int(sequence_length)}
    return BatchIterator(source, stream, num_threads=num_threads)


def array_batches(
    inputs: Shaped[np.ndarray, "examples ..."],
    labels: Shaped[np.ndarray, "examples ..."] | None = None,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_threads: int = 0,
) -> BatchIterator:
    """Iterate over the rows of arrays, under the same contract as `token_batches`.

    Args:
        inputs: the inputs, `[examples, ...]`.
        labels: their labels, `[examples, ...]`; None for none.
        batch_size: rows of the global batch, over all processes.
        seed: seed of the orders, >= 0.
        process_index: this process.
        process_count: number of processes; divides `batch_size`.
        shuffle: whether to draw a new order for each epoch.
        num_epochs: how often to go through the examples; None for ever. The last batch is left out
            unless it is full.
        num_threads: threads that read ahead; 0 reads when asked.

    Returns:
        An iterator over `{"inputs": [batch_size / process_count, ...], "labels": [...], "index":
        int64 [...]}`, `"labels"` only if there are some.

    Raises:
        ImportError: without the `train` extra.
        ValueError: if lengths differ, there are no examples, or the numbers do not fit together.

    Example:
        >>> batches = array_batches(np.eye(4), np.arange(4), batch_size=4, seed=0, num_epochs=1)
        >>> sorted(next(batches)["labels"].tolist())
        [0, 1, 2, 3]
    """
    given = {"inputs": inputs} if labels is None else {"inputs": inputs, "labels": labels}
    arrays = {}
    for name, values in given.items():
        try:
            arrays[name] = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{name} must be one array: {error}") from None
        if arrays[name].dtype == object:
            raise TypeError(f"{name} must be an array of one type, got objects: {values!r:.80}")
    lengths = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or lengths["inputs"] in ((), (0,)):
        raise ValueError(f"inputs and labels must have one length >= 1, got {lengths}")

    def gather(epoch: np.ndarray, example: np.ndarray) -> Batch:
        return {name: array[example] for name, array in arrays.items()}

    order = ExampleOrder(len(arrays["inputs"]), seed=seed, shuffle=shuffle)
    rows = BatchRows(batch_size, process_index=process_index, process_count=process_count)
    source = BatchSource(order, rows, gather, num_epochs)
    return BatchIterator(source, {"num_examples": order.num_examples}, num_threads=num_threads)


class BatchSource:
    """Random access to whole batches: one lookup costs Grain as much as one example would."""

    def __init__(
        self,
        order: ExampleOrder,
        rows: BatchRows,
        gather: Callable[[np.ndarray, np.ndarray], Batch],
        num_epochs: int | None,
    ):
        self.order, self._rows, self._gather = order, rows, gather
        self._length = sys.maxsize
        if num_epochs is not None:
            self._length = order.num_examples * integer("num_epochs", num_epochs, minimum=1)
            self._length //= rows.batch_size
            if not self._length:
                raise ValueError(
                    f"batch_size must be at most the {order.num_examples} examples of an epoch "
                    f"times num_epochs = {num_epochs}, got {rows.batch_size}"
                )

    def described(self) -> dict[str, Any]:
        """What the order of every stream depends on, in JSON types."""
        order = self.order
        return {
            "batch_size": self._rows.batch_size, "seed": order.seed, "shuffle": bool(order.shuffle)
        }  # fmt: skip

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, batch: int) -> Batch:
        index = self._rows.rows(batch)
        return {**self._gather(*self.order.locate(index)), "index": index}
