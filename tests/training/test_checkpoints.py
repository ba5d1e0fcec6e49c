import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import training


def make_state(step, mesh_text="data=8"):
    mesh = training.make_mesh(mesh_text)
    params = {"w": jnp.arange(64.0).reshape(8, 8) + step}
    split = NamedSharding(mesh, P("fsdp", "tensor"))
    params = jax.device_put(params, split)
    everywhere = training.replicated(mesh)
    return training.TrainState(
        jax.device_put(jnp.int32(step), everywhere),
        params,
        optax.adam(0.1).init(params),
        jax.device_put(jax.random.key(7), everywhere),
    )


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_bit_for_bit_with_its_record(tmp_path):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3), {"batches": {"position": 5}})
    with training.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored.record == {"batches": {"position": 5}}
    assert_equal(restored.state, make_state(3))


def test_the_latest_are_kept_and_an_empty_folder_gives_none(tmp_path):
    with training.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(make_state(0)) is None
        for step in (1, 2, 3, 3):
            checkpoints.save(make_state(step), {})
        checkpoints.wait()
        assert checkpoints.steps == [2, 3]


def test_a_state_moves_to_another_mesh(tmp_path):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3, "data=8"), {})
        checkpoints.wait()
        like = make_state(0, "fsdp=4,tensor=2")
        restored = checkpoints.restore(like)
    assert restored.state.params["w"].sharding == like.params["w"].sharding
    assert_equal(restored.state, make_state(3))


@pytest.fixture
def abandoned_reads():
    """Collect what Orbax abandons in this test and not in a later one."""
    yield
    gc.collect()


# Orbax abandons its other reads when one fails; Python warns of them when they are collected.
ignore_abandoned_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@ignore_abandoned_reads
@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("fault", ["truncated", "missing", "garbage"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, fault):
    with training.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step), {"at": step})
    data = max((tmp_path / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    if fault == "truncated":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif fault == "garbage":
        data.write_bytes(b"\0" * data.stat().st_size)
    else:
        data.unlink()
    said = []
    with training.Checkpoints(tmp_path, report=said.append) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert checkpoints.steps == [1]
    assert restored.record == {"at": 1}
    assert len(said) == 1
    assert "checkpoint 2" in said[0]
    assert "cannot be read" in said[0]
    assert (tmp_path / "damaged-2").exists()


@ignore_abandoned_reads
@pytest.mark.usefixtures("abandoned_reads")
def test_when_every_checkpoint_is_damaged_nothing_is_started_silently(tmp_path):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {})
    for path in (tmp_path / "1").rglob("d/*"):
        path.unlink()
    with (
        training.Checkpoints(tmp_path, report=lambda line: None) as checkpoints,
        pytest.raises(OSError, match="none of the 1 checkpoints"),
    ):
        checkpoints.restore(make_state(0))


def test_what_a_killed_save_left_behind_is_removed(tmp_path):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {})
    leftover = tmp_path / "2.orbax-checkpoint-tmp-1"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with training.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
        assert int(checkpoints.restore(make_state(0)).state.step) == 1
