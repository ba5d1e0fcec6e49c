"""Pictures on disk as the images of a task: decoded when they are asked for, and then forgotten."""

from __future__ import annotations

import dataclasses
import functools
import os
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxkit import datasets
from jaxkit.datasets.mapped import write_mapped


@dataclasses.dataclass(frozen=True, eq=False)
class PictureImages:
    """Pictures that are indexed like an array of images in [0, 1].

    Attributes:
        pictures: files or arrays of bytes.
        recipe: how they are resized, and cropped and mirrored to train.
        augmented: whether training crops and mirrors each picture anew in every pass.
    """

    pictures: datasets.Pictures
    recipe: datasets.PictureRecipe
    augmented: bool = False

    ndim = 4
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number, height, width and channels."""
        size = self.recipe.image_size
        return len(self), size, size, self.pictures.channels

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "rows H W C"]:
        """Pictures as they are tested on."""
        return datasets.decode_pictures(self.pictures, self.recipe, rows) / np.float32(255)

    def drawn(
        self, rows: Int[np.ndarray, " rows"], seed: int, epoch: int
    ) -> Float[np.ndarray, "rows H W C"]:
        """Pictures as they are trained on in a pass: the same for the same arguments."""

        def decode(i: int) -> np.ndarray:
            picture = self.pictures.open(i)
            drawn = self.recipe.draw(seed, epoch, i, picture.size)
            pixels = self.recipe.pixels(picture, drawn.box)
            return pixels[:, ::-1] if drawn.flip else pixels

        with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            return np.stack(list(threads.map(decode, rows.tolist()))) / np.float32(255)

    def where(self, keep: Bool[np.ndarray, " n"]) -> PictureImages:
        """Those of which `keep` is true, in their order."""
        return dataclasses.replace(self, pictures=self.pictures.where(keep))

    def mapped(self) -> Float[np.ndarray, "n H W C"]:
        """All pictures as they are tested on, decoded once into a temporary file."""
        pieces = (self[start : start + 256].ravel() for start in range(0, len(self), 256))
        return write_mapped(pieces, np.float32).reshape(self.shape)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Which pictures they are, and what is done to them."""
        return f"{self.pictures.fingerprint()} {self.recipe} {self.augmented}"


#: Images in [0, 1], or pictures that become such when they are asked for.
Images = Float[np.ndarray, "_ _ _ _"] | PictureImages
