"""ViT-B/16 at 224 pixels: shapes, and one real step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models
from jaxkit.continual import batches, sema_programs

MODEL = models.VisionTransformer(num_classes=0, dtype=jnp.bfloat16, remat=True)
CONFIG = continual.SEMAConfig(MODEL, 200)


def arguments(batch):
    """Abstract arguments of one step in a program of one."""
    images = jax.ShapeDtypeStruct((1, batch, 224, 224, 3), jnp.float32)
    backbone = nn.meta.unbox(
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros(images.shape[1:]))
    )
    learning = jax.eval_shape(
        lambda: sema_programs.begin_phase(CONFIG, continual.init_sema(jax.random.key(0), CONFIG))
    )
    one, rate = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, batch), jnp.int32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return backbone, learning, batches.StepBatches(images, labels, one, rate, one, count)


def one_step(backbone, learning, batch):
    trainable = sema_programs.Trainable(jnp.array(True), jnp.ones(3, bool))
    learning, losses = sema_programs.train_steps(
        CONFIG, "images", None, backbone, learning, trainable, jnp.arange(200) < 10, batch,
        jax.random.key(0),
    )  # fmt: skip
    return learning, losses[0]


@pytest.mark.slow
def test_a_step_keeps_every_shape_and_float32_parameters(bad_input):
    backbone, learning, batch = arguments(32)
    after, loss = jax.eval_shape(one_step, backbone, learning, batch)
    assert loss.shape == ()
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), learning, after)
    assert jax.tree.all(same)
    assert {x.dtype for x in jax.tree.leaves(after.sema.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_one_real_step_on_random_weights_learns_split_over_two_devices(bad_input):
    backbone, _, _ = arguments(2)
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.02 if len(leaf.shape) > 1 else 0.1
        return (scale * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:2])  # fmt: skip
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    backbone = jax.device_put(jax.tree.map(draw, backbone), everywhere)
    learning = sema_programs.begin_phase(CONFIG, continual.init_sema(jax.random.key(0), CONFIG))
    learning = jax.device_put(learning, everywhere)
    images, labels = rng.random((1, 2, 224, 224, 3), np.float32), np.array([[3, 7]], np.int32)
    batch = batches.StepBatches(
        *jax.device_put((images, labels), split), np.array([2], np.int32),
        np.array([0.05], np.float32), np.array([0], np.int32), np.int32(1),
    )  # fmt: skip
    learning, first = one_step(backbone, learning, batch)
    learning, second = one_step(backbone, learning, batch)
    assert np.isfinite(first)
    assert second < first
    assert learning.sema.records.count[:, 0].tolist() == [4, 4, 4]
