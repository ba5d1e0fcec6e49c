"""ViT-B/16 at 224 pixels: shapes, and one real step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models

MODEL = models.VisionTransformer(num_classes=0, dtype=jnp.bfloat16, remat=True)
CONFIG = continual.SEMAConfig(MODEL, 200)


def arguments(batch):
    """Abstract arguments of a step."""
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    backbone = nn.meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), images))
    rule = continual.sgd()
    learning = jax.eval_shape(
        lambda: continual.init_learning(continual.init_sema(jax.random.key(0), CONFIG), rule)
    )
    batches = continual.StepBatches(
        images, jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), None,
    )  # fmt: skip
    return rule, backbone, learning, batches


def one_step(rule, backbone, learning, batch):
    slots = jnp.zeros((3, 20), bool).at[:, 0].set(True)
    trainable = continual.Trainable(jnp.array(True), slots, jnp.array(True))
    classes = jnp.arange(200) < 10
    return continual.classification_step(
        CONFIG, rule, "images", None, backbone, learning, trainable, classes, batch,
        jax.random.key(0),
    )  # fmt: skip


@pytest.mark.slow
def test_a_step_keeps_every_shape_and_float32_parameters(bad_input):
    rule, backbone, learning, batch = arguments(32)
    after, loss = jax.eval_shape(lambda b, s, x: one_step(rule, b, s, x), backbone, learning, batch)
    assert loss.shape == ()
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), learning, after)
    assert jax.tree.all(same)
    assert {x.dtype for x in jax.tree.leaves(after.sema.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_one_real_step_on_random_weights_learns_split_over_two_devices(bad_input):
    rule, backbone, _, _ = arguments(2)
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.02 if len(leaf.shape) > 1 else 0.1
        return (scale * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:2])  # fmt: skip
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    backbone = jax.device_put(jax.tree.map(draw, backbone), everywhere)
    learning = continual.init_learning(continual.init_sema(jax.random.key(0), CONFIG), rule)
    learning = jax.device_put(learning, everywhere)
    images, labels = rng.random((2, 224, 224, 3), np.float32), np.array([3, 7], np.int32)
    batch = continual.StepBatches(
        *jax.device_put((images, labels), split), jnp.int32(2), jnp.float32(0.05), jnp.int32(0),
        None,
    )  # fmt: skip
    step = jax.jit(lambda s, x: one_step(rule, backbone, s, x))
    learning, first = step(learning, batch)
    learning, second = step(learning, batch)
    assert np.isfinite(first)
    assert second < first
    assert learning.sema.records.count[:, 0].tolist() == [4, 4, 4]
