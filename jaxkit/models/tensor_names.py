"""Vision transformers as they are published: one table of names, and networks read off tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from jaxkit.models.vision_transformer import VisionTransformer

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
        query = tensors.get(tensor_of("block_{i}/attn/query/kernel", layout).format(i=0))
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


def read_sizes(
    layout: str, tensors: dict[str, np.ndarray], keep_head: bool
) -> tuple[dict[str, Any], int]:
    """Sizes of the network, and the pixels that it was trained at."""

    def shape(leaf: str, rank: int) -> tuple[int, ...]:
        name = tensor_of(leaf, layout).format(i=0)
        if name not in tensors or tensors[name].ndim != rank or 0 in tensors[name].shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"{name} must have {rank} dimensions, got {found}")
        return tensors[name].shape

    width, channels, patch, _ = shape("patch_embed/kernel", 4)
    block = tensor_of("block_{i}/norm1/scale", layout)
    pattern = re.compile(re.escape(block).replace(r"\{i\}", r"(\d+)"))
    depth = len({match[1] for name in tensors if (match := pattern.fullmatch(name))})
    positions = shape("pos_embed", 3)[1]
    side = math.isqrt(positions)
    if side * side == positions:
        # Of the patches alone, as in DeiT III: the class token has none.
        name = tensor_of("pos_embed", layout)
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


def tensor_of(leaf: str, layout: str) -> str:
    """The name of a parameter of `VisionTransformer` in a layout."""
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
