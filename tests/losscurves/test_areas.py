"""The two areas: golden vectors, closed forms, and what float32 keeps of a million steps."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import losscurves
from jaxkit import schedules as schedules_room
from jaxkit.losscurves import areas


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules_room.schedule_from_profile(name, peak, total, **options))


def areas64(rates, decay, **options):
    with jax.enable_x64(True):
        found = losscurves.annealing_areas(rates, decay, **options)
        return areas.AnnealingAreas(*map(np.asarray, found))


def double_sum(rates, decay, initial_rate=None):
    """S2 as the paper defines it, in float64."""
    before = rates[0] if initial_rate is None else initial_rate
    drops = -np.diff(rates, prepend=before)
    inner = [sum(drops[k] * decay ** (i - k) for k in range(i + 1)) for i in range(len(rates))]
    return np.cumsum(inner)


def momentum(rates, decay):
    """S2 by the recursion of the published script, in float64."""
    m, total, out = 0.0, 0.0, []
    for previous, rate in zip(np.append(rates[0], rates[:-1]), rates, strict=True):
        m = decay * m + (previous - rate)
        total += m
        out.append(total)
    return np.array(out)


def named_schedule(name):
    s = np.arange(2001.0)
    if name == "cosine_T2000":
        rates = 3e-5 + 0.5 * 2.7e-4 * (1 + np.cos(np.pi * (s - 100) / 1900))
        rates[:101] = 3e-4
    elif name == "wsd_linear20_T2000":
        rates = table("wsd", 2000, 1e-3, cooldown=400 / 2000)
    elif name == "wsd_sqrt40_T2000":
        rates = table("wsd", 2000, 1e-3, cooldown=800 / 2000, shape="sqrt")
    elif name == "two_cycles_T2000":
        first = 1e-4 + 0.5 * 9e-4 * (1 + np.cos(np.pi * s[:1000] / 1000))
        rates = np.append(first, 0.5 * 6e-4 * (1 + np.cos(np.pi * s[:1001] / 1000)))
    elif name == "multi_step_T2000":
        rates = table("step", 2000, 2e-4, boundaries=(0.8, 0.9), factor=0.1**0.5)
    else:
        rates = 0.5 * 3e-4 * (1 + np.cos(np.pi * (s - 200) / 1800))
        rates[:201] = 3e-4 * s[:201] / 200
    return rates


def long_schedule(case):
    s = np.arange(case["total"] + 1)
    fall = case["peak"] * (case["total"] - s) / (case["total"] - case["hold"])
    return np.where(s <= case["hold"], case["peak"], fall)


def test_float64_areas_equal_the_golden_ones_to_1e_9(golden):
    cases = golden("annealing_law")["areas"]
    assert len(cases) == 37
    for case in cases:
        rates = np.asarray(case.get("learning_rate") or named_schedule(case["name"]))
        at = np.array(case["index"]) if "index" in case else slice(None)
        with jax.enable_x64(True):
            found = losscurves.annealing_areas(rates, case["decay"], initial_rate=case.get("eta0"))
        np.testing.assert_allclose(found.forward[at], case["S1"], rtol=1e-9, err_msg=case["name"])
        np.testing.assert_allclose(
            found.annealing[at], case["S2"], rtol=1e-9, atol=1e-17, err_msg=case["name"]
        )


def test_float32_areas_keep_5e_7_after_a_million_steps(golden):
    cases = [case for case in golden("annealing_law")["areas_long"] if case["total"] == 10**6]
    assert len(cases) == 4
    for case in cases:
        rates = long_schedule(case)
        for function in (losscurves.annealing_areas, areas.final_areas):
            found = function(rates.astype(np.float32), case["decay"])
            s1, s2 = (float(np.ravel(area)[-1]) for area in found)
            assert abs(s1 / case["S1_final"] - 1) < 5e-7
            assert abs(s2 / case["S2_final"] - 1) < 5e-7
        found = areas64(rates, case["decay"])
        assert abs(float(found.forward[-1]) / case["S1_final"] - 1) < 1e-9
        assert abs(float(found.annealing[-1]) / case["S2_final"] - 1) < 1e-9


def test_the_sequential_float32_recursion_does_not():
    rates = np.where(np.arange(10**6 + 1) <= 8e5, 3e-4, 0).astype(np.float32)

    @jax.jit
    def sequential(rates):
        def step(carry, rate):
            m, total, previous = carry
            m = np.float32(0.9999) * m + (previous - rate)
            return (m, total + m, rate), None

        return jax.lax.scan(step, (jnp.float32(0), jnp.float32(0), rates[0]), rates)[0][1]

    exact = float(3e-4 * (1 - 0.9999 ** (10**6 - 8e5)) / 1e-4)
    assert abs(float(sequential(rates)) / exact - 1) > 1e-4
    scanned = losscurves.annealing_areas(rates, 0.9999).annealing[-1]
    assert abs(float(scanned) / exact - 1) < 5e-7


# One length, so that every example runs the one compiled scan.
schedules = hnp.arrays(np.float64, 24, elements=st.floats(0.0, 1.0, width=32))
decays = st.sampled_from([0.0, 0.3, 0.9, 0.999])


@hypothesis.given(schedules, decays)
def test_scan_equals_the_double_sum_and_the_momentum_form(rates, decay):
    found = areas64(rates, decay)
    np.testing.assert_allclose(found.annealing, double_sum(rates, decay), atol=1e-11)
    np.testing.assert_allclose(found.annealing, momentum(rates, decay), atol=1e-11)
    np.testing.assert_allclose(found.forward, np.cumsum(rates), atol=1e-12)


@hypothesis.given(schedules, decays, st.floats(0.1, 10.0))
def test_areas_are_linear_in_the_rates(rates, decay, factor):
    other = rates[::-1].copy()
    a, b = (areas64(r, decay) for r in (rates, other))
    both = areas64(factor * rates + other, decay)
    np.testing.assert_allclose(both.annealing, factor * a.annealing + b.annealing, atol=1e-9)
    np.testing.assert_allclose(both.forward, factor * a.forward + b.forward, atol=1e-9)


@hypothesis.given(schedules, decays)
def test_falling_schedules_have_a_bounded_growing_annealing_area(rates, decay):
    falling = np.sort(rates)[::-1]
    s2 = areas64(falling, decay).annealing
    slower = areas64(falling, (1 + decay) / 2).annealing
    assert (s2 >= 0).all()
    assert (s2 <= (falling[0] - falling.min()) / (1 - decay) + 1e-12).all()
    assert (slower >= s2 - 1e-12).all()


@hypothesis.given(schedules, decays, st.sampled_from([1, 12]))
def test_areas_continue_from_a_carried_pair(rates, decay, cut):
    whole = areas64(rates, decay)
    head = areas64(rates[:cut], decay)
    tail = areas64(rates[cut:], decay, initial_rate=rates[0])
    carried = decay ** np.arange(1, len(rates) - cut + 1) * float(head.annealing[-1])
    np.testing.assert_allclose(whole.annealing[cut:], tail.annealing + carried, atol=1e-11)
    np.testing.assert_allclose(whole.forward[cut:], tail.forward + head.forward[-1], atol=1e-11)


def test_one_drop_saturates_by_its_closed_form():
    rates = np.where(np.arange(4000) < 100, 2e-3, 5e-4)
    s2 = areas64(rates, 0.995).annealing
    s = np.arange(100, 4000)
    np.testing.assert_allclose(s2[100:], 1.5e-3 * (1 - 0.995 ** (s - 99)) / 0.005, rtol=1e-12)
    assert not s2[:100].any()


def test_linear_fall_has_its_closed_form():
    n, d, decay = 500, 1e-5, 0.99
    s2 = areas64(n * d - d * np.arange(n + 1), decay).annealing[-1]
    expected = d / (1 - decay) * (n - decay * (1 - decay**n) / (1 - decay))
    assert abs(float(s2) / expected - 1) < 1e-12


def test_instant_decay_gives_the_distance_from_the_first_rate():
    rates = np.array([0.5, 0.7, 0.2], np.float32)
    found = losscurves.annealing_areas(rates, 0.0).annealing
    np.testing.assert_allclose(found, [0.0, -0.2, 0.3], atol=1e-7)


def test_decay_one_is_the_plain_sum():
    rates = np.array([0.5, 0.4, 0.2], np.float32)
    np.testing.assert_allclose(
        losscurves.annealing_areas(rates, 1.0).annealing, [0.0, 0.1, 0.4], atol=1e-7
    )


def test_gradient_in_the_rates_is_minus_a_power_of_the_decay():
    rates, powers = np.linspace(1.0, 0.2, 50), 0.9 ** np.arange(49, -1, -1)
    with jax.enable_x64(True):
        gradient = jax.grad(
            lambda r: losscurves.annealing_areas(r, 0.9, initial_rate=1.0).annealing[-1]
        )(jnp.asarray(rates))
        np.testing.assert_allclose(gradient, -powers, rtol=1e-10)
        # Without a rate before it, the first is also the one that all the others fell from.
        gradient = jax.grad(lambda r: areas.final_areas(r, 0.9).annealing)(jnp.asarray(rates))
        np.testing.assert_allclose(gradient[1:], -powers[1:], rtol=1e-10)
        np.testing.assert_allclose(gradient[0], powers[1:].sum(), rtol=1e-10)


def test_gradient_in_the_decay_equals_a_finite_difference():
    rates = np.linspace(1.0, 0.2, 50)
    with jax.enable_x64(True):

        def last(decay):
            return losscurves.annealing_areas(rates, decay).annealing[-1]

        found = float(jax.grad(last)(0.9))
        expected = (float(last(0.9 + 1e-6)) - float(last(0.9 - 1e-6))) / 2e-6
    assert abs(found / expected - 1) < 1e-7


def test_batches_of_schedules_and_decays_broadcast_like_vmap():
    rates = np.linspace([1.0, 0.5], [0.2, 0.1], 40, axis=-1).astype(np.float32)
    both = losscurves.annealing_areas(rates, np.array([0.9, 0.99]))
    for i, decay in enumerate((0.9, 0.99)):
        one = losscurves.annealing_areas(rates[i], decay)
        np.testing.assert_allclose(both.annealing[i], one.annealing, rtol=1e-6)
    table = losscurves.annealing_areas(rates[0], np.array([[0.9], [0.99], [0.999]])[:, 0])
    assert table.annealing.shape == table.forward.shape == (3, 40)
    mapped = jax.vmap(lambda r: losscurves.annealing_areas(r, 0.9))(rates)
    np.testing.assert_allclose(mapped.annealing[0], both.annealing[0], rtol=1e-6)


def test_sharded_candidates_give_the_areas_of_one_device(devices):
    rates = np.linspace(1.0, np.linspace(0.0, 0.9, 16), 100, axis=-1).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(devices), ("candidates",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("candidates"))
    compiled = jax.jit(losscurves.annealing_areas, static_argnums=1)
    alone, sharded = compiled(rates, 0.99), compiled(jax.device_put(rates, spec), 0.99)
    assert sharded.annealing.sharding.is_equivalent_to(spec, 2)
    np.testing.assert_array_equal(alone.annealing, sharded.annealing)


def test_areas_are_traced_once_for_one_shape(count_traces):
    counted = count_traces(lambda rates: losscurves.annealing_areas(rates, 0.9))
    compiled = jax.jit(counted)
    for scale in (1.0, 0.5, 0.2):
        compiled(jnp.full(10, scale))
    assert counted.count == 1


def test_warmup_modes_replace_what_they_say():
    rates = np.array([0.0, 0.5, 1.0, 0.6])
    peak = [1.0, 1.0, 1.0, 0.6]
    for mode, expected in {
        "peak": (peak, peak),
        "s2_peak": (rates, peak),
        "linear": (rates, rates),
    }.items():
        found = areas.warmed_up_rates(rates, mode, 2)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("mode", ["peak", "s2_peak"])
def test_a_forgotten_warmup_is_caught(mode):
    with pytest.raises(ValueError, match=r"start at 0.*warmup_steps is 0"):
        areas.warmed_up_rates(np.array([0.0, 0.5, 1.0]), mode, 0)


@pytest.mark.parametrize(
    ("rates", "decay", "options", "error", "message"),
    [
        ([0.1, 0.1], 1.5, {}, ValueError, r"decay must be .* \[0, 1\], got 1.5"),
        ([0.1, 0.1], -0.1, {}, ValueError, "decay"),
        ([0.1, 0.1], float("nan"), {}, ValueError, "decay"),
        ([0.1, -0.1], 0.9, {}, ValueError, "learning_rates"),
        ([0.1, float("inf")], 0.9, {}, ValueError, "learning_rates"),
        ([], 0.9, {}, ValueError, "learning_rates must have one value a step"),
        (["a", "b"], 0.9, {}, TypeError, "learning_rates must be a real number"),
        ([0.1, 0.1], 0.9, {"initial_rate": -1.0}, ValueError, "initial_rate"),
    ],
)
def test_bad_input_is_named(bad_input, rates, decay, options, error, message):
    with pytest.raises(error, match=message):
        losscurves.annealing_areas(np.array(rates), decay, **options)


def test_bad_warmup_is_named(bad_input):
    rates = np.ones(5)
    with pytest.raises(ValueError, match="inside the schedule of 5 values, got 5"):
        areas.warmup_at_peak(rates, 5)
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        areas.warmed_up_rates(rates, "liner", 0)
    with pytest.raises(TypeError, match="warmup_steps must be a real number"):
        areas.warmup_at_peak(rates, "1")
