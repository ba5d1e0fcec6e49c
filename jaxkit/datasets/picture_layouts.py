"""Pictures as people have them: the layout is recognized by what is there."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Literal

import numpy as np

from jaxkit import validation
from jaxkit.datasets import picture_arrays
from jaxkit.datasets.pictures import PictureFiles, Pictures, PictureSplit
from jaxkit.datasets.splits import stratified_rows

_log = logging.getLogger("jaxkit.datasets")

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Folders that archives of these sets unpack to: a user may name the folder above.
_WELL_KNOWN = (
    "cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python",
    "stl10_binary", "tiny-imagenet-200",
)  # fmt: skip
_TEST_FOLDERS = {
    "train-test-folders": ("test",),
    "train-val-folders": ("val", "valid", "validation"),
}


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
) -> PictureSplit:
    """Find labelled pictures without decoding them.

    A split that the data give is kept; otherwise one is drawn, class by class, so that every class
    is on both sides. The decision is logged in one line, and so is what is left out.

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
    reader = _Reader(place, options, labels_path)
    found = _LAYOUTS[chosen].read(reader)
    if broken == "skip":
        found = dataclasses.replace(
            found, parts=[_readable(part, reader.left_out) for part in found.parts]
        )
    return _split(found, chosen, reader.left_out, test_fraction, seed)


@dataclasses.dataclass(frozen=True)
class _Found:
    """Pictures in one part that is not split, or in training and test part."""

    parts: list[Pictures]
    class_names: tuple[str, ...]
    task_names: tuple[str, ...] = ()


class _Reader:
    """Reads a layout below a folder, and keeps account of what it leaves out."""

    def __init__(self, place: pathlib.Path, options: PictureFiles, labels_path):
        self.place, self.options, self.labels_path = place, options, labels_path
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)

    def files(self, names: list[str], labels: list[int], tasks: list[int] | None = None):
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
                    f"{', '.join(_ENDINGS)}"
                )
            found[inside.name] = sorted(names)
            self.left_out["no pictures"] += others
        if not found:
            raise ValueError(f"{folder} has no pictures in folders of classes")
        return found

    def look_beside(self, folder: pathlib.Path) -> None:
        for file in _files(folder):
            kind = "in no class" if _is_picture(file) else "no pictures"
            self.left_out[kind].append(os.path.relpath(file, self.place))


def _choose(path: pathlib.Path, layout: str | None, prefer: str | None) -> tuple[pathlib.Path, str]:
    places = [path, *(path / name for name in _WELL_KNOWN if (path / name).is_dir())]
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
            f"picture files: {', '.join(_ENDINGS)}"
        )
    if len(found) > 1:
        names = " and ".join(f"{name} ({place})" for place, name in found)
        raise ValueError(f"{path} fits {names}: name one of them as the layout")
    return found[0]


def _split(
    found: _Found,
    layout: str,
    left_out: dict[str, list[str]],
    test_fraction: float,
    seed: int,
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
            groups, test_fraction, seed, lambda group: repr(names[group % len(names)])
        )
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


# Folders of pictures.


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
    return file.lower().endswith(_ENDINGS)


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


def _is_split(place: pathlib.Path, tests: Iterable[str] = ("test", "val", "valid", "validation")):
    # Tiny-ImageNet's val holds one folder, images, which is no class.
    return (
        place.is_dir()
        and not (place / "val" / "val_annotations.txt").is_file()
        and _half(place, ["train"]) is not None
        and _half(place, tests) is not None
    )


def _beside_split(place: pathlib.Path) -> list[pathlib.Path]:
    """Folders that may be classes or tasks."""
    known = {"train", *(name for names in _TEST_FOLDERS.values() for name in names)}
    split = _is_split(place) or (place / "val" / "val_annotations.txt").is_file()
    return [p for p in _folders(place) if not (split and p.name.lower() in known)]


def _fits_classes(place: pathlib.Path) -> bool:
    if not place.is_dir() or (place / "train_list.txt").is_file():
        return False
    inside = [p for p in _beside_split(place) if p.name not in _WELL_KNOWN]
    if any(map(_has, inside)):
        return True
    if not any(map(_has_below, inside)) or all(map(_is_split, inside)):
        return False
    return True


def _fits_tasks(place: pathlib.Path) -> bool:
    if not place.is_dir() or (place / "train_list.txt").is_file():
        return False
    inside = [p for p in _beside_split(place) if p.name not in _WELL_KNOWN]
    if not inside or any(map(_has, inside)):
        return False
    below = [[c.name for c in _folders(p)] for p in inside]
    # CLASS/images/picture: one folder of the same name in each is no class of several tasks.
    if len(inside) > 1 and all(len(names) == 1 and names == below[0] for names in below):
        return False
    return any(_is_split(p) or any(map(_has, _folders(p))) for p in inside)


def _read_classes(reader: _Reader) -> _Found:
    classes = reader.classes(reader.place)
    names = [name for files in classes.values() for name in files]
    labels = [i for i, files in enumerate(classes.values()) for _ in files]
    return _Found([reader.files(names, labels)], tuple(classes))


def _read_halves(reader: _Reader, tests: Iterable[str]) -> _Found:
    reader.look_beside(reader.place)
    halves = [_half(reader.place, ["train"]), _half(reader.place, tests)]
    if halves[0] is None or halves[1] is None:
        raise ValueError(f"{reader.place} must hold train/CLASS/ and {'/'.join(tests)}/CLASS/")
    return _read_pair(reader, [reader.classes(half) for half in halves if half])


def _read_pair(reader: _Reader, halves: list[dict[str, list[str]]]) -> _Found:
    if halves[0].keys() != halves[1].keys():
        first, second = (sorted(a.keys() - b.keys()) for a, b in (halves, halves[::-1]))
        raise ValueError(
            f"{reader.place} must have the same classes to train and to test on: only to train "
            f"{first[:5]}, only to test {second[:5]}"
        )
    parts = []
    for half in halves:
        names = [name for files in half.values() for name in files]
        parts.append(reader.files(names, [i for i, f in enumerate(half.values()) for _ in f]))
    return _Found(parts, tuple(halves[0]))


def _read_tasks(reader: _Reader) -> _Found:
    reader.look_beside(reader.place)
    tasks = _folders(reader.place)
    if not tasks:
        raise ValueError(f"{reader.place} must hold TASK/CLASS/picture")
    split = [_is_split(task) for task in tasks]
    if any(split) and not all(split):
        plain = [task.name for task, is_split in zip(tasks, split, strict=True) if not is_split]
        raise ValueError(f"{reader.place}: tasks {plain[:5]} have no train/ and test/, others have")
    tests = [name for names in _TEST_FOLDERS.values() for name in names]
    number: dict[str, int] = {}
    rows: list[list[tuple[str, int, int]]] = [[], []] if all(split) else [[]]
    for t, task in enumerate(tasks):
        folders = [_half(task, ["train"]), _half(task, tests)] if all(split) else [task]
        halves = [reader.classes(folder) for folder in folders if folder is not None]
        if len(halves) == 2:
            _read_pair(reader, halves)  # refuses other classes to test than to train on
        for part, half in zip(rows, halves, strict=True):
            for name, files in half.items():
                part += [(file, number.setdefault(name, len(number)), t) for file in files]
    parts = [reader.files(*map(list, zip(*part, strict=True))) for part in rows]
    return _Found(parts, tuple(number), tuple(task.name for task in tasks))


def _fits_lists(place: pathlib.Path) -> bool:
    return (place / "train_list.txt").is_file() and _test_list(place) is not None


def _test_list(place: pathlib.Path) -> pathlib.Path | None:
    names = ("val_list.txt", "test_list.txt")
    return next((place / name for name in names if (place / name).is_file()), None)


def _read_lists(reader: _Reader) -> _Found:
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
    return _Found(parts, _numbered(parts))


def _read_tiny_imagenet(reader: _Reader) -> _Found:
    place = reader.place
    order = (place / "wnids.txt").read_text("utf-8").split()
    number = {name: i for i, name in enumerate(order)}
    train = reader.classes(place / "train")
    if strange := sorted(train.keys() ^ number.keys()):
        raise ValueError(f"{place}: train/ and wnids.txt differ in classes {strange[:5]}")
    names = [name for files in train.values() for name in files]
    labels = [number[c] for c, files in train.items() for _ in files]
    tests, answers = [], []
    annotations = place / "val" / "val_annotations.txt"
    for line, text in enumerate(annotations.read_text("utf-8").splitlines(), 1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in number:
            raise ValueError(f"{annotations}:{line}: must be file, class, box, got {text!r}")
        tests.append(f"val/images/{words[0]}")
        answers.append(number[words[1]])
    return _Found([reader.files(names, labels), reader.files(tests, answers)], tuple(order))


# Arrays.


def _cifar_files(place: pathlib.Path, end: str) -> list[pathlib.Path]:
    """CIFAR-10's training batches, of which none may be missing in between."""
    files, number = [], 1
    while (place / f"data_batch_{number}{end}").is_file():
        files.append(place / f"data_batch_{number}{end}")
        number += 1
    rest = [p for p in place.glob(f"data_batch_*{end}") if p not in files]
    rest = [p for p in rest if end or not p.suffix]
    if not files or rest:
        raise ValueError(f"{place}/data_batch_{number}{end} is missing")
    return files


def _is_cifar10(place: pathlib.Path, end: str) -> bool:
    return (place / f"data_batch_1{end}").is_file() and (place / f"test_batch{end}").is_file()


def _is_cifar100_binary(place: pathlib.Path) -> bool:
    files = (place / "train.bin", place / "test.bin")
    return all(file.is_file() and file.stat().st_size % 3074 == 0 for file in files)


def _read_cifar10_binary(reader: _Reader) -> _Found:
    place = reader.place
    parts = [_cifar_files(place, ".bin"), [place / "test_batch.bin"]]
    return _arrays(
        [picture_arrays.read_cifar_binary(files, 1, 10) for files in parts],
        _name_lines(place / "batches.meta.txt", 10),
    )


def _read_cifar100_binary(reader: _Reader) -> _Found:
    parts = [[reader.place / "train.bin"], [reader.place / "test.bin"]]
    return _arrays(
        [picture_arrays.read_cifar_binary(files, 2, 100) for files in parts],
        _name_lines(reader.place / "fine_label_names.txt", 100),
    )


def _read_cifar10_python(reader: _Reader) -> _Found:
    parts = [_cifar_files(reader.place, ""), [reader.place / "test_batch"]]
    return _arrays(
        [picture_arrays.read_cifar_python(files, b"labels", 10) for files in parts],
        _pickled_names(reader.place / "batches.meta", b"label_names", 10),
    )


def _read_cifar100_python(reader: _Reader) -> _Found:
    parts = [[reader.place / "train"], [reader.place / "test"]]
    return _arrays(
        [picture_arrays.read_cifar_python(files, b"fine_labels", 100) for files in parts],
        _pickled_names(reader.place / "meta", b"fine_label_names", 100),
    )


def _read_stl10(reader: _Reader) -> _Found:
    parts = [picture_arrays.read_stl10(reader.place, part) for part in ("train", "test")]
    return _arrays(parts, _name_lines(reader.place / "class_names.txt", 10))


def _fits_idx(place: pathlib.Path) -> bool:
    if place.is_file():
        return "idx3" in place.name
    return bool(picture_arrays.idx_groups(place))


def _read_idx(reader: _Reader) -> _Found:
    if reader.place.is_file():
        labels = None if reader.labels_path is None else pathlib.Path(reader.labels_path)
        return _arrays([picture_arrays.read_idx_pair(reader.place, labels)])
    groups = picture_arrays.idx_groups(reader.place)
    if len(groups) != 1:
        raise ValueError(
            f"{reader.place} must hold the IDX files of one data set, got those of "
            f"{sorted(groups)}: name a file instead"
        )
    (files,) = groups.values()
    files = [files[part] for part in ("train", "test") if part in files]
    return _arrays([picture_arrays.read_idx_pair(file, None) for file in files])


def _arrays(parts: list[picture_arrays.Examples], names: tuple[str, ...] = ()) -> _Found:
    pictures = [Pictures(*part) for part in parts]
    if len({part.shape for part in pictures}) > 1:
        raise ValueError(
            "training and test pictures must have one shape, got "
            f"{[list(part.shape or ()) for part in pictures]}"
        )
    return _Found(pictures, names or _numbered(pictures))


def _numbered(parts: list[Pictures]) -> tuple[str, ...]:
    return tuple(map(str, range(max(int(part.labels.max()) for part in parts) + 1)))


def _name_lines(file: pathlib.Path, classes: int) -> tuple[str, ...]:
    names = file.read_text("utf-8").split() if file.is_file() else []
    return tuple(names) if len(names) == classes else ()


def _pickled_names(file: pathlib.Path, key: bytes, classes: int) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    found = picture_arrays.read_plain_pickle(file)
    names = found.get(key, ()) if isinstance(found, dict) else ()
    texts = [x.decode() if isinstance(x, bytes) else str(x) for x in names]
    return tuple(texts) if len(texts) == classes else ()


@dataclasses.dataclass(frozen=True)
class _Layout:
    title: str
    fits: Callable[[pathlib.Path], bool]
    read: Callable[[_Reader], _Found]


def _all_files(*names: str) -> Callable[[pathlib.Path], bool]:
    return lambda place: all((place / name).is_file() for name in names)


_LAYOUTS: dict[str, _Layout] = {
    "class-folders": _Layout("folders of classes", _fits_classes, _read_classes),
    **{
        name: _Layout(
            f"folders train and {tests[0]}",
            lambda place, tests=tests: _is_split(place, tests),
            lambda reader, tests=tests: _read_halves(reader, tests),
        )
        for name, tests in _TEST_FOLDERS.items()
    },
    "task-folders": _Layout("folders of tasks", _fits_tasks, _read_tasks),
    "list-files": _Layout("list files", _fits_lists, _read_lists),
    "tiny-imagenet": _Layout(
        "Tiny-ImageNet (classes in the order of wnids.txt)",
        _all_files("wnids.txt", "val/val_annotations.txt"),
        _read_tiny_imagenet,
    ),
    "cifar10-binary": _Layout(
        "CIFAR-10, binary batches", lambda p: _is_cifar10(p, ".bin"), _read_cifar10_binary
    ),
    "cifar100-binary": _Layout(
        "CIFAR-100, binary batches", _is_cifar100_binary, _read_cifar100_binary
    ),
    "cifar10-python": _Layout(
        "CIFAR-10, python batches", lambda p: _is_cifar10(p, ""), _read_cifar10_python
    ),
    "cifar100-python": _Layout(
        "CIFAR-100, python batches", _all_files("train", "test"), _read_cifar100_python
    ),
    "stl10": _Layout(
        "STL-10",
        _all_files("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
        _read_stl10,
    ),
    "idx": _Layout("IDX files", _fits_idx, _read_idx),
    "npz": _Layout(
        "NPZ file",
        lambda place: place.is_file() and place.suffix == ".npz",
        lambda reader: _arrays(picture_arrays.read_npz_pictures(reader.place)),
    ),
}
