"""The recorder: right norms, untouched updates, and a life through jit, meshes and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from jaxkit.schedules import gradient_norm, record_gradient_norms, recorded_norms
from jaxkit.schedules.recorder import GradientNormState

PARAMS = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32)}
POWER = {"l2": 2, "l1": 1}


def gradients(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=4), jnp.float32),
        }
        for _ in range(n)
    ]


def norms_of(grads, norm="l2"):
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in grads]
    return [np.linalg.norm(np.asarray(g, np.float64), POWER[norm]) for g in flat]


def run(transformation, grads, state=None):
    state = transformation.init(PARAMS) if state is None else state
    update = jax.jit(transformation.update)
    outputs = []
    for g in grads:
        out, state = update(g, state, PARAMS)
        outputs.append(out)
    return outputs, state


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("num_bins", [20, 1024])
def test_with_a_bin_an_update_it_keeps_every_norm(norm, num_bins):
    grads = gradients(20)
    _, state = run(record_gradient_norms(20, num_bins, norm), grads)
    np.testing.assert_allclose(recorded_norms(state), norms_of(grads, norm), rtol=1e-6)


@pytest.mark.parametrize(("total", "bins"), [(20, 7), (20, 3), (2**31 - 1, 1024)])
def test_updates_fall_in_the_bins_of_exact_integer_division(total, bins):
    transformation = record_gradient_norms(total, bins)
    edges = [0, 1, total // 3, total // 2, total - 2, total - 1]
    edges += [-(-b * total // bins) + shift for b in (1, 2, bins - 1) for shift in (-1, 0)]
    update = jax.jit(transformation.update)
    for count in edges:
        state = transformation.init(PARAMS)._replace(count=jnp.int32(count))
        _, state = update(PARAMS, state)
        assert np.flatnonzero(state.hits).tolist() == [count * bins // total]


def test_bins_hold_the_mean_of_their_norms():
    grads = gradients(20)
    _, state = run(record_gradient_norms(20, 6), grads)
    norms, where = np.array(norms_of(grads)), np.arange(20) * 6 // 20
    expected = [norms[where == b].mean() for b in range(6)]
    np.testing.assert_allclose(recorded_norms(state), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_updates_are_bit_identical_with_and_without(name):
    after = optax.chain(optax.clip_by_global_norm(0.5), getattr(optax, name)(0.1))
    grads = gradients(10)
    plain, _ = run(after, grads)
    recorded, state = run(optax.chain(record_gradient_norms(10), after), grads)
    jax.tree.map(np.testing.assert_array_equal, plain, recorded)
    # And a clip that comes later is not seen.
    np.testing.assert_allclose(recorded_norms(state), norms_of(grads), rtol=1e-6)


def test_the_same_inside_scan_and_vmap():
    grads = gradients(12)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
    transformation = record_gradient_norms(12)
    _, loop = run(transformation, grads)

    def step(state, g):
        return transformation.update(g, state)[::-1]

    scanned, _ = lax.scan(step, transformation.init(PARAMS), stacked)
    np.testing.assert_allclose(recorded_norms(scanned), recorded_norms(loop), rtol=1e-6)

    pairs = jax.tree.map(lambda g: jnp.stack([g, 2 * g], axis=1), stacked)
    both, _ = lax.scan(
        jax.vmap(step), jax.vmap(lambda _: transformation.init(PARAMS))(jnp.arange(2)), pairs
    )
    expected = [np.asarray(recorded_norms(loop)) * k for k in (1, 2)]
    np.testing.assert_allclose(recorded_norms(both), expected, rtol=1e-6)


def test_a_loop_traces_it_once(count_traces):
    transformation = record_gradient_norms(10)
    counted = count_traces(transformation.update)
    update, state = jax.jit(counted), transformation.init(PARAMS)
    for g in gradients(10):
        _, state = update(g, state)
    assert counted.count == 1


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflowed_gradient_is_counted_and_skipped(bad):
    grads = gradients(9)
    expected = norms_of(grads)
    grads[4] = jax.tree.map(lambda g: g.at[0].set(bad), grads[4])
    outputs, state = run(record_gradient_norms(9), grads)
    assert int(state.count) == 9
    assert state.hits.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    expected[4] = (expected[3] + expected[5]) / 2
    np.testing.assert_allclose(recorded_norms(state), expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, outputs[4], grads[4])


def test_updates_beyond_the_budget_are_not_recorded():
    grads = gradients(9)
    _, state = run(record_gradient_norms(5), grads)
    assert int(state.count) == 9
    np.testing.assert_allclose(recorded_norms(state), norms_of(grads[:5]), rtol=1e-6)


def test_low_precision_gradients_are_summed_in_float32():
    gradient = {"w": jnp.full(10_000, 0.01, jnp.bfloat16)}
    exact = float(jnp.bfloat16(0.01))
    assert float(gradient_norm(gradient)) == pytest.approx(exact * 100, rel=1e-5)
    assert float(gradient_norm(gradient, "l1")) == pytest.approx(exact * 10_000, rel=1e-5)
    _, state = record_gradient_norms(1).update(gradient, record_gradient_norms(1).init(gradient))
    assert state.total.dtype == jnp.float32


def test_under_accumulation_it_sees_one_mean_gradient_an_update():
    grads = gradients(12)
    optimizer = optax.MultiSteps(
        optax.chain(record_gradient_norms(4), optax.sgd(0.1)), every_k_schedule=3
    )
    _, state = run(optimizer, grads)
    means = [
        jax.tree.map(lambda *g: sum(g) / 3, *grads[i : i + 3]) for i in range(0, len(grads), 3)
    ]
    np.testing.assert_allclose(recorded_norms(state), norms_of(means), rtol=1e-5)


def test_a_checkpoint_in_mid_run_continues_as_if_nothing_had_happened(tmp_path):
    grads = gradients(10)
    transformation = optax.chain(record_gradient_norms(10, 4), optax.adam(0.1))
    _, straight = run(transformation, grads)
    _, half = run(transformation, grads[:5])
    ocp.save(tmp_path / "state", half)
    restored = ocp.load(tmp_path / "state", transformation.init(PARAMS))
    _, resumed = run(transformation, grads[5:], restored)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_gradients_sharded_over_eight_devices_give_the_same_norm(devices, norm):
    mesh = Mesh(np.array(devices), ("fsdp",))
    whole = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)}
    spread = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("fsdp")))
    transformation = record_gradient_norms(2, norm=norm)
    expected = norms_of([whole], norm)

    _, state = jax.jit(transformation.update)(spread, transformation.init(whole))
    np.testing.assert_allclose(recorded_norms(state)[:1], expected, rtol=1e-6)
    assert state.total.sharding.is_fully_replicated

    manual = record_gradient_norms(2, norm=norm, axis_name="fsdp")
    _, state = jax.shard_map(
        manual.update,
        mesh=mesh,
        in_specs=(PartitionSpec("fsdp"), PartitionSpec()),
        out_specs=(PartitionSpec("fsdp"), PartitionSpec()),
    )(spread, manual.init(whole))
    np.testing.assert_allclose(recorded_norms(state)[:1], expected, rtol=1e-6)


def test_a_run_still_going_holds_its_last_norm_to_the_end():
    grads = gradients(3)
    _, state = run(record_gradient_norms(6), grads)
    last = norms_of(grads)[-1]
    np.testing.assert_allclose(recorded_norms(state)[2:], [last] * 4, rtol=1e-6)


def test_the_norms_are_found_inside_a_train_state():
    state = train_state.TrainState.create(
        apply_fn=None,
        params=PARAMS,
        tx=optax.chain(record_gradient_norms(1), optax.adam(0.1)),
    )
    grads = gradients(1)[0]
    state = state.apply_gradients(grads=grads)
    np.testing.assert_allclose(recorded_norms(state), norms_of([grads]), rtol=1e-6)


def test_memory_is_eight_bytes_a_bin_and_a_counter():
    state = record_gradient_norms(10**9, 1024).init(PARAMS)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 8 * 1024 + 4
    assert isinstance(state, GradientNormState)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "total_steps must be an integer >= 1, got 0"),
        ((2.0,), TypeError, "total_steps must be an integer, got 2.0"),
        ((2, 0), ValueError, "num_bins must be an integer >= 1, got 0"),
        ((2, 2, "L2"), ValueError, "norm must be one of 'l2', 'l1', got 'L2'"),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        record_gradient_norms(*arguments)


def test_norms_are_read_out_of_the_state_of_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    chain = optax.chain(record_gradient_norms(2), optax.adam(0.1))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    gradient = nnx.grad(lambda model: jnp.sum(model(jnp.ones(2))))(model)
    optimizer.update(model, gradient)
    for state in (optimizer, nnx.state(optimizer), nnx.to_pure_dict(nnx.state(optimizer))):
        np.testing.assert_allclose(recorded_norms(state), [3.0, 3.0])


def test_a_complex_gradient_counts_by_its_modulus():
    gradient = {"w": jnp.ones(3) * (1 + 1j)}
    assert float(gradient_norm(gradient)) == pytest.approx(6**0.5)
    assert float(gradient_norm(gradient, "l1")) == pytest.approx(3 * 2**0.5)


def test_a_state_without_recorder_or_without_norms_is_refused():
    with pytest.raises(ValueError, match=r"exactly one recorder .* found 0"):
        recorded_norms(optax.sgd(0.1).init(PARAMS))
    both = optax.chain(record_gradient_norms(2), record_gradient_norms(2)).init(PARAMS)
    with pytest.raises(ValueError, match="found 2"):
        recorded_norms(both)
    with pytest.raises(ValueError, match="at least one recorded norm"):
        recorded_norms(record_gradient_norms(2).init(PARAMS))


def test_norms_with_a_gap_are_read_and_refined_under_x64():
    transformation = record_gradient_norms(4)
    state = transformation.init(jnp.ones(1))
    for gradient in (4.0, jnp.nan, 2.0, 1.0):
        _, state = transformation.update(jnp.full(1, gradient), state)
    with jax.enable_x64(True):
        assert recorded_norms(state).tolist() == [4.0, 3.0, 2.0, 1.0]


def test_python_numbers_are_leaves():
    assert float(gradient_norm([[3.0, 4.0]])) == 5.0
