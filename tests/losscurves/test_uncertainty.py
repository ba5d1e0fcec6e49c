"""Decay profiles, block bootstrap, leave-one-schedule-out, scores and figures."""

import jax
import numpy as np
import pytest

from jaxkit import losscurves, schedules
from jaxkit.losscurves import uncertainty


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules.schedule_from_profile(name, peak, total, **options))


STEPS = np.arange(200, 4001, 50)
LAW = losscurves.law(
    losscurves.Annealing(0.99), floor=2.5, scale=0.6, annealing=0.9, exponent=0.45, peak_value=1e-3
)
SCHEDULES = {
    "constant": table("constant", 4000, 1e-3),
    "cosine": table("cosine", 4000, 1e-3, end_value=1e-5),
    "wsd": table("wsd", 4000, 1e-3, cooldown=1000 / 4000, end_value=1e-5),
}


def runs(noise=1e-3, seed=0, correlation=0.8):
    rng = np.random.default_rng(seed)
    made = {}
    for name, rates in SCHEDULES.items():
        with jax.enable_x64(True):
            exact = np.asarray(losscurves.predict(LAW, rates, steps=STEPS))
        error = rng.standard_normal(STEPS.size)
        for i in range(1, STEPS.size):
            error[i] = correlation * error[i - 1] + np.sqrt(1 - correlation**2) * error[i]
        made[name] = losscurves.loss_curve(rates, STEPS, exact * np.exp(noise * error))
    return made


def test_the_profile_finds_the_decay_that_made_the_curves():
    profile = losscurves.profile_decay(list(runs(1e-4).values()), [0.9, 0.97, 0.99, 0.997])
    assert profile.best == 0.99
    assert profile.converged.all()
    assert (profile.objectives[[0, 3]] > 2 * profile.objectives[2]).all()
    one = losscurves.fit(losscurves.Annealing(0.99), list(runs(1e-4).values()))
    np.testing.assert_allclose([leaf[2] for leaf in profile.laws], one.constants, rtol=1e-9)


def test_blocks_stay_within_their_curve_and_in_order():
    draws = jax.vmap(lambda key: uncertainty.moving_blocks(key, (10, 7), 5))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert draws.shape == (50, 17)
    first, second = np.asarray(draws[:, :10]), np.asarray(draws[:, 10:])
    assert first.min() == 0
    assert first.max() == 9
    assert second.min() == 10
    assert second.max() == 16
    assert (np.diff(first[:, :5]) == 1).all()
    assert len({tuple(row) for row in first}) > 20


@pytest.mark.slow
def test_bootstrap_spread_matches_that_of_fresh_noise():
    form = losscurves.Annealing(0.99)
    made = list(runs().values())

    def spread_of(block_length):
        law = losscurves.bootstrap_fit(
            jax.random.key(1), form, made, num_samples=200, block_length=block_length
        )
        return law.samples

    laws, again = spread_of(20), spread_of(20)
    np.testing.assert_array_equal(laws.floor, again.floor)
    fresh = np.array(
        [losscurves.fit(form, list(runs(seed=s).values())).constants for s in range(1, 41)]
    )
    spread = np.array([np.std(leaf) for leaf in laws])
    ratio = spread / fresh.std(axis=0)
    # Blocks of 20 with correlation .8 lose a little of the long-range part.
    assert ((ratio > 0.4) & (ratio < 1.6)).all(), ratio
    assert np.std(spread_of(1).floor) < 0.7 * np.std(laws.floor)


@pytest.mark.slow
def test_an_interval_holds_the_curve_of_a_schedule_that_no_fit_saw():
    made = runs()
    pair = [made["constant"], made["cosine"]]
    law = losscurves.bootstrap_fit(
        jax.random.key(1), losscurves.Annealing(0.99), pair, num_samples=40
    )
    found = losscurves.prediction_interval(law, made["wsd"], level=0.9)
    inside = (made["wsd"].losses > found.low) & (made["wsd"].losses < found.high)
    assert 0.8 <= np.mean(inside) <= 1.0
    wider = losscurves.prediction_interval(law, made["wsd"], level=0.99)
    assert (wider.high - wider.low > 1.5 * (found.high - found.low)).all()
    np.testing.assert_allclose(found.loss, losscurves.predict(law, made["wsd"]), rtol=1e-6)


def test_three_curves_tell_the_error_of_an_unseen_schedule(tmp_path):
    made = list(runs().values())
    made[1] = made[1]._replace(losses=made[1].losses * 1.004)  # no law fits all three
    form = losscurves.Annealing(0.99)
    two = losscurves.bootstrap_fit(jax.random.key(1), form, made[:2], num_samples=4)
    assert two.misfit == pytest.approx(3 * np.sqrt(np.mean(two.residuals**2)))
    three = losscurves.bootstrap_fit(jax.random.key(1), form, made, num_samples=4)
    errors = [one.mean_relative for one in losscurves.leave_one_out(form, made)]
    assert three.misfit == pytest.approx(np.mean(errors) * np.sqrt(np.pi / 2))
    assert three.misfit > 2 * np.sqrt(np.mean(three.residuals**2))
    again = losscurves.read_law(losscurves.write_law(tmp_path / "law.json", three))
    for name in ("form", "constants", "warmup", "warmup_steps", "peak", "seen", "misfit"):
        assert getattr(again, name) == getattr(three, name), name
    (tmp_path / "law.json").write_text('{"form": "annealling"}')
    with pytest.raises(ValueError, match=r"law\.json"):
        losscurves.read_law(tmp_path)


def test_leaving_one_out_equals_fitting_the_others():
    made = runs()
    form = losscurves.Annealing(0.99)
    scores = losscurves.leave_one_out(form, list(made.values()))
    others = losscurves.fit(form, [made["constant"], made["cosine"]])
    predicted = losscurves.predict(others, SCHEDULES["wsd"], steps=STEPS)
    expected = losscurves.score(np.asarray(predicted), made["wsd"].losses)
    np.testing.assert_allclose(scores[2], expected, rtol=2e-3)


def test_uncertainty_refuses_what_it_cannot_do(bad_input):
    made = runs()
    form = losscurves.Annealing(0.99)
    with pytest.raises(ValueError, match="at least 3 to leave one out, got 2"):
        losscurves.leave_one_out(form, [made["constant"], made["cosine"]])
    constants = [made["constant"], made["constant"], made["cosine"]]
    with pytest.raises(ValueError, match=r"without curves\[2\]: .*Add a decaying schedule"):
        losscurves.leave_one_out(form, constants)
    with pytest.raises(ValueError, match="block_length must be an integer >= 1, got 0"):
        losscurves.bootstrap_fit(jax.random.key(0), form, constants, block_length=0)
    with pytest.raises(ValueError, match="law must come from bootstrap_fit"):
        losscurves.prediction_interval(LAW, SCHEDULES["wsd"])
    with pytest.raises(ValueError, match="decays"):
        losscurves.profile_decay(list(made.values()), [0.9, 1.0])


def test_scores_equal_their_definitions():
    observed, predicted = np.array([2.0, 1.0, 4.0]), np.array([2.2, 1.0, 3.0])
    found = losscurves.score(predicted, observed)
    np.testing.assert_allclose(
        found,
        [1 - 1.04 / np.sum((observed - 7 / 3) ** 2), 0.4, np.sqrt(1.04 / 3), 0.35 / 3, 0.25],
    )
    batched = losscurves.score(jax.numpy.stack([predicted] * 2), jax.numpy.stack([observed] * 2))
    np.testing.assert_allclose(batched.rmse, [found.rmse] * 2, rtol=1e-6)
    assert losscurves.score(observed, observed).r2 == 1


def test_scores_refuse_other_shapes(bad_input):
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        losscurves.score(np.ones(2), np.ones(3))


def test_tables_and_figures_show_every_law_and_curve(tmp_path):
    made = runs(noise=2e-4)
    pair = [made["constant"], made["cosine"]]
    fits = {
        "annealing": losscurves.fit(losscurves.Annealing(0.99), pair),
        "steps": losscurves.fit(losscurves.StepPower(), pair),
    }
    table = losscurves.comparison_table(fits, made, held_out=["wsd"])
    assert len(table.rows) == 6
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["annealing", "wsd"][2] == "yes"
    assert rows["steps", "wsd"][3] > 5 * rows["annealing", "wsd"][3]
    assert str(table).count("\n") == 6
    figure = losscurves.prediction_figure(fits["annealing"], made)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(made)
    assert len(figure.axes[1].lines) == 4
    areas = losscurves.areas_figure(SCHEDULES, decay=0.99)
    assert len(areas.axes[2].lines) == 3
    lengths = losscurves.optimal_decay_length(LAW, 4000)
    fractions = lengths.lengths / 4000
    figure = losscurves.decay_fraction_figure(
        {"linear": (fractions, lengths.losses)}, {"linear": ([0.1, 0.2], [2.7, 2.6])}
    )
    assert len(figure.axes[0].lines) == 3
    with pytest.raises(ValueError, match=r"held_out must name curves.*\['wds'\]"):
        losscurves.comparison_table(fits, made, held_out=["wds"])
