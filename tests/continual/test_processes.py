"""Two real processes on loopback grow the adapters that one grows."""

import textwrap

import numpy as np
import pytest

PROGRAM = textwrap.dedent(
    """
    import json
    import flax.linen as nn
    import jax
    import numpy as np
    from jaxkit import continual, models, training
    from jaxkit.datasets import ArraySplit

    def split(random, low, high):
        labels = (np.arange(16) % 2).astype(np.int32)
        images = random.uniform(low, high, (16, 4, 4, 1))
        images[..., :2, 0] *= 1 - 0.8 * labels[:, None, None]
        return ArraySplit(*[images.astype(np.float32), labels] * 2)

    with training.distributed_run():
        random = np.random.default_rng(0)
        model = models.VisionTransformer(4, 2, 1, width=8, depth=1, num_heads=2, mlp_dim=8)
        image = np.zeros((1, 4, 4, 1), np.float32)
        shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
        backbone = jax.tree.map(
            lambda x: (0.4 * random.normal(size=x.shape)).astype(x.dtype), shapes
        )
        stream = continual.domain_incremental_stream(
            [("dark", "a", split(random, 0, 0.3)), ("bright", "b", split(random, 0.6, 1.0))],
            ("left", "right"), name="toy",
        )
        config = continual.SEMAConfig(
            model, 4, 2, 3, 0, 0, capacity=2, buffer_size=16, threshold=2.0, train_epochs=2,
            train_learning_rate=0.05, describe_epochs=8, describe_learning_rate=0.05,
            batch_size=8, scan_batch_size=16, steps_per_call=4,
        )
        mesh = jax.make_mesh(
            (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
        )
        learner = continual.SEMALearner(config, backbone, mesh=mesh)
        result = continual.run_stream(learner, stream, seed=3)
        params = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(result.state.sema.params)]
        found = [result.expansions, result.accuracy.tolist(), params]
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
def test_two_processes_give_the_stream_of_one(on_processes):
    *alone, want = on_processes(PROGRAM, 1)
    *together, got = on_processes(PROGRAM, 2)
    assert (alone, together) == ([1, 8], [2, 8])
    (expansions, accuracy, params), (grown, accuracies, leaves) = want, got
    assert grown == expansions == [[1, 0]]
    np.testing.assert_array_equal(accuracies, accuracy)
    for here, there in zip(leaves, params, strict=True):
        np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-5)
