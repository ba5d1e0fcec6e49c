"""Two real processes on loopback make the rounds of one device."""

import textwrap

import numpy as np
import pytest

PROGRAM = textwrap.dedent(
    """
    import json
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jaxkit import federated as fl
    from jaxkit.training import distributed_run

    def loss(params, batch, key):
        logits = batch["x"] @ params["w"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    with distributed_run():
        rng = np.random.default_rng(0)
        data = fl.stack_clients({
            "x": rng.normal(size=(10, 8, 4)).astype(np.float32),
            "y": rng.integers(0, 3, size=(10, 8)).astype(np.int32),
        })
        mapped = fl.shard_clients() if jax.device_count() > 1 else fl.vmap_clients()
        sampler = fl.stratified_sampler(10, 4, int(sys.argv[2]))
        training = fl.LocalTraining(loss, batch_size=4, num_epochs=2)
        result = fl.simulate(
            fl.fedspeed(), training, {"w": jnp.zeros((4, 3))}, data, sampler,
            num_rounds=4, key=jax.random.key(0), client_map=mapped, folder=sys.argv[1],
            checkpoint_every=2,
        )
        if jax.process_index() == 0:
            found = [np.asarray(result.state.params["w"]).tolist()]
            found.append([row["loss"] for row in result.history])
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("strata", [4, 1])
def test_two_processes_agree_with_one_device_to_1e_6(on_processes, tmp_path, strata):
    *alone, want = on_processes(PROGRAM, 1, tmp_path / "one", strata, devices=1)
    *together, got = on_processes(PROGRAM, 2, tmp_path / "two", strata, devices=4)
    assert (alone, together) == ([1, 1], [2, 4])
    for here, there in zip(got, want, strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6, rtol=0)
