"""Decoded pictures, kept as bytes in one mapped file, for the next epoch and the next start."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np

from jaxkit import validation
from jaxkit.datasets.extras import require
from jaxkit.datasets.mapped import grow_mapped, read_mapped
from jaxkit.datasets.pictures import PictureFiles, Pictures
from jaxkit.datasets.recipes import PictureRecipe

#: Pictures decoded between two writes.
_AT_ONCE = 64


def keep_decoded(
    pictures: Pictures,
    folder: str | os.PathLike[str],
    recipe: PictureRecipe,
    short_side: int,
    *,
    max_bytes: int = 2**36,
) -> Pictures:
    """Decode picture files once, reduced to a shorter side, and read them from there.

    A picture whose shorter side is no longer is kept as it is, and its crops are the same to the
    pixel; so are test pictures where `short_side` is the recipe's. Crops of reduced pictures are
    not: they are finer in the published pipelines.

    Args:
        pictures: files; arrays are returned as they are.
        folder: for the cache, found again by the files' names, sizes and times and what is done
            to them; it goes on where it was interrupted.
        recipe: whose interpolation reduces.
        short_side: pixels, at least those of the recipe.
        max_bytes: of the cache.

    Returns:
        The same pictures; in memory are only those that are read.

    Raises:
        ValueError: if a picture is damaged, the side is shorter than the recipe's, or the cache
            would be larger.
        OSError: if the disk refuses.

    Example:
        >>> pictures = Pictures(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32))
        >>> keep_decoded(pictures, "unused", PictureRecipe(8), 8) is pictures
        True
    """
    source = pictures.source
    if not isinstance(source, PictureFiles):
        return pictures
    least = recipe.short_side or recipe.image_size
    if validation.integer("short_side", short_side) < least:
        raise ValueError(f"short_side must be at least {least} like the recipe's, got {short_side}")
    resize = dataclasses.replace(
        PictureRecipe(short_side), short_side=short_side, interpolation=recipe.interpolation
    )
    plain = dataclasses.replace(source, decoded=None)

    def records(start: int | None) -> Iterator[tuple[np.ndarray, int]]:
        at, size = start or 0, 0
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            while at < len(source):
                end = min(at + _AT_ONCE, len(source))
                kept = list(pool.map(lambda i: _record(plain, i, resize), range(at, end)))
                size += sum(map(len, kept))
                if size > max_bytes:
                    raise ValueError(
                        f"the cache of {len(source)} pictures must have at most {max_bytes:,} "
                        f"bytes, {end} have {size:,}: choose a shorter side"
                    )
                at = end
                yield np.concatenate(kept), at

    path = pathlib.Path(folder) / f"pictures-{_key(plain, resize)}.npy"
    grow_mapped(path, np.uint8, records)
    decoded = Decoded(path, source.names, source.channels)
    return dataclasses.replace(pictures, source=dataclasses.replace(source, decoded=decoded))


class Decoded:
    """Pictures in a file of `keep_decoded`, by name; a worker process maps the file itself."""

    def __init__(self, path: pathlib.Path, names: tuple[str, ...], channels: int):
        self._path, self._names, self._channels = path, names, channels
        self._bytes: Any = None
        self._place: dict[str, int] = {}

    def open(self, name: str) -> Any:
        """A picture as a Pillow image."""
        if self._bytes is None:
            held = read_mapped(self._path, np.dtype(np.uint8))
            at = 0
            for one in self._names:
                self._place[one] = at
                height, width = held[at : at + 8].view(np.uint32).tolist()
                at += 8 + height * width * self._channels
            self._bytes = held
        at = self._place[name]
        height, width = self._bytes[at : at + 8].view(np.uint32).tolist()
        size = height * width * self._channels
        shape = (height, width) if self._channels == 1 else (height, width, self._channels)
        return require("PIL.Image", "datasets").fromarray(
            np.array(self._bytes[at + 8 : at + 8 + size]).reshape(shape)
        )

    def __reduce__(self) -> Any:
        return Decoded, (self._path, self._names, self._channels)


def _record(source: PictureFiles, i: int, resize: PictureRecipe) -> np.ndarray:
    """Height, width and bytes of a picture."""
    picture = source.open(i)
    if min(picture.size) > resize.image_size:
        picture = resize.reduced(picture)
    size = np.array([picture.height, picture.width], np.uint32)
    return np.concatenate([size.view(np.uint8), np.asarray(picture).ravel()])


def _key(source: PictureFiles, resize: PictureRecipe) -> str:
    found = [os.stat(source.root / name) for name in source.names]
    files = [
        (name, stat.st_size, stat.st_mtime_ns)
        for name, stat in zip(source.names, found, strict=True)
    ]
    done = (source.channels, source.alpha, source.exif, resize.short_side, resize.interpolation)
    return hashlib.sha256(json.dumps([files, done]).encode()).hexdigest()[:32]
