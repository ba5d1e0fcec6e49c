"""Pictures and a network for them: what `jaxkit classify` and `jaxkit federated` train."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, models, validation
from jaxkit.jobs import options


def _vision_transformer(width: int, classes: int, size: int, channels: int, **options: Any):
    """ViT-Ti, -S or -B: patches of 16 pixels, or of an eighth of a small picture."""
    patch = 16 if size % 16 == 0 and size >= 128 else max(1, size // 8)
    return models.VisionTransformer(
        size, patch, channels, width, num_heads=width // 64, mlp_dim=4 * width, num_classes=classes,
        **options,
    )  # fmt: skip


#: Networks by name, made for a number of classes, an image size and a number of channels.
NETWORKS = {
    "logistic": lambda classes, size, channels: models.MLP(classes, ()),
    "mlp": lambda classes, size, channels: models.MLP(classes),
    "lenet": lambda classes, size, channels: models.LeNet(classes),
    "vgg11": lambda classes, size, channels: models.VGG11(classes),
    "resnet18-gn": lambda classes, size, channels: models.resnet18(classes),
    "resnet18-gn-cifar": lambda classes, size, channels: models.resnet18(classes, stem="cifar"),
    "resnet20": lambda classes, size, channels: models.resnet20(classes),
    "wrn-16-8": lambda classes, size, channels: models.wide_resnet(classes),
    "vit-tiny": functools.partial(_vision_transformer, 192),
    "vit-small": functools.partial(_vision_transformer, 384),
    "vit-base": functools.partial(_vision_transformer, 768),
}


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Which pictures, which network, and where the run goes.

    Attributes:
        data: digits, or pictures in any layout of datasets.find_pictures: folders of classes,
            CIFAR, STL-10, Tiny-ImageNet, IDX, NPZ.
        layout: the layout of the pictures, where more than one fits.
        model: the network; resnet18-gn has the two groups of GroupNorm of FedSpeed's program.
        width: channels of an MLP, ResNet or ViT, in multiples of its own.
        norm: normalization of a ResNet, group or batch; by default its own.
        dtype: of the products of a ResNet or ViT; parameters stay float32.
        recipe: plain, sema, imagenet, cifar10, cifar100, tiny-imagenet or mnist: what is done to
            the pictures.
        image_size: pixels that pictures get; by default their own, or the recipe's.
        normalization: none, half, imagenet, clip, ..., or numbers m,m,m/s,s,s; by default the
            recipe's.
        cache_side: decode picture files once, reduced to this shorter side, into a file of bytes in
            RUNS/.cache; crops of larger pictures are then coarser than the published ones.
        test_fraction: share of each class to test on, where the data have no split.
        seeds: independent trainings of each.
        seed: the first seed, and that of a drawn split.
        runs: folder that holds the runs.
        name: folder of this run in it.
    """

    data: str = "digits"
    layout: str | None = None
    model: Literal[
        "logistic", "mlp", "lenet", "vgg11", "resnet18-gn", "resnet18-gn-cifar", "resnet20",
        "wrn-16-8", "vit-tiny", "vit-small", "vit-base",
    ] = "mlp"  # fmt: skip
    width: float = 1.0
    norm: Literal["group", "batch"] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    recipe: str = "plain"
    image_size: int | None = None
    normalization: str | None = None
    cache_side: int | None = None
    test_fraction: float = 0.2
    seeds: int = 1
    seed: int = 0
    runs: str = "runs"
    name: str = "pictures"

    def __post_init__(self):
        validation.choice("model", self.model, NETWORKS)
        validation.choice("dtype", self.dtype, ["float32", "bfloat16"])
        self.network(2, 32, 3)  # refuses options that the network has not
        datasets.picture_recipe(
            self.recipe, image_size=self.image_size, normalization=self.normalization
        )
        options.at_least_one(self, "seeds")
        validation.seed("seed", self.seed)
        validation.seed("seed + seeds - 1", self.seed + self.seeds - 1)
        options.within(self, options.INSIDE, "test_fraction")
        options.not_empty(self, "data", "runs")
        options.folder_name("name", self.name)

    def pictures(self, seed: int, **options: Any) -> datasets.PictureSplit:
        """The pictures; a split that they do not bring is drawn by the seed.

        Further options are those of `datasets.find_pictures`.
        """
        if self.data != "digits":
            split = datasets.find_pictures(
                self.data, layout=self.layout, test_fraction=self.test_fraction, seed=seed,
                **options,
            )  # fmt: skip
            return self.kept(split)
        if self.layout is not None:
            raise ValueError(f"layout must be left out for data='digits', got {self.layout!r}")
        digits = datasets.load_digits(test_fraction=self.test_fraction, seed=seed)
        train, test = (
            datasets.Pictures(np.rint(255 * x).astype(np.uint8), np.asarray(y, np.int32))
            for x, y in (
                (digits.train_inputs, digits.train_labels),
                (digits.test_inputs, digits.test_labels),
            )
        )
        note = f"digits: {len(train):,} train, {len(test):,} test, 10 classes"
        return datasets.PictureSplit(train, test, digits.label_names, "digits", (note,))

    def kept(self, split: datasets.PictureSplit) -> datasets.PictureSplit:
        """The same pictures, decoded once where the configuration asks for it."""
        side = self.cache_side
        if side is None:
            return split
        folder, recipe = pathlib.Path(self.runs) / ".cache", self.transform(split.train)
        train, test = (
            datasets.keep_decoded(part, folder, recipe, side) for part in (split.train, split.test)
        )
        return dataclasses.replace(split, train=train, test=test)

    def transform(self, pictures: datasets.Pictures) -> datasets.PictureRecipe:
        """The recipe, at the pictures' own size where none is given."""
        size, shape = self.image_size, pictures.shape
        if size is None and self.recipe == "plain" and shape is not None:
            if shape[0] != shape[1]:
                raise ValueError(
                    f"image_size must be given for pictures of {shape[0]} x {shape[1]}"
                )
            size = shape[0]
        return datasets.picture_recipe(
            self.recipe, image_size=size, normalization=self.normalization
        )

    def network(
        self, classes: int, size: int, channels: int, width: float | None = None
    ) -> Network:
        """The network for so many classes and pictures of that size, in another width if given."""
        model: Any = NETWORKS[self.model](classes, size, channels)
        model = model.clone(**_widened(self.model, model, self.width if width is None else width))
        options: dict[str, Any] = {}
        if self.norm is not None:
            if not isinstance(model, models.ResNet):
                raise ValueError(f"norm is for ResNets, got {self.norm!r} with {self.model!r}")
            options["norm"] = self.norm
        if self.dtype != "float32":
            if not isinstance(model, models.ResNet | models.VisionTransformer):
                raise ValueError(
                    f"dtype is for ResNets and ViTs, got {self.dtype!r} with {self.model!r}"
                )
            options["dtype"] = jnp.dtype(self.dtype)
        return Network(model.clone(**options), (1, size, size, channels))


def _widened(name: str, model: Any, width: float) -> dict[str, Any]:
    """The fields of a network that grow with its width."""
    validation.number("width", width, minimum=0, open_minimum=True)

    def times(*sizes: int) -> tuple[int, ...]:
        wide = tuple(round(width * size) for size in sizes)
        if any(size < 1 or size != width * own for size, own in zip(wide, sizes, strict=True)):
            raise ValueError(f"width must make whole numbers of {sizes}, got {width}")
        return wide

    if width == 1:
        return {}
    if isinstance(model, models.ResNet):
        stem = {} if model.stem_width is None else {"stem_width": times(model.stem_width)[0]}
        return {"widths": times(*model.widths), **stem}
    if isinstance(model, models.VisionTransformer):
        sizes = times(model.width, model.num_heads, model.mlp_dim)
        return dict(zip(("width", "num_heads", "mlp_dim"), sizes, strict=True))
    if not isinstance(model, models.MLP) or not model.hidden:
        raise ValueError(f"width is for MLPs, ResNets and ViTs, got {width} with {name!r}")
    return {"hidden": times(*model.hidden)}


class Network(NamedTuple):
    """A network for pictures, whatever it is made of.

    Attributes:
        model: the module.
        shape: of a batch of one picture.
        logit_scale: factor on the logits.
    """

    model: nn.Module
    shape: tuple[int, int, int, int]
    logit_scale: float = 1.0

    def init(self, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """First weights, and first running statistics of BatchNorm or an empty dict."""
        variables = dict(nn.meta.unbox(self.model.init(key, jnp.zeros(self.shape))))
        return variables.pop("params"), variables

    def logits(self, params: Any, stats: Any, images: Any, *, train: bool = False):
        """`(logits, stats)` of normalized images; training moves the statistics."""
        variables = {"params": params, **stats}
        if train and stats:
            seen: Any
            seen, moved = self.model.apply(variables, images, train=True, mutable=list(stats))
            stats = dict(moved)
        else:
            seen = self.model.apply(variables, images)
        logits = seen["logits"] if isinstance(seen, dict) else seen
        return (logits if self.logit_scale == 1 else self.logit_scale * logits), stats

    def loss(self, params: Any, stats: Any, images: Any, labels: Any):
        """`(mean cross-entropy, stats)` of a batch to train on."""
        logits, stats = self.logits(params, stats, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), stats


class Compared(NamedTuple):
    """What a run of several trainings wrote.

    Attributes:
        folder: of the run.
        report: `report.html`; None if the run was stopped before its end.
        scores: what was reached, by what is compared.
    """

    folder: pathlib.Path
    report: pathlib.Path | None
    scores: dict[Any, Any]
