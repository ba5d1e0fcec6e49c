"""Which example stands where in an endless stream: epochs, shuffles and shards."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

from jaxkit.validation import integer


class ExampleOrder:
    """A stream of examples: epoch after epoch, each a fresh permutation drawn from the seed.

    Example `i` of the stream is example `permutation[i % num_examples]` of epoch
    `i // num_examples`. Any position is found without walking to it. A permutation costs 4 bytes
    an example (8 beyond 2**32 examples); the two latest are kept.
    """

    def __init__(self, num_examples: int, *, seed: int, shuffle: bool = True):
        self.num_examples = integer("num_examples", num_examples, minimum=1)
        self.seed = integer("seed", seed, minimum=0)
        self.shuffle = shuffle
        self._permutation = functools.lru_cache(maxsize=2)(self._draw_permutation)

    def locate(
        self, index: Int64[np.ndarray, " rows"]
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """Find examples of the stream."""
        epoch, position = np.divmod(index, self.num_examples)
        if self.shuffle:
            for e in range(epoch[0], epoch[-1] + 1):
                inside = epoch == e
                position[inside] = self._permutation(e)[position[inside]]
        return epoch, position

    def __reduce__(self):
        rebuild = functools.partial(
            ExampleOrder, self.num_examples, seed=self.seed, shuffle=self.shuffle
        )
        return rebuild, ()

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        dtype = np.uint32 if self.num_examples <= 2**32 else np.int64
        permutation = np.arange(self.num_examples, dtype=dtype)
        np.random.default_rng([self.seed, epoch]).shuffle(permutation)
        return permutation


class BatchRows:
    """The rows of each global batch that belong to one process.

    A global batch is `batch_size` consecutive examples of the stream: first the rows of process
    0, then those of process 1, and so on, whatever the number of processes.
    """

    def __init__(self, batch_size: int, *, process_index: int = 0, process_count: int = 1):
        self.batch_size = integer("batch_size", batch_size, minimum=1)
        process_count = integer("process_count", process_count, minimum=1)
        process_index = integer("process_index", process_index, minimum=0)
        if process_index >= process_count:
            raise ValueError(
                f"process_index must be below process_count = {process_count}, got {process_index}"
            )
        if self.batch_size % process_count:
            raise ValueError(
                f"batch_size must be divisible by process_count = {process_count}, "
                f"got {self.batch_size}"
            )
        local = self.batch_size // process_count
        self._local = np.arange(process_index * local, (process_index + 1) * local)

    def rows(self, batch: int) -> Int64[np.ndarray, " rows"]:
        """Return the positions in the stream of this process's rows of a batch, `[rows]`."""
        return self._local + batch * self.batch_size
