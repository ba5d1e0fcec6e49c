"""Pictures decoded when needed, in threads or processes, and the same pixels wherever that is."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import os

import numpy as np
from jaxtyping import Int, UInt8

from jaxkit.datasets.batches import Batch, BatchIterator, BatchSource
from jaxkit.datasets.order import BatchRows, ExampleOrder
from jaxkit.datasets.pictures import PictureFiles, Pictures
from jaxkit.datasets.recipes import Drawn, PictureRecipe
from jaxkit.validation import integer


def picture_batches(
    pictures: Pictures,
    recipe: PictureRecipe,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
) -> BatchIterator:
    """Iterate over training pictures, under the same contract as `token_batches`.

    Crop, flip and shift of a picture depend on the seed, the epoch and its number in the data set
    alone: the same for any batch size, number of threads, workers and processes, and after an
    interruption. Pass the batch to `recipe.prepare` inside the compiled step.

    Args:
        pictures: what to train on.
        recipe: crops, flips and normalization.
        batch_size: rows of the global batch, over all processes.
        seed: seed of order and draws, >= 0.
        process_index: this process.
        process_count: number of processes; divides `batch_size`.
        shuffle: whether to draw a new order for each epoch.
        num_epochs: how often to go through the pictures; None for ever. The last batch is left out
            unless it is full.
        num_threads: threads that decode, in each worker if there are some; None for one a core, or
            one a worker. Pillow works on several at once.
        num_workers: processes that decode; the program's main module must then guard its start
            by `if __name__ == "__main__"`.

    Returns:
        An iterator over `{"images": uint8 [batch_size / process_count, S, S, C], "labels": int32
        [...], "flip": bool [...], "offset": int32 [..., 2], "index": int64 [...]}`.

    Raises:
        ImportError: without the `train` or the `datasets` extra.
        TypeError: if `pictures` are not `Pictures`.
        ValueError: if the numbers do not fit together; when iterating, if a picture is damaged.

    Example:
        >>> images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((8, 8, 1), np.uint8)
        >>> pictures = Pictures(images, np.arange(4, dtype=np.int32))
        >>> batch = next(picture_batches(pictures, PictureRecipe(8), batch_size=4, seed=0))
        >>> batch["images"].shape, bool((batch["images"][:, 0, 0, 0] == batch["labels"]).all())
        ((4, 8, 8, 1), True)
    """
    if not isinstance(pictures, Pictures):
        raise TypeError(
            f"pictures must be Pictures, such as `train` of a split, got {type(pictures).__name__}"
        )
    num_workers = integer("num_workers", num_workers, minimum=0)
    if num_threads is None:
        num_threads = 1 if num_workers else os.cpu_count() or 1
    integer("num_threads", num_threads, minimum=1)
    if len(recipe.mean) == 3 != pictures.channels or len(recipe.std) == 3 != pictures.channels:
        raise ValueError("recipe has three numbers to normalize by, the pictures have one channel")

    order = ExampleOrder(len(pictures), seed=seed, shuffle=shuffle)
    rows = BatchRows(batch_size, process_index=process_index, process_count=process_count)
    stream = {"num_examples": len(pictures), "recipe": repr(dataclasses.asdict(recipe))}
    gather = _Gather(pictures, recipe, order.seed, num_threads)
    source = BatchSource(order, rows, gather, num_epochs)
    return BatchIterator(source, stream, num_threads=2, num_workers=num_workers)


def decode_pictures(
    pictures: Pictures,
    recipe: PictureRecipe,
    rows: Int[np.ndarray, " rows"] | slice = slice(None),
    *,
    num_threads: int | None = None,
) -> UInt8[np.ndarray, "rows S S C"]:
    """Decode pictures as they are tested on.

    Args:
        pictures: the pictures.
        recipe: how test pictures are resized and cut.
        rows: which of them.
        num_threads: threads that decode; None for one a core.

    Returns:
        Bytes, to be normalized by `recipe.prepare({"images": ...})`.

    Raises:
        ValueError: if a picture is damaged.

    Example:
        >>> pictures = Pictures(np.full((4, 8, 8, 1), 7, np.uint8), np.arange(4, dtype=np.int32))
        >>> decode_pictures(pictures, PictureRecipe(2), np.array([0, 2])).ravel().tolist()
        [7, 7, 7, 7, 7, 7, 7, 7]
    """
    numbers = np.arange(len(pictures))[rows]
    if not _decodes(pictures, recipe, train=False):
        return np.asarray(pictures.source[numbers])  # type: ignore[index]
    size = (recipe.image_size, recipe.image_size, pictures.channels)
    if not len(numbers):
        return np.empty((0, *size), np.uint8)
    threads = os.cpu_count() or 1 if num_threads is None else num_threads
    return np.stack(_run(lambda i: recipe.pixels(pictures.open(i)), numbers.tolist(), threads))


@dataclasses.dataclass(frozen=True)
class _Gather:
    """Training pictures by epoch and number; a worker process gets a copy."""

    pictures: Pictures
    recipe: PictureRecipe
    seed: int
    num_threads: int

    def __call__(self, epoch: np.ndarray, example: np.ndarray) -> Batch:
        rows = list(zip(epoch.tolist(), example.tolist(), strict=True))
        if _decodes(self.pictures, self.recipe):
            found = _run(self._decode, rows, self.num_threads)
            images, draws = np.stack([pixels for pixels, _ in found]), [d for _, d in found]
        else:
            images = np.asarray(self.pictures.source[example])  # type: ignore[index]
            size = (self.recipe.image_size, self.recipe.image_size)
            draws = [self.recipe.draw(self.seed, e, i, size) for e, i in rows]
        return {
            "images": images,
            "labels": self.pictures.labels[example],
            "flip": np.array([d.flip for d in draws]),
            "offset": np.array([d.offset for d in draws], np.int32),
        }

    def _decode(self, row: tuple[int, int]) -> tuple[np.ndarray, Drawn]:
        epoch, i = row
        picture = self.pictures.open(i)
        drawn = self.recipe.draw(self.seed, epoch, i, picture.size)
        return self.recipe.pixels(picture, drawn.box), drawn


def _decodes(pictures: Pictures, recipe: PictureRecipe, train: bool = True) -> bool:
    """Whether Pillow is needed, or an array has the size that is wanted."""
    size = recipe.image_size
    short = recipe.short_side or size
    crops = train and recipe.area is not None
    is_files = isinstance(pictures.source, PictureFiles)
    return is_files or crops or pictures.shape[:2] != (size, size) or short != size  # type: ignore[index]


def _run(function, rows: list, num_threads: int) -> list:
    if num_threads == 1:
        return [function(row) for row in rows]
    # A few rows a task: handing over costs as much as resizing a small picture.
    size = max(1, min(8, len(rows) // (2 * num_threads)))
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    found = _pool(num_threads).map(lambda chunk: [function(row) for row in chunk], chunks)
    return list(itertools.chain.from_iterable(found))


@functools.cache
def _pool(num_threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(num_threads, "decode")
