"""Streams of tasks: classes that arrive in turn, or domains that arrive in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxkit import validation
from jaxkit.continual.picture_images import Images, PictureImages
from jaxkit.datasets import ArraySplit


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What arrives at once: images of some classes, to learn from and to test on.

    Attributes:
        name: shown in reports.
        train_images: float `[n, H, W, C]` in [0, 1], in memory, mapped, or decoded when needed
            (`folder_stream`).
        train_labels: numbers of classes of the whole stream, integers `[n]`.
        test_images: `[m, H, W, C]`.
        test_labels: integers `[m]`.
        classes: the classes of this task, sorted.

    Raises:
        ValueError: if there is no image, lengths differ, a label is not among `classes`, or images
            are not finite numbers in [0, 1].
        TypeError: if labels are no arrays of integers.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.float32)
        >>> Task("first", images, np.array([0, 1]), images, np.array([1, 0]), (0, 1)).image_shape
        (8, 8, 1)
    """

    name: str
    train_images: Images
    train_labels: Int[np.ndarray, " n"]
    test_images: Images
    test_labels: Int[np.ndarray, " m"]
    classes: tuple[int, ...]

    def __post_init__(self):
        if not self.classes:
            raise ValueError(f"classes of task {self.name!r} must not be empty")
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError(
                f"classes of task {self.name!r} must be sorted, none twice, got {self.classes}"
            )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"test_images of task {self.name!r} must have the shape of its train_images, "
                f"{self.image_shape}, got {self.test_images.shape[1:]}"
            )
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            place = f"of task {self.name!r}"
            if images.ndim != 4 or not len(images):
                raise ValueError(
                    f"{part}_images {place} must be images [n, H, W, C], got {list(images.shape)}"
                )
            if len(labels) != len(images):
                raise ValueError(
                    f"{part}_labels {place} must be {len(images)} like the images, got "
                    f"{len(labels)}"
                )
            _check_labels(f"{part}_labels {place}", labels)
            stray = np.setdiff1d(labels, self.classes)
            if len(stray):
                raise ValueError(
                    f"{part}_labels {place} must be among its classes {list(self.classes)}, got "
                    f"{stray[:5].tolist()}"
                )
            if isinstance(images, np.ndarray):
                check_images(f"{part}_images {place}", images)
        absent = np.setdiff1d(self.classes, self.train_labels)
        if len(absent):
            raise ValueError(
                f"train_labels of task {self.name!r} must hold every class, got none of "
                f"{absent[:5].tolist()}"
            )

    @property
    def is_augmented(self) -> bool:
        """Whether training images are drawn anew in every pass."""
        return isinstance(self.train_images, PictureImages) and self.train_images.augmented

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.train_images.shape[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in the order in which they arrive.

    Attributes:
        name: shown in reports.
        tasks: the tasks.
        class_names: one a class of the whole stream.

    Raises:
        ValueError: if there is no task, images differ in shape, or a class has no name.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.float32)
        >>> task = Task("first", images, np.array([0, 1]), images, np.array([1, 0]), (0, 1))
        >>> Stream("one", (task,), ("a", "b")).num_classes
        2
    """

    name: str
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]

    def __post_init__(self):
        if not self.tasks:
            raise ValueError("tasks must not be empty")
        shapes = {task.image_shape for task in self.tasks}
        if len(shapes) > 1:
            raise ValueError(f"images of all tasks must have one shape, got {sorted(shapes)}")
        for task in self.tasks:
            if not 0 <= min(task.classes) <= max(task.classes) < self.num_classes:
                raise ValueError(
                    f"classes of task {task.name!r} must be numbers 0 to {self.num_classes - 1}, "
                    f"got {list(task.classes)}"
                )

    @property
    def num_classes(self) -> int:
        """Classes of all tasks together."""
        return len(self.class_names)

    def require_room(self, num_classes: int) -> None:
        """Refuse a learner of fewer classes."""
        if num_classes < self.num_classes:
            raise ValueError(
                f"num_classes must be at least the stream's {self.num_classes}, got {num_classes}"
            )

    def seen_classes(self, task_index: int) -> np.ndarray:
        """Which classes have arrived by the end of a task, bool `[C]`."""
        seen = np.zeros(self.num_classes, bool)
        for task in self.tasks[: task_index + 1]:
            seen[list(task.classes)] = True
        return seen


def _check_labels(name: str, labels: np.ndarray) -> None:
    dtype = getattr(labels, "dtype", type(labels).__name__)
    if getattr(dtype, "kind", "") not in ("i", "u"):
        raise TypeError(f"{name} must be an array of integers, got {dtype}")


def check_images(name: str, images: np.ndarray) -> None:
    """Refuse images that are not finite floats in [0, 1], bytes for instance."""
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{name} must be floats in [0, 1], got {images.dtype}: divide bytes by 255"
        )
    # Piece by piece: a memory map may be larger than memory.
    for start in range(0, len(images), 1024):
        piece = np.asarray(images[start : start + 1024])
        if not np.isfinite(piece).all():
            raise ValueError(f"{name} must be finite, some are not")
        low, high = float(piece.min()), float(piece.max())
        if low < 0 or high > 1:
            raise ValueError(f"{name} must be in [0, 1], got {low:g} to {high:g}")


def class_incremental_stream(
    split: ArraySplit,
    classes_per_task: int,
    *,
    class_order: int | Sequence[str] = "sorted",
    name: str = "classes",
) -> Stream:
    """Divide a data set into tasks of a few classes each; no class returns.

    Args:
        split: images in [0, 1] with integer labels.
        classes_per_task: classes of each task; the last may have fewer.
        class_order: `"sorted"` keeps the order of the numbers; a seed of NumPy's legacy generator
            shuffles it, 1993 as published for CIFAR-100 and ImageNet-R; or the names in order.
        name: shown in reports.

    Returns:
        The stream; classes are numbered in the order in which they arrive.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if there are no labels, `classes_per_task` is not positive, or the order lacks
            a class.

    Example:
        >>> from jaxkit import datasets
        >>> stream = class_incremental_stream(datasets.load_digits(), 5)
        >>> [task.classes for task in stream.tasks]
        [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    """
    if split.train_labels is None or split.test_labels is None:
        raise ValueError("split must have labels, got none")
    train, test = np.asarray(split.train_labels), np.asarray(split.test_labels)
    _check_labels("train_labels", train)
    _check_labels("test_labels", test)
    names = tuple(split.label_names or map(str, range(int(train.max()) + 1)))
    return by_class(
        (split.train_inputs, train), (split.test_inputs, test), names, classes_per_task,
        class_order, name,
    )  # fmt: skip


def by_class(
    train: tuple[Images, np.ndarray],
    test: tuple[Images, np.ndarray],
    names: tuple[str, ...],
    classes_per_task: int,
    class_order: int | Sequence[str],
    name: str,
) -> Stream:
    """Tasks of a few classes each from images and labels of training and tests."""
    validation.integer("classes_per_task", classes_per_task, minimum=1)
    classes = np.unique(train[1])
    if unknown := [names[c] for c in np.setdiff1d(test[1], classes)[:5]]:
        raise ValueError(f"every class tested must be trained, got no training images of {unknown}")
    order = _order_classes(classes, names, class_order)
    # Classes are numbered in the order in which they arrive.
    number = np.zeros(len(names), np.int32)
    number[order] = np.arange(len(order))
    tasks = []
    for start in range(0, len(order), classes_per_task):
        arrived = order[start : start + classes_per_task]

        def of(images: Images, labels: np.ndarray, now: Any = arrived) -> tuple[Any, Any]:
            keep = np.isin(labels, now)
            chosen = images.where(keep) if isinstance(images, PictureImages) else images[keep]
            return chosen, number[labels[keep]]

        title = ", ".join(names[c] for c in arrived)
        tasks.append(Task(title, *of(*train), *of(*test), tuple(number[arrived].tolist())))
    return Stream(name, tuple(tasks), tuple(names[c] for c in order))


def _order_classes(
    classes: np.ndarray, names: tuple[str, ...], class_order: int | Sequence[str]
) -> np.ndarray:
    if isinstance(class_order, str):
        if class_order != "sorted":
            raise ValueError(
                f"class_order must be 'sorted', a seed or the names in order, got {class_order!r}"
            )
        return classes
    if not isinstance(class_order, Sequence):
        seed = validation.seed("class_order", class_order)
        # The published orders are of this generator.
        return np.random.RandomState(seed).permutation(classes)
    known = [names[c] for c in classes]
    if sorted(class_order) != sorted(known):
        strange, lacking = set(class_order) - set(known), set(known) - set(class_order)
        odd = f"unknown {sorted(strange)[:5]}, none of {sorted(lacking)[:5]}"
        raise ValueError(f"class_order must name each of {len(known)} classes once, got {odd}")
    return np.array([classes[known.index(c)] for c in class_order])


def domain_incremental_stream(
    parts: Sequence[tuple[str, str, ArraySplit]],
    class_names: Sequence[str],
    *,
    name: str = "domains",
) -> Stream:
    """Arrange labelled parts of several domains into a stream.

    Args:
        parts: name of the task, name of its domain, and its images with labels `0..c-1`; a domain
            may return with other images.
        class_names: names of the classes, the same in every domain; yet each domain has classes of
            its own, numbered after those of the domains before it.
        name: shown in reports.

    Raises:
        ValueError: if there are no parts, or a label has no name.

    Example:
        >>> from jaxkit import datasets
        >>> digits = datasets.load_digits()
        >>> parts = [("up", "up", digits), ("more", "up", digits), ("down", "down", digits)]
        >>> [task.classes[0] for task in domain_incremental_stream(parts, "0123456789").tasks]
        [0, 0, 10]
    """
    size = len(class_names)
    domains: dict[str, int] = {}
    tasks = []
    for task_name, domain, split in parts:
        offset = size * domains.setdefault(domain, len(domains))
        labels = [np.asarray(x) for x in (split.train_labels, split.test_labels)]
        for x in labels:
            if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= size:
                raise ValueError(
                    f"labels of task {task_name!r} must be 0 to {size - 1}, one a class "
                    f"name, got {x!r:.80}"
                )
        train, test = (x.astype(np.int32) + offset for x in labels)
        classes = tuple(int(c) for c in np.unique(train))
        tasks.append(Task(task_name, split.train_inputs, train, split.test_inputs, test, classes))
    names = tuple(f"{domain} {c}" for domain in domains for c in class_names)
    return Stream(name, tuple(tasks), names)


#: How the digits of a domain are changed, by its name.
DIGIT_DOMAINS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda images: images,
    "inverted": lambda images: 1 - images,
    "rotated": lambda images: np.rot90(images, axes=(1, 2)),
}


def digits_stream(seed: int = 0) -> tuple[Stream, ArraySplit]:
    """Six tasks of 8 x 8 digits, two a domain, and other digits to train a backbone on.

    Upright, inverted (dark on light) and rotated by 90 degrees; every domain arrives twice with
    fresh images. Classes are digit and domain, so that tasks 2, 4 and 6 bring new images of known
    classes, which is no shift. 449 upright digits are kept for the backbone and 360 for the tests,
    of which each task of a domain has one half; of the others, three parts of 320 are dealt to the
    tasks in turn.

    Args:
        seed: of the split.

    Returns:
        The stream of 30 classes, and the upright digits for the backbone, whose tests are the 360.

    Raises:
        ImportError: without the `datasets` extra.

    Source: the miniature of arXiv 2403.18886; the domains stand in for those of VTAB.

    Example:
        >>> stream, pretraining = digits_stream()
        >>> [(task.name, len(task.train_images)) for task in stream.tasks[:2]]
        [('upright A', 320), ('upright B', 320)]
    """
    from jaxkit import datasets

    validation.seed("seed", seed)
    digits = datasets.load_digits()
    images = np.concatenate([digits.train_inputs, digits.test_inputs])
    labels = np.concatenate([digits.train_labels, digits.test_labels])  # type: ignore[list-item]
    order = np.random.default_rng(seed).permutation(len(images))
    pretraining, test, rest = np.split(order, [449, 449 + 360])
    pieces, halves = np.split(rest[:960], 3), np.array_split(test, 2)
    parts = []
    for number in range(2 * len(DIGIT_DOMAINS)):
        domain, half = list(DIGIT_DOMAINS)[number // 2], number % 2
        change = DIGIT_DOMAINS[domain]
        rows, tests = pieces[number % 3], halves[half]
        split = ArraySplit(
            np.ascontiguousarray(change(images[rows])), labels[rows],
            np.ascontiguousarray(change(images[tests])), labels[tests],
        )  # fmt: skip
        parts.append((f"{domain} {'AB'[half]}", domain, split))
    stream = domain_incremental_stream(parts, "0123456789", name="digits")
    held = ArraySplit(images[pretraining], labels[pretraining], images[test], labels[test])
    return stream, held
