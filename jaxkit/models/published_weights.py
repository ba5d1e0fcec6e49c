"""Vision transformers as they are published: files to models, and what is known by family."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxkit import validation
from jaxkit.datasets.recipes import read_normalization
from jaxkit.models import tensor_names
from jaxkit.models.vision_transformer import VisionTransformer
from jaxkit.models.weight_files import read_weights

# Families by a word of the path, and how their pictures were normalized.
_FAMILIES = (
    ("dinov2", "DINOv2", "imagenet"), ("dino", "DINO", "imagenet"), ("deit", "DeiT", "imagenet"),
    ("deit3", "DeiT III", "imagenet"), ("mae", "MAE", "imagenet"), ("augreg", "augreg", "half"),
    ("augreg2", "augreg", "half"), ("in21k", "augreg", "half"), ("patch16", "ViT", "half"),
    ("patch32", "ViT", "half"),
)  # fmt: skip

# Published sizes whose number of heads everybody knows: (width, blocks).
_KNOWN_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}


class Published(NamedTuple):
    """A vision transformer read from a file.

    Attributes:
        model: the network.
        variables: its parameters, for `model.apply`.
        notes: what was recognized, assumed and left out, a line each.
    """

    model: VisionTransformer
    variables: PyTree
    notes: tuple[str, ...]


def load_vision_transformer(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    normalization: str | None = None,
    keep_head: bool = False,
) -> Published:
    """Load a vision transformer as timm, torchvision, Hugging Face, Google and others publish them.

    The network is read off the tensors: sizes, LayerScale (multiplied into the weights before it),
    prefixes such as `module.`. What tensors cannot tell is taken from `config.json` and
    `preprocessor_config.json` beside the file, and else from the family, where its name is part of
    the path.

    Args:
        path: safetensors, Google's NPZ, or a file that PyTorch >= 1.6 saved; nothing in it is
            executed. Or a folder of Hugging Face.
        image_size: pixels; by default those it was trained at. For others the position embeddings
            are resized as the published program does.
        num_heads: attention heads, where neither file nor size tells: weights fit any number.
        normalization: how its pictures are normalized, as in `datasets.picture_recipe`; by default
            as in training where that is known, and not at all where it is not.
        keep_head: whether to keep the classifier.

    Returns:
        The model, its variables (float32), and notes on what was found.

    Raises:
        ImportError: for safetensors, without the `vision` extra.
        ValueError: if the file cannot be read or is refused, holds another kind of network, if
            tensors are missing, unexpected, of another shape or not finite (all are named at
            once), or the number of heads must be given.

    Example:
        >>> load_vision_transformer("no/such.safetensors")
        Traceback (most recent call last):
        ValueError: no/such.safetensors does not exist
    """
    path = pathlib.Path(path)
    found = read_weights(path)
    with _naming(path):
        layout, tensors, heads, notes = tensor_names.recognize(found)
        sizes, trained = tensor_names.read_sizes(layout, tensors, keep_head)
    told = _told_beside(path)
    heads = _choose_heads(path, num_heads, told.get("num_heads", heads), sizes, notes)
    scaled = any("LayerScale" in note for note in notes)
    family, known = _family([*path.parts[-4:], told.get("kind", "")], layout, scaled)
    known = told.get("normalization", known)
    used = known if normalization is None else normalization
    mean, std = (x[0] if len(x) == 1 else x for x in read_normalization(used or "none"))
    model = VisionTransformer(
        trained if image_size is None else image_size,
        num_heads=heads,
        epsilon=told.get("epsilon", 1e-12 if layout == "Hugging Face" and not scaled else 1e-6),
        input_mean=mean,
        input_std=std,
        **sizes,
    )
    if model.image_size != trained:
        name = tensor_names.tensor_of("pos_embed", layout)
        # timm low-passes where positions get fewer; Hugging Face and DINOv2's program do not.
        smooth = layout != "Hugging Face" and family != "DINOv2"
        tensors[name] = resize_positions(tensors[name], model.num_tokens, antialias=smooth)
        notes.append(f"positions resized from {trained} to {model.image_size} pixels")
    if used is None:
        notes.append("pictures are not normalized: nothing tells how they were in training")
    else:
        other = "" if known in (None, used) else f", in training by {known}"
        notes.append(f"pictures are normalized by {used}{other}")
    title = f"{family}, {layout}'s layout" if family else f"{layout}'s layout"
    first = (
        f"{title}: width {model.width}, {model.depth} blocks, {heads} heads, patches of "
        f"{model.patch_size} in {model.image_size} pixels"
    )
    with _naming(path):
        variables = tensor_names.convert(layout, tensors, model)
    return Published(model, variables, (first, *notes))


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def resize_positions(
    embedding: Float[np.ndarray, "1 N d"], num_tokens: int, *, antialias: bool = True
) -> Float[np.ndarray, "1 M d"]:
    """Resize position embeddings to another image size: bicubic, the class token's row kept.

    `antialias` low-passes where the grid shrinks, as timm does; without, it is PyTorch's plain
    bicubic, as in Hugging Face's and DINOv2's programs.
    """
    old, new = (round((n - 1) ** 0.5) for n in (embedding.shape[1], num_tokens))
    grid = np.asarray(embedding)[0, 1:].reshape(old, old, -1)
    if antialias:
        grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic"))
    else:
        rows = _bicubic(old, new)
        grid = np.einsum("ia,jb,abd->ijd", rows, rows, grid).astype(embedding.dtype)
    return np.concatenate([embedding[:, :1], grid.reshape(1, new * new, -1)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of PyTorch's bicubic, a = -0.75, which repeats the edge."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        column = np.floor(at).astype(int) + step
        x = np.abs(at - column)
        near, far = ((1.25 * x - 2.25) * x) * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        weight = np.where(x <= 1, near, far)
        np.add.at(weights, (np.arange(new), column.clip(0, old - 1)), weight)
    return weights


def _choose_heads(
    path: pathlib.Path, asked: int | None, told: int | None, sizes: dict[str, int], notes: list[str]
) -> int:
    if asked is not None:
        validation.integer("num_heads", asked, minimum=1)
        if told not in (None, asked):
            raise ValueError(f"num_heads must be {told}, as {path} tells, got {asked}")
        return asked
    if told is None:
        told = _KNOWN_HEADS.get((sizes["width"], sizes["depth"]))
        notes.append("heads not told by the file: those of published networks of its size")
    if told is None:
        raise ValueError(
            f"num_heads must be given: {path} does not tell it, and weights of width "
            f"{sizes['width']} in {sizes['depth']} blocks fit any number that divides the width"
        )
    return told


def _told_beside(path: pathlib.Path) -> dict[str, Any]:
    """What Hugging Face's and timm's files beside the weights tell."""
    folder = path if path.is_dir() else path.parent
    config, pictures = (
        _read_json(folder / name) for name in ("config.json", "preprocessor_config.json")
    )
    told: dict[str, Any] = {}
    if "num_attention_heads" in config and "patch_size" in config:
        told["num_heads"] = validation.integer(
            f"num_attention_heads of {folder}/config.json", config["num_attention_heads"], minimum=1
        )
        told["epsilon"] = config.get("layer_norm_eps", 1e-12)
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(
                f"hidden_act of {folder}/config.json must be 'gelu', got {config['hidden_act']!r}"
            )
    told["kind"] = f"{config.get('model_type', '')} {config.get('architecture', '')}"
    timm = config.get("pretrained_cfg", {})
    mean = pictures.get("image_mean", timm.get("mean"))
    std = pictures.get("image_std", timm.get("std"))
    if mean is not None and std is not None:
        told["normalization"] = "/".join(",".join(map(str, numbers)) for numbers in (mean, std))
    return told


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _family(words: Iterable[str], layout: str, scaled: bool) -> tuple[str, str | None]:
    words = re.split("[^a-z0-9]+", "/".join(words).lower())
    for word, family, normalization in _FAMILIES:
        if word in words:
            return family, normalization
    if layout == "Google":
        return "augreg", "half"
    return ("DINOv2 or DeiT III", "imagenet") if scaled else ("", None)
