"""The user's own folders of pictures as a stream."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxkit import datasets, validation
from jaxkit.continual.picture_images import PictureImages
from jaxkit.continual.streams import Stream, Task, by_class


class Benchmark(NamedTuple):
    """How a data set is published as a stream: classes, how many a task, and their order."""

    num_classes: int
    classes_per_task: int
    class_order: int | str


#: The published streams of arXiv 2403.18886; ImageNet-R also comes in tasks of 10 and of 40.
BENCHMARKS = {
    "cifar100": Benchmark(100, 10, 1993),
    "imagenet-r": Benchmark(200, 20, 1993),
    "imagenet-a": Benchmark(200, 10, "sorted"),
    "vtab": Benchmark(50, 10, "sorted"),
}


def folder_stream(
    folder: str | os.PathLike[str],
    *,
    benchmark: str | None = None,
    layout: str | None = None,
    image_size: int = 224,
    channels: Literal[1, 3] = 3,
    classes_per_task: int | None = None,
    class_order: int | Sequence[str] | None = None,
    augment: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Stream:
    """Make a stream of the pictures that `datasets.find_pictures` finds.

    - `FOLDER/TASK/CLASS/picture`: each TASK is a task, in alphabetical order; a class name that
      returns in another task is the same class.
    - Any other layout: class-incremental, `classes_per_task` at a time, in `class_order`.

    Pictures are decoded when they are needed and forgotten: memory does not grow with their number.
    They are tested on as in the official program: the shorter side is resized to 256/224 of the
    size (bicubic), then the centre is cut out.

    Args:
        folder: where the pictures are; files of IDX and NPZ too.
        benchmark: `"cifar100"`, `"imagenet-r"`, `"imagenet-a"` or `"vtab"`, for the number of
            classes a task and the order in which they were published.
        layout: forces one of the layouts of `find_pictures`.
        image_size: height and width that they get.
        channels: 3 for colour, 1 for grey.
        classes_per_task: classes of a task; by default the benchmark's, or 10.
        class_order: by default the benchmark's; see `class_incremental_stream`.
        augment: whether to train on random crops and mirrored pictures, drawn anew in every pass
            as in the official program, instead of on the pictures as they are tested on.
        test_fraction: share of each class to test on, where the data give no split.
        seed: of that split.

    Raises:
        ImportError: without Pillow (`datasets` extra).
        ValueError: if there are no pictures, two layouts fit, the benchmark has another number of
            classes, or an option does not fit the data; when asked for, if a picture is damaged.

    Example:
        >>> folder_stream("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder does not exist
    """
    recipe = datasets.picture_recipe("sema", image_size=image_size)
    split = datasets.find_pictures(
        folder, layout=layout, prefer="task-folders", test_fraction=test_fraction, seed=seed,
        channels=channels,
    )  # fmt: skip
    name, names = pathlib.Path(folder).name, split.class_names
    train = PictureImages(split.train, recipe, augmented=augment)
    test = PictureImages(split.test, recipe)
    if split.task_names:
        given = {"benchmark": benchmark, "class_order": class_order,
                 "classes_per_task": classes_per_task}  # fmt: skip
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option} must be left out for folders of tasks, got {value!r}")
        return _by_task(name, split, train, test)
    published = Benchmark(len(names), 10, "sorted")
    if benchmark is not None:
        published = BENCHMARKS[validation.choice("benchmark", benchmark, BENCHMARKS)]
        if len(names) != published.num_classes:
            raise ValueError(
                f"benchmark {benchmark!r} has {published.num_classes} classes, {folder} has "
                f"{len(names)}"
            )
    return by_class(
        (train, split.train.labels), (test, split.test.labels), names,
        published.classes_per_task if classes_per_task is None else classes_per_task,
        published.class_order if class_order is None else class_order, name,
    )  # fmt: skip


def _by_task(
    name: str, split: datasets.PictureSplit, train: PictureImages, test: PictureImages
) -> Stream:
    def of(images: PictureImages, task: int) -> tuple[PictureImages, np.ndarray]:
        keep = np.asarray(images.pictures.tasks) == task
        return images.where(keep), images.pictures.labels[keep]

    tasks = []
    for number, title in enumerate(split.task_names):
        now = of(train, number)
        tasks.append(Task(title, *now, *of(test, number), tuple(np.unique(now[1]).tolist())))
    return Stream(name, tuple(tasks), split.class_names)
