"""Every named schedule goes through one mill; then the curves against independent libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import schedules
from jaxkit.schedules import profile_schedules, profiles

NAMES = sorted(profiles.PROFILES)
TO_ZERO = ["cosine", "delayed", "linear", "polynomial", "rex", "wsd"]
#: Compiled and eager float32 differ by the rounding of a few operations.
ATOL = 5e-7


def make(name, peak=1.0, total=23, **options):
    return schedules.schedule_from_profile(name, peak, total, **options)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"onecycle"}))
def test_the_first_update_runs_at_the_peak_and_the_warm_up_meets_it(name):
    assert float(make(name, 0.3)(0)) == np.float32(0.3)
    warm = make(name, 0.3, warmup_steps=4, init_value=0.1)
    np.testing.assert_allclose(warm(jnp.arange(5)), [0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"onecycle"}))
def test_one_update_alone_runs_at_exactly_the_peak(name):
    assert float(make(name, 0.3, 1)(0)) == np.float32(0.3)


@pytest.mark.parametrize("name", TO_ZERO)
def test_the_last_update_is_positive_and_the_one_after_is_the_end_value(name):
    assert float(make(name, 1.0, 10)(9)) > 0
    assert np.asarray(make(name, 1.0, 10)(jnp.arange(10, 15))).tolist() == [0.0] * 5
    after = make(name, 1.0, 10, end_value=0.1)(jnp.arange(10, 12))
    np.testing.assert_allclose(after, 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_step_counts_as_zero(name):
    schedule = make(name, warmup_steps=3, init_value=0.2)
    assert float(schedule(-7)) == float(schedule(0))


@functools.cache
def curve_of(name):
    """The compiled curve of a schedule over 600 updates, all its numbers traced."""

    def curve(steps, peak, total, end, warmup):
        schedule = make(name, peak, total, end_value=end, init_value=end, warmup_steps=warmup)
        return schedule(steps)

    return jax.jit(curve)


@pytest.mark.parametrize("name", NAMES)
@given(
    total=st.integers(1, 500),
    peak=st.floats(2**-20, 10, width=32) | st.just(0.0),
    ratio=st.floats(0, 1),
    warm=st.floats(0, 0.99),
)
def test_values_stay_between_end_and_peak_and_scale_with_both(name, total, peak, ratio, warm):
    end, warmup, steps = peak * ratio, int(warm * total), np.arange(600)
    values = np.asarray(curve_of(name)(steps, peak, total, end, warmup))
    # optax's warm-up rounds (init - peak) + peak at the size of the peak.
    assert (values >= end - 1e-6 * peak).all()
    assert (values <= peak * (1 + 1e-6)).all()
    unit = np.asarray(curve_of(name)(steps, 1.0, total, ratio, warmup))
    np.testing.assert_allclose(values, peak * unit, atol=2e-6 * peak, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@given(total=st.integers(1, 600), factor=st.integers(2, 9))
def test_the_same_fraction_of_any_budget_has_the_same_value(name, total, factor):
    steps = np.arange(600)
    short = curve_of(name)(steps, 1.0, total, 0.0, 0)
    long = curve_of(name)(factor * steps, 1.0, factor * total, 0.0, 0)
    np.testing.assert_allclose(long, short, atol=2e-6, rtol=0)


@pytest.mark.parametrize("total", [1, 7, 12_345])
def test_the_curves_optax_has_differ_by_a_few_roundings_of_the_peak(total):
    steps = jnp.arange(total)
    warmup = total // 4
    after = total - warmup

    def warmed(decay):
        return optax.join_schedules([optax.linear_schedule(0.02, 0.3, warmup), decay], [warmup])

    options = {"init_value": 0.02, "end_value": 0.01, "warmup_steps": warmup}
    pairs = [
        (make("linear", 0.3, total, **options), warmed(optax.linear_schedule(0.3, 0.01, after))),
        (
            make("polynomial", 0.3, total, power=1.5, **options),
            warmed(optax.polynomial_schedule(0.3, 0.01, 1.5, after)),
        ),
        (
            make("cosine", 0.3, total, **options),
            optax.warmup_cosine_decay_schedule(0.02, 0.3, warmup, total, 0.01),
        ),
        (make("exponential", 0.3, total), optax.exponential_decay(0.3, total, jnp.exp(-3.0))),
        (
            make("step", 0.3, total),
            optax.piecewise_constant_schedule(
                0.3,
                {(total + 1) // 2: 0.1}
                if total == 1
                else {-(-total // 2): 0.1, -(-3 * total // 4): 0.1},
            ),
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours(steps), theirs(steps), atol=4 * 2.0**-25, rtol=0)


def test_compiled_schedules_end_exactly_where_optax_rounds_below_zero():
    steps = jnp.arange(7, 10)
    theirs = np.asarray(jax.jit(optax.linear_schedule(0.3, 0.0, 7))(steps))
    ours = np.asarray(jax.jit(make("linear", 0.3, 7))(steps))
    assert ours.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(theirs, ours, atol=1e-7)


def test_rex_equals_the_values_of_its_torch_implementation(golden):
    for case in golden("schedules")["rex_steps"]["cases"]:
        schedule = schedules.schedule_from_profile(
            "rex", case["max_lr"], case["total_steps"], end_value=case["min_lr"]
        )
        steps = jnp.arange(len(case["lr_at_step"]))
        np.testing.assert_allclose(schedule(steps), case["lr_at_step"], atol=2e-6, rtol=0)


def test_rex_with_d_of_nine_tenths_equals_what_trainers_ship(golden):
    (case,) = golden("schedules")["rex_d0.9_steps"]["cases"]
    schedule = schedules.schedule_from_profile("rex", case["max_lr"], case["total_steps"], d=0.9)
    expected = case["lr_at_step"]
    np.testing.assert_allclose(schedule(jnp.arange(len(expected))), expected, atol=2e-6, rtol=0)


def test_rex_without_d_is_optax_linear_to_two_ulp():
    steps = jnp.arange(1000)
    ours = np.asarray(schedules.schedule_from_profile("rex", 1.0, 1000, d=0.0)(steps))
    theirs = np.asarray(optax.linear_schedule(1.0, 0.0, 1000)(steps))
    assert np.max(np.abs(ours - theirs)) <= 2 * np.finfo(np.float32).eps


def test_rex_joins_optax_schedules_as_its_definition_says():
    whole = schedules.schedule_from_profile(
        "rex", 0.2, 50, init_value=0.01, end_value=0.02, warmup_steps=10, d=0.7
    )
    joined = optax.join_schedules(
        [
            optax.linear_schedule(0.01, 0.2, 10),
            schedules.schedule_from_profile("rex", 0.2, 40, end_value=0.02, d=0.7),
        ],
        [10],
    )
    np.testing.assert_allclose(whole(jnp.arange(60)), joined(jnp.arange(60)), rtol=6e-7)


EXACT = {
    "linear": lambda r: r,
    "cosine": lambda r: np.sin(np.pi / 2 * r) ** 2,
    "rex": lambda r: r / (0.5 + 0.5 * r),
    "polynomial": lambda r: r**2,
    "delayed": lambda r: np.minimum(2 * r, 1),
    "wsd": lambda r: np.minimum(5 * r, 1),
    "exponential": lambda r: np.exp(-3 * (1 - r)),
    "onecycle": lambda r: 0.1 + 1.8 * r,
    "step": lambda r: 0.01 + 0 * r,
    "constant": lambda r: 1 + 0 * r,
}


@pytest.mark.parametrize("total", [10**6, 10**8, 2**31 - 1])
@pytest.mark.parametrize("name", NAMES)
def test_six_digits_are_kept_to_the_last_update(name, total):
    left, warmup = np.array([1, 2, 3, 1000, 12_345]), 13.5
    schedule = make(name, 0.3, total, warmup_steps=warmup)
    found = schedule(jnp.asarray(total - left))
    np.testing.assert_allclose(found, 0.3 * EXACT[name](left / (total - warmup)), rtol=1e-6)


@pytest.mark.parametrize("shape", ["sqrt", "cosine", "sqrtcube", "exponential"])
def test_a_cooldown_keeps_six_digits_to_its_last_update(shape):
    total, left = 10**8, np.array([1, 2, 3, 1000])
    u = 1 - left / total / 0.25
    exact = {
        "sqrt": (1 - u) / (1 + np.sqrt(u)),
        "cosine": np.sin(np.pi / 2 * (1 - u)) ** 2,
        "sqrtcube": (left / total / 0.25) ** 1.5,
        "exponential": 0.1**u,
    }[shape]
    schedule = make("wsd", total=total, cooldown=0.25, shape=shape)
    np.testing.assert_allclose(schedule(jnp.asarray(total - left)), exact, rtol=1e-6)


def test_a_warm_up_keeps_six_digits_from_its_first_update():
    schedule = make("linear", 0.3, 10**8, warmup_steps=10**7)
    steps = np.array([1, 2, 3, 1000])
    np.testing.assert_allclose(schedule(jnp.asarray(steps)), 0.3 * steps / 1e7, rtol=1e-6)


def test_a_warm_up_need_not_be_whole():
    schedule = make("linear", 1.0, 20, warmup_steps=2.5)
    found = schedule(jnp.arange(5))
    np.testing.assert_allclose(found, [0, 0.4, 0.8, 17 / 17.5, 16 / 17.5], rtol=1e-6)


def test_rex_can_be_swept_over_d_in_one_vmap():
    swept = jax.vmap(lambda d: schedules.schedule_from_profile("rex", 1.0, 10, d=d)(5))(
        jnp.array([0.0, 0.5])
    )
    np.testing.assert_allclose(swept, [0.5, 2 / 3], rtol=1e-6)


def test_baselines_equal_torch_schedulers(golden):
    base = golden("schedules")["baseline_steps"]
    names = {
        "linear": ("linear", {}),
        "cosine": ("cosine", {}),
        "exponential_gamma-3": ("exponential", {}),
        "step_50_75_x0.1": ("step", {}),
        "poly2": ("polynomial", {"power": 2.0}),
    }
    assert set(names) == set(base["lr_at_step"])
    for theirs, (name, options) in names.items():
        schedule = make(name, base["peak"], base["total_steps"], **options)
        expected = base["lr_at_step"][theirs]
        np.testing.assert_allclose(schedule(jnp.arange(len(expected))), expected, atol=2e-6, rtol=0)


def test_onecycle_and_its_momentum_equal_the_papers_formula(golden):
    cycle = golden("schedules")["paper_onecycle"]
    steps = jnp.arange(cycle["total_steps"])
    rate = schedules.schedule_from_profile("onecycle", 1.0, cycle["total_steps"])
    momentum = schedules.onecycle_momentum_schedule(cycle["total_steps"])
    np.testing.assert_allclose(rate(steps), cycle["lr_at_step"], atol=2e-6, rtol=0)
    np.testing.assert_allclose(momentum(steps), cycle["momentum_at_step"], atol=2e-6, rtol=0)


def test_delayed_linear_equals_its_definition(golden):
    sampling = golden("schedules")["sampling"]
    steps = jnp.arange(sampling["total_steps"])
    for delay in (25, 50, 75):
        schedule = schedules.schedule_from_profile(
            "delayed", 1.0, sampling["total_steps"], delay=delay / 100
        )
        expected = sampling[f"delayed_linear_{delay}"]
        np.testing.assert_allclose(schedule(steps), expected, atol=2e-6, rtol=0)


def test_onecycle_drives_learning_rate_and_momentum_of_an_optimizer():
    optimizer = optax.inject_hyperparams(optax.sgd)(
        learning_rate=schedules.schedule_from_profile("onecycle", 0.1, 8),
        momentum=schedules.onecycle_momentum_schedule(8),
    )
    state = optimizer.init(jnp.zeros(3))
    step = jax.jit(optimizer.update)
    for i in range(4):
        _, state = step(jnp.ones(3), state)
        rate = float(schedules.schedule_from_profile("onecycle", 0.1, 8)(i))
        momentum = float(schedules.onecycle_momentum_schedule(8)(i))
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(rate, rel=1e-6)
        assert float(state.hyperparams["momentum"]) == pytest.approx(momentum, rel=1e-6)


def test_a_schedule_knows_its_horizon():
    assert make("rex", total=77).total_steps == 77


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"total": 0}, ValueError, "total_steps must be an integer >= 1, got 0"),
        ({"total": 2**31}, ValueError, "total_steps must be an integer <= 2147483647"),
        ({"total": 1.5}, TypeError, "total_steps must be an integer, got 1.5"),
        ({"peak": -1.0}, ValueError, r"peak_value must be finite and in \[0, inf\), got -1.0"),
        ({"peak": float("nan")}, ValueError, "peak_value must be finite"),
        ({"peak": "1"}, TypeError, "peak_value must be a real number"),
        ({"end_value": 2.0}, ValueError, "end_value must be <= peak_value = 1.0, got 2.0"),
        ({"end_value": -0.1}, ValueError, "end_value must be finite and in"),
        ({"init_value": -0.1}, ValueError, "init_value must be finite and in"),
        (
            {"warmup_steps": -1},
            ValueError,
            r"warmup_steps must be finite and in \[0, inf\), got -1",
        ),
        ({"warmup_steps": "2"}, TypeError, "warmup_steps must be a real number"),
        ({"slope": 2.0}, TypeError, "has no option 'slope'"),
        ({"warmup_steps": 23}, ValueError, "warmup_steps must be < total_steps = 23, got 23"),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(name, arguments, error, message):
    with pytest.raises(error, match=message):
        make(name, **arguments)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("rex", d=1.0), r"d must be finite and in \[0, 1\), got 1.0"),
        (lambda: make("polynomial", power=-1.0), "power must be finite and in"),
        (lambda: make("wsd", cooldown=1.5), r"cooldown must be finite and in \(0, 1\]"),
        (lambda: make("wsd", shape="cosin"), "did you mean 'cosine'"),
        (lambda: make("delayed", delay=-0.1), "delay must be finite and in"),
        (lambda: make("onecycle", min_ratio=2.0), "min_ratio must be finite and in"),
        (lambda: make("step", boundaries=(0.9, 0.1)), "boundaries must increase strictly"),
        (lambda: make("exponential", rate=float("inf")), "rate must be finite"),
        (lambda: make("cosin"), "profile must be one of .* did you mean 'cosine'"),
        (lambda: schedules.onecycle_momentum_schedule(0), "total_steps must be an integer >= 1"),
        (lambda: schedules.onecycle_momentum_schedule(8, 0.9, 0.8), "b_min must be <= b_max"),
        (lambda: schedules.onecycle_momentum_schedule(8, b_max=1.0), "b_max must be finite"),
    ],
)
def test_bad_options_are_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def sampled(profile, **options):
    return profile_schedules.schedule_from_profile(profile, 1.0, 20, **options)(jnp.arange(20))


@pytest.mark.parametrize(
    ("key", "profile", "options"),
    [
        ("rex_50_75", "rex", {"sample_points": (0.5, 0.75)}),
        ("rex_33_66", "rex", {"sample_points": (0.33, 0.66)}),
        ("rex_25_50_75", "rex", {"sample_points": (0.25, 0.5, 0.75)}),
        ("linear_50_75", "linear", {"sample_points": (0.5, 0.75)}),
        ("rex_every_2_steps", "rex", {"sample_every": 2}),
        ("rex_every_3_steps", "rex", {"sample_every": 3}),
        ("rex_every_step", "rex", {}),
        ("linear_every_5_steps", "linear", {"sample_every": 5}),
    ],
)
def test_sampling_equals_its_definition(golden, key, profile, options):
    expected = golden("schedules")["sampling"][key]
    np.testing.assert_allclose(sampled(profile, **options), expected, atol=2e-6, rtol=0)


@given(total=st.integers(1, 300), every=st.integers(1, 400))
def test_a_sampled_schedule_takes_values_of_the_plain_one_and_is_never_below(total, every):
    steps = np.arange(300)
    plain = schedules.schedule_from_profile("cosine", 1.0, total)
    coarse = schedules.schedule_from_profile("cosine", 1.0, total, sample_every=every)
    expected, found = np.asarray(plain(steps)), np.asarray(coarse(steps))
    during = np.where(steps < total, steps // every * every, steps)
    np.testing.assert_array_equal(found, expected[during])
    assert (found >= expected).all()


@given(total=st.integers(1, 2_000_000), hundredths=st.integers(1, 99))
def test_a_sampling_point_is_reached_at_the_exact_ceiling(total, hundredths):
    exact = -(-hundredths * total // 100)
    point = hundredths / 100
    assert profile_schedules.first_step_at(point, total) == exact
    assert int(profile_schedules.first_step_at(point, jnp.int32(total))) == exact


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_every": 0}, "sample_every must be an integer >= 1, got 0"),
        ({"sample_points": (0.5, 0.5)}, "sample_points must increase strictly"),
        ({"sample_points": (0.5, 1.0)}, r"sample_points must be finite and in \(0, 1\)"),
        ({"sample_points": (0.5,), "sample_every": 2}, "exclude each other"),
    ],
)
def test_bad_sampling_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        sampled("linear", **options)


@pytest.mark.usefixtures("bad_input")
def test_a_profile_must_be_a_name_or_a_function():
    with pytest.raises(TypeError, match="profile must be a name or a function of progress, got 3"):
        sampled(3)
    with pytest.raises(TypeError, match=r"options are of a profile named, got \['d'\]"):
        sampled(schedules.profile_by_name("rex"), d=0.5)


def test_a_fine_sampling_point_with_a_traced_budget_is_refused_not_rounded():
    with pytest.raises(ValueError, match="denominator <= 10,000"):
        jax.jit(
            lambda n: schedules.schedule_from_profile(
                "linear", 1.0, n, sample_points=(0.123456789,)
            )(1)
        )(10)
