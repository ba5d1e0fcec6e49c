"""Clipped sums: bounds, invariances, non-finite examples, and what they cost in traces."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkit import privacy
from jaxkit.privacy import clipping

compiled_clipping = jax.jit(privacy.clip_per_example, static_argnames="mode")


def rows_of(case):
    first, second = (jnp.asarray(leaf, jnp.float32) for leaf in case["per_example"])
    return {"kernel": first, "bias": second}


@pytest.mark.parametrize(
    ("mode", "field"),
    [("flat", "flat_sum"), ("per_layer", "per_layer_sum"), ("automatic", "auto_s_sum_gamma_0p01")],
)
def test_clipped_sums_equal_recorded_ones(vectors, mode, field, close):
    case = vectors["clipping"]
    result = compiled_clipping(rows_of(case), case["clip_norm"], mode=mode)
    close(np.asarray(result.gradients["kernel"]).sum(0), case[field][0])
    close(np.asarray(result.gradients["bias"]).sum(0), case[field][1])
    close(result.norms, case["norms"])


floats = st.floats(-1024, 1024, width=32, allow_subnormal=False)


@hypothesis.given(
    st.lists(st.lists(floats, min_size=3, max_size=3), min_size=4, max_size=4),
    st.floats(2**-7, 128, width=32),
    st.sampled_from(clipping.MODES),
)
def test_no_example_exceeds_the_clip_norm_in_any_mode(values, clip_norm, mode):
    rows = np.asarray(values, np.float32)
    tree = {"a": rows[:, :2], "b": rows[:, 2:]}
    clipped = compiled_clipping(tree, clip_norm, mode=mode)
    norms = np.sqrt(sum(np.sum(np.square(leaf), 1) for leaf in clipped.gradients.values()))
    assert np.all(norms <= clip_norm * (1 + 1e-6))
    if mode == "per_layer":
        for leaf in clipped.gradients.values():
            assert np.all(np.linalg.norm(leaf, axis=1) <= clip_norm / 2**0.5 * (1 + 1e-6))


def test_zero_gradients_stay_zero_and_finite_in_every_mode():
    tree = {"a": np.zeros((4, 2), np.float32), "b": np.zeros((4, 1), np.float32)}
    for mode in clipping.MODES:
        result = compiled_clipping(tree, 1.0, mode=mode)
        assert not np.any(result.gradients["a"])
        assert not np.any(result.gradients["b"])


@pytest.fixture(scope="module")
def quadratic():
    """Per-example gradients x_i - w of a mean loss, in one compiled program of masks."""

    def loss(params, batch, key):
        del key
        return jnp.mean(jnp.sum(jnp.square(params - batch), axis=-1)) / 2

    def sums(microbatch_size):
        gradient = privacy.clipped_grad_sum(loss, 1.5, microbatch_size=microbatch_size)
        return jax.jit(lambda batch, mask: gradient(jnp.zeros(3), batch, None, mask))

    return sums


def batch_of(seed, rows=7):
    return np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)


def expected_sum(batch, clip_norm=1.5):
    norms = np.linalg.norm(batch.astype(np.float64), axis=1, keepdims=True)
    return -(batch * np.minimum(1, clip_norm / norms)).sum(0)


@pytest.mark.parametrize("microbatch_size", [None, 1, 3])
def test_sums_do_not_depend_on_microbatches_padding_or_order(quadratic, microbatch_size, close):
    batch, mask = batch_of(0), np.ones(7, bool)
    sums = quadratic(microbatch_size)
    expected = expected_sum(batch)
    close(sums(batch, mask).total, expected)
    close(sums(batch[::-1].copy(), mask).total, expected)
    padded, short = batch.copy(), mask.copy()
    padded[5:], short[5:] = np.nan, False
    result = sums(padded, short)
    close(result.total, expected_sum(batch[:5]))
    assert (int(result.count), int(result.non_finite)) == (5, 0)
    empty = sums(batch, ~mask)
    assert not np.any(empty.total)
    assert int(empty.count) == 0
    assert float(empty.loss) == 0


def test_non_finite_examples_contribute_exactly_zero_and_are_counted(quadratic, close):
    batch = batch_of(1)
    batch[2, 1], batch[4, 0], batch[5, 2] = np.nan, np.inf, -np.inf
    batch[6] = 3e38  # finite, but its norm overflows
    result = quadratic(None)(batch, np.ones(7, bool))
    good = np.delete(batch, [2, 4, 5, 6], axis=0)
    close(result.total, expected_sum(good))
    assert int(result.non_finite) == 4
    assert int(result.clipped) == np.sum(np.linalg.norm(good, axis=1) > 1.5)
    np.testing.assert_allclose(result.loss, 0.5 * np.sum(good**2), rtol=1e-5)


def test_a_batch_without_a_finite_gradient_sums_to_exactly_zero_in_every_mode():
    loss = lambda params, batch, key: jnp.mean(params["a"] * batch + params["b"])  # noqa: E731

    @jax.jit
    def sums(params, batch):
        return [privacy.clipped_grad_sum(loss, 1.0, mode=m)(params, batch) for m in clipping.MODES]

    for result in sums({"a": np.float32(0), "b": np.float32(0)}, np.array([np.nan, np.inf])):
        assert [float(leaf) for leaf in result.total.values()] == [0.0, 0.0]
        assert (int(result.count), int(result.non_finite), int(result.clipped)) == (2, 2, 0)


def test_one_example_moves_the_sum_by_at_most_the_sensitivity(quadratic):
    sums, gradient = quadratic(None), privacy.clipped_grad_sum(lambda *_: 0.0, 1.5)
    mask = np.ones(7, bool)
    for seed in range(20):
        batch = 3 * batch_of(seed)
        removed, replaced = mask.copy(), batch.copy()
        removed[0], replaced[0] = False, -5 * batch[0]
        here = np.asarray(sums(batch, mask).total)
        without = np.linalg.norm(here - sums(batch, removed).total)
        changed = np.linalg.norm(here - sums(replaced, mask).total)
        assert without <= gradient.sensitivity("add_or_remove") * (1 + 1e-5)
        assert changed <= gradient.sensitivity("replace") * (1 + 1e-5)
    assert changed > gradient.sensitivity("zero_out")  # a replacement can move it by more


def test_counts_in_the_mask_stand_for_repeated_rows(close):
    x, y = batch_of(2), np.sign(batch_of(3)[:, 0])
    gradient = jax.jit(privacy.glm_clipped_grad_sum(privacy.logistic_loss, 0.5).__call__)
    counts = np.array([0, 1, 2, 3, 0, 1, 1])
    repeated = (np.repeat(x, counts, axis=0), np.repeat(y, counts))
    w = np.ones(3, np.float32)
    counted, copied = gradient(w, (x, y), None, counts), gradient(w, repeated)
    close(counted.total, copied.total)
    assert int(counted.count) == int(copied.count) == 8
    assert int(counted.clipped) == int(copied.clipped)
    np.testing.assert_allclose(counted.loss, copied.loss, rtol=1e-5)


def test_difference_moves_by_at_most_the_smaller_bound():
    gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
    x, y = batch_of(4), np.sign(batch_of(5)[:, 0])
    mask = jnp.ones(7, bool)
    difference = jax.jit(lambda w, v, bound, m: gradient.difference(w, v, (x, y), bound, None, m))
    for seed in range(10):
        w, v = batch_of(seed, 2) * 10 ** (seed % 3)
        distance = float(np.linalg.norm(w - v))
        bound = min(0.01 * distance, 2.0)
        here = difference(w, v, bound, mask)
        without = difference(w, v, bound, mask.at[0].set(False))
        assert np.linalg.norm(here.total - without.total) <= bound * (1 + 1e-4) + 1e-6
    still = difference(w, w, 0.0, mask)
    assert not np.any(still.total)


def test_quadratic_differences_never_clip_at_their_lipschitz_bound():
    loss = lambda params, batch, key: 0.15 * jnp.mean(jnp.sum((params - batch) ** 2, -1))  # noqa: E731
    gradient = privacy.clipped_grad_sum(loss, 100.0)
    w, v = np.array([1.0, 2.0, 3.0], np.float32), np.zeros(3, np.float32)
    bound = 0.3 * np.linalg.norm(w - v) * (1 + 1e-6)
    result = jax.jit(gradient.difference)(w, v, batch_of(6), bound)
    np.testing.assert_allclose(result.total, 7 * 0.3 * w, rtol=1e-5)
    assert int(result.clipped) == 0


@pytest.mark.slow
def test_random_losses_draw_the_same_for_an_example_in_any_microbatch(close):
    def loss(params, batch, key):
        return jnp.mean(params * batch * jax.random.normal(key))

    x, key = batch_of(7)[:, 0], jax.random.key(3)
    sums = [
        jax.jit(privacy.clipped_grad_sum(loss, 0.7, microbatch_size=size).__call__)(
            np.float32(1), x, key
        ).total
        for size in (7, 2)
    ]
    close(sums[0], sums[1])


def test_sums_are_equal_on_one_and_eight_devices(devices, close):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    x, y = batch_of(8, 16), np.sign(batch_of(9, 16)[:, 0])

    def loss(params, batch, key):
        del key
        return jnp.mean(jax.vmap(privacy.logistic_loss)(batch[0] @ params, batch[1]))

    noise = privacy.privatize_sum(1.0, 16, jax.random.key(0))

    def private_mean(params, batch):
        sums = [
            privacy.clipped_grad_sum(loss, 0.3, microbatch_size=2, **options)(params, batch)
            for options in ({"method": "vmap"}, {"method": "ghost"}, {"mesh": mesh})
        ]
        return [noise.update(total, noise.init(params))[0] for total in sums]

    alone = jax.jit(private_mean)(jnp.ones(3), (x, y))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.jit(private_mean)(jnp.ones(3), jax.device_put((x, y), rows))
    for here, there in zip(sharded, alone, strict=True):
        close(here, there, 1e-6)
        close(here, alone[0])


@pytest.mark.parametrize(
    ("bounds", "norm"),
    [
        ({"a": 1e-25, "b": 1e-25}, 2**0.5 * 1e-25),
        ({"a": 3, "b": 4}, 5.0),
        ([1e30, 1e30], 2**0.5 * 1e30),
    ],
)
def test_bounds_of_any_size_have_a_norm(bounds, norm):
    def loss(params, batch, key):
        return sum(jnp.mean(leaf * batch) for leaf in jax.tree.leaves(params))

    found = privacy.clipped_grad_sum(loss, bounds).sensitivity()
    assert norm * (1 - 1e-7) <= float(found) <= norm * (1 + 2e-6)


def test_a_loss_that_reaches_other_devices_is_refused(devices):
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices[:2])

    def loss(params, batch, key):
        return jnp.mean(jax.lax.psum(jnp.sum(batch), "data") * params)

    gradient = privacy.clipped_grad_sum(loss, 1.0, mesh=mesh)
    with pytest.raises(ValueError, match=r"psum.* reaches over the devices that share the rows"):
        gradient(jnp.ones(()), jnp.ones((4, 2)))


def test_clip_norms_can_be_swept_by_vmap_in_one_trace(count_traces):
    x, y = batch_of(10), np.sign(batch_of(11)[:, 0])

    def total(clip_norm):
        gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, clip_norm)
        return gradient(jnp.zeros(3), (x, y)).total

    counted = count_traces(total)
    swept = jax.jit(jax.vmap(counted))
    first = swept(jnp.array([0.1, 10.0]))
    swept(jnp.array([0.2, 20.0]))
    assert counted.count == 1
    np.testing.assert_allclose(first[1], total(10.0), rtol=1e-5)
    assert np.linalg.norm(first[0]) < np.linalg.norm(first[1])


def test_bfloat16_gradients_are_summed_in_float32():
    loss = lambda params, batch, key: jnp.mean(params * batch.astype(params.dtype))  # noqa: E731
    ones = np.ones(1000, np.float32)
    sums = jax.jit(privacy.clipped_grad_sum(loss, 10.0).__call__)
    result = sums(jnp.zeros((), jnp.bfloat16), ones)
    assert result.total.dtype == jnp.float32
    assert float(result.total) == 1000.0


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_arrays_of_size_zero_add_nothing_to_a_norm(method):
    def loss(params, batch, key):
        return jnp.sum(batch) + sum(jnp.sum(jnp.sin(leaf)) for leaf in params), {"none": batch[0]}

    gradient = privacy.clipped_grad_sum(
        loss, 1.0, method=method, microbatch_size=2, has_aux=True
    )  # fmt: skip
    empty, whole = [jnp.zeros((0, 3)), jnp.zeros(0)], jnp.zeros(4)
    total = gradient([*empty, whole], jnp.ones((1, 2))).total[2]
    assert np.linalg.norm(total) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(total) <= 1
    found = gradient(empty, jnp.zeros((3, 0)), None, jnp.array([True, False, True]))
    assert (int(found.count), int(found.non_finite), found.aux["none"].shape) == (2, 0, (3, 0))


def test_a_sum_over_many_microbatches_is_rounded_once():
    """Alternating large and small rows: a plain float32 sum loses the small ones one by one."""
    rows = jnp.tile(jnp.array([1.0, 2.0**-13], jnp.float32), 30_000)
    gradient = privacy.clipped_grad_sum(
        lambda w, x, key: jnp.mean(x * w), 2.0, method="vmap", microbatch_size=4
    )
    total = float(jax.jit(gradient.__call__)(jnp.zeros(()), rows).total)
    exact = float(np.sum(np.asarray(rows, np.float64)))
    assert abs(total - exact) <= np.spacing(np.float32(exact))


def test_a_clip_that_is_not_compiled_compiles_its_barrier_once():
    rows, found = {"w": jnp.arange(12.0).reshape(4, 3)}, []
    for _ in range(3):
        privacy.clip_per_example(rows, 1.0)
        found.append(clipping._held.fun._cache_size())
    assert found == [found[0]] * 3
    assert found[0] > 0
