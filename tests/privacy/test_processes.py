"""Two real processes on loopback give the private steps of one."""

import textwrap

import numpy as np
import pytest

PROGRAM = textwrap.dedent(
    """
    import json
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jaxkit import privacy, training

    with training.distributed_run():
        mesh = training.make_mesh("data=-1")
        index, count = training.local_rows(mesh, 16)
        rows = slice(index * 16 // count, (index + 1) * 16 // count)
        random = np.random.default_rng(0)
        inputs = random.normal(size=(16, 5)).astype(np.float32)
        inputs[3, 1] = np.nan
        labels = random.integers(0, 3, 16).astype(np.int32)
        mask = np.arange(16) < 14
        batch = {"inputs": inputs[rows], "labels": labels[rows], "mask": mask[rows]}
        batch = training.place_batch(batch, mesh)

        def loss(params, batch, key):
            logits = nn.Dense(3).apply({"params": params}, batch["inputs"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            return jnp.mean(losses)

        params = {"kernel": jnp.eye(5, 3), "bias": jnp.zeros(3)}
        found = {}
        for name, gradient in {
            "vmap": privacy.clipped_grad_sum(loss, 0.4),
            "microbatches": privacy.clipped_grad_sum(loss, 0.4, microbatch_size=8),
            "per layer": privacy.clipped_grad_sum(loss, 0.4, mode="per_layer"),
            "ghost": privacy.clipped_grad_sum(loss, 0.4, method="ghost"),
            "mesh": privacy.clipped_grad_sum(loss, 0.4, microbatch_size=1, mesh=mesh),
        }.items():
            noise = privacy.privatize_sum(1.0, 16, jax.random.key(1))

            @jax.jit
            def step(params, batch):
                rows = {"inputs": batch["inputs"], "labels": batch["labels"]}
                result = gradient(params, rows, None, batch["mask"])
                updates, _ = noise.update(result, noise.init(params))
                return result.loss, result.count, result.clipped, result.non_finite, updates

            found[name] = [np.asarray(x).tolist() for x in jax.tree.leaves(step(params, batch))]
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
def test_two_processes_take_the_private_step_of_one(on_processes):
    one, devices, alone = on_processes(PROGRAM, 1)
    two, same, together = on_processes(PROGRAM, 2)
    assert (one, two, devices, same) == (1, 2, 8, 8)
    for name, expected in alone.items():
        for here, there in zip(together[name], expected, strict=True):
            np.testing.assert_allclose(here, there, atol=1e-6)
        assert expected[1:4] == [14, expected[2], 1]  # of 14 examples one has no finite gradient
        np.testing.assert_allclose(expected[0], alone["vmap"][0], rtol=1e-5)
    for name in ("microbatches", "ghost", "mesh"):  # one draw of noise, whatever made the sum
        for here, there in zip(alone[name], alone["vmap"], strict=True):
            np.testing.assert_allclose(here, there, atol=1e-6)
