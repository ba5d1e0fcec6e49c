"""Two real processes on loopback make the rounds of one device."""

import textwrap

import numpy as np
import pytest

ROUNDS = textwrap.dedent(
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jaxkit import federated as fl

    def loss(params, batch, key):
        logits = batch["x"] @ params["w"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def made(folder, strata, mapped):
        rng = np.random.default_rng(0)
        data = fl.stack_clients({
            "x": rng.normal(size=(10, 8, 4)).astype(np.float32),
            "y": rng.integers(0, 3, size=(10, 8)).astype(np.int32),
        })
        sampler = fl.stratified_sampler(10, 4, strata)
        training = fl.LocalTraining(loss, batch_size=4, num_epochs=2)
        result = fl.simulate(
            fl.fedspeed(), training, {"w": jnp.zeros((4, 3))}, data, sampler,
            num_rounds=4, key=jax.random.key(0), client_map=mapped, folder=folder,
            checkpoint_every=2,
        )
        losses = [row["loss"] for row in result.history]
        return [np.asarray(result.state.params["w"]).tolist(), losses]
    """
)

PROGRAM = ROUNDS + textwrap.dedent(
    """
    import json
    import sys
    from jaxkit.training import distributed_run

    with distributed_run():
        found = [made(sys.argv[1] + f"/{n}", n, fl.shard_clients()) for n in (4, 1)]
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
def test_two_processes_agree_with_one_device_to_1e_6(on_processes, tmp_path):
    """Where each block of clients has its device, and where cohorts move between them."""
    here = {}
    exec(ROUNDS, here)
    *together, found = on_processes(PROGRAM, 2, tmp_path, devices=4)
    assert together == [2, 4]
    for strata, there in zip((4, 1), found, strict=True):
        alone = here["made"](None, strata, None)
        for ours, theirs in zip(there, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
