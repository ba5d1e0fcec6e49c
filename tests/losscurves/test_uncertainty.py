"""Decay profiles, block bootstrap, leave-one-schedule-out, scores and figures."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkit import losscurves
from jaxkit.losscurves import uncertainty

STEPS = np.arange(200, 4001, 50)
LAW = losscurves.AnnealingLaw(2.5, 0.6, 0.9, 0.45)
SCHEDULES = {
    "constant": losscurves.constant_rates(4000, 1e-3),
    "cosine": losscurves.cosine_rates(4000, 1e-3, end_value=1e-5),
    "wsd": losscurves.hold_then_decay(4000, 1e-3, 1000, end_value=1e-5),
}


def runs(noise=1e-3, seed=0, correlation=0.8):
    rng = np.random.default_rng(seed)
    made = {}
    for name, rates in SCHEDULES.items():
        with jax.enable_x64(True):
            exact = np.asarray(losscurves.predict_loss(LAW, rates, decay=0.99))[STEPS]
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
    np.testing.assert_allclose([leaf[2] for leaf in profile.laws], one.law, rtol=1e-9)


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
    laws = losscurves.bootstrap_fit(jax.random.key(1), form, made, num_samples=200, block_length=20)
    again = losscurves.bootstrap_fit(
        jax.random.key(1), form, made, num_samples=200, block_length=20
    )
    np.testing.assert_array_equal(laws.floor, again.floor)
    fresh = np.array([losscurves.fit(form, list(runs(seed=s).values())).law for s in range(1, 41)])
    spread = np.array([np.std(leaf) for leaf in laws])
    ratio = spread / fresh.std(axis=0)
    # Blocks of 20 with correlation .8 lose a little of the long-range part.
    assert ((ratio > 0.4) & (ratio < 1.6)).all(), ratio
    plain = losscurves.bootstrap_fit(jax.random.key(1), form, made, num_samples=200, block_length=1)
    assert np.std(plain.floor) < 0.7 * np.std(laws.floor)


def test_a_band_of_predictions_comes_from_one_vmap():
    form = losscurves.Annealing(0.99)
    made = list(runs().values())
    fitted = losscurves.fit(form, made)
    laws = losscurves.bootstrap_fit(jax.random.key(1), form, made, num_samples=40)
    band = jax.vmap(
        lambda law: losscurves.predict(
            dataclasses.replace(fitted, law=law), SCHEDULES["wsd"], steps=STEPS
        )
    )(laws)
    assert band.shape == (40, STEPS.size)
    centre = losscurves.predict(fitted, SCHEDULES["wsd"], steps=STEPS)
    low, high = np.quantile(band, [0.01, 0.99], axis=0)
    assert np.mean((centre >= low) & (centre <= high)) > 0.8


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
    with pytest.raises(ValueError, match="at most the 77 points of the shortest curve, got 78"):
        losscurves.bootstrap_fit(jax.random.key(0), form, constants, block_length=78)
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
    lengths = losscurves.optimal_decay_length(LAW, 4000, 1e-3, decay=0.99)
    fractions = lengths.lengths / 4000
    figure = losscurves.decay_fraction_figure(
        {"linear": (fractions, lengths.losses)}, {"linear": ([0.1, 0.2], [2.7, 2.6])}
    )
    assert len(figure.axes[0].lines) == 3
    with pytest.raises(ValueError, match=r"held_out must name curves.*\['wds'\]"):
        losscurves.comparison_table(fits, made, held_out=["wds"])
