"""Checkpoints as people have them: real files of each format, and files that lie."""

import io
import json
import pickle
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import models
from jaxkit.models import published_weights, tensor_names, weight_files

SIZES = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16,
         "num_classes": 3}  # fmt: skip


@pytest.fixture(scope="module")
def timm(golden):
    """A small transformer in timm's layout."""
    params = golden("sema")["vit_weight_conversion"]["timm_params"]
    return {name: np.asarray(x, np.float32) for name, x in params.items()}


@pytest.fixture(scope="module")
def expected(timm):
    """Its variables."""
    return tensor_names.convert("timm", timm, models.VisionTransformer(**SIZES))


def load(path, **options):
    return models.load_vision_transformer(path, **{"num_heads": 2, "keep_head": True} | options)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


# PyTorch's format by hand: data.pkl of protocol 2 and a member for each storage.


def text(x):
    return b"X" + len(x.encode()).to_bytes(4, "little") + x.encode()


def number(x):
    return b"\x8a\x08" + x.to_bytes(8, "little", signed=True)


def numbers(shape):
    return b"(" + b"".join(map(number, shape)) + b"t"


def mapping(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def torch_tensor(key, kind, length, shape, strides, offset=0):
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(length) + b"tQ"
        + number(offset) + numbers(shape) + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def contiguous(shape):
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def write_torch(path, description, storages, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + description + b".")
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage"}


def torch_file(path, tensors, wrap=lambda x: x):
    """A state dict as `torch.save` writes it, each tensor in a storage of its own."""
    items, storages = {}, {}
    for i, (name, x) in enumerate(tensors.items()):
        bf16 = x.dtype == jnp.bfloat16
        kind = "BFloat16Storage" if bf16 else KINDS[x.dtype.str[1:]]
        items[name] = torch_tensor(str(i), kind, x.size, x.shape, contiguous(x.shape))
        storages[str(i)] = x.tobytes()
    return write_torch(path, wrap(mapping(items)), storages)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("file", ["pth", "safetensors", "npz"])
def test_every_format_and_type_of_numbers_is_read(timm, tmp_path, file, dtype):
    tensors = {name: np.asarray(jnp.asarray(x, dtype)) for name, x in timm.items()}
    path = tmp_path / "vit.anything"
    if file == "pth":
        torch_file(path, tensors)
    elif file == "npz":
        with open(path, "wb") as stream:
            np.savez_compressed(stream, **{k: np.asfortranarray(x) for k, x in tensors.items()})
    else:
        package = pytest.importorskip("safetensors.flax")
        package.save_file({name: jnp.asarray(x) for name, x in tensors.items()}, path)
    model = models.VisionTransformer(**SIZES)
    wide = {name: x.astype(np.float32) for name, x in tensors.items()}
    found = load(path)
    assert found.model == model
    assert same(found.variables, tensor_names.convert("timm", wide, model))


def google(timm, old=True, merged=False):
    """The same weights as Google's programs name and shape them, by hand."""

    def heads(x):
        return x if merged else x.reshape(*x.shape[:-1], 2, 4)

    attention, mlp, norm = ("_1", "_3", "_2") if old else ("_0", "_0", "_1")
    tensors = {
        "cls": timm["cls_token"], "embedding/bias": timm["patch_embed.proj.bias"],
        "embedding/kernel": timm["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "Transformer/posembed_input/pos_embedding" if old else "pos_embedding": timm["pos_embed"],
        "head/kernel": timm["head.weight"].T, "head/bias": timm["head.bias"],
        "Transformer/encoder_norm/scale": timm["norm.weight"],
        "Transformer/encoder_norm/bias": timm["norm.bias"],
    }  # fmt: skip
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for number, name in (("_0", "norm1"), (norm, "norm2")):
            tensors[f"{theirs}LayerNorm{number}/scale"] = timm[f"{ours}{name}.weight"]
            tensors[f"{theirs}LayerNorm{number}/bias"] = timm[f"{ours}{name}.bias"]
        for number, name in enumerate(("fc1", "fc2")):
            base = f"{theirs}MlpBlock{mlp}/Dense_{number}/"
            tensors[f"{base}kernel"] = timm[f"{ours}mlp.{name}.weight"].T
            tensors[f"{base}bias"] = timm[f"{ours}mlp.{name}.bias"]
        base = f"{theirs}MultiHeadDotProductAttention{attention}/"
        kernels, biases = (np.split(timm[f"{ours}attn.qkv.{k}"], 3) for k in ("weight", "bias"))
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            tensors[f"{base}{name}/kernel"], tensors[f"{base}{name}/bias"] = (
                heads(kernel.T),
                heads(bias),
            )
        out = timm[f"{ours}attn.proj.weight"].T
        tensors[f"{base}out/kernel"] = out if merged else out.reshape(2, 4, 8)
        tensors[f"{base}out/bias"] = timm[f"{ours}attn.proj.bias"]
    prefix = "opt/target/" if old else "params/"
    return {prefix + name: x for name, x in tensors.items()}


@pytest.mark.parametrize(("old", "merged"), [(True, False), (True, True), (False, False)])
def test_googles_files_are_read_and_tell_their_heads(timm, expected, tmp_path, old, merged):
    np.savez(tmp_path / "vit.npz", **google(timm, old, merged), **{"opt/state/step": 3})
    found = load(tmp_path / "vit.npz", num_heads=2 if merged else None)
    assert same(found.variables, expected)
    assert found.model.num_heads == 2
    assert (found.model.input_mean, found.model.input_std) == (0.5, 0.5)
    if not merged:
        with pytest.raises(ValueError, match=r"num_heads must be 2, as .*vit\.npz tells, got 4"):
            load(tmp_path / "vit.npz", num_heads=4)


@pytest.mark.parametrize(
    ("prefix", "nest", "note"),
    [
        ("module.", None, "prefix 'module.' taken off"),
        ("module.backbone.", "state_dict", "weights of 'state_dict' taken"),
        ("model.", "model", "weights of 'model' taken"),
        ("backbone.", "teacher", "DINO, timm"),
    ],
)
def test_prefixes_and_nests_are_taken_off_and_said(timm, expected, tmp_path, prefix, nest, note):
    def wrap(inner):
        options = b"cargparse\nNamespace\n)\x81" + mapping({"lr": b"K\x01"}) + b"b"
        return inner if nest is None else mapping({nest: inner, "epoch": b"K\x03", "args": options})

    tensors = {prefix + name: x for name, x in timm.items()}
    path = torch_file(tmp_path / ("dino.pth" if nest == "teacher" else "a.pth"), tensors, wrap)
    found = load(path)
    assert same(found.variables, expected)
    assert any(note in line for line in found.notes)


def test_shared_strided_and_big_endian_storages_are_read(timm, expected, tmp_path):
    flat = np.concatenate([x.ravel(order="F") for x in timm.values()])
    items, offset = {}, 0
    for name, x in timm.items():
        strides = [int(np.prod(x.shape[:i])) for i in range(x.ndim)]
        items[name] = torch_tensor("7", "FloatStorage", flat.size, x.shape, strides, offset)
        offset += x.size
    path = write_torch(tmp_path / "a.pth", mapping(items), {"7": flat.astype(">f4").tobytes()})
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as big, zipfile.ZipFile(path) as small:
        for info in small.infolist():
            member = small.read(info)
            big.writestr(info.filename, b"big" if member == b"little" else member)
    assert same(load(tmp_path / "b.pth").variables, expected)


SYSTEM = b"cposix\nsystem\n(" + text("touch {}") + b"tR"


@pytest.mark.parametrize(
    ("description", "named"),
    [
        (SYSTEM, r"posix\.system"),
        (b"cbuiltins\neval\n(" + text("1") + b"tR", r"builtins\.eval"),
        (b"cmodels.vit\nViT\n)\x81", r"models\.vit\.ViT"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n.", "_rebuild_tensor_v3"),
        (b"ctorch.storage\n_load_from_bytes\n(" + b"C\x01ctR", "_load_from_bytes"),
        # An attribute of what is allowed is not allowed.
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93", r"OrderedDict\.__init__"),
    ],
)
def test_nothing_in_a_pickle_is_executed(tmp_path, description, named):
    mark = tmp_path / "executed"
    command = description.replace(text("touch {}"), text(f"touch {mark}"))
    path = write_torch(tmp_path / "a.pth", command, {})
    with pytest.raises(ValueError, match=rf"a\.pth holds .*{named}.*convert it.*a\.safetensors"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "description",
    [
        torch_tensor("0", "FloatStorage", 4, [2, 3], [3, 1]),
        torch_tensor("0", "FloatStorage", 4, [2], [1], offset=3),
        torch_tensor("0", "FloatStorage", 4, [2], [-1], offset=3),
        torch_tensor("0", "FloatStorage", 4, [10**9, 10**9], [0, 0]),
        torch_tensor("0", "FloatStorage", 5, [5], [1]),
        torch_tensor("0", "DoubleStorage", 4, [4], [1]),
        torch_tensor("1", "FloatStorage", 4, [4], [1]),
        torch_tensor("0", "OddStorage", 4, [4], [1]),
        b"}r\xff\xff\xff\x7f",  # a memo of 2 GiB entries
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f",  # bytes beyond the end
        b"\x80\x04\x95\xff",
        b"}",
        b"]",
    ],
)
def test_lying_descriptions_are_refused(tmp_path, description):
    content = np.arange(4, dtype="f4").tobytes()
    path = write_torch(tmp_path / "a.pth", mapping({"cls_token": description}), {"0": content})
    with pytest.raises(ValueError, match=r"a\.pth"):
        load(path)


def test_what_one_file_does_to_the_reader_is_gone_with_it(timm, expected, tmp_path):
    """BUILD sets attributes of a class that a pickle can name."""
    spoil = b"ccollections\nOrderedDict\n(N" + mapping({"__init__": b"ctorch\nSize\n"}) + b"tb"
    with pytest.raises(ValueError, match=r"bad\.pth"):
        load(write_torch(tmp_path / "bad.pth", spoil, {}))
    assert same(load(torch_file(tmp_path / "good.pth", timm)).variables, expected)


@pytest.mark.parametrize("file", ["pth", "npz", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_cut_files_are_refused_by_name(timm, tmp_path, file, kept):
    path = tmp_path / f"cut.{file}"
    if file == "pth":
        torch_file(path, timm)
    elif file == "npz":
        np.savez(path, **timm)
    else:
        package = pytest.importorskip("safetensors.numpy")
        package.save_file(timm, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"cut\.{file}"):
        load(path)


def safetensors(header, body=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}, bytes(28)),
        safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 32]}}, bytes(32)),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                     "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, bytes(24)),
        safetensors({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, bytes(4)),
        (10**9).to_bytes(8, "little") + b"{}",
        pickle.dumps({"cls_token": 1}, 2),
        b"GGUF\x03\0\0\0\x93\x01\0\0",
        b"\x89HDF\r\n\x1a\n\0",
    ],
)  # fmt: skip
def test_lying_headers_and_other_formats_are_refused(tmp_path, content):
    pytest.importorskip("safetensors")
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin"):
        load(tmp_path / "a.bin")


def test_an_old_pickle_is_refused_with_the_line_that_converts_it(tmp_path):
    (tmp_path / "old.pth").write_bytes(
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    )
    with pytest.raises(
        ValueError, match=r"before 1\.6.*torch\.load\('old\.pth'.*'old\.safetensors'"
    ):
        load(tmp_path / "old.pth")


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_safetensors_file_whose_length_begins_like_another_format_is_read(
    timm, expected, tmp_path, first
):
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    for length in range(256):
        package.save_file(timm, path, metadata={"note": "x" * length})
        if path.read_bytes()[0] == first:
            break
    assert path.read_bytes()[0] == first
    assert same(load(path).variables, expected)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"pointer of Git LFS.*git lfs pull"):
        load(tmp_path / "a.safetensors")


def test_a_compressed_member_is_refused(timm, tmp_path):
    path = write_torch(
        tmp_path / "a.pth", b"}", {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ValueError, match="compressed"):
        load(path)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"dist_token": np.zeros((1, 1, 8))}, "distilled DeiT"),
        ({"register_tokens": np.zeros((1, 4, 8))}, "register tokens"),
        ({"blocks.0.mlp.w12.weight": np.zeros((8, 8))}, "gated MLPs"),
        ({"blocks.0.attn.rel_pos_h": np.zeros((8, 8))}, "relative positions"),
        ({"blocks.0.attn.q_norm.weight": np.zeros(8)}, "normalizes queries"),
        ({"norm_pre.weight": np.zeros(8)}, "CLIP"),
        ({"fc_norm.weight": np.zeros(8)}, "mean of its tokens"),
        ({"attn_pool.latent": np.zeros((1, 1, 8))}, "pools by attention"),
        ({"patch_embed.backbone.stem.conv.weight": np.zeros((8, 3, 7, 7))}, "hybrid"),
    ],
)
def test_other_networks_are_refused_by_name(timm, tmp_path, more, what):
    np.savez(tmp_path / "a.npz", **timm, **more)
    with pytest.raises(ValueError, match=rf"a\.npz: holds .*{what}.*{next(iter(more))}"):
        load(tmp_path / "a.npz")


TORCHVISION = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding",
               "patch_embed.proj": "conv_proj", "head": "heads.head", "norm1": "ln_1",
               "norm2": "ln_2", "norm": "encoder.ln", "attn.qkv.": "self_attention.in_proj_",
               "attn.proj": "self_attention.out_proj", "mlp.fc1": "mlp.linear_1",
               "mlp.fc2": "mlp.3"}  # fmt: skip


def test_torchvisions_names_are_those_of_the_same_tensors(timm, expected, tmp_path):
    renamed = {}
    for name, x in timm.items():
        block, bare = re.match(r"(blocks\.\d+\.)?(.*)", name).groups()
        for ours, theirs in TORCHVISION.items():
            if bare.startswith(ours) and (ours != "norm" or not block):
                bare = bare.replace(ours, theirs, 1)
                break
        block = "" if block is None else block.replace("blocks.", "encoder.layers.encoder_layer_")
        renamed[block + bare] = x
    assert {"encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "encoder.ln.bias",
            "encoder.layers.encoder_layer_0.mlp.3.weight"} < renamed.keys()  # fmt: skip
    np.savez(tmp_path / "a.npz", **renamed)
    assert same(load(tmp_path / "a.npz").variables, expected)


def test_a_class_token_may_have_no_position_as_in_deit_iii(timm, expected, tmp_path):
    gamma = {f"blocks.{i}.gamma_{k}": np.full(8, 2.0, np.float32) for i in (0, 1) for k in (1, 2)}
    patches = timm["pos_embed"][:, 1:]
    np.savez(tmp_path / "a.npz", **{**timm, **gamma, "pos_embed": patches})
    found = load(tmp_path / "a.npz").variables["params"]
    np.testing.assert_array_equal(found["pos_embed"][:, 1:], patches)
    np.testing.assert_array_equal(found["pos_embed"][:, 0], 0)
    doubled = found["block_1"]["attn"]["out"]["kernel"]
    np.testing.assert_array_equal(
        doubled, 2 * expected["params"]["block_1"]["attn"]["out"]["kernel"]
    )


def test_files_without_or_with_two_transformers_are_refused(timm, tmp_path):
    np.savez(tmp_path / "none.npz", **{"conv.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"none\.npz: holds no vision transformer.*conv\.weight"):
        load(tmp_path / "none.npz")
    both = {f"{half}.{name}": x for half in ("left", "right") for name, x in timm.items()}
    np.savez(tmp_path / "two.npz", **both)
    with pytest.raises(ValueError, match=r"several transformers.*left.*right"):
        load(tmp_path / "two.npz")


def test_layer_scale_patches_of_14_and_other_positions_are_read(tmp_path):
    """DINOv2's layout against the equations, its factors where they stand."""
    rng = np.random.default_rng(0)
    model = models.VisionTransformer(28, 14, 3, 8, 1, 2, 16, 0)
    layers = {"patch_embed.proj": (8, 3, 14, 14), "blocks.0.norm1": (8,), "blocks.0.norm2": (8,),
              "blocks.0.attn.qkv": (24, 8), "blocks.0.attn.proj": (8, 8), "norm": (8,),
              "blocks.0.mlp.fc1": (16, 8), "blocks.0.mlp.fc2": (8, 16)}  # fmt: skip
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {"cls_token": (1, 1, 8), "pos_embed": (1, 10, 8), "mask_token": (1, 8)}
    tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    gamma = {f"blocks.0.ls{k}.gamma": rng.normal(size=8).astype("f4") for k in (1, 2)}
    np.savez(tmp_path / "dinov2_vits14.npz", **tensors, **gamma)
    found = load(tmp_path / "dinov2_vits14.npz", image_size=28, keep_head=False)
    assert found.model.image_size == 28
    assert found.model.input_mean == (0.485, 0.456, 0.406)
    assert any("resized from 42 to 28" in note for note in found.notes)
    plain = dict(tensors)
    del plain["mask_token"]
    plain["pos_embed"] = published_weights.resize_positions(plain["pos_embed"], 5, antialias=False)
    bare = tensor_names.convert("timm", plain, model)["params"]["block_0"]
    folded = found.variables["params"]["block_0"]
    for layer, k in ((("attn", "out"), 1), (("mlp", "fc2"), 2)):
        (outer, inner), ins = layer, (2, 4) if layer[0] == "attn" else (16,)
        rows = rng.normal(size=(3, *ins)).astype("f4")
        axes = list(range(-len(ins), 0)), list(range(len(ins)))
        one, two = (tree[outer][inner] for tree in (bare, folded))
        scaled = gamma[f"blocks.0.ls{k}.gamma"] * (
            np.tensordot(rows, one["kernel"], axes) + one["bias"]
        )
        np.testing.assert_allclose(
            np.tensordot(rows, two["kernel"], axes) + two["bias"], scaled, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "family", "mean"),
    [
        ("deit_small_patch16_224.npz", "DeiT", 0.485),
        ("dino_vitbase16_pretrain.npz", "DINO", 0.485),
        ("mae_pretrain_vit_base.npz", "MAE", 0.485),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k.npz", "augreg", 0.5),
        ("backbone.npz", "", 0.0),
    ],
)
def test_the_family_tells_the_normalization(timm, tmp_path, name, family, mean):
    np.savez(tmp_path / name, **timm)
    found = load(tmp_path / name)
    assert np.ravel(found.model.input_mean)[0] == mean
    assert found.notes[0].startswith(family)
    assert ("nothing tells" in found.notes[-1]) == (family == "")
    assert load(tmp_path / name, normalization="0.1/0.2").model.input_std == 0.2


def test_heads_are_asked_for_where_nothing_tells_them(timm, tmp_path):
    np.savez(tmp_path / "a.npz", **timm)
    with pytest.raises(ValueError, match=r"num_heads must be given.*width 8 in 2 blocks"):
        load(tmp_path / "a.npz", num_heads=None)
    with pytest.raises(ValueError, match="num_heads must divide width=8, got 3"):
        load(tmp_path / "a.npz", num_heads=3)
    facts = {"patch_size": 4, "num_attention_heads": 4, "layer_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    model = load(tmp_path / "a.npz", num_heads=None).model
    assert (model.num_heads, model.epsilon, model.input_std) == (4, 1e-5, (0.4, 0.5, 0.6))
    with pytest.raises(ValueError, match=r"num_heads must be 4, as .* tells, got 2"):
        load(tmp_path / "a.npz")


def test_torch_writes_what_is_read_and_the_advice_converts_the_rest(
    timm, expected, tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(x) for name, x in timm.items()}
    strided = {n: x.T.contiguous().T if x.ndim == 2 else x for n, x in tensors.items()}
    kept = [torch.nn.Parameter(x) for x in tensors.values()]
    for state in (strided, dict(zip(tensors, kept, strict=True)), {"model": tensors, "epoch": 1}):
        torch.save(state, tmp_path / "a.pth")
        assert same(load(tmp_path / "a.pth").variables, expected)
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="before 1") as refused:
        load(tmp_path / "old.pth")
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).partition('python -c "')[2].removesuffix('"'), {})
    assert same(load(tmp_path / "old.safetensors").variables, expected)


def test_a_buffer_of_garbage_never_escapes_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + mapping(
            {"cls_token": torch_tensor("0", "FloatStorage", 4, [4], [1])}) + b".")  # fmt: skip
        archive.writestr("archive/data/0", bytes(16))
    content = np.frombuffer(good.getvalue(), np.uint8)
    for _ in range(200):
        spoilt = content.copy()
        spoilt[rng.integers(4, len(content), 6)] = rng.integers(0, 256, 6)
        (tmp_path / "a.pth").write_bytes(spoilt.tobytes())
        try:
            weight_files.read_weights(tmp_path / "a.pth")
        except ValueError:
            pass
