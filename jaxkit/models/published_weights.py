"""Vision transformers as they are published: one table of names, and what is known by family."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree

from jaxkit import validation
from jaxkit.datasets.recipes import read_normalization
from jaxkit.models.vision_transformer import VisionTransformer
from jaxkit.models.weight_files import read_weights

# A layer of `VisionTransformer` in four tongues: its path; timm's layout, which DeiT, DINO, DINOv2
# and MAE share ("[0]" is the first third of the rows); Hugging Face's on disk; Google's.
_LAYERS = (
    ("patch_embed", "patch_embed.proj", "embeddings.patch_embeddings.projection", "embedding"),
    ("block_{i}/norm1", "blocks.{i}.norm1", "encoder.layer.{i}.layernorm_before",
     "Transformer/encoderblock_{i}/LayerNorm_0"),
    *((f"block_{{i}}/attn/{part}", f"blocks.{{i}}.attn.qkv[{third}]",
       f"encoder.layer.{{i}}.attention.attention.{part}",
       f"Transformer/encoderblock_{{i}}/MultiHeadDotProductAttention_1/{part}")
      for third, part in enumerate(("query", "key", "value"))),
    ("block_{i}/attn/out", "blocks.{i}.attn.proj", "encoder.layer.{i}.attention.output.dense",
     "Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/out"),
    ("block_{i}/norm2", "blocks.{i}.norm2", "encoder.layer.{i}.layernorm_after",
     "Transformer/encoderblock_{i}/LayerNorm_2"),
    ("block_{i}/mlp/fc1", "blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense",
     "Transformer/encoderblock_{i}/MlpBlock_3/Dense_0"),
    ("block_{i}/mlp/fc2", "blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense",
     "Transformer/encoderblock_{i}/MlpBlock_3/Dense_1"),
    ("norm", "norm", "layernorm", "Transformer/encoder_norm"),
    ("head", "head", "classifier", "head"),
)  # fmt: skip
_LAYOUTS = ("timm", "Hugging Face", "Google")


def _names(layer: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for kind in ("scale" if "norm" in layer[0] else "kernel", "bias"):
        first, timm, huggingface, google = layer
        name, bracket, third = timm.partition("[")
        torch = "bias" if kind == "bias" else "weight"
        timm = f"{name}.{torch}{bracket}{third}"
        yield f"{first}/{kind}", timm, f"{huggingface}.{torch}", f"{google}/{kind}"


# Every parameter in the four tongues.
_NAMES = (
    ("cls_token", "cls_token", "embeddings.cls_token", "cls"),
    ("pos_embed", "pos_embed", "embeddings.position_embeddings",
     "Transformer/posembed_input/pos_embedding"),
    *(names for layer in _LAYERS for names in _names(layer)),
)  # fmt: skip
_HEAD = ("head.weight", "head.bias", "classifier.weight", "classifier.bias", "head/kernel",
         "head/bias")  # fmt: skip
_CLASS_TOKENS = {"embeddings.cls_token": "Hugging Face", "cls_token": "timm", "cls": "Google",
                 "class_token": "timm"}  # fmt: skip
# Where training programs put the weights, the best first.
_NESTS = ("teacher", "state_dict", "model", "student", "model_state_dict", "module", "params")
_PREFERRED = ("teacher", "opt/target", "params", "base_encoder")

# Factors on what attention and MLP add to the stream: they are multiplied into what precedes them.
_LAYER_SCALES = {
    r"(blocks\.\d+\.)ls1\.gamma": r"\1attn.proj",
    r"(blocks\.\d+\.)ls2\.gamma": r"\1mlp.fc2",
    r"(encoder\.layer\.\d+\.)layer_scale1\.lambda1": r"\1attention.output.dense",
    r"(encoder\.layer\.\d+\.)layer_scale2\.lambda1": r"\1output.dense",
}

# The same tensors under other names: DINOv2 and new Hugging Face; DeiT III and torchvision;
# big_vision.
_ALIASES = {
    "Hugging Face": ((r"^layers\.(\d+)\.", r"encoder.layer.\1."),
                     (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1_proj."),
                     (r"\.attention\.o_proj\.", ".attention.output.dense."),
                     *((rf"\.{part[0]}_proj\.", f".{part}.") for part in ("query", "key", "value")),
                     (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
                     (r"\.mlp\.fc1\.", ".intermediate.dense."),
                     (r"\.mlp\.fc2\.", ".output.dense.")),
    "timm": ((r"\.gamma_(\d)$", r".ls\1.gamma"),
             (r"^class_token$", "cls_token"), (r"^conv_proj\.", "patch_embed.proj."),
             (r"^encoder\.pos_embedding$", "pos_embed"), (r"^encoder\.ln\.", "norm."),
             (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
             (r"\.ln_(\d)\.", r".norm\1."), (r"\.self_attention\.in_proj_", ".attn.qkv."),
             (r"\.self_attention\.out_proj\.", ".attn.proj."), (r"^heads\.head\.", "head."),
             (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."), (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2.")),
    "Google": ((r"MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
               (r"MlpBlock_0", "MlpBlock_3"), (r"LayerNorm_1/", "LayerNorm_2/"),
               (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding")),
}  # fmt: skip

# What tells a network that `VisionTransformer` is not.
_OTHERS = (
    (r"dist(illation)?_token", "a distilled DeiT, which has a second class token"),
    (r"reg(ister)?_tokens?$", "a transformer with register tokens"),
    (r"class_embedding|ln_pre|pre_layrnorm|norm_pre", "an image tower of CLIP, another block"),
    (r"relative_position_bias|rel_pos|\.q_bias|\.lambda_[12]", "BEiT or Swin: relative positions"),
    (r"mlp\.w12|mlp\.w_12|mlp\.weights_in|mlp\.fc1_g", "a transformer with gated MLPs"),
    (r"[qk]_norm\.", "a transformer that normalizes queries and keys"),
    (r"attn_pool|MAPHead", "a transformer that pools by attention"),
    (r"fc_norm\.", "a transformer that pools the mean of its tokens"),
    (r"(^|\.)layer4\.|block_units|patch_embed\.backbone", "a ResNet, or a hybrid with one"),
)  # fmt: skip

# Tensors of pre-training that the backbone does without.
_NOT_NEEDED = r"mask_token|pooler\.|pre_logits|decoder|head\.|classifier\.|head_dist|num_batches"

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
        layout, tensors, heads, notes = recognize(found)
        sizes, trained = _read_sizes(layout, tensors, keep_head)
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
        name = _tensor_of("pos_embed", layout)
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
        variables = convert(layout, tensors, model)
    return Published(model, variables, (first, *notes))


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def recognize(
    found: Mapping[str, Any],
) -> tuple[str, dict[str, np.ndarray], int | None, list[str]]:
    """Find a transformer among what a file holds: its layout, its tensors, heads if told, notes.

    Tensors are in the layout of torch, float32 at least, under the bare names.
    """
    notes: list[str] = []
    flat = _innermost(found, notes)
    for pattern, what in _OTHERS:
        if hit := next((name for name in flat if re.search(pattern, name)), None):
            raise ValueError(f"holds {what} ({hit}): VisionTransformer has no place for it")
    layout, prefix = _anchor(flat)
    if prefix:
        notes.append(f"prefix {prefix!r} taken off")
    tensors, left_out = {}, []
    for name, x in flat.items():
        bare = name.removeprefix(prefix)
        if not name.startswith(prefix):
            # Hugging Face's classifier stands beside the network.
            match = re.search(r"(?:^|\.)((?:classifier|head)\.(?:weight|bias))$", name)
            bare = match[1] if match else ""
        for old, new in _ALIASES[layout]:
            bare = re.sub(old, new, bare)
        if bare:
            tensors[bare] = np.asarray(x, np.promote_types(x.dtype, np.float32))
        else:
            left_out.append(name)
    heads = None
    if layout == "Google":
        query = tensors.get(_tensor_of("block_{i}/attn/query/kernel", layout).format(i=0))
        heads = query.shape[1] if query is not None and query.ndim == 3 else None
        tensors = {name: _in_torch_layout(name, x) for name, x in tensors.items()}
    for name in list(tensors):
        if name not in _HEAD and re.search(_NOT_NEEDED, name):
            left_out.append(name)
            del tensors[name]
    if _fold_layer_scales(tensors):
        notes.append("LayerScale multiplied into the weights before it")
    if left_out:
        shown = ", ".join(left_out[:4]) + ", ..." * (len(left_out) > 4)
        notes.append(f"left out {len(left_out)} tensors: {shown}")
    return layout, tensors, heads, notes


def convert(layout: str, tensors: Mapping[str, np.ndarray], model: VisionTransformer) -> PyTree:
    """Turn tensors that `recognize` found into the variables of a model.

    Raises:
        ValueError: if tensors are missing, unexpected, of another shape or not finite; all of them
            are named at once.
    """
    needed: dict[str, tuple[int, ...]] = {}
    rows = [
        (leaf.format(i=i), *_third(names[_LAYOUTS.index(layout)].format(i=i)))
        for leaf, *names in _NAMES
        if model.num_classes or not leaf.startswith("head")
        for i in (range(model.depth) if "{i}" in leaf else (0,))
    ]
    for leaf, tensor, part in rows:
        shape = _torch_shape(leaf, model)
        needed[tensor] = shape if part is None else (3 * shape[0], *shape[1:])
    found = {n: x for n, x in tensors.items() if model.num_classes or n not in _HEAD}
    faults = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in needed],
        "misshaped": [
            f"{name}: {list(found[name].shape)} found, {list(shape)} needed"
            for name, shape in needed.items()
            if name in found and found[name].shape != shape
        ],
    }
    if any(faults.values()):
        text = "; ".join(f"{kind}: {', '.join(what)}" for kind, what in faults.items() if what)
        raise ValueError(f"tensors must fit the model, got {text}")
    if broken := [name for name, x in found.items() if not np.isfinite(x).all()]:
        raise ValueError(f"tensors must be finite, these are not: {', '.join(broken)}")
    params = {}
    for leaf, tensor, part in rows:
        x = found[tensor] if part is None else np.split(found[tensor], 3)[part]
        # A type that JAX would hold anyway: float32, or float64 where the caller enabled it.
        params[leaf] = jnp.asarray(_from_torch(leaf, x, model.num_heads))
    return {"params": traverse_util.unflatten_dict(params, sep="/")}


def resize_positions(
    embedding: Float[np.ndarray, "1 N d"], num_tokens: int, *, antialias: bool = True
) -> Float[np.ndarray, "1 M d"]:
    """Resize position embeddings to another image size: bicubic, the class token's row kept.

    Args:
        embedding: of the class token and a square grid of patches.
        num_tokens: tokens wanted, a square and one.
        antialias: whether to low-pass where the grid shrinks, as timm does; without, it is
            PyTorch's plain bicubic, as in Hugging Face's and DINOv2's programs.

    Returns:
        The embedding of `num_tokens` tokens.

    Example:
        >>> resize_positions(np.ones((1, 5, 8), np.float32), 10).shape
        (1, 10, 8)
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


def _innermost(found: Mapping[str, Any], notes: list[str]) -> dict[str, np.ndarray]:
    for _ in range(8):
        inside = [k for k, x in found.items() if isinstance(x, dict) and isinstance(k, str)]
        chosen = next((key for key in _NESTS if key in inside), None)
        if chosen is None:
            break
        notes.append(f"weights of {chosen!r} taken" + f" out of {inside}" * (len(inside) > 1))
        found = found[chosen]
    arrays = {
        name: x
        for name, x in found.items()
        if isinstance(name, str) and isinstance(x, np.ndarray)
        and (x.dtype.kind in "fiub" or x.dtype == jnp.bfloat16)
    }  # fmt: skip
    if not arrays:
        raise ValueError(f"holds no tensors, only {[str(name) for name in found][:8]}")
    return arrays


def _anchor(names: Mapping[str, Any]) -> tuple[str, str]:
    """The layout, and what stands before its names: found by the class token."""
    for token, layout in _CLASS_TOKENS.items():
        pattern = re.compile(rf"(.*[./]|){re.escape(token)}")
        prefixes = [match[1] for name in names if (match := pattern.fullmatch(name))]
        best = [p for word in _PREFERRED for p in prefixes if word in p] or prefixes
        if len(prefixes) > 1 and best is prefixes:
            raise ValueError(f"holds several transformers, {prefixes}: save one of them")
        if prefixes:
            return layout, best[0]
    raise ValueError(
        f"holds no vision transformer that is known: none of {list(_CLASS_TOKENS)} is among its "
        f"{len(names)} tensors, such as {list(names)[:4]}"
    )


def _fold_layer_scales(tensors: dict[str, np.ndarray]) -> bool:
    folded = False
    for name in list(tensors):
        for pattern, target in _LAYER_SCALES.items():
            if not re.fullmatch(pattern, name):
                continue
            base = re.sub(pattern, target, name)
            kernel, bias = (tensors.get(f"{base}.{kind}") for kind in ("weight", "bias"))
            scale = tensors[name]
            if kernel is None or bias is None or {kernel.shape[:1], bias.shape} != {scale.shape}:
                continue  # left where it is, to be named as unexpected
            tensors[f"{base}.weight"] = kernel * scale[:, None]
            tensors[f"{base}.bias"] = bias * scale
            del tensors[name]
            folded = True
    return folded


def _read_sizes(
    layout: str, tensors: dict[str, np.ndarray], keep_head: bool
) -> tuple[dict[str, Any], int]:
    """Sizes of the network, and the pixels that it was trained at."""

    def shape(leaf: str, rank: int) -> tuple[int, ...]:
        name = _tensor_of(leaf, layout).format(i=0)
        if name not in tensors or tensors[name].ndim != rank or 0 in tensors[name].shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"{name} must have {rank} dimensions, got {found}")
        return tensors[name].shape

    width, channels, patch, _ = shape("patch_embed/kernel", 4)
    block = _tensor_of("block_{i}/norm1/scale", layout)
    pattern = re.compile(re.escape(block).replace(r"\{i\}", r"(\d+)"))
    depth = len({match[1] for name in tensors if (match := pattern.fullmatch(name))})
    positions = shape("pos_embed", 3)[1]
    side = math.isqrt(positions)
    if side * side == positions:
        # Of the patches alone, as in DeiT III: the class token has none.
        name = _tensor_of("pos_embed", layout)
        tensors[name] = np.pad(tensors[name], ((0, 0), (1, 0), (0, 0)))
    elif side * side + 1 != positions:
        raise ValueError(
            f"position embeddings must be a class token and a square of patches, got {positions}"
        )
    sizes = {
        "patch_size": patch, "channels": channels, "width": width, "depth": depth,
        "mlp_dim": shape("block_{i}/mlp/fc1/kernel", 2)[0],
        "num_classes": shape("head/kernel", 2)[0] if keep_head else 0,
    }  # fmt: skip
    return sizes, side * patch


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


def _tensor_of(leaf: str, layout: str) -> str:
    return next(row[1 + _LAYOUTS.index(layout)] for row in _NAMES if row[0] == leaf)


def _third(tensor: str) -> tuple[str, int | None]:
    name, bracket, part = tensor.partition("[")
    return name, int(part[:-1]) if bracket else None


def _torch_shape(leaf: str, model: VisionTransformer) -> tuple[int, ...]:
    d, hidden, patch = model.width, model.mlp_dim, model.patch_size
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, model.num_tokens, d),
        "patch_embed/kernel": (d, model.channels, patch, patch),
        "mlp/fc1/kernel": (hidden, d),
        "mlp/fc1/bias": (hidden,),
        "mlp/fc2/kernel": (d, hidden),
        "head/kernel": (model.num_classes, d),
        "head/bias": (model.num_classes,),
    }
    leaf = leaf.split("/", 1)[-1] if leaf.startswith("block_") else leaf
    return shapes.get(leaf, (d, d) if leaf.endswith("kernel") else (d,))


def _from_torch(leaf: str, x: np.ndarray, heads: int) -> np.ndarray:
    """A linear layer of torch is [out, in], heads major in a row; a convolution [out, in, h, w]."""
    if "/attn/out/kernel" in leaf:
        return x.T.reshape(heads, -1, x.shape[0])
    if "/attn/" in leaf and "/out/" not in leaf:
        return x.reshape(heads, -1) if x.ndim == 1 else x.T.reshape(x.shape[1], heads, -1)
    if leaf == "patch_embed/kernel":
        return x.transpose(2, 3, 1, 0)
    return x.T if leaf.endswith("kernel") else x


def _in_torch_layout(name: str, x: np.ndarray) -> np.ndarray:
    """The same of Google's kernels, which are [in, out], their heads apart or not."""
    if "MultiHeadDotProductAttention" in name:
        if name.endswith("bias"):
            return x.reshape(-1)
        x = x.reshape(-1, x.shape[-1]) if "/out/" in name else x.reshape(x.shape[0], -1)
    if name.endswith("kernel"):
        return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return x
