"""ViT-B/16 at 224 pixels: real steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models
from jaxkit.continual import batches, sema_programs

MODEL = models.VisionTransformer(num_classes=0, dtype=jnp.bfloat16, remat=True)
CONFIG = continual.SEMAConfig(MODEL, 200)


def one_step(backbone, learning, batch):
    trainable = sema_programs.Trainable(jnp.array(True), jnp.ones(3, bool))
    learning, losses = sema_programs.train_steps(
        CONFIG, "images", backbone, learning, trainable, jnp.arange(200) < 10, batch,
        jax.random.key(0),
    )  # fmt: skip
    return learning, losses[0]


@pytest.mark.slow
def test_a_step_over_two_devices_learns_and_keeps_shapes_and_types(bad_input):
    image = jnp.zeros((1, 224, 224, 3))
    backbone = nn.meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), image))
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
    after, first = one_step(backbone, learning, batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), learning, after)
    assert jax.tree.all(same)
    assert {x.dtype for x in jax.tree.leaves(after.sema.params)} == {jnp.dtype("float32")}
    learning, second = one_step(backbone, after, batch)
    assert np.isfinite(first)
    assert second < first
    assert learning.sema.records.count[:, 0].tolist() == [4, 4, 4]
