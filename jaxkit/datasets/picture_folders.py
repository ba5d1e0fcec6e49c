"""Pictures in folders: of classes, of a split, of tasks, named by lists, and Tiny-ImageNet's."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxkit.datasets.pictures import PictureFiles, Pictures

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Folders that archives of published sets unpack to: a user may name the folder above.
WELL_KNOWN = (
    "cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python",
    "stl10_binary", "tiny-imagenet-200",
)  # fmt: skip
TRAIN_FOLDERS = ("train", "training", "train_set", "training_set")
TEST_FOLDERS = {
    "train-test-folders": ("test", "testing", "test_set"),
    "train-val-folders": (
        "val", "valid", "validation", "val_set", "validation_set", "dev", "eval", "evaluation",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """Pictures in one part that is not split, or in training and test part."""

    parts: list[Pictures]
    class_names: tuple[str, ...]
    task_names: tuple[str, ...] = ()


class Reader:
    """Reads a layout below a folder, and keeps account of what it leaves out."""

    def __init__(self, place: pathlib.Path, options: PictureFiles, labels_path):
        self.place, self.options, self.labels_path = place, options, labels_path
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)

    def files(self, names, labels, tasks=None) -> Pictures:
        """Pictures of those files."""
        source = dataclasses.replace(self.options, names=tuple(names))
        numbers = None if tasks is None else np.array(tasks, np.int32)
        return Pictures(source, np.array(labels, np.int32), numbers)

    def classes(self, folder: pathlib.Path) -> dict[str, list[str]]:
        """The pictures of each folder of a class, as paths relative to the place."""
        found = {}
        self.look_beside(folder)
        for inside in _folders(folder):
            names, others = [], []
            for file in _walk(inside):
                picture = _is_picture(file)
                (names if picture else others).append(os.path.relpath(file, self.place))
            if not names:
                endings = sorted({pathlib.Path(name).suffix or name for name in others})
                holds = f"only {', '.join(endings)}" if others else "nothing"
                raise ValueError(
                    f"{inside} has no pictures, it holds {holds}: a class needs files ending in "
                    f"{', '.join(ENDINGS)}"
                )
            found[inside.name] = sorted(names)
            self.left_out["no pictures"] += others
        if not found:
            raise ValueError(f"{folder} has no pictures in folders of classes")
        return found

    def classified(self, classes: dict[str, list[str]], number: dict[str, int]) -> Pictures:
        """Pictures of the files of each class."""
        rows = [(file, number[name]) for name, files in classes.items() for file in files]
        return self.files(*map(list, zip(*rows, strict=True)))

    def look_beside(self, folder: pathlib.Path) -> None:
        """Keep account of files beside the folders."""
        for file in _files(folder):
            kind = "in no class" if _is_picture(file) else "no pictures"
            self.left_out[kind].append(os.path.relpath(file, self.place))


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
    """Folders in the order of their names as strings; hidden ones and Apple's are no classes."""
    inside = (p for p in place.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    return sorted((p for p in inside if p.is_dir()), key=lambda p: p.name)


def _files(place: pathlib.Path) -> Iterator[str]:
    with os.scandir(place) as entries:
        yield from (e.path for e in entries if not e.name.startswith(".") and e.is_file())


def _walk(place: pathlib.Path) -> Iterator[str]:
    seen = set()
    for folder, inside, files in os.walk(place, followlinks=True):
        # A link may lead to a folder above itself.
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = [name for name in inside if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _is_picture(file: str) -> bool:
    return file.lower().endswith(ENDINGS)


def _has(place: pathlib.Path) -> bool:
    return any(map(_is_picture, _files(place)))


def _has_below(place: pathlib.Path) -> bool:
    return any(map(_is_picture, _walk(place)))


def _half(place: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
    """The folder among those names that holds folders of pictures."""
    for folder in _folders(place):
        if folder.name.lower() in names and any(map(_has_below, _folders(folder))):
            return folder
    return None


_ALL_TESTS = tuple(name for names in TEST_FOLDERS.values() for name in names)


def is_split(place: pathlib.Path, tests: Sequence[str] = _ALL_TESTS):
    """Whether training and test pictures lie in folders of their own."""
    # Tiny-ImageNet's val holds one folder, images, which is no class.
    return (
        place.is_dir()
        and not (place / "val" / "val_annotations.txt").is_file()
        and _half(place, TRAIN_FOLDERS) is not None
        and _half(place, tests) is not None
    )


def _beside_split(place: pathlib.Path) -> list[pathlib.Path]:
    """Folders that may be classes or tasks."""
    known = {*TRAIN_FOLDERS, *_ALL_TESTS}
    split = is_split(place) or (place / "val" / "val_annotations.txt").is_file()
    return [p for p in _folders(place) if not (split and p.name.lower() in known)]


def fits_classes(place: pathlib.Path) -> bool:
    """Whether folders of classes lie there."""
    if not place.is_dir() or (place / "train_list.txt").is_file():
        return False
    inside = [p for p in _beside_split(place) if p.name not in WELL_KNOWN]
    if any(map(_has, inside)):
        return True
    return any(map(_has_below, inside)) and not all(map(is_split, inside))


def fits_tasks(place: pathlib.Path) -> bool:
    """Whether folders of tasks, or of clients, lie there."""
    if not place.is_dir() or (place / "train_list.txt").is_file():
        return False
    inside = [p for p in _beside_split(place) if p.name not in WELL_KNOWN]
    if not inside or any(map(_has, inside)):
        return False
    below = [[c.name for c in _folders(p)] for p in inside]
    # CLASS/images/picture: one folder of the same name in each is no class of several tasks.
    if len(inside) > 1 and all(len(names) == 1 and names == below[0] for names in below):
        return False
    return any(is_split(p) or any(map(_has, _folders(p))) for p in inside)


def read_classes(reader: Reader) -> Found:
    """Read CLASS/**/picture."""
    classes = reader.classes(reader.place)
    return Found([reader.classified(classes, _number(classes))], tuple(classes))


def read_halves(reader: Reader, tests: Sequence[str]) -> Found:
    """Read train/CLASS/**/picture and the same of tests."""
    reader.look_beside(reader.place)
    halves = [_half(reader.place, TRAIN_FOLDERS), _half(reader.place, tests)]
    if halves[0] is None or halves[1] is None:
        raise ValueError(f"{reader.place} must hold train/CLASS/ and {tests[0]}/CLASS/")
    found = [reader.classes(half) for half in halves if half]
    _check_same(reader.place, *found)
    number = _number(found[0])
    return Found([reader.classified(half, number) for half in found], tuple(number))


def _number(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _check_same(place: pathlib.Path, train: dict[str, Any], test: dict[str, Any]) -> None:
    if train.keys() != test.keys():
        first, second = sorted(train.keys() - test.keys()), sorted(test.keys() - train.keys())
        raise ValueError(
            f"{place} must have the same classes to train and to test on: only to train "
            f"{first[:5]}, only to test {second[:5]}"
        )


def read_tasks(reader: Reader) -> Found:
    """Read TASK/CLASS/picture, or TASK/train/CLASS/picture and TASK/test/...."""
    reader.look_beside(reader.place)
    tasks = _folders(reader.place)
    if not tasks:
        raise ValueError(f"{reader.place} must hold TASK/CLASS/picture")
    split = [is_split(task) for task in tasks]
    if any(split) and not all(split):
        plain = [task.name for task, is_split in zip(tasks, split, strict=True) if not is_split]
        raise ValueError(f"{reader.place}: tasks {plain[:5]} have no train/ and test/, others have")
    number: dict[str, int] = {}
    rows: list[list[tuple[str, int, int]]] = [[], []] if all(split) else [[]]
    for t, task in enumerate(tasks):
        folders = [_half(task, TRAIN_FOLDERS), _half(task, _ALL_TESTS)] if all(split) else [task]
        halves = [reader.classes(folder) for folder in folders if folder is not None]
        if len(halves) == 2:
            _check_same(reader.place, *halves)
        for part, half in zip(rows, halves, strict=True):
            for name, files in half.items():
                part += [(file, number.setdefault(name, len(number)), t) for file in files]
    parts = [reader.files(*map(list, zip(*part, strict=True))) for part in rows]
    return Found(parts, tuple(number), tuple(task.name for task in tasks))


def fits_lists(place: pathlib.Path) -> bool:
    """Whether files that list pictures lie there."""
    return (place / "train_list.txt").is_file() and _test_list(place) is not None


def _test_list(place: pathlib.Path) -> pathlib.Path | None:
    names = ("val_list.txt", "test_list.txt")
    return next((place / name for name in names if (place / name).is_file()), None)


def read_lists(reader: Reader) -> Found:
    """Read `relative/path label` lines."""
    parts = []
    for file in (reader.place / "train_list.txt", _test_list(reader.place)):
        if file is None or not file.is_file():
            raise ValueError(f"{reader.place} must hold train_list.txt and val_list.txt")
        names, labels = [], []
        for line, text in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
            if not text.strip():
                continue
            name, _, label = text.strip().rpartition(" ")
            if not name or not label.isdecimal() or int(label) >= 2**31:
                raise ValueError(f"{file}:{line}: must be `relative/path label`, got {text!r}")
            if not (reader.place / name.strip()).is_file():
                raise ValueError(f"{file}:{line}: {name.strip()} does not exist")
            names.append(name.strip())
            labels.append(int(label))
        if not names:
            raise ValueError(f"{file} is empty")
        parts.append(reader.files(names, labels))
    return Found(parts, numbered(parts))


def read_tiny_imagenet(reader: Reader) -> Found:
    """Read Tiny-ImageNet, classes in the order of wnids.txt."""
    place = reader.place
    number = _number((place / "wnids.txt").read_text("utf-8").split())
    train = reader.classes(place / "train")
    if strange := sorted(train.keys() ^ number.keys()):
        raise ValueError(f"{place}: train/ and wnids.txt differ in classes {strange[:5]}")
    tests, answers = [], []
    annotations = place / "val" / "val_annotations.txt"
    for line, text in enumerate(annotations.read_text("utf-8").splitlines(), 1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in number:
            raise ValueError(f"{annotations}:{line}: must be file, class, box, got {text!r}")
        tests.append(f"val/images/{words[0]}")
        answers.append(number[words[1]])
    return Found([reader.classified(train, number), reader.files(tests, answers)], tuple(number))


def numbered(parts: list[Pictures]) -> tuple[str, ...]:
    """Names of classes that have none: their numbers."""
    return tuple(map(str, range(max(int(part.labels.max()) for part in parts) + 1)))
