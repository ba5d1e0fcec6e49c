"""The user's own folders of pictures as a stream."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from jaxtyping import Float

from jaxkit import validation
from jaxkit.continual.streams import Stream, class_incremental_stream, domain_incremental_stream
from jaxkit.datasets import ArraySplit, split_arrays
from jaxkit.datasets.extras import require

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_image(
    path: str | os.PathLike[str], image_size: int = 224, *, channels: int = 3
) -> Float[np.ndarray, "H W C"]:
    """Read a picture as the test transform of the official program does.

    The shorter side is resized to 256/224 of the size (bicubic), then the centre is cut out.

    Args:
        path: the file.
        image_size: height and width wanted, pixels.
        channels: 3 for colour, 1 for grey.

    Returns:
        Float32 `[image_size, image_size, channels]` in [0, 1].

    Raises:
        ImportError: without Pillow, which matplotlib brings (`train` extra).
        ValueError: if the file is missing or not a picture.

    Example:
        >>> read_image("no/such.png")
        Traceback (most recent call last):
        ValueError: no/such.png does not exist
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    pillow = require("PIL.Image", "train")
    try:
        with pillow.open(path) as picture:
            picture = picture.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from None
    short = round(image_size * 256 / 224)
    scale = short / min(picture.size)
    size = [max(short, round(side * scale)) for side in picture.size]
    if picture.size != tuple(size):
        picture = picture.resize(tuple(size), pillow.Resampling.BICUBIC)
    left, top = ((side - image_size) // 2 for side in picture.size)
    picture = picture.crop((left, top, left + image_size, top + image_size))
    return np.asarray(picture, np.float32).reshape(image_size, image_size, channels) / 255


def folder_stream(
    folder: str | os.PathLike[str],
    *,
    image_size: int = 224,
    channels: int = 3,
    classes_per_task: int = 10,
    test_fraction: float = 0.2,
    shuffle_classes: bool = False,
    seed: int = 0,
) -> Stream:
    """Make a stream of a folder of pictures.

    - `FOLDER/CLASS/picture`: class-incremental, `classes_per_task` at a time, in alphabetical
      order or shuffled.
    - `FOLDER/TASK/CLASS/picture`: each TASK is a task, in alphabetical order; a class name that
      returns in another task is the same class.

    Args:
        folder: where the pictures are.
        image_size: height and width that they get.
        channels: 3 for colour, 1 for grey.
        classes_per_task: classes of a task, for the first layout.
        test_fraction: share of each task's pictures to test on.
        shuffle_classes: whether the first layout's classes come in an order drawn by the seed.
        seed: of the splits and of that order.

    Returns:
        The stream.

    Raises:
        ImportError: without Pillow (`train` extra).
        ValueError: if there are no pictures, or one cannot be read.

    Example:
        >>> folder_stream("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder is not a folder
    """
    folder = pathlib.Path(folder)
    validation.integer("image_size", image_size, minimum=1)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    inside = _folders(folder)
    if any(_pictures(place) for place in inside):
        split = _read_classes(folder, {p.name: i for i, p in enumerate(inside)}, image_size,
                              channels, test_fraction, seed)  # fmt: skip
        return class_incremental_stream(
            split, classes_per_task, seed=seed if shuffle_classes else None, name=folder.name
        )
    names = list(dict.fromkeys(c.name for task in inside for c in _folders(task) if _pictures(c)))
    if not names:
        raise ValueError(
            f"{folder} has no pictures: it must hold CLASS/picture or TASK/CLASS/picture, a "
            f"picture ending in {', '.join(_ENDINGS)}"
        )
    numbers = {name: i for i, name in enumerate(names)}
    parts = [
        (
            task.name,
            task.name,
            _read_classes(task, numbers, image_size, channels, test_fraction, seed),
        )
        for task in inside
    ]
    return domain_incremental_stream(parts, names, shared_classes=True, name=folder.name)


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(place: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in place.iterdir() if p.suffix.lower() in _ENDINGS)


def _read_classes(
    place: pathlib.Path,
    numbers: dict[str, int],
    image_size: int,
    channels: int,
    test_fraction: float,
    seed: int,
) -> ArraySplit:
    files = [(p, numbers[c.name]) for c in _folders(place) for p in _pictures(c)]
    if len(files) < 2:
        raise ValueError(f"{place} must hold at least 2 pictures in folders of classes")
    images = np.stack([read_image(p, image_size, channels=channels) for p, _ in files])
    labels = np.array([number for _, number in files], np.int32)
    return split_arrays(
        images, labels, test_fraction=test_fraction, seed=seed, label_names=tuple(numbers)
    )
