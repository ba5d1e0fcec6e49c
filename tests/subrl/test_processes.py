"""Two real processes on loopback train the policy that one trains."""

import textwrap

import numpy as np
import pytest

TRAINING = textwrap.dedent(
    """
    import jax
    import numpy as np
    import optax
    from jaxkit import subrl, training

    def trained():
        train = subrl.make_training(
            subrl.two_rooms_world(features="visited"), subrl.CategoricalPolicy(5, hidden=(8,)),
            optax.adam(1e-2), batch_size=16, num_steps=3, mesh=training.make_mesh(),
        )
        _, metrics = jax.jit(train.run)(jax.random.key(0))
        return {name: np.asarray(getattr(metrics, name)).tolist() for name in metrics._fields}
    """
)

PROGRAM = TRAINING + textwrap.dedent(
    """
    import json

    with training.distributed_run():
        found = trained()
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
@pytest.mark.usefixtures("devices")
def test_two_processes_give_the_metrics_of_one(on_processes):
    here = {}
    exec(TRAINING, here)
    want = here["trained"]()
    *together, got = on_processes(PROGRAM, 2)
    assert together == [2, 8]
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
