"""What is done to a picture before a network sees it: the published recipes, by name.

A picture is cropped and resized on the host, in bytes; it is mirrored, shifted and normalized on
the device, inside the compiled step. What is drawn for a picture depends on the seed, the epoch and
the picture's number alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from jaxkit import validation
from jaxkit.datasets.extras import require

_NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "mnist": ((0.1307,), (0.3081,)),
}


@dataclasses.dataclass(frozen=True)
class PictureRecipe:
    """Crops, flips and normalization of training and test pictures.

    Attributes:
        image_size: height and width that the network gets, pixels.
        area: training crops cover this share of a picture, (least, most), at an aspect ratio of
            3/4 to 4/3, resized bilinearly (torchvision's RandomResizedCrop); None crops none.
        pad: training pictures are shifted by up to so many pixels, over the mean color.
        pad_probability: chance of that shift.
        flip: chance that a training picture is mirrored.
        short_side: test pictures, and training pictures without `area`, are resized to this
            shorter side and cut out of the middle; None takes `image_size`.
        interpolation: of that resizing.
        mean: subtracted from values in [0, 1]; one number or one a channel.
        std: divided by; likewise.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> PictureRecipe(32, pad=4, mean=(0.5,), std=(0.5,)).draw(0, 0, 7, (32, 32)).offset
        (1, 2)
    """

    image_size: int
    area: tuple[float, float] | None = None
    pad: int = 0
    pad_probability: float = 1.0
    flip: float = 0.5
    short_side: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        validation.integer("image_size", self.image_size, minimum=1)
        validation.integer("pad", self.pad, minimum=0)
        for name in ("pad_probability", "flip"):
            validation.number(name, getattr(self, name), minimum=0, maximum=1)
        if self.area is not None:
            for bound in self.area:
                validation.number("area", bound, minimum=0, maximum=1, open_minimum=True)
            if self.area[0] > self.area[1]:
                raise ValueError(f"area must be (least, most), got {self.area}")
        if self.short_side is not None and self.short_side < self.image_size:
            raise ValueError(
                f"short_side must be at least image_size={self.image_size}, got {self.short_side}"
            )
        for name in ("mean", "std"):
            numbers = validation.number(name, np.asarray(getattr(self, name)))
            if numbers.shape not in ((1,), (3,)) or (name == "std" and not (numbers > 0).all()):
                raise ValueError(
                    f"{name} must be one number or three"
                    f"{' above 0' * (name == 'std')}, got {getattr(self, name)}"
                )

    def draw(self, seed: int, epoch: int, index: int, size: tuple[int, int]) -> Drawn:
        """Draw what happens to a training picture.

        Args:
            seed: of the run.
            epoch: passes made before.
            index: number of the picture in the data set.
            size: its width and height, pixels.

        Returns:
            The draw: the same for the same four arguments, wherever and whenever it is made.

        Source: the box is torchvision's RandomResizedCrop.get_params.
        """
        # The fourth word keeps this draw apart from that of the epoch's order.
        rng = np.random.default_rng([seed, epoch, index, 1])
        box = None if self.area is None else _draw_box(rng, size, self.area)
        flip = bool(rng.random() < self.flip)
        offset = (self.pad, self.pad)
        if self.pad and rng.random() < self.pad_probability:
            top, left = rng.integers(2 * self.pad, size=2, endpoint=True)
            offset = (int(top), int(left))
        return Drawn(box, flip, offset)

    def draw_on_device(self, key: jax.Array, count: int) -> dict[str, jax.Array]:
        """Draw mirrors and shifts of a batch inside a compiled step, from a key of JAX.

        Args:
            key: typed key.
            count: B, pictures of the batch.

        Returns:
            `"flip"` bool `[B]` and `"offset"` int32 `[B, 2]`, for `prepare`; distributed as those
            of `draw`, and other draws.

        Raises:
            ValueError: if the recipe crops by `area`, which is done on the host.
        """
        if self.area is not None:
            raise ValueError(f"area must be None to draw on the device, got {self.area}")
        flip_key, shift_key, offset_key = jax.random.split(key, 3)
        offset = jax.random.randint(offset_key, (count, 2), 0, 2 * self.pad + 1)
        shifts = jax.random.bernoulli(shift_key, self.pad_probability, (count, 1))
        return {
            "flip": jax.random.bernoulli(flip_key, self.flip, (count,)),
            "offset": jnp.where(shifts, offset, self.pad),
        }

    def pixels(
        self, picture: Any, box: tuple[int, int, int, int] | None = None
    ) -> UInt8[np.ndarray, "S S C"]:
        """Crop and resize a picture on the host.

        Args:
            picture: a Pillow image of mode RGB or L.
            box: left, top, right and bottom to cut out; None for the test transform.

        Returns:
            Bytes `[image_size, image_size, channels]`.
        """
        pillow = require("PIL.Image", "datasets")
        size = self.image_size
        if box is not None:
            # Cut first: resizing with a box would look at the pixels around it.
            picture = picture.crop(box).resize((size, size), pillow.Resampling.BILINEAR)
        else:
            picture = self.reduced(picture)
            left, top = (round((side - size) / 2) for side in picture.size)
            picture = picture.crop((left, top, left + size, top + size))
        return np.asarray(picture).reshape(size, size, -1)

    def reduced(self, picture: Any) -> Any:
        """A picture resized to the shorter side of the test transform."""
        short, (width, height) = self.short_side or self.image_size, picture.size
        # The longer side is rounded down, as torchvision does.
        target = (
            short if width <= height else int(short * width / height),
            short if height <= width else int(short * height / width),
        )
        if picture.size == target:
            return picture
        pillow = require("PIL.Image", "datasets")
        return picture.resize(target, getattr(pillow.Resampling, self.interpolation.upper()))

    def prepare(self, batch: Mapping[str, Any]) -> Float32[jax.Array, "B S S C"]:
        """Normalize a batch on the device, and mirror and shift it as its draws say.

        Args:
            batch: `"images"` uint8 `[B, S, S, C]`, and of training pictures `"flip"` bool `[B]`
                and `"offset"` int `[B, 2]`, as `picture_batches` makes them.
        """
        x = batch["images"].astype(jnp.float32) / 255
        x = (x - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        if "flip" in batch:
            x = jnp.where(batch["flip"][:, None, None, None], x[:, :, ::-1], x)
        if self.pad and "offset" in batch:
            wide = jnp.pad(x, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)))
            x = jax.vmap(lambda picture, at: jax.lax.dynamic_slice(picture, (*at, 0), x.shape[1:]))(
                wide, batch["offset"]
            )
        return x


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is drawn for a training picture.

    Attributes:
        box: left, top, right, bottom of the crop, pixels; None for none.
        flip: whether it is mirrored.
        offset: top and left corner within the padded picture.
    """

    box: tuple[int, int, int, int] | None
    flip: bool
    offset: tuple[int, int]


#: Each with the name of its normalization.
_RECIPES: dict[str, tuple[PictureRecipe, str]] = {
    "plain": (PictureRecipe(224, flip=0.0), "none"),
    "sema": (PictureRecipe(224, area=(0.05, 1.0), short_side=256), "none"),
    "imagenet": (
        PictureRecipe(224, area=(0.08, 1.0), short_side=256, interpolation="bilinear"),
        "imagenet",
    ),
    "cifar10": (PictureRecipe(32, pad=4, pad_probability=0.5), "cifar10"),
    "cifar100": (PictureRecipe(32, pad=4, pad_probability=0.5), "cifar100"),
    "tiny-imagenet": (PictureRecipe(64, pad=8, pad_probability=0.5), "half"),
    "mnist": (PictureRecipe(28, flip=0.0), "mnist"),
}


def picture_recipe(
    name: str, *, image_size: int | None = None, normalization: str | None = None
) -> PictureRecipe:
    """Find a published recipe.

    Args:
        name: `"sema"` (SEMA and every 224-pixel set of PILOT), `"imagenet"` (torchvision),
            `"cifar10"`, `"cifar100"`, `"tiny-imagenet"` and `"mnist"` (FL-Simulator, arXiv
            2302.10429), or `"plain"`, which only resizes.
        image_size: another size; the shorter side of test pictures changes with it.
        normalization: another one: `"none"`, `"half"` (0.5 and 0.5: timm's and Google's vision
            transformers), `"imagenet"` (DeiT, MAE, DINO), `"clip"`, `"cifar10"`, `"cifar100"`,
            `"mnist"`, or numbers `"m/s"` or `"m,m,m/s,s,s"`. The published SEMA numbers use none,
            although its weights were trained with half.

    Raises:
        ValueError: if a name is unknown, or the numbers cannot be read.

    Example:
        >>> recipe = picture_recipe("sema", normalization="0.5,0.5,0.5/0.25,0.25,0.25")
        >>> recipe.image_size, recipe.area, recipe.std
        (224, (0.05, 1.0), (0.25, 0.25, 0.25))
    """
    validation.choice("recipe", name, _RECIPES)
    recipe, own = _RECIPES[name]
    if image_size is not None:
        validation.integer("image_size", image_size, minimum=1)
        short = recipe.short_side and round(recipe.short_side * image_size / recipe.image_size)
        recipe = dataclasses.replace(recipe, image_size=image_size, short_side=short)
    mean, std = read_normalization(own if normalization is None else normalization)
    return dataclasses.replace(recipe, mean=mean, std=std)


def read_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a normalization by name, or written as `m/s` or `m,m,m/s,s,s`."""
    if "/" not in text and not re.match("[-+.0-9]", text):
        return _NORMALIZATIONS[validation.choice("normalization", text, _NORMALIZATIONS)]
    try:
        mean, std = (tuple(float(x) for x in half.split(",")) for half in text.split("/"))
    except ValueError:
        raise ValueError(
            f"normalization must be a name or numbers like 0.5/0.5 or m,m,m/s,s,s, got {text!r}"
        ) from None
    if max(mean) > 1:
        raise ValueError(
            "normalization must be of pictures in [0, 1], with a mean in it, got "
            f"{text!r}: divide numbers for bytes by 255"
        )
    return mean, std


def _draw_box(
    rng: np.random.Generator, size: tuple[int, int], area: tuple[float, float]
) -> tuple[int, int, int, int]:
    (width, height), least, most = size, 3 / 4, 4 / 3
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h, endpoint=True))
            left = int(rng.integers(width - w, endpoint=True))
            return left, top, left + w, top + h
    # Ten boxes did not fit: the largest in the middle whose ratio is allowed.
    w = min(width, max(round(height * most), 1))
    h = min(height, max(round(width / least), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
