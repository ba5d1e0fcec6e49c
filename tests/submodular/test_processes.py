"""Two real processes on loopback select what one selects."""

import textwrap

import numpy as np
import pytest

SELECTIONS = textwrap.dedent(
    """
    import jax
    import numpy as np
    from jaxkit import submodular, training

    def selected():
        mesh = jax.make_mesh((jax.device_count(),), ("candidates",))
        matrix = np.random.default_rng(0).uniform(size=(33, 64)).astype(np.float32)
        found = {}
        for name, function in {
            "facility location": submodular.facility_location(matrix),
            "log det": submodular.log_det(matrix.T @ matrix / 33, 1.0, max_size=6),
        }.items():
            split = submodular.shard_candidates(function, mesh)
            for maximise in (submodular.greedy, submodular.lazy_greedy):
                chosen = maximise(split, 6)
                found[f"{name} by {maximise.__name__}"] = [
                    np.asarray(chosen.indices).tolist(), np.asarray(chosen.gains).tolist()
                ]
        return found
    """
)

PROGRAM = SELECTIONS + textwrap.dedent(
    """
    import json

    with training.distributed_run():
        found = selected()
        if jax.process_index() == 0:
            print("RESULT", json.dumps([jax.process_count(), jax.device_count(), found]))
    """
)


@pytest.mark.slow
@pytest.mark.usefixtures("devices")
def test_two_processes_select_what_one_selects(on_processes):
    here = {}
    exec(SELECTIONS, here)
    want = here["selected"]()
    *together, got = on_processes(PROGRAM, 2)
    assert together == [2, 8]
    assert got.keys() == want.keys()
    for name, (indices, gains) in want.items():
        assert got[name][0] == indices
        np.testing.assert_allclose(got[name][1], gains, rtol=1e-5)
