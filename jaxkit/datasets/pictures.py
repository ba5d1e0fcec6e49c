"""Labelled pictures that are decoded when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from jaxkit.datasets import mapped
from jaxkit.datasets.extras import require


@dataclasses.dataclass(frozen=True, eq=False)
class PictureFiles:
    """Picture files below a folder: a few bytes each, whatever they hold.

    Grey pictures of 16 bits are divided by their white and not cut off at 255; the first frame of
    an animation is its picture.

    Attributes:
        root: the folder.
        names: relative paths.
        channels: 3 for color, 1 for grey.
        alpha: `"drop"` shows the hidden color of transparent pixels, as the published loaders do;
            `"white"` lays the picture on white.
        exif: `"ignore"` leaves the pixels as they are stored, as the published loaders do;
            `"apply"` turns them as the camera's orientation says.
        decoded: where the pictures are kept decoded, by name; None to read the files.
    """

    root: pathlib.Path
    names: tuple[str, ...]
    channels: int = 3
    alpha: Literal["drop", "white"] = "drop"
    exif: Literal["ignore", "apply"] = "ignore"
    decoded: Any = None

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    def open(self, i: int) -> Any:
        """Decode picture `i` to a Pillow image of mode RGB or L; ValueError names its file."""
        if self.decoded is not None:
            return self.decoded.open(self.names[i])
        pillow = require("PIL.Image", "datasets")
        path = self.root / self.names[i]
        try:
            with pillow.open(path) as picture:
                if self.exif == "apply":
                    picture = require("PIL.ImageOps", "datasets").exif_transpose(picture)
                return self._in_bytes(picture, pillow)
        except Exception as error:  # Pillow's formats raise a zoo of types for damaged files
            raise ValueError(f"{path} is not a picture that can be read ({error})") from None

    def _in_bytes(self, picture: Any, pillow: Any) -> Any:
        mode = "RGB" if self.channels == 3 else "L"
        # Netpbm files of more than 8 bits arrive as 32-bit numbers stretched to 65535.
        if picture.mode.startswith("I;16") or (picture.format == "PPM" and picture.mode == "I"):
            white, grey = _white(picture), np.asarray(picture).astype(np.int64)
            white = 65535 if grey.max() > white else white
            picture = pillow.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError(
                f"mode {picture.mode!r} has no known white: convert it to 8 or 16 bits"
            )
        # Via RGBA where a palette or a key color is transparent: Pillow warns otherwise.
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if self.alpha == "white":
                ground = pillow.new("RGBA", picture.size, "white")
                ground.alpha_composite(picture)
                picture = ground
        return picture.convert(mode)


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their labels, from files or from one array of bytes.

    Attributes:
        source: files, or uint8 `[n, H, W, C]`, in memory or mapped.
        labels: the class of each, `[n]`.
        tasks: the task that each arrives with, `[n]`, where the data have tasks.

    Raises:
        TypeError: if an array is not uint8, or labels or tasks are not integers.
        ValueError: if numbers of pictures and labels differ, or channels are not 1 or 3 and last.

    Example:
        >>> pictures = Pictures(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1], np.int32))
        >>> len(pictures), pictures.shape
        (2, (8, 8, 3))
    """

    source: PictureFiles | UInt8[np.ndarray, "n H W C"]
    labels: Int32[np.ndarray, " n"]
    tasks: Int32[np.ndarray, " n"] | None = None

    def __post_init__(self):
        if not isinstance(self.source, PictureFiles):
            kind = getattr(self.source, "dtype", type(self.source).__name__)
            if kind != np.uint8:
                raise TypeError(f"source must be PictureFiles or an array of uint8, got {kind}")
            shape = self.source.shape
            if len(shape) != 4 or shape[-1] not in (1, 3):
                raise ValueError(f"source must be [n, H, W, C] with C of 1 or 3, got {shape}")
        for name in ("labels", "tasks"):
            numbers = getattr(self, name)
            if numbers is not None and np.asarray(numbers).dtype.kind not in "iu":
                raise TypeError(f"{name} must be integers, got {np.asarray(numbers).dtype}")
        if len(self.source) != len(self.labels):
            raise ValueError(
                f"labels must be {len(self.source)} like the pictures, got {len(self.labels)}"
            )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels where all are alike by construction, else None."""
        if isinstance(self.source, PictureFiles):
            return None
        _, height, width, channels = self.source.shape
        return height, width, channels

    @property
    def channels(self) -> int:
        """3 for color, 1 for grey."""
        if isinstance(self.source, PictureFiles):
            return self.source.channels
        return self.source.shape[-1]

    def open(self, i: int) -> Any:
        """Decode picture `i` to a Pillow image of mode RGB or L."""
        if isinstance(self.source, PictureFiles):
            return self.source.open(i)
        pixels = np.ascontiguousarray(self.source[i])
        pillow = require("PIL.Image", "datasets")
        return pillow.fromarray(pixels[..., 0] if self.channels == 1 else pixels)

    def where(self, keep: Bool[np.ndarray, " n"] | Int[np.ndarray, " kept"]) -> Pictures:
        """Return the pictures of which `keep` is true, in their order, or those of its numbers."""
        rows = np.flatnonzero(keep) if keep.dtype == bool else keep
        if isinstance(self.source, PictureFiles):
            names = tuple(self.source.names[i] for i in rows)
            source = dataclasses.replace(self.source, names=names)
        else:
            source = self.source[rows]
        tasks = None if self.tasks is None else self.tasks[rows]
        return Pictures(source, self.labels[rows], tasks)

    def fingerprint(self) -> str:
        """Return a SHA-256 of labels and pixels, or of labels and the files' names and sizes."""
        digest = hashlib.sha256(self.labels.tobytes())
        if isinstance(self.source, PictureFiles):
            for name in self.source.names:
                size = os.stat(self.source.root / name).st_size
                digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        else:
            digest.update(str(self.source.shape).encode())
            for piece in mapped.pieces(self.source):
                digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class PictureSplit:
    """Pictures to learn from and pictures to test on, as `find_pictures` found them.

    Attributes:
        train: to learn from.
        test: to test on.
        class_names: name of each class.
        layout: how the data lay there.
        notes: what was found and what was left out, one line each.
        task_names: name of each task, where the data have tasks.
    """

    train: Pictures
    test: Pictures
    class_names: tuple[str, ...]
    layout: str
    notes: tuple[str, ...]
    task_names: tuple[str, ...] = ()


def _white(picture: Any) -> int:
    """The largest number of a grey picture of more than 8 bits, as a TIFF file may say."""
    tags = getattr(picture, "tag_v2", {})
    stored = tags.get(281, tags.get(258))  # MaxSampleValue; else BitsPerSample
    stored = stored[0] if isinstance(stored, tuple) else stored
    if stored is None:
        return 65535
    return int(stored) if 281 in tags else 2 ** int(stored) - 1
