"""Pictures as people have them: the layout is recognized by what is there."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable
from concurrent import futures
from typing import Literal, NamedTuple

import numpy as np

from jaxkit import validation
from jaxkit.datasets import picture_arrays, picture_folders
from jaxkit.datasets.pictures import PictureFiles, Pictures, PictureSplit
from jaxkit.datasets.splits import stratified_rows

_log = logging.getLogger("jaxkit.datasets")


def find_pictures(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    prefer: str | None = None,
    labels_path: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    channels: Literal[1, 3] = 3,
    alpha: Literal["drop", "white"] = "drop",
    exif: Literal["ignore", "apply"] = "ignore",
    broken: Literal["error", "skip"] = "error",
    lone: Literal["error", "train"] = "error",
) -> PictureSplit:
    """Find labelled pictures without decoding them.

    A split that the data give is kept; otherwise one is drawn, class by class, so that every class
    is on both sides. The decision is logged in one line, and so is what is left out.

    A folder of a split may also be called `training`, `testing`, `valid`, `validation`, `dev`,
    `eval` or `evaluation`; `train_set`, `training_set`, `test_set`, `val_set`, `validation_set`.

    | layout | what is there |
    |---|---|
    | `class-folders` | `CLASS/**/picture` |
    | `train-test-folders`, `train-val-folders` | `train/CLASS/**/picture`, `test/...`, `val/...` |
    | `task-folders` | `TASK/CLASS/picture` or `TASK/train/CLASS/picture`, `TASK/test/...` |
    | `list-files` | `train_list.txt`, `val_list.txt`: `relative/path label` a line |
    | `tiny-imagenet` | `train/WNID/images/*`, `val/val_annotations.txt`, `wnids.txt` |
    | `cifar10-binary`, `cifar100-binary` | `data_batch_1.bin`, ...; `train.bin`, `test.bin` |
    | `cifar10-python`, `cifar100-python` | `data_batch_1`, ...; `train`, `test` |
    | `stl10` | `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin` |
    | `idx` | MNIST's, Fashion-MNIST's or EMNIST's files, with or without `.gz` |
    | `npz` | `x_train`, `y_train`, `x_test`, `y_test`; or `x`, `y` |

    Args:
        path: the folder, or an IDX or NPZ file.
        layout: forces one of the layouts.
        prefer: the layout to take where another fits as well; None refuses then.
        labels_path: labels of an IDX file, if they do not lie beside it.
        test_fraction: share of each class to test on where a split is drawn, in (0, 1).
        seed: of that split, >= 0.
        channels: 3 reads picture files in color, 1 in grey; arrays keep their own.
        alpha: `"drop"` or `"white"`, see `PictureFiles`.
        exif: `"ignore"` or `"apply"`, see `PictureFiles`.
        broken: `"error"` stops at a damaged picture when it is decoded; `"skip"` decodes every
            file once, now, and leaves damaged ones out, counted and listed.
        lone: where a split is drawn, what becomes of a class with one picture, in its task if there
            are tasks: `"error"`, or `"train"`, which tests on none of it.

    Returns:
        The pictures; classes that are folders are numbered by their names sorted as strings.

    Raises:
        ImportError: without Pillow (`datasets` extra), when pictures are decoded.
        ValueError: if nothing is there, no layout or more than one fits, a file is damaged, or
            training and test classes differ.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", x=np.zeros((10, 4, 4), np.uint8), y=np.arange(10) % 2)
        ...     split = find_pictures(f"{folder}/a.npz")
        >>> len(split.train), split.test.labels.tolist(), split.notes
        (8, [0, 1], ('NPZ file: 8 train, 2 test, 2 classes (split drawn by seed 0)',))
    """
    validation.choice("alpha", alpha, ["drop", "white"])
    validation.choice("exif", exif, ["ignore", "apply"])
    validation.choice("broken", broken, ["error", "skip"])
    validation.choice("lone", lone, ["error", "train"])
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    for name, value in (("layout", layout), ("prefer", prefer)):
        if value is not None:
            validation.choice(name, value, _LAYOUTS)
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    place, chosen = _choose(path, layout, prefer)
    options = PictureFiles(place, (), channels, alpha, exif)
    reader = picture_folders.Reader(place, options, labels_path)
    found = _LAYOUTS[chosen].read(reader)
    if broken == "skip":
        found = dataclasses.replace(
            found, parts=[_readable(part, reader.left_out) for part in found.parts]
        )
    return _split(found, chosen, reader.left_out, test_fraction, seed, lone)


def _choose(path: pathlib.Path, layout: str | None, prefer: str | None) -> tuple[pathlib.Path, str]:
    places = [path, *(path / name for name in picture_folders.WELL_KNOWN if (path / name).is_dir())]
    found = [
        (place, name) for place in places for name, kind in _LAYOUTS.items() if kind.fits(place)
    ]
    if layout is not None:
        # A forced layout is read even where it is not recognized: its reader says what is missing.
        return next((pair for pair in found if pair[1] == layout), (path, layout))
    if preferred := [pair for pair in found if pair[1] == prefer]:
        return preferred[0]
    if not found:
        raise ValueError(
            f"{path} has no pictures in a known layout ({', '.join(_LAYOUTS)}); endings of "
            f"picture files: {', '.join(picture_folders.ENDINGS)}"
        )
    if len(found) > 1:
        names = " and ".join(f"{name} ({place})" for place, name in found)
        raise ValueError(f"{path} fits {names}: name one of them as the layout")
    return found[0]


def _split(
    found: picture_folders.Found,
    layout: str,
    left_out: dict[str, list[str]],
    test_fraction: float,
    seed: int,
    lone: Literal["error", "train"],
) -> PictureSplit:
    validation.seed("seed", seed)
    drawn = len(found.parts) == 1
    names = found.class_names
    if drawn:
        (whole,) = found.parts
        groups = whole.labels
        if whole.tasks is not None:
            groups = whole.tasks.astype(np.int64) * len(names) + whole.labels
        test = stratified_rows(
            groups, test_fraction, seed, lambda group: repr(names[group % len(names)]), lone
        )
        if not test.any():
            raise ValueError("no class has two pictures, one to train and one to test on")
        train, test = whole.where(~test), whole.where(test)
    else:
        train, test = found.parts
    if unknown := sorted(set(test.labels.tolist()) - set(train.labels.tolist())):
        missing = [names[label] for label in unknown[:5]]
        raise ValueError(f"the test part has classes that no training picture has: {missing}")
    classes = len(set(train.labels.tolist()))
    tasks = f"{len(found.task_names)} tasks, " if found.task_names else ""
    note = (
        f"{_LAYOUTS[layout].title}: {tasks}{len(train):,} train, {len(test):,} test, "
        f"{classes} classes"
    )
    notes = [note + f" (split drawn by seed {seed})" * drawn]
    for kind, files in left_out.items():
        if files:
            shown = ", ".join(files[:5]) + ", ..." * (len(files) > 5)
            notes.append(f"left out {len(files)} files ({kind}): {shown}")
    for line in notes:
        _log.info(line)
    return PictureSplit(train, test, names, layout, tuple(notes), found.task_names)


def _readable(part: Pictures, left_out: dict[str, list[str]]) -> Pictures:
    source = part.source
    if not isinstance(source, PictureFiles):
        return part

    def good(i: int) -> bool:
        try:
            source.open(i)
        except ValueError:
            return False
        return True

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        keep = np.fromiter(pool.map(good, range(len(part)), chunksize=16), bool, len(part))
    left_out["damaged"] += [source.names[i] for i in np.flatnonzero(~keep)]
    kept = part.where(keep)
    if lost := set(part.labels.tolist()) - set(kept.labels.tolist()):
        raise ValueError(
            f"{source.root}: every picture of {len(lost)} classes is damaged, such as "
            f"{left_out['damaged'][-1]}"
        )
    return kept


def _arrays(found: picture_arrays.Layout) -> picture_folders.Found:
    parts, names = found
    pictures = [Pictures(*part) for part in parts]
    if len({part.shape for part in pictures}) > 1:
        raise ValueError(
            "training and test pictures must have one shape, got "
            f"{[list(part.shape or ()) for part in pictures]}"
        )
    return picture_folders.Found(pictures, names or picture_folders.numbered(pictures))


class _Layout(NamedTuple):
    title: str
    fits: Callable[[pathlib.Path], bool]
    read: Callable[[picture_folders.Reader], picture_folders.Found]


def _all_files(*names: str) -> Callable[[pathlib.Path], bool]:
    return lambda place: all((place / name).is_file() for name in names)


_LAYOUTS: dict[str, _Layout] = {
    "class-folders": _Layout(
        "folders of classes", picture_folders.fits_classes, picture_folders.read_classes
    ),
    **{
        name: _Layout(
            f"folders train and {tests[0]}",
            functools.partial(picture_folders.is_split, tests=tests),
            functools.partial(picture_folders.read_halves, tests=tests),
        )
        for name, tests in picture_folders.TEST_FOLDERS.items()
    },
    "task-folders": _Layout(
        "folders of tasks", picture_folders.fits_tasks, picture_folders.read_tasks
    ),
    "list-files": _Layout("list files", picture_folders.fits_lists, picture_folders.read_lists),
    "tiny-imagenet": _Layout(
        "Tiny-ImageNet (classes in the order of wnids.txt)",
        _all_files("wnids.txt", "val/val_annotations.txt"),
        picture_folders.read_tiny_imagenet,
    ),
    **{
        f"cifar{classes}-{kind}": _Layout(
            f"CIFAR-{classes}, {kind} batches",
            lambda place, classes=classes, end=end: picture_arrays.fits_cifar(place, classes, end),
            lambda reader, classes=classes, end=end: _arrays(
                picture_arrays.read_cifar(reader.place, classes, end)
            ),
        )
        for kind, end in (("binary", ".bin"), ("python", ""))
        for classes in (10, 100)
    },
    "stl10": _Layout(
        "STL-10",
        _all_files("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
        lambda reader: _arrays(picture_arrays.read_stl10(reader.place)),
    ),
    "idx": _Layout(
        "IDX files",
        picture_arrays.fits_idx,
        lambda reader: _arrays(picture_arrays.read_idx_files(reader.place, reader.labels_path)),
    ),
    "npz": _Layout(
        "NPZ file",
        lambda place: place.is_file() and place.suffix == ".npz",
        lambda reader: _arrays(picture_arrays.read_npz_pictures(reader.place)),
    ),
}
