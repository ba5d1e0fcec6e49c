"""Choosing schedules: golden optima, brute force, constraints, and the paper's conclusions."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from jaxkit import losscurves, schedules

DEMO = {"floor": 2.628, "scale": 0.4297, "annealing": 0.4108, "exponent": 0.5498}


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules.schedule_from_profile(name, peak, total, **options))


def published(constants, decay=0.999, peak=2e-4, warmup="peak"):
    return losscurves.law(losscurves.Annealing(decay), peak_value=peak, warmup=warmup, **constants)


def final(constants, rates, decay, peak, prior=0.0):
    """Final loss of counted rates, float64."""
    law = types.SimpleNamespace(**constants)
    s2 = np.sum(decay ** np.arange(len(rates) - 1.0, -1, -1) * (peak - rates))
    return law.floor + law.scale * (prior + rates.sum()) ** -law.exponent - law.annealing * s2


def test_zero_tails_equal_the_golden_optimum_within_a_step(golden):
    cases = golden("annealing_law")["schedule_optimum"]["cases"]
    assert len(cases) == 4
    for case in cases:
        law = published(
            dict(zip(DEMO, case["L0_A_C_alpha"], strict=True)), case["decay"], case["peak"]
        )
        with pytest.warns(UserWarning, match="goes on falling although training cannot change"):
            found = losscurves.optimal_zero_tail(law, case["steps"], prior_sum=case["prior_S1"])
        assert abs(found.steps - case["zero_tail_steps"]) <= 1
        assert abs(found.real_steps - case["zero_tail_real_valued"]) < 1e-3
        assert abs(found.loss - case["loss_bang_bang"]) < 1e-9


def test_decay_lengths_equal_the_golden_grid(golden):
    for case in golden("annealing_law")["schedule_optimum"]["cases"]:
        law = published(
            dict(zip(DEMO, case["L0_A_C_alpha"], strict=True)), case["decay"], case["peak"]
        )
        for shape, expected in case["families"].items():
            found = losscurves.optimal_decay_length(
                law, case["steps"], shape=shape, prior_sum=case["prior_S1"]
            )
            best = int(np.argmin(found.losses))
            assert found.lengths[best] == expected["best_decay_steps_on_1pct_grid"]
            assert abs(found.losses[best] - expected["loss"]) < 1e-9
            assert found.loss <= found.losses[best]
            assert abs(found.steps - found.lengths[best]) <= case["steps"] // 100


def test_no_tail_is_best_when_annealing_pays_nothing():
    with pytest.warns(UserWarning, match="free optimum"):
        found = losscurves.optimal_zero_tail(published(DEMO | {"annealing": 0.0}), 1000)
    assert found.steps == 0
    expected = DEMO["floor"] + DEMO["scale"] * 0.2 ** -DEMO["exponent"]
    assert abs(found.loss - expected) < 1e-12


def test_the_final_loss_is_convex_in_the_rates():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.uniform(0, 2e-4, (2, 500))
        middle = final(DEMO, (a + b) / 2, 0.99, 2e-4)
        assert middle <= (final(DEMO, a, 0.99, 2e-4) + final(DEMO, b, 0.99, 2e-4)) / 2 + 1e-12


def test_the_best_decay_fraction_shrinks_as_runs_get_longer():
    totals = (20_000, 60_000, 100_000, 200_000, 400_000)
    found = [losscurves.optimal_decay_length(published(DEMO), total) for total in totals]
    on_grid = [one.lengths[np.argmin(one.losses)] / n for one, n in zip(found, totals, strict=True)]
    np.testing.assert_allclose(on_grid, [0.24, 0.20, 0.18, 0.15, 0.13], atol=1e-9)
    fractions = [one.fraction for one in found]
    assert all(longer < shorter for shorter, longer in itertools.pairwise(fractions))


def test_constant_beats_cosine_on_short_runs_and_loses_on_long_ones():
    fitted = published(DEMO)
    expected = {20_000: (2.8285, 2.8404), 60_000: (2.7376, 2.7064)}
    for total, losses in expected.items():
        ranked = losscurves.rank_schedules(
            fitted,
            {
                "constant": table("constant", total, 2e-4),
                "cosine": table("cosine", total, 2e-4),
            },
        )
        found = {one.name: one.loss for one in ranked}
        np.testing.assert_allclose([found["constant"], found["cosine"]], losses, atol=6e-5)
        assert ranked[0].name == ("constant" if total == 20_000 else "cosine")
        assert ranked[0].excess == 0


def test_candidates_of_different_lengths_are_ranked_together():
    fitted = published(DEMO)
    ranked = losscurves.rank_schedules(
        fitted, {f"{n}": table("wsd", n, 2e-4, cooldown=(n // 5) / n) for n in (500, 1000, 2000)}
    )
    assert [one.name for one in ranked] == ["2000", "1000", "500"]


def test_the_constrained_optimum_beats_every_random_feasible_schedule():
    steps, peak, minimum, drop = 60, 1.0, 0.1, 0.03
    law = {"floor": 2.0, "scale": 1.0, "annealing": 0.02, "exponent": 0.5}
    fitted = published(law, 0.8, peak)
    found = losscurves.optimal_schedule(
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
    law = {"floor": 2.52, "scale": 0.65, "annealing": 0.57, "exponent": 0.42}
    for mode in ("peak", "s2_peak", "linear"):
        fitted = published(law, peak=3e-4, warmup=mode)
        found = losscurves.optimal_schedule(
            fitted, 4000, minimum_value=3e-6, max_drop_per_step=1e-6, warmup_rates=warmup
        )
        assert found.learning_rates.shape == (4001,)
        np.testing.assert_array_equal(found.learning_rates[:200], warmup)
        assert found.learning_rates[200] == 3e-4
        assert found.loss < min(found.baselines.values())
        with jax.enable_x64(True):
            again = losscurves.predict(fitted, found.learning_rates, warmup_steps=200)
        np.testing.assert_allclose(found.loss, again[-1], rtol=1e-12)


def test_the_multi_power_optimum_is_no_worse_than_its_baselines_and_within_limits():
    fitted = losscurves.law(
        losscurves.MultiPower(), floor=2.4, scale=0.65, drop=520.0, exponent=0.43, speed=2.0,
        saturation=0.6, rate_exponent=0.6, peak_value=3e-4, warmup="s2_peak",
    )  # fmt: skip
    drop = 3e-4 / 150
    found = losscurves.optimal_schedule(
        fitted, 1000, minimum_value=3e-6, max_drop_per_step=drop, levels=50
    )
    rates = found.learning_rates
    assert found.loss < min(found.baselines.values())
    assert rates.min() >= 3e-6 * (1 - 1e-9)
    assert np.diff(rates).min() >= -drop * (1 + 1e-9)
    assert np.diff(rates).max() <= 1e-18
    with jax.enable_x64(True):
        again = losscurves.predict(fitted, rates, steps=np.array([1000]))
    np.testing.assert_allclose(found.loss, again[0], rtol=1e-10)


def test_every_shape_that_is_chosen_can_be_trained_with():
    law = published(DEMO, 0.99, 1e-3)
    for shape in ("linear", "sqrt", "cosine", "sqrtcube", "exponential"):
        end = 1e-5 if shape == "exponential" else 0.0
        best = losscurves.optimal_decay_length(law, 2000, shape=shape, end_value=end)
        ratio = {"ratio": 0.01} if end else {}
        rates = table("wsd", 2000, 1e-3, cooldown=best.fraction, shape=shape, **ratio)
        loss = losscurves.predict(law, rates, steps=np.array([2000]), prior_sum=0.0)
        with jax.enable_x64(True):
            loss = final(DEMO, rates[1:], 0.99, 1e-3)
        np.testing.assert_allclose(loss, best.loss, rtol=1e-9)
    optimum = losscurves.optimal_schedule(law, 2000, minimum_value=1e-5)
    trained = schedules.schedule_from_values(optimum.learning_rates, 2000)
    np.testing.assert_allclose(trained(np.arange(2001)), optimum.learning_rates, rtol=1e-6)


def test_the_chosen_schedule_is_the_best_cool_down_of_all_shapes():
    law = published(DEMO, 0.99, 1e-3)
    chosen = losscurves.chosen_schedule(law, 2000, warmup_steps=100)
    assert chosen.total_steps == 2000
    rivals = {
        f"{shape} {cooldown}": schedules.schedule_from_profile(
            "wsd", 1e-3, 2000, warmup_steps=100, cooldown=cooldown, shape=shape
        )
        for shape in ("linear", "sqrt", "cosine", "sqrtcube")
        for cooldown in (0.05, 0.1, 0.2, 0.4)
    }
    ranked = losscurves.rank_schedules(law, {"chosen": chosen, **rivals}, warmup_steps=100)
    assert ranked[0].name == "chosen"


BAD = {
    "limits": (lambda f: losscurves.optimal_schedule(f, 100), ValueError, "without a limit"),
    "minimum": (
        lambda f: losscurves.optimal_schedule(f, 100, minimum_value=2e-4),
        ValueError,
        "minimum_value",
    ),
    "steps": (
        lambda f: losscurves.optimal_schedule(f, 1.5, minimum_value=1e-5),
        TypeError,
        "total_steps must be an integer, got 1.5",
    ),
    "warm-up": (
        lambda f: losscurves.optimal_schedule(
            f, 5, minimum_value=1e-5, warmup_rates=np.full(4, 1e-5)
        ),
        ValueError,
        "must leave steps",
    ),
    "law": (
        lambda f: losscurves.optimal_schedule(
            losscurves.law(
                losscurves.StepPower(), floor=1.0, scale=1.0, exponent=0.5, peak_value=1.0
            ),
            100,
            minimum_value=1e-5,
        ),
        TypeError,
        "Annealing or MultiPower",
    ),
    "no candidate": (lambda f: losscurves.rank_schedules(f, {}), ValueError, "at least one"),
    "shape": (
        lambda f: losscurves.optimal_decay_length(f, 100, shape="lin"),
        ValueError,
        "did you mean 'linear'",
    ),
    "decay": (
        lambda f: losscurves.optimal_decay_length(f, 100, end_value=1.0),
        ValueError,
        "end_value",
    ),
    "exponential": (
        lambda f: losscurves.optimal_decay_length(f, 10, shape="exponential"),
        ValueError,
        "end_value",
    ),
    "unknown peak": (
        lambda f: losscurves.optimal_decay_length(dataclasses.replace(f, peak=None), 10),
        ValueError,
        "peak_value must be given",
    ),
    "no annealing": (
        lambda f: losscurves.optimal_decay_length(
            losscurves.law(losscurves.StepPower(), floor=1.0, scale=1.0, exponent=0.5), 10
        ),
        TypeError,
        "Annealing or MultiPower",
    ),
    "no cool-down to 0": (
        lambda f: losscurves.chosen_schedule(
            losscurves.law(
                losscurves.MultiPower(),
                floor=2.5,
                scale=0.5,
                drop=400.0,
                exponent=0.5,
                speed=2.0,
                saturation=0.6,
                rate_exponent=0.6,
            ),
            100,
            peak_value=1e-3,
        ),
        TypeError,
        "law must be of Annealing, got MultiPower",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_questions_are_refused_by_name(bad_input, case):
    ask, error, message = BAD[case]
    with pytest.raises(error, match=message):
        ask(published(DEMO))


def test_what_is_no_law_no_form_or_has_no_names_is_refused_by_name(tmp_path):
    form = losscurves.StepPower()
    law = losscurves.law(form, floor=2.0, scale=1.0, exponent=0.5)
    rates = np.ones(9)
    for message, call in (
        ("law must be a Law", lambda: losscurves.predict("law.json", rates)),
        ("law must be a Law", lambda: losscurves.write_law(law, tmp_path / "law.json")),
        ("law must be a Law", lambda: losscurves.optimal_decay_length(law.constants, 9)),
        ("law must be a Law", lambda: losscurves.optimal_zero_tail(None, 9)),
        ("law must be a Law", lambda: losscurves.optimal_schedule(None, 9, minimum_value=0.1)),
        ("candidates must be a mapping", lambda: losscurves.rank_schedules(law, [rates])),
        ("form must be a form such as", lambda: losscurves.fit("annealing", [])),
        ("got the class StepPower itself", lambda: losscurves.fit(losscurves.StepPower, [])),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"curves must be a sequence .*, got dict"):
        losscurves.fit(form, {"a": rates})
    with pytest.raises(ValueError, match="predicted must be an array, got rows of different"):
        losscurves.score([[1.0], [1.0, 2.0]], rates)


def test_a_law_is_shown_without_its_residuals():
    law = losscurves.law(losscurves.StepPower(), floor=2.0, scale=1.0, exponent=0.5)
    assert "residuals" not in repr(law)
    assert "PowerLaw(floor=2.0" in repr(law)
