"""Refinement against independent values, closed forms and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkit import schedules
from jaxkit.schedules import refine_schedule, refinement

EXPONENT = {"l2": 2, "l1": 1}


def reference(norms, norm):
    """The recursion step by step in double precision: s_t = w_t sum_{j>t} w_j."""
    weights = np.asarray(norms, np.float64) ** -EXPONENT[norm]
    steps, tail = np.zeros_like(weights), 0.0
    for t in reversed(range(len(weights))):
        steps[t] = weights[t] * tail
        tail += weights[t]
    return steps, tail


positive = st.lists(st.floats(2.0**-7, 100, width=32), min_size=20, max_size=20)
kinds = pytest.mark.parametrize("norm", ["l2", "l1"])


def test_equals_the_official_closed_form(golden):
    for case in golden("schedules")["refine_closed_form"]["cases"]:
        steps, total = reference(case["norms"], case["kind"])
        np.testing.assert_allclose(steps / steps.max(), case["normalized"], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(steps / total, case["raw_over_total_weight"], rtol=1e-12)
        norms = np.asarray(case["norms"])
        options = {"norm": case["kind"], "smoothing": None}
        found = refine_schedule(norms.astype(np.float32), **options)
        np.testing.assert_allclose(found, case["normalized"], atol=2e-6, rtol=0)
        raw = refine_schedule(norms.astype(np.float32), normalize=False, **options)
        expected = np.asarray(case["raw_over_total_weight"])
        np.testing.assert_allclose(raw, expected, atol=2e-6 * expected.max(), rtol=0)


@kinds
def test_in_double_precision_it_is_the_official_closed_form_to_rounding(golden, norm):
    for case in golden("schedules")["refine_closed_form"]["cases"]:
        if case["kind"] == norm and len(case["norms"]) >= 30:
            with jax.enable_x64(True):
                norms = jnp.asarray(case["norms"], jnp.float64)
                found = refine_schedule(norms, norm=norm, smoothing=None)
            np.testing.assert_allclose(found, case["normalized"], rtol=1e-12, atol=1e-15)


def test_equals_the_official_pipeline_with_smoothing(golden):
    for case in golden("schedules")["median_smoothing_and_pipeline"]["cases"]:
        assert refinement.median_width(len(case["norms"]), case["tau"]) == case["width"]
        norms = np.asarray(case["norms"], np.float32)
        smoothed = schedules.smooth_norms(norms, case["tau"])
        assert smoothed.tolist() == np.asarray(case["smoothed"], np.float32).tolist()
        for norm in ("l2", "l1"):
            found = refine_schedule(norms, norm=norm, smoothing=case["tau"])
            expected = case[f"refined_{norm}_normalized"]
            np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@kinds
@pytest.mark.parametrize("smoothing", [None, 0.1, 0.9])
@pytest.mark.parametrize("n", [2, 8, 100])
def test_constant_norms_give_exactly_linear_decay(norm, smoothing, n):
    found = np.asarray(refine_schedule(np.full(n, 3.7, np.float32), norm=norm, smoothing=smoothing))
    expected = (n - 1 - np.arange(n)) / np.float32(n - 1)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0)
    assert found[0] == 1
    assert found[-1] == 0


@given(norms=st.lists(st.floats(2.0**-7, 100, width=32), min_size=2, max_size=2))
def test_two_norms_give_one_then_zero(norms):
    assert refine_schedule(np.asarray(norms, np.float32)).tolist() == [1.0, 0.0]


def test_geometric_norms_give_the_geometric_sum():
    c, n = 1.1, 30
    q = c**-2
    i = np.arange(n)
    steps = q**i * (q ** (i + 1) - q**n) / (1 - q)
    found = refine_schedule((c**i).astype(np.float32), smoothing=None)
    np.testing.assert_allclose(found, steps / steps.max(), atol=2e-6, rtol=0)


@kinds
@given(norms=positive)
def test_ends_at_zero_peaks_at_one_and_equals_double_precision(norm, norms):
    x = np.asarray(norms, np.float32)
    found = np.asarray(refine_schedule(x, norm=norm, smoothing=None))
    steps, _ = reference(x, norm)
    np.testing.assert_allclose(found, steps / steps.max(), atol=2e-6, rtol=0)
    assert found[-1] == 0
    assert found.max() == 1
    assert (found >= 0).all()


@kinds
@given(norms=positive, exponent=st.integers(-20, 20))
def test_the_unit_of_the_norms_does_not_matter(norm, norms, exponent):
    x = np.asarray(norms, np.float32)
    scaled = refine_schedule(x * np.float32(2.0**exponent), norm=norm)
    np.testing.assert_array_equal(scaled, refine_schedule(x, norm=norm))


@given(norms=positive)
def test_l1_on_norms_is_l2_on_their_roots(norms):
    x = np.asarray(norms, np.float32)
    np.testing.assert_allclose(
        refine_schedule(x, norm="l1"), refine_schedule(np.sqrt(x), norm="l2"), atol=2e-6
    )


@given(norms=positive)
def test_rising_norms_stay_below_linear_and_falling_ones_above(norms):
    linear = 1 - np.arange(20) / 19
    rising = np.asarray(refine_schedule(np.sort(np.asarray(norms, np.float32)), smoothing=None))
    assert (rising <= linear + 1e-6).all()
    falling = refine_schedule(np.sort(np.asarray(norms, np.float32))[::-1].copy(), smoothing=None)
    falling = np.asarray(falling, np.float64)
    assert (falling >= falling[0] * linear - 1e-6).all()


@given(norms=positive)
def test_a_warm_up_appears_exactly_when_norms_fall_fast_enough(norms):
    x = np.sort(np.asarray(norms, np.float32))[::-1].copy()
    w = x.astype(np.float64) ** -2
    margin = w[1] / w[0] - w[1:].sum() / w[2:].sum()
    found = np.asarray(refine_schedule(x, smoothing=None))
    if abs(margin) > 1e-4 * w[1] / w[0]:
        assert (found[1] > found[0]) == (margin > 0)


def test_the_sampling_rate_of_the_log_matters_less_and_less():
    def shape(n):
        z = np.linspace(0, 1, n)
        return (1 + 3 * np.exp(-5 * z)).astype(np.float32)

    def error(n):
        fine = np.asarray(refine_schedule(np.repeat(shape(n), 4), smoothing=None))[::4]
        return np.abs(fine - np.asarray(refine_schedule(shape(n), smoothing=None))).max()

    assert error(400) < error(40) / 5
    assert error(400) < 0.01


def test_jit_and_vmap_over_runs_equal_the_loop(count_traces):
    norms = np.random.default_rng(0).lognormal(size=(64, 2000)).astype(np.float32)
    loop = np.stack([refine_schedule(row) for row in norms])
    counted = count_traces(refine_schedule)
    batched = jax.jit(jax.vmap(counted))
    np.testing.assert_allclose(batched(norms), loop, atol=1e-6)
    batched(2 * norms)
    assert counted.count == 1
    np.testing.assert_allclose(refine_schedule(norms), loop, atol=1e-6)


def test_runs_spread_over_eight_devices_come_out_the_same(devices):
    norms = np.random.default_rng(1).lognormal(size=(16, 300)).astype(np.float32)
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    spread = jax.jit(refine_schedule)(jax.device_put(norms, sharding))
    np.testing.assert_allclose(spread, refine_schedule(norms), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_overflowed_steps_are_bridged_alike_with_and_without_jit(bad):
    bridged = np.linspace(4, 1, 50).astype(np.float32)
    holed = bridged.copy()
    holed[[0, 10, 11, 49]] = bad
    bridged[[0, 49]] = bridged[[1, 48]]
    np.testing.assert_allclose(
        refine_schedule(holed, smoothing=None), refine_schedule(bridged, smoothing=None), atol=1e-6
    )
    np.testing.assert_allclose(jax.jit(refine_schedule)(holed), refine_schedule(holed), atol=1e-6)


def test_nothing_known_under_jit_is_nan_not_a_schedule():
    assert np.isnan(jax.jit(refine_schedule)(jnp.full(9, jnp.nan))).all()


@kinds
def test_tiny_norms_and_zeros_do_not_overflow(norm):
    tiny = np.array([1e-20, 2e-20, 1e-20, 3e-20], np.float32)
    np.testing.assert_array_equal(
        refine_schedule(tiny, norm=norm, smoothing=None),
        refine_schedule(tiny * np.float32(2.0**60), norm=norm, smoothing=None),
    )
    for zeros in ([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]):
        found = np.asarray(
            refine_schedule(np.asarray(zeros, np.float32), norm=norm, smoothing=None)
        )
        assert np.isfinite(found).all()
        assert found.max() == 1


def test_a_refined_schedule_resamples_to_another_budget():
    norms = np.linspace(5, 1, 200).astype(np.float32)
    schedule = schedules.refined_schedule(norms, 0.3, 50, norm="l1")
    values = np.asarray(refine_schedule(norms, norm="l1"), np.float64)
    expected = 0.3 * np.interp(np.arange(50) * 199 / 50, np.arange(200), values)
    np.testing.assert_allclose(schedule(jnp.arange(50)), expected, atol=2e-6)
    assert float(schedule(50)) == 0
    assert schedule.total_steps == 50


def test_the_filter_width_is_counted_in_decimals():
    assert refinement.median_width(100, 0.29) == 29
    assert refinement.median_width(10_000) == 1001
    assert refinement.median_width(5, 0.1) == 1


def test_real_detection_norms_refine_to_about_the_power_one_and_a_half(shared_data):
    log = schedules.read_gradient_norms(shared_data("gradient_norms/rcnn_gnorm.csv"))
    found = np.asarray(refine_schedule(log.norms))
    stand_in = (1 - np.linspace(0, 1, len(found))) ** 1.5
    assert np.corrcoef(found, stand_in)[0, 1] > 0.99
    smoothed = schedules.smooth_norms(log.norms)
    assert 1 <= float(schedules.refinement_gain(smoothed)) < 1.05


def test_real_text_norms_refine_to_a_long_warm_up(shared_data):
    log = schedules.read_gradient_norms(shared_data("gradient_norms/roberta_l1.csv"))
    found = np.asarray(refine_schedule(log.norms, norm="l1"))
    assert 0.3 < np.argmax(found) / len(found) < 0.6


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("norms", "options", "error", "message"),
    [
        ([], {}, ValueError, "norms must hold at least 2 entries"),
        ([1.0], {}, ValueError, r"norms must hold at least 2 entries, got shape \(1,\)"),
        (np.float32(1.0), {}, ValueError, "norms must hold at least 2 entries"),
        (np.array([1, 2]), {}, ValueError, "norms must be floating, got dtype int64"),
        ([1.0, -2.0], {}, ValueError, "norms must be >= 0, got -2"),
        ([0.0, 0.0], {}, ValueError, "norms must not all be 0"),
        ([[1.0, 2.0], [0.0, 0.0]], {}, ValueError, "norms must not all be 0"),
        ([np.nan, np.inf], {}, ValueError, "norms must hold finite entries"),
        ([[1.0, 2.0], [1.0]], {}, ValueError, "norms must be runs of one length"),
        ([1.0, 2.0], {"smoothing": 0.0}, ValueError, r"smoothing must be finite and in \(0, 1\)"),
        ([1.0, 2.0], {"smoothing": 1.0}, ValueError, r"smoothing must be finite and in \(0, 1\)"),
        ([1.0, 2.0], {"smoothing": "a"}, TypeError, "smoothing must be a real number"),
        ([1.0, 2.0], {"norm": "l3"}, ValueError, "norm must be one of 'l2', 'l1', got 'l3'"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(norms, options, error, message):
    with pytest.raises(error, match=message):
        refine_schedule(norms, **options)


@pytest.mark.usefixtures("bad_input")
def test_smoothing_may_not_be_traced():
    with pytest.raises(TypeError, match="smoothing must be static"):
        jax.jit(lambda tau: refine_schedule(jnp.ones(9), smoothing=tau))(0.1)
