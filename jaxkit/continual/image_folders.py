"""The user's own folders of pictures as a stream."""

from __future__ import annotations

import os
import pathlib
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxkit import datasets, validation
from jaxkit.continual.streams import Stream, Task
from jaxkit.datasets.mapped import write_mapped


def folder_stream(
    folder: str | os.PathLike[str],
    *,
    layout: str | None = None,
    image_size: int = 224,
    channels: Literal[1, 3] = 3,
    classes_per_task: int = 10,
    test_fraction: float = 0.2,
    shuffle_classes: bool = False,
    seed: int = 0,
) -> Stream:
    """Make a stream of the pictures that `datasets.find_pictures` finds in a folder.

    - `FOLDER/TASK/CLASS/picture`: each TASK is a task, in alphabetical order; a class name that
      returns in another task is the same class.
    - Any other layout: class-incremental, `classes_per_task` at a time, in the order of the classes
      or shuffled.

    Each picture is decoded once, as the official program does it to test: the shorter side is
    resized to 256/224 of the size (bicubic), then the centre is cut out. The pixels lie in
    temporary files, so that memory holds what is being used.

    Args:
        folder: where the pictures are.
        layout: forces one of the layouts of `find_pictures`.
        image_size: height and width that they get.
        channels: 3 for colour, 1 for grey.
        classes_per_task: classes of a task, for folders without tasks.
        test_fraction: share of each class to test on, where the folders give no split.
        shuffle_classes: whether classes come in an order drawn by the seed, without tasks.
        seed: of the splits and of that order.

    Returns:
        The stream.

    Raises:
        ImportError: without Pillow (`datasets` extra).
        ValueError: if there are no pictures, one cannot be read, or two layouts fit.

    Example:
        >>> folder_stream("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder does not exist
    """
    validation.integer("classes_per_task", classes_per_task, minimum=1)
    recipe = datasets.PictureRecipe(image_size, short_side=round(image_size * 256 / 224))
    split = datasets.find_pictures(
        folder,
        layout=layout,
        prefer="task-folders",
        test_fraction=test_fraction,
        seed=seed,
        channels=channels,
    )
    names, tasks = split.class_names, []
    if split.train.tasks is not None and split.test.tasks is not None:
        order = np.arange(len(names))
        groups = [
            (name, split.train.tasks == t, split.test.tasks == t)
            for t, name in enumerate(split.task_names)
        ]
    else:
        order = np.unique(split.train.labels)
        order = np.random.default_rng(seed).permutation(order) if shuffle_classes else order
        groups = []
        for start in range(0, len(order), classes_per_task):
            old = order[start : start + classes_per_task]
            rows = (np.isin(part.labels, old) for part in (split.train, split.test))
            groups.append((", ".join(names[c] for c in old), *rows))
    # Classes are numbered in the order in which they arrive.
    number = np.zeros(len(names), np.int32)
    number[order] = np.arange(len(order))
    for name, *rows in groups:
        train, test = (
            part.where(keep) for part, keep in zip((split.train, split.test), rows, strict=True)
        )
        classes = tuple(sorted(number[np.unique(train.labels)].tolist()))
        tasks.append(
            Task(
                name,
                _decoded(train, recipe), number[train.labels],
                _decoded(test, recipe), number[test.labels],
                classes,
            )
        )  # fmt: skip
    return Stream(pathlib.Path(folder).name, tuple(tasks), tuple(names[c] for c in order))


def _decoded(
    pictures: datasets.Pictures, recipe: datasets.PictureRecipe
) -> Float[np.ndarray, "n H W C"]:
    """All pictures in [0, 1], mapped from a temporary file."""
    pieces = (
        datasets.decode_pictures(pictures, recipe, slice(start, start + 256)).ravel()
        / np.float32(255)
        for start in range(0, len(pictures), 256)
    )
    size = (recipe.image_size, recipe.image_size, pictures.channels)
    return write_mapped(pieces, np.float32).reshape(-1, *size)
