"""Fits: golden constants, SciPy, invariances, recovery by every form, and every refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy

from jaxkit import losscurves, schedules
from jaxkit.losscurves import forms, laws, posing, precision, solving


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules.schedule_from_profile(name, peak, total, **options))


def warmed(rates, steps):
    return np.concatenate([np.linspace(0, rates[0], steps, endpoint=False), rates])


STEPS = np.arange(200, 4001, 100)
PEAK = 1e-3
SCHEDULES = {
    "constant": table("constant", 4000, PEAK),
    "cosine": table("cosine", 4000, PEAK, end_value=1e-5),
    "wsd": table("wsd", 4000, PEAK, cooldown=1000 / 4000, end_value=1e-5),
}


def warmed_cosine(peak, total, final):
    s = np.arange(total + 1.0)
    rates = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * (s - 500) / (total - 500)))
    rates[:501] = peak
    return rates


def demo_curves(golden):
    demo = golden("annealing_law")["official_demo"]
    steps = np.array(demo["step"])
    return {
        "cosine": losscurves.loss_curve(
            warmed_cosine(2e-4, 20000, 0.0), steps, np.array(demo["loss_cosine"])
        ),
        "constant": losscurves.loss_curve(
            np.full(20001, 2e-4), steps, np.array(demo["loss_constant"])
        ),
    }


def objective(constants, fitted, decay, delta=1e-3):
    """The published objective, float64 NumPy."""
    floor, scale, annealing, exponent = constants
    total = 0.0
    for curve in fitted:
        s1 = np.cumsum(curve.learning_rates)[curve.steps]
        s2 = [0.0]
        for rate in curve.learning_rates[1:]:
            s2.append(decay * s2[-1] + curve.learning_rates[0] - rate)
        predicted = floor + scale * s1**-exponent - annealing * np.array(s2)[curve.steps]
        r = np.abs(np.log(predicted) - np.log(curve.losses))
        total += np.sum(curve.weights * np.where(r < delta, r**2 / 2, delta * r - delta**2 / 2))
    return total


def noisy_runs(law, decay=0.99, seed=0, noise=1e-3, names=("constant", "cosine")):
    rng = np.random.default_rng(seed)
    runs = []
    for name in names:
        rates = SCHEDULES[name]
        with jax.enable_x64(True):
            known = losscurves.law(losscurves.Annealing(decay), **law._asdict())
            exact = np.asarray(losscurves.predict(known, rates, steps=STEPS))
        losses = exact * np.exp(noise * rng.standard_normal(STEPS.size))
        runs.append(losscurves.loss_curve(rates, STEPS, losses))
    return runs


LAW = laws.AnnealingLaw(2.5, 0.6, 0.9, 0.45)


def test_demo_fit_reaches_the_golden_optimum(golden):
    curves = demo_curves(golden)
    for expected in golden("annealing_law")["official_demo"]["fits"]:
        fitted = losscurves.fit(losscurves.Annealing(expected["decay"]), list(curves.values()))
        np.testing.assert_allclose(fitted.constants, expected["L0_A_C_alpha"], rtol=1e-6)
        assert float(fitted.objective) <= expected["objective"] * (1 + 1e-8)
        assert fitted.converged
        assert fitted.at_bound == ()
        predicted = [
            losscurves.predict(fitted, c.learning_rates, steps=c.steps) for c in curves.values()
        ]
        found = losscurves.score(
            np.concatenate(predicted), np.concatenate([c.losses for c in curves.values()])
        )
        metrics = expected["metrics_on_fit"]
        np.testing.assert_allclose(
            found, [metrics[k] for k in ("R2", "MAE", "RMSE", "PredE", "WorstE")], rtol=2e-4
        )
    at_999 = losscurves.fit(losscurves.Annealing(0.999), list(curves.values()))
    assert float(at_999.objective) <= 1.62925e-5
    np.testing.assert_allclose(at_999.constants, [2.62780, 0.42967, 0.41077, 0.54985], rtol=1e-4)


def test_demo_fit_on_the_cosine_alone_is_warned_about_and_predicts_the_constant(golden):
    curves = demo_curves(golden)
    for expected in golden("annealing_law")["official_demo"]["fits"]:
        with pytest.warns(UserWarning, match="share one schedule"):
            fitted = losscurves.fit(losscurves.Annealing(expected["decay"]), [curves["cosine"]])
        expected = expected["cosine_only"]
        np.testing.assert_allclose(fitted.constants, expected["L0_A_C_alpha"], rtol=1e-5)
        constant = curves["constant"]
        with pytest.warns(UserWarning, match="sums its rates to .* the prediction extrapolates"):
            predicted = losscurves.predict(fitted, constant)
        error = losscurves.score(np.asarray(predicted), constant.losses).mean_relative
        assert abs(error / expected["metrics_on_constant"]["PredE"] - 1) < 1e-3


def test_noise_free_curves_give_their_constants_back(golden):
    for case in golden("annealing_law")["synthetic"]:
        curves = []
        for one in case["curves"]:
            rates = np.full(case["total"] + 1, case["peak"])
            if one["schedule"] == "cosine":
                rates = warmed_cosine(case["peak"], case["total"], case["cosine_final"])
            curves.append(
                losscurves.loss_curve(rates, np.array(one["step"]), np.array(one["loss"]))
            )
        form = losscurves.Annealing(case["decay"])
        np.testing.assert_allclose(
            losscurves.fit(form, curves).constants, case["true_L0_A_C_alpha"], rtol=1e-5
        )
        posed = posing.pose(form, curves)
        problem = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), posed.problem)
        found = solving.solve(form.model, problem, jnp.asarray(form.starts(), jnp.float32), 1e-3)
        assert found.objective.dtype == jnp.float32
        law = solving.law_of(form.model, problem, found)
        np.testing.assert_allclose(law, case["true_L0_A_C_alpha"], rtol=1e-3)


def test_scipy_finds_no_lower_objective():
    runs = noisy_runs(LAW)
    fitted = losscurves.fit(losscurves.Annealing(0.99), runs)
    mine = objective(fitted.constants, runs, 0.99)
    np.testing.assert_allclose(mine, fitted.objective, rtol=1e-9)
    best = min(
        scipy.optimize.minimize(
            lambda theta: 1e6 * objective(np.exp(theta), runs, 0.99),
            np.log(start),
            method="Nelder-Mead",
            options={"maxiter": 2000, "fatol": 1e-9, "xatol": 1e-9},
        ).fun
        for start in (LAW, [2.0, 1.0, 0.5, 0.3])
    )
    assert mine <= best / 1e6 * (1 + 1e-7)


def test_order_and_splitting_of_curves_do_not_matter():
    runs = noisy_runs(LAW)
    form = losscurves.Annealing(0.99)
    whole = losscurves.fit(form, runs)
    cut = [
        runs[0]._replace(**{k: getattr(runs[0], k)[part] for k in ("steps", "losses", "weights")})
        for part in (slice(0, 10), slice(10, None))
    ]
    for others in (runs[::-1], [*cut, runs[1]]):
        np.testing.assert_allclose(
            losscurves.fit(form, others).constants, whole.constants, rtol=1e-7
        )


def test_a_weight_counts_like_a_repeated_point():
    runs = noisy_runs(LAW)
    form = losscurves.Annealing(0.99)
    doubled = [runs[0]._replace(weights=2 * runs[0].weights), runs[1]]
    repeated = losscurves.fit(form, [runs[0], *runs])
    np.testing.assert_allclose(
        losscurves.fit(form, doubled).constants, repeated.constants, rtol=1e-7
    )


def test_a_unit_of_learning_rate_changes_only_scale_and_annealing():
    runs = noisy_runs(LAW)
    form, c = losscurves.Annealing(0.99), 1e3
    base = losscurves.fit(form, runs)
    scaled = losscurves.fit(
        form, [run._replace(learning_rates=c * run.learning_rates) for run in runs]
    )
    floor, scale, annealing, exponent = base.constants
    np.testing.assert_allclose(
        scaled.constants, [floor, scale * c**exponent, annealing / c, exponent], rtol=1e-6
    )
    np.testing.assert_allclose(scaled.condition_number, base.condition_number, rtol=1e-5)


def test_a_constant_that_belongs_at_zero_is_reported_at_bound():
    runs = noisy_runs(LAW._replace(annealing=0.0), noise=0.0)
    fitted = losscurves.fit(losscurves.Annealing(0.99), runs)
    assert fitted.at_bound == ("annealing",)
    np.testing.assert_allclose(
        [fitted.constants.floor, fitted.constants.scale, fitted.constants.exponent],
        [2.5, 0.6, 0.45],
        rtol=1e-4,
    )


def test_total_annealing_is_comparable_between_decays():
    runs = noisy_runs(LAW, decay=0.99, noise=0.0)
    totals = [
        losscurves.fit(losscurves.Annealing(decay), runs).total_annealing
        for decay in (0.98, 0.99, 0.995)
    ]
    np.testing.assert_allclose(totals, 90.0, rtol=0.15)
    np.testing.assert_allclose(totals[1], 90.0, rtol=1e-5)


FORMS = {
    "annealing": (losscurves.Annealing(0.99), LAW),
    "instant": (losscurves.Annealing(0.0), LAW._replace(annealing=90.0)),
    "rate_sum": (losscurves.RateSumPower(), laws.PowerLaw(2.5, 0.6, 0.45)),
    "steps": (losscurves.StepPower(), laws.PowerLaw(2.5, 9.0, 0.45)),
    "model_size": (
        losscurves.ModelSize(0.99),
        laws.SizeLaw(1.8, 0.6, 20.0, 0.2, 0.45, 0.2, 0.1),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_recovers_its_law_and_predicts_batches(name):
    form, law = FORMS[name]
    sizes = (25e6, 1e8, 4e8) if name == "model_size" else (None,)
    law64 = jax.tree.map(np.float64, law)
    runs = []
    with jax.enable_x64(True):
        for size in sizes:
            for schedule in ("constant", "cosine"):
                rates = SCHEDULES[schedule]
                losses = np.asarray(form.loss(law64, rates, rates, STEPS, size))
                runs.append(losscurves.loss_curve(rates, STEPS, losses, model_size=size))
    fitted = losscurves.fit(form, runs)
    assert fitted.converged
    np.testing.assert_allclose(fitted.constants, law, rtol=1e-4)
    batch = np.stack(list(SCHEDULES.values()))
    predicted = losscurves.predict(fitted, batch, steps=STEPS, model_size=sizes[-1])
    assert predicted.shape == (3, STEPS.size)
    np.testing.assert_allclose(predicted[1], runs[-1].losses, rtol=1e-5)
    jitted = jax.jit(
        lambda rates: losscurves.predict(fitted, rates, steps=STEPS, model_size=sizes[-1])
    )
    np.testing.assert_allclose(jitted(batch), predicted, rtol=1e-6)


def test_a_fit_round_trips_through_its_leaves():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    leaves, tree = jax.tree.flatten(fitted)
    assert jax.tree.unflatten(tree, leaves).form == losscurves.Annealing(0.99)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)


def test_fits_of_other_decays_and_lengths_are_not_traced_again(count_traces):
    counted = count_traces(forms.annealing_columns)
    model = forms.Annealing.model._replace(columns=counted)
    for decay, stride in ((0.9, 1), (0.99, 2), (0.999, 3)):
        runs = [
            losscurves.loss_curve(run.learning_rates, run.steps[::stride], run.losses[::stride])
            for run in noisy_runs(LAW)
        ]
        posed = posing.pose(losscurves.Annealing(decay), runs)
        with jax.enable_x64(True):
            solving.solve(model, posed.problem, losscurves.Annealing().starts(), 1e-3)
        if stride == 1:
            first = counted.count
    assert counted.count == first


def test_prediction_is_differentiable_in_the_schedule():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    last = np.array([4000])
    with jax.enable_x64(True):
        rates = jnp.asarray(SCHEDULES["wsd"])
        gradient = jax.grad(lambda r: losscurves.predict(fitted, r, steps=last)[0])(rates)
    law, s1 = fitted.constants, SCHEDULES["wsd"].sum()
    expected = -law.exponent * law.scale * s1 ** (-law.exponent - 1)
    expected = expected + law.annealing * 0.99 ** np.arange(4000 - 1, -1, -1.0)
    np.testing.assert_allclose(gradient[1:], expected, rtol=1e-6)


def test_a_rewarmed_schedule_is_predicted_to_bump():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    rates = np.interp(np.arange(4001), [0, 2000, 2100, 4000], [PEAK, 0.0, PEAK, 0.0])
    loss = np.asarray(losscurves.predict(fitted, rates, steps=np.arange(100, 4000)))
    before, after = loss[1900], loss[2000:2300].max()
    assert after > before + 0.02
    assert loss[-1] < before


def test_defects_of_the_law_are_warned_about():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    with pytest.warns(UserWarning, match=r"peaks at 0.002, above the 0.001"):
        losscurves.predict(fitted, table("constant", 100, 2e-3), steps=np.array([100]))
    with pytest.warns(UserWarning, match=r"peaks at 0.0005, below the 0.001"):
        losscurves.predict(fitted, table("constant", 100, 5e-4), steps=np.array([100]))
    with pytest.warns(UserWarning, match=r"sums its rates to 5.001, beyond the 4.001 .* extrapol"):
        losscurves.predict(fitted, table("constant", 5000, PEAK), steps=np.array([100]))
    narrow = dataclasses.replace(fitted, seen=fitted.seen._replace(lowest=0.5e-3))
    with pytest.warns(UserWarning, match=r"falls to 1e-05, below the 0.0005 of the fitted"):
        losscurves.predict(narrow, SCHEDULES["wsd"])
    padded = np.append(SCHEDULES["wsd"], np.zeros(50))
    with pytest.warns(UserWarning, match="ends in 50 steps of rate 0"):
        longer = losscurves.predict(fitted, padded, steps=np.array([4000, 4050]))
    assert longer[1] < longer[0] - 1e-3


def test_predictions_refuse_what_they_cannot_know(bad_input):
    runs = noisy_runs(LAW)
    fitted = losscurves.fit(losscurves.Annealing(0.99), runs, warmup_steps=[0, 10])
    with pytest.raises(ValueError, match=r"warmup_steps must be given.*\(0, 10\)"):
        losscurves.predict(fitted, SCHEDULES["wsd"])
    with pytest.raises(ValueError, match=r"steps must be in \[0, 4001\), got 4001"):
        losscurves.predict(fitted, SCHEDULES["wsd"], steps=np.array([4001]), warmup_steps=0)
    with pytest.raises(ValueError, match=r"got -0\.1 at index 1"):
        losscurves.predict(fitted, np.array([0.1, -0.1]), warmup_steps=0)
    with pytest.raises(TypeError, match="steps must be integers, got dtype float64"):
        losscurves.predict(fitted, SCHEDULES["wsd"], steps=np.array([5.5]), warmup_steps=0)
    with pytest.raises(ValueError, match="positive rate somewhere"):
        losscurves.predict(fitted, np.zeros(5), warmup_steps=0)


def run(rates, steps=STEPS, losses=None, **options):
    losses = np.linspace(4.0, 3.0, len(steps)) if losses is None else losses
    return losscurves.LossCurve(rates, steps, losses, np.ones(len(steps)), **options)


BAD_FITS = {
    "no curve": ([], {}, "at least one LossCurve"),
    "no annealing": ([run(SCHEDULES["constant"])], {}, "Add a decaying schedule, or fit RateSum"),
    "too few": ([run(SCHEDULES["cosine"], STEPS[:4])], {}, "at least 5 points .* got 4"),
    "peaks": (
        [run(SCHEDULES["constant"]), run(0.5 * SCHEDULES["cosine"])],
        {},
        r"one peak learning rate, got \[0.001, 0.0005\]",
    ),
    "warm-up": ([run(SCHEDULES["cosine"])], {"warmup_steps": 300}, "step 200 is inside the warm"),
    "forgotten warm-up": (
        [run(warmed(SCHEDULES["cosine"], 100))],
        {},
        "start at 0.*warmup_steps is 0",
    ),
    "negative loss": (
        [run(SCHEDULES["cosine"], losses=-np.ones(len(STEPS)))],
        {},
        r"curves\[0\]: point 0 \(step 200\): loss must be finite and > 0, got -1.0",
    ),
    "order": (
        [run(SCHEDULES["cosine"], STEPS[::-1])],
        {},
        r"point 1 \(step 3900\) must come after step 4000",
    ),
    "outside": ([run(SCHEDULES["cosine"], STEPS + 1000)], {}, "outside the schedule of 4001"),
    "lengths": (
        [run(SCHEDULES["cosine"], losses=np.ones(3))],
        {},
        r"one length, got shapes \(39,\), \(3,\)",
    ),
    "negative rate": ([run(-SCHEDULES["cosine"])], {}, "got -0.001 at index 0"),
    "zero rates": ([run(0 * SCHEDULES["cosine"])], {}, "all 4001 are 0"),
    "zero start": (
        [run(np.where(np.arange(4001) < 300, 0.0, SCHEDULES["cosine"]))],
        {"warmup": "linear"},
        "no learning rate up to step 200 is positive",
    ),
    "delta": ([run(SCHEDULES["cosine"])], {"huber_delta": 0.0}, "huber_delta"),
    "mode": ([run(SCHEDULES["cosine"])], {"warmup": "peaks"}, "did you mean 'peak'"),
    "warm-up list": ([run(SCHEDULES["cosine"])], {"warmup_steps": [1, 2]}, "one for each of 1"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_fits_are_refused_by_name(bad_input, case):
    curves, options, message = BAD_FITS[case]
    with pytest.raises(ValueError, match=message):
        losscurves.fit(losscurves.Annealing(0.99), curves, **options)


def test_two_model_sizes_are_refused(bad_input):
    runs = [run(SCHEDULES[name], model_size=n) for name, n in (("cosine", 1e6), ("constant", 2e6))]
    with pytest.raises(ValueError, match=r"at least 3 different sizes.*\[1000000.0, 2000000.0\]"):
        losscurves.fit(losscurves.ModelSize(0.99), runs)


def test_a_decay_of_one_is_refused(bad_input):
    for form in (losscurves.Annealing, losscurves.ModelSize):
        with pytest.raises(ValueError, match=r"decay must be finite and in \[0, 1\), got 1.0"):
            form(1.0)


def test_different_peaks_can_be_allowed():
    runs = noisy_runs(LAW)
    half = runs[1]._replace(learning_rates=0.5 * runs[1].learning_rates)
    fitted = losscurves.fit(losscurves.Annealing(0.99), [runs[0], half], allow_different_peaks=True)
    assert fitted.peak == PEAK


def test_a_published_law_serves_like_a_fitted_one():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    published = losscurves.law(fitted.form, peak_value=PEAK, **fitted.constants._asdict())
    wsd = SCHEDULES["wsd"]
    found = losscurves.predict(published, wsd)[1:]
    np.testing.assert_array_equal(found, losscurves.predict(fitted, wsd)[1:])
    at = losscurves.annealing_areas(wsd, 0.99)
    np.testing.assert_allclose(laws.annealing_loss(fitted.constants, at)[1:], found, rtol=1e-6)
    for ask in (
        lambda law: losscurves.rank_schedules(law, SCHEDULES),
        lambda law: losscurves.optimal_decay_length(law, 2000).steps,
        lambda law: losscurves.optimal_schedule(law, 400, minimum_value=1e-4).loss,
    ):
        assert ask(published) == ask(fitted)
    with pytest.raises(TypeError, match="must be floor, scale, annealing, exponent, got floor"):
        losscurves.law(losscurves.Annealing(), floor=1.0)


def test_curves_and_schedules_are_taken_as_people_have_them(tmp_path):
    runs = noisy_runs(LAW)
    tables = [
        {
            "step": run.steps,
            "learning_rate": run.learning_rates[run.steps],
            "loss": run.losses,
        }
        for run in runs
    ]
    files = []
    for index, columns in enumerate(tables):
        files.append(tmp_path / f"{index}.csv")
        rows = zip(*columns.values(), strict=True)
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        files[-1].write_text("step,learning_rate,loss\n" + text)
    form = losscurves.Annealing(0.99)
    exact = losscurves.fit(form, runs)
    options = {"warmup_steps": 0}
    read = [losscurves.read_curve(one, **options) for one in files]
    np.testing.assert_allclose(losscurves.fit(form, read).constants, exact.constants, rtol=2e-3)
    taken = [losscurves.read_curve(one, **options) for one in tables]
    np.testing.assert_allclose(
        losscurves.fit(form, taken).constants, losscurves.fit(form, read).constants, rtol=1e-9
    )
    wsd = schedules.schedule_from_profile("wsd", PEAK, 4000, cooldown=0.25, end_value=1e-5)
    by_table = losscurves.predict(exact, SCHEDULES["wsd"])[1:]
    np.testing.assert_allclose(losscurves.predict(exact, wsd)[1:], by_table, rtol=1e-6)
    plain = optax.constant_schedule(PEAK)
    with pytest.raises(ValueError, match="total_steps must be given"):
        losscurves.predict(exact, plain)
    at_end = losscurves.predict(exact, plain, total_steps=4000)[-1]
    np.testing.assert_allclose(
        at_end, losscurves.predict(exact, SCHEDULES["constant"])[-1], rtol=1e-6
    )


def test_areas_continue_from_a_prior_sum():
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    whole = losscurves.predict(fitted, SCHEDULES["constant"])[1001:]
    later = losscurves.predict(fitted, SCHEDULES["constant"][1001:], prior_sum=1001 * PEAK)
    np.testing.assert_allclose(later, whole, rtol=1e-6)


def test_losses_of_many_candidates_come_from_one_trace(count_traces):
    fitted = losscurves.fit(losscurves.Annealing(0.99), noisy_runs(LAW))
    counted = count_traces(lambda rates: losscurves.predict(fitted, rates, steps=np.array([4000])))
    predict = jax.jit(counted)
    for end in (1e-5, 1e-4):
        many = np.linspace(PEAK, np.linspace(end, PEAK, 20), 4001, axis=-1)
        losses = predict(many)
    assert losses.shape == (20, 1)
    assert counted.count == 1


def test_fits_are_made_in_float64_on_the_cpu_whatever_the_default_device(devices):
    with jax.default_device(devices[5]):
        outside = jnp.ones(1)
        with precision.float64_on_cpu():
            inside = jnp.ones(1)
    assert (outside.dtype, outside.devices()) == (jnp.float32, {devices[5]})
    assert (inside.dtype, inside.devices()) == (jnp.float64, {devices[0]})
