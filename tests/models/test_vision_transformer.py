"""The backbone against PyTorch forward vectors, in both published layouts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxkit import models, training
from jaxkit.models import published_weights, tensor_names

SMALL = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16,
         "num_classes": 3}  # fmt: skip


@pytest.fixture(scope="module")
def case(golden):
    """Weights in timm's layout, images and outputs."""
    return golden("sema")["vit_weight_conversion"]


@pytest.fixture(scope="module")
def timm(case):
    """timm's tensors."""
    return {k: np.asarray(v, np.float32) for k, v in case["timm_params"].items()}


def as_huggingface(timm):
    """The same weights under Hugging Face's names, written out by hand for two blocks."""
    tensors = {
        "vit.embeddings.cls_token": timm["cls_token"],
        "vit.embeddings.position_embeddings": timm["pos_embed"],
        "vit.embeddings.patch_embeddings.projection.weight": timm["patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": timm["patch_embed.proj.bias"],
        "vit.layernorm.weight": timm["norm.weight"], "vit.layernorm.bias": timm["norm.bias"],
        "classifier.weight": timm["head.weight"], "classifier.bias": timm["head.bias"],
    }  # fmt: skip
    names = {"attention.output.dense": "attn.proj", "layernorm_before": "norm1",
             "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1",
             "output.dense": "mlp.fc2"}  # fmt: skip
    for i in range(2):
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                tensors[f"vit.encoder.layer.{i}.{theirs}.{kind}"] = timm[
                    f"blocks.{i}.{ours}.{kind}"
                ]
            rows = timm[f"blocks.{i}.attn.qkv.{kind}"]
            for part, name in enumerate(("query", "key", "value")):
                tensors[f"vit.encoder.layer.{i}.attention.attention.{name}.{kind}"] = rows[
                    8 * part : 8 * (part + 1)
                ]
    return tensors


@pytest.fixture(scope="module")
def forward():
    """A forward pass at a LayerNorm epsilon, compiled once each."""
    return {
        eps: jax.jit(models.VisionTransformer(**SMALL, epsilon=eps).apply) for eps in (1e-6, 1e-12)
    }


def test_timm_weights_give_pytorchs_outputs(case, timm, forward):
    model = models.VisionTransformer(**SMALL)
    images = jnp.asarray(case["x_nchw"]).transpose(0, 2, 3, 1)
    seen = forward[1e-6](tensor_names.convert("timm", timm, model), images)
    np.testing.assert_allclose(seen["tokens"], case["timm_tokens_after_norm"], atol=1e-5)
    np.testing.assert_allclose(seen["logits"], case["timm_logits"], atol=1e-5)


def test_huggingface_weights_give_pytorchs_outputs(case, timm, forward):
    tensors = as_huggingface(timm)
    assert {k: list(v.shape) for k, v in tensors.items()} == case["hf_key_map"]
    model = models.VisionTransformer(**SMALL, epsilon=1e-12)
    images = jnp.asarray(case["x_nchw"]).transpose(0, 2, 3, 1)
    layout, found, _, _ = tensor_names.recognize(tensors)
    variables = tensor_names.convert(layout, found, model)
    seen = forward[1e-12](variables, images)
    np.testing.assert_allclose(seen["tokens"], case["hf_tokens_after_norm"], atol=1e-5)
    np.testing.assert_allclose(seen["logits"], case["hf_logits"], atol=1e-5)


def test_vit_b16_has_the_tensors_of_the_published_checkpoint(golden):
    published = golden("sema")["vit_b16_timm_shapes"]
    tensors = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in published["shapes"].items()
    }
    model = models.VisionTransformer()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == published["n_params"]
    converted = tensor_names.convert("timm", tensors, model)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, variables, converted))


def test_every_misfit_is_named_at_once(timm):
    broken = dict(timm)
    del broken["norm.bias"]
    broken["blocks.0.mlp.fc1.weight"] = np.zeros((4, 4), np.float32)
    broken["blocks.7.mlp.fc1.weight"] = np.zeros((16, 8), np.float32)
    model = models.VisionTransformer(**SMALL)
    misfits = (
        r"missing: norm\.bias; unexpected: blocks\.7\.mlp\.fc1\.weight; "
        r"misshaped: blocks\.0\.mlp\.fc1\.weight: \[4, 4\] found, \[16, 8\] needed"
    )
    with pytest.raises(ValueError, match=misfits):
        tensor_names.convert("timm", broken, model)
    with pytest.raises(ValueError, match=r"must be finite.*norm\.weight"):
        tensor_names.convert("timm", {**timm, "norm.weight": np.full(8, np.nan, "f4")}, model)


@pytest.mark.parametrize("antialias", [True, False])
def test_position_embeddings_resize_as_pytorch_resizes_them(antialias):
    torch = pytest.importorskip("torch")
    embedding = np.random.default_rng(0).normal(size=(1, 50, 3)).astype(np.float32)
    for side in (4, 10):
        found = published_weights.resize_positions(embedding, side * side + 1, antialias=antialias)
        grid = torch.from_numpy(embedding[:, 1:].reshape(1, 7, 7, 3)).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(
            grid, (side, side), mode="bicubic", antialias=antialias
        )
        expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 3).numpy()
        np.testing.assert_allclose(found[:, 1:], expected, atol=1e-5)
        np.testing.assert_array_equal(found[:, 0], embedding[:, 0])


@pytest.mark.slow
def test_nnx_users_are_served_by_the_bridge(case, timm, forward):
    from flax import nnx

    model = models.VisionTransformer(**SMALL)
    images = jnp.asarray(case["x_nchw"]).transpose(0, 2, 3, 1)
    with nnx.use_eager_sharding(False):
        bridged = nnx.bridge.lazy_init(nnx.bridge.ToNNX(model, nnx.Rngs(0)), images)
    variables = tensor_names.convert("timm", timm, model)
    nnx.update(bridged, nnx.State(_as_nnx(variables["params"], nnx)))
    found = bridged(images)["logits"]
    np.testing.assert_allclose(found, forward[1e-6](variables, images)["logits"], atol=1e-6)


def _as_nnx(tree, nnx):
    return jax.tree.map(nnx.Param, tree)


def test_images_of_another_size_are_refused(bad_input):
    model = models.VisionTransformer(**SMALL)
    with pytest.raises(ValueError, match=r"\[B, 8, 8, 3\].*\[1, 4, 4, 3\]"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="patch_size must divide image_size=8, got 3"):
        models.VisionTransformer(**{**SMALL, "patch_size": 3})


@pytest.mark.slow
def test_parameters_and_activations_are_split_by_the_names_of_their_axes(devices):
    model = models.VisionTransformer(**{**SMALL, "num_classes": 5})
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    boxed = model.init(jax.random.key(0), images)
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    split = jax.device_put(nn.meta.unbox(boxed), training.parameter_shardings(boxed, mesh))
    block = split["params"]["block_0"]
    specs = {
        name: leaf.sharding.spec
        for name, leaf in {
            "query": block["attn"]["query"]["kernel"],
            "out": block["attn"]["out"]["kernel"],
            "fc1": block["mlp"]["fc1"]["kernel"],
            "fc2": block["mlp"]["fc2"]["kernel"],
            "head": split["params"]["head"]["kernel"],
        }.items()
    }
    assert specs == {
        "query": P("fsdp", "tensor", None),
        "out": P("tensor", None, "fsdp"),
        "fc1": P("fsdp", "tensor"),
        "fc2": P("tensor", "fsdp"),
        "head": P("fsdp", None),  # five classes stay whole
    }
    with jax.set_mesh(mesh):
        found = jax.jit(model.apply)(split, jax.device_put(images, training.batch_sharding(mesh)))
    np.testing.assert_allclose(
        found["logits"], jax.jit(model.apply)(boxed, images)["logits"], atol=1e-5
    )
