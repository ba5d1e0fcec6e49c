"""Choosing schedules: golden optima, brute force, constraints, and the paper's conclusions."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxkit import losscurves
from jaxkit.losscurves import forms

DEMO = losscurves.AnnealingLaw(2.628, 0.4297, 0.4108, 0.5498)


def as_fit(law, form, peak, warmup="peak"):
    """A fit whose constants are given, to question them."""
    return losscurves.LawFit(
        law=jax.tree.map(np.float64, law),
        objective=np.zeros(()),
        residuals=np.zeros(0),
        converged=np.array(True),
        condition_number=np.ones(()),
        peak=np.float64(peak),
        at_bound=(),
        form=form,
        warmup=warmup,
        warmup_steps=(0,),
        huber_delta=1e-3,
    )


def final(law, rates, decay, peak, prior=0.0):
    """Final loss of counted rates, float64."""
    s2 = np.sum(decay ** np.arange(len(rates) - 1.0, -1, -1) * (peak - rates))
    return law.floor + law.scale * (prior + rates.sum()) ** -law.exponent - law.annealing * s2


def test_zero_tails_equal_the_golden_optimum_within_a_step(golden):
    cases = golden("annealing_law")["schedule_optimum"]["cases"]
    assert len(cases) == 4
    for case in cases:
        law = losscurves.AnnealingLaw(*case["L0_A_C_alpha"])
        with pytest.warns(UserWarning, match="goes on falling although training cannot change"):
            found = losscurves.optimal_zero_tail(
                law, case["steps"], case["peak"], decay=case["decay"], prior_sum=case["prior_S1"]
            )
        assert abs(found.steps - case["zero_tail_steps"]) <= 1
        assert abs(found.real_steps - case["zero_tail_real_valued"]) < 1e-3
        assert abs(found.loss - case["loss_bang_bang"]) < 1e-9


def test_decay_lengths_equal_the_golden_grid(golden):
    for case in golden("annealing_law")["schedule_optimum"]["cases"]:
        law = losscurves.AnnealingLaw(*case["L0_A_C_alpha"])
        for shape, expected in case["families"].items():
            found = losscurves.optimal_decay_length(
                law,
                case["steps"],
                case["peak"],
                decay=case["decay"],
                shape=shape,
                prior_sum=case["prior_S1"],
            )
            best = int(np.argmin(found.losses))
            assert found.lengths[best] == expected["best_decay_steps_on_1pct_grid"]
            assert abs(found.losses[best] - expected["loss"]) < 1e-9
            assert found.loss <= found.losses[best]
            assert abs(found.steps - found.lengths[best]) <= case["steps"] // 100


def test_no_tail_is_best_when_annealing_pays_nothing():
    with pytest.warns(UserWarning, match="free optimum"):
        found = losscurves.optimal_zero_tail(DEMO._replace(annealing=0.0), 1000, 2e-4, decay=0.999)
    assert found.steps == 0
    expected = DEMO.floor + DEMO.scale * 0.2**-DEMO.exponent
    assert abs(found.loss - expected) < 1e-12


def test_the_final_loss_is_convex_in_the_rates():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.uniform(0, 2e-4, (2, 500))
        middle = final(DEMO, (a + b) / 2, 0.99, 2e-4)
        assert middle <= (final(DEMO, a, 0.99, 2e-4) + final(DEMO, b, 0.99, 2e-4)) / 2 + 1e-12


def test_the_best_decay_fraction_shrinks_as_runs_get_longer():
    totals = (20_000, 60_000, 100_000, 200_000, 400_000)
    found = [losscurves.optimal_decay_length(DEMO, total, 2e-4, decay=0.999) for total in totals]
    on_grid = [one.lengths[np.argmin(one.losses)] / n for one, n in zip(found, totals, strict=True)]
    np.testing.assert_allclose(on_grid, [0.24, 0.20, 0.18, 0.15, 0.13], atol=1e-9)
    fractions = [one.fraction for one in found]
    assert all(longer < shorter for shorter, longer in itertools.pairwise(fractions))


def test_constant_beats_cosine_on_short_runs_and_loses_on_long_ones():
    fitted = as_fit(DEMO, losscurves.Annealing(0.999), 2e-4)
    expected = {20_000: (2.8285, 2.8404), 60_000: (2.7376, 2.7064)}
    for total, losses in expected.items():
        ranked = losscurves.rank_schedules(
            fitted,
            {
                "constant": losscurves.constant_rates(total, 2e-4),
                "cosine": losscurves.cosine_rates(total, 2e-4),
            },
        )
        found = {one.name: one.loss for one in ranked}
        np.testing.assert_allclose([found["constant"], found["cosine"]], losses, atol=6e-5)
        assert ranked[0].name == ("constant" if total == 20_000 else "cosine")
        assert ranked[0].excess == 0


def test_candidates_of_different_lengths_are_ranked_together():
    fitted = as_fit(DEMO, losscurves.Annealing(0.999), 2e-4)
    ranked = losscurves.rank_schedules(
        fitted, {f"{n}": losscurves.hold_then_decay(n, 2e-4, n // 5) for n in (500, 1000, 2000)}
    )
    assert [one.name for one in ranked] == ["2000", "1000", "500"]


def test_the_constrained_optimum_beats_every_random_feasible_schedule():
    steps, peak, minimum, drop = 60, 1.0, 0.1, 0.03
    law = losscurves.AnnealingLaw(2.0, 1.0, 0.02, 0.5)
    fitted = as_fit(law, losscurves.Annealing(0.8), peak)
    found = losscurves.optimize_schedule(
        fitted, steps, minimum_value=minimum, max_drop_per_step=drop
    )
    rates = found.learning_rates
    assert rates.shape == (61,)
    assert rates[0] == peak
    assert rates.min() >= minimum - 1e-12
    assert np.diff(rates).min() >= -drop - 1e-12
    np.testing.assert_allclose(found.loss, final(law, rates[1:], 0.8, peak, prior=peak), rtol=1e-12)
    rng = np.random.default_rng(0)
    for start in range(60):
        for _ in range(20):
            moves = np.where(np.arange(60) >= start, rng.uniform(-drop, 0.3 * drop, 60), 0.0)
            other = [peak]
            for move in moves:
                other.append(float(np.clip(other[-1] + move, minimum, peak)))
            assert final(law, np.array(other[1:]), 0.8, peak, prior=peak) >= found.loss - 1e-9
    ramps = [
        np.clip(peak - drop * np.maximum(np.arange(1, 61) - start, 0), minimum, peak)
        for start in np.linspace(0, 60, 601)
    ]
    assert found.loss <= min(final(law, ramp, 0.8, peak, prior=peak) for ramp in ramps) + 1e-9


def test_an_optimised_schedule_counts_its_warmup_and_beats_the_usual_ones():
    warmup = np.linspace(0, 3e-4, 200, endpoint=False)
    law = losscurves.AnnealingLaw(2.52, 0.65, 0.57, 0.42)
    for mode in ("peak", "s2_peak", "linear"):
        fitted = as_fit(law, losscurves.Annealing(0.999), 3e-4, mode)
        found = losscurves.optimize_schedule(
            fitted, 4000, minimum_value=3e-6, max_drop_per_step=1e-6, warmup_rates=warmup
        )
        assert found.learning_rates.shape == (4001,)
        np.testing.assert_array_equal(found.learning_rates[:200], warmup)
        assert found.learning_rates[200] == 3e-4
        assert found.loss < min(found.baselines.values())
        with jax.enable_x64(True):
            again = losscurves.predict_loss(
                fitted.law, found.learning_rates, decay=0.999, warmup=mode, warmup_steps=200
            )
        np.testing.assert_allclose(found.loss, again[-1], rtol=1e-12)


def test_the_multi_power_optimum_is_no_worse_than_its_baselines_and_within_limits():
    law = losscurves.MultiPowerLaw(2.4, 0.65, 520.0, 0.43, 2.0, 0.6, 0.6)
    fitted = as_fit(law, losscurves.MultiPower(), 3e-4, "s2_peak")
    drop = 3e-4 / 150
    found = losscurves.optimize_schedule(
        fitted, 1000, minimum_value=3e-6, max_drop_per_step=drop, levels=50
    )
    rates = found.learning_rates
    assert found.loss < min(found.baselines.values())
    assert rates.min() >= 3e-6 * (1 - 1e-9)
    assert np.diff(rates).min() >= -drop * (1 + 1e-9)
    assert np.diff(rates).max() <= 1e-18
    with jax.enable_x64(True):
        again = losscurves.predict_multi_power_loss(law, rates, np.array([1000]))
    np.testing.assert_allclose(found.loss, again[0], rtol=1e-10)


def test_shapes_end_where_they_say_and_stay_between():
    schedules = losscurves.standard_schedules(1000, 1e-3, decay_fraction=0.3, end_value=1e-5)
    schedules["cyclic"] = losscurves.cyclic_rates(1000, 1e-3, 3, end_value=1e-5)
    schedules["rewarmed"] = losscurves.rewarmed_rates(1000, 1e-3)
    for name, rates in schedules.items():
        assert rates.shape == (1001,)
        assert rates[0] == 1e-3
        assert rates.max() == 1e-3
        expected = {"constant": 1e-3, "multi_step": 1e-4, "two_stage": 1e-4, "rewarmed": 0.0}
        assert abs(rates[-1] - expected.get(name, 1e-5)) < 1e-15
        if name.startswith("wsd"):
            assert (rates[:701] == 1e-3).all()
            assert (np.diff(rates[700:]) < 0).all()


BAD = {
    "limits": (lambda f: losscurves.optimize_schedule(f, 100), ValueError, "without a limit"),
    "minimum": (
        lambda f: losscurves.optimize_schedule(f, 100, minimum_value=2e-4),
        ValueError,
        "minimum_value",
    ),
    "steps": (
        lambda f: losscurves.optimize_schedule(f, 1.5, minimum_value=1e-5),
        TypeError,
        "total_steps must be an integer, got 1.5",
    ),
    "warm-up": (
        lambda f: losscurves.optimize_schedule(
            f, 5, minimum_value=1e-5, warmup_rates=np.full(4, 1e-5)
        ),
        ValueError,
        "must leave steps",
    ),
    "law": (
        lambda f: losscurves.optimize_schedule(
            dataclasses.replace(f, form=forms.StepPower(), law=losscurves.PowerLaw(1.0, 1.0, 0.5)),
            100,
            minimum_value=1e-5,
        ),
        TypeError,
        "Annealing or MultiPower",
    ),
    "no candidate": (lambda f: losscurves.rank_schedules(f, {}), ValueError, "at least one"),
    "shape": (
        lambda f: losscurves.optimal_decay_length(f.law, 100, 2e-4, decay=0.9, shape="lin"),
        ValueError,
        "did you mean 'linear'",
    ),
    "decay": (
        lambda f: losscurves.optimal_decay_length(f.law, 100, 2e-4, decay=1.0),
        ValueError,
        "decay",
    ),
    "exponential": (
        lambda f: losscurves.hold_then_decay(10, 1.0, 5, shape="exponential"),
        ValueError,
        "end_value",
    ),
    "long": (lambda f: losscurves.hold_then_decay(10, 1.0, 11), ValueError, "at most the 10"),
    "changes": (
        lambda f: losscurves.piecewise_rates(10, 1.0, [(0.5, 0.1), (0.5, 0.2)]),
        ValueError,
        "increasing fractions",
    ),
    "rewarm": (
        lambda f: losscurves.rewarmed_rates(10, 1.0, warmup_steps=6),
        ValueError,
        "second decay of 10 steps",
    ),
    "front": (lambda f: losscurves.with_warmup(np.ones(3), -1), ValueError, "warmup_steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_questions_are_refused_by_name(bad_input, case):
    ask, error, message = BAD[case]
    with pytest.raises(error, match=message):
        ask(as_fit(DEMO, losscurves.Annealing(0.999), 2e-4))
