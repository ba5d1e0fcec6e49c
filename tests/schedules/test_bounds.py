"""Bounds against independent values, closed forms, and the inequality they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import schedules

REX_FAMILY = (0.1, 0.25, 0.5, 0.75, 0.9)
positive = st.lists(st.floats(2.0**-7, 100, width=32), min_size=12, max_size=12)


def reference_bound(eta, norms, distance):
    """The theorem as printed, with its double sum, in double precision."""
    eta, squares = np.asarray(eta, np.float64), np.asarray(norms, np.float64) ** 2
    total, noise = eta.sum(), eta**2 * squares
    bound = distance**2 / (2 * total) + noise.sum() / (2 * total)
    for k in range(len(eta) - 1):
        bound += 0.5 * eta[k] / eta[k + 1 :].sum() * noise[k:].sum() / eta[k:].sum()
    return bound


def test_the_bound_and_its_best_scale_equal_independent_values(golden):
    for case in golden("schedules")["last_iterate_bound"]["cases"]:
        args = case["eta"], case["norms"], case["D"]
        assert reference_bound(*args) == pytest.approx(case["bound"], rel=1e-12)
        expected = [case["bound"], case["best_multiplier"], case["best_bound"]]

        def found(eta, norms, distance):
            return list(schedules.last_iterate_bound(eta, norms, distance))

        eta, norms = np.asarray(case["eta"]), np.asarray(case["norms"])
        single = found(eta.astype(np.float32), norms.astype(np.float32), case["D"])
        np.testing.assert_allclose(single, expected, rtol=2e-6)
        with jax.enable_x64(True):
            double = found(jnp.asarray(eta), jnp.asarray(norms), case["D"])
            np.testing.assert_allclose(double, expected, rtol=1e-12)


@given(eta=positive, norms=positive)
def test_the_short_form_equals_the_printed_double_sum(eta, norms):
    found = schedules.last_iterate_bound(
        np.asarray(eta, np.float32), np.asarray(norms, np.float32), 1.5
    )
    assert float(found.value) == pytest.approx(reference_bound(eta, norms, 1.5), rel=1e-5)


def test_constant_steps_have_the_harmonic_bound():
    eta, size, distance, total = 0.3, 2.0, 1.7, 25
    harmonic = sum(1 / k for k in range(1, total))
    expected = distance**2 / (2 * eta * total) + eta * size**2 / 2 * (1 + harmonic)
    found = schedules.last_iterate_bound(np.full(total, eta), np.full(total, size), distance)
    assert float(found.value) == pytest.approx(expected, rel=1e-6)


@given(eta=positive, norms=positive, scale=st.floats(0.1, 10))
def test_no_other_scale_beats_the_best_one(eta, norms, scale):
    eta, norms = np.asarray(eta, np.float32), np.asarray(norms, np.float32)
    _, at, best = map(float, schedules.last_iterate_bound(eta, norms))
    again = schedules.last_iterate_bound(at * eta, norms)
    assert float(again.value) == pytest.approx(best, rel=1e-5)
    other = schedules.last_iterate_bound(scale * at * eta, norms)
    assert float(other.value) >= best * (1 - 1e-5)


def test_the_limits_for_many_updates_are_the_constants_of_the_profiles(golden):
    constants = golden("schedules")["continuous_bound_constants"]["values"]
    total = 20_000
    found = {name: schedules.profile_by_name(name) for name in ("linear", "cosine")}
    found |= {f"rex_d{d}": schedules.profile_by_name("rex", d=d) for d in REX_FAMILY}
    with jax.enable_x64(True):
        for name, profile in found.items():
            steps = profile(jnp.arange(total) / total)
            bound = float(schedules.last_iterate_bound(steps, jnp.ones(total)).best_value)
            assert np.sqrt(total) * bound == pytest.approx(constants[name], rel=1e-3)


def test_a_cosine_that_rounds_to_zero_at_its_end_still_has_a_bound():
    total = 20_000
    schedule = optax.cosine_decay_schedule(1.0, total)
    assert float(schedule(total - 1)) == 0
    (row,) = schedules.bound_table({"cosine": schedule}, np.ones(2), total)
    assert np.sqrt(total) * row.bound == pytest.approx(2.06016667, rel=2e-3)


def test_linear_decay_has_its_closed_form_in_the_general_bound():
    total = 40
    steps = (total + 1 - np.arange(1, total + 1)) / (total + 1)
    harmonic = sum(1 / k for k in range(1, total))
    expected = 2 / total**0.5 * ((total - 0.5 + harmonic) / (total + 1)) ** 0.5
    found = schedules.last_iterate_bound(steps, np.ones(total)).best_value
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_refined_steps_come_close_to_the_numerical_optimum(golden):
    # The optimum of the general bound, found by a quasi-Newton search over all step sequences.
    for case in golden("schedules")["numerically_optimal_schedule"]["cases"]:
        norms = np.asarray(case["norms"])
        optimum = case["bound_opt"]
        at_optimum = schedules.last_iterate_bound(np.asarray(case["eta_opt"]), norms).best_value
        assert float(at_optimum) == pytest.approx(optimum, rel=1e-3)
        # What refinement gains over linear decay, by Theorem 1 alone: D sqrt(sum G^2) / T.
        linear = np.linalg.norm(norms) / len(norms)
        tight = linear / float(schedules.refinement_gain(norms))
        assert tight == pytest.approx(case["closed_form_theorem1_bound"], rel=1e-6)
        assert tight < optimum


def test_the_bound_table_ranks_schedules_and_knows_their_best_peak():
    total = 200
    names = ("constant", "cosine", "linear", "rex", "step")
    made = {name: schedules.schedule_from_profile(name, 3.0, total) for name in names}
    table = schedules.bound_table(made, np.ones(50), total)
    assert [row.name for row in table] == ["linear", "rex", "cosine", "step", "constant"]
    assert table[0].over_best == 1
    for row in table:
        schedule = schedules.schedule_from_profile(row.name, row.peak_value, total)
        again = float(
            schedules.last_iterate_bound(schedule(jnp.arange(total)), np.ones(total)).value
        )
        assert again == pytest.approx(row.bound, rel=1e-4)


def test_bounds_may_be_vmapped_and_compiled():
    eta = np.random.default_rng(0).uniform(0.1, 1, (5, 30)).astype(np.float32)
    norms = np.ones((5, 30), np.float32)
    loop = [
        float(schedules.last_iterate_bound(e, n).value) for e, n in zip(eta, norms, strict=True)
    ]
    batched = jax.jit(jax.vmap(schedules.last_iterate_bound))
    np.testing.assert_allclose(batched(eta, norms).value, loop, rtol=1e-6)
    np.testing.assert_allclose(schedules.last_iterate_bound(eta, norms).value, loop, rtol=1e-6)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: schedules.last_iterate_bound(np.array([1.0, 0.0]), np.ones(2)),
            r"the last of steps must be finite and in \(0, inf\)",
        ),
        (
            lambda: schedules.last_iterate_bound(np.ones(2), np.ones(3)),
            r"steps and norms must have one shape .* got \(2,\) and \(3,\)",
        ),
        (lambda: schedules.last_iterate_bound(-np.ones(2), np.ones(2)), "steps must be finite"),
        (lambda: schedules.last_iterate_bound(np.ones(2), np.ones(2), 0.0), "distance must be"),
        (lambda: schedules.refinement_gain(np.ones(1)), "norms must hold at least 2"),
        (lambda: schedules.last_iterate_bound(np.ones(2), -np.ones(2)), "norms must be finite"),
        (lambda: schedules.bound_table({}, np.ones(2), 2), "at least one schedule, got none"),
        (
            lambda: schedules.bound_table({"off": lambda step: 0.0 * step}, np.ones(4), 4),
            "schedules must have a positive value, got only 0 from 'off'",
        ),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("given", [["rex", "linear"], optax.constant_schedule(1.0)])
def test_schedules_without_names_are_refused(given):
    for compare in (
        lambda: schedules.bound_table(given, np.ones(9), 9),
        lambda: schedules.plot_schedules(given),
    ):
        with pytest.raises(TypeError, match="schedules must be a mapping from names to schedules"):
            compare()
