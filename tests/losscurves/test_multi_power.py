"""The Multi-Power Law: golden predictions of the published code, properties, and its fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import losscurves, schedules
from jaxkit.losscurves import multi_power


def table(name, total, peak, **options):
    """Learning rates of a named schedule, one a step, float64."""
    return losscurves.rates_of(schedules.schedule_from_profile(name, peak, total, **options))


def warmed(rates, steps):
    return np.concatenate([np.linspace(0, rates[0], steps, endpoint=False), rates])


def predict(constants, rates, steps, warmup="linear", warmup_steps=0):
    law = losscurves.law(losscurves.MultiPower(), warmup=warmup, **constants._asdict())
    return losscurves.predict(law, rates, steps=steps, warmup_steps=warmup_steps)


LAW = multi_power.MultiPowerLaw(2.5, 0.5, 400.0, 0.5, 2.0, 0.6, 0.6)


def as_law(constants):
    floor, scale, exponent, drop, speed, saturation, rate_exponent = constants
    return multi_power.MultiPowerLaw(floor, scale, drop, exponent, speed, saturation, rate_exponent)


def plain(law, rates, step):
    """The law as written, float64 NumPy."""
    total = sum(rates[: step + 1])
    loss = law.floor + law.scale * total**-law.exponent
    for k in range(1, step + 1):
        x = rates[k] ** -law.rate_exponent * sum(rates[k : step + 1])
        gain = 1 - (1 + law.speed * x) ** -law.saturation
        loss -= law.drop * (rates[k - 1] - rates[k]) * gain
    return loss


def test_predictions_equal_the_published_codes_to_1e_9(golden):
    cases = golden("annealing_law")["multi_power_law"]["small"]
    assert len(cases) == 3
    for case in cases:
        law = as_law(case["params_L0_A_alpha_B_C_beta_gamma"])
        with jax.enable_x64(True):
            found = predict(law, np.array(case["learning_rate"]), np.array(case["step"]))
        np.testing.assert_allclose(found, case["prediction"], rtol=1e-9)


def llama2_rates(name):
    total = 24000
    s = np.arange(total + 1.0)
    rates = np.full(total + 1, 3e-4)
    if name.startswith("cosine"):
        rates = 3e-5 + 0.5 * 2.7e-4 * (1 + np.cos(np.pi * (s - 2160) / (total - 2160)))
    elif name.startswith("wsd_"):
        x = np.clip((s - 20000) / 4000, 0, 1)
        rates = 3e-4 ** (1 - x) * 3e-5**x
    elif name.startswith("wsdcon"):
        rates = np.where(s < 8000, 3e-4, 1e-5 * int(name.split("_")[1]))
    rates[:2160] = np.linspace(0, 3e-4, 2160)
    return rates


def test_curves_of_the_published_parameters_equal_the_published_predictions(golden):
    section = golden("annealing_law")["multi_power_law"]
    for case in section["official_curve_predictions"]:
        law = as_law(section["official_params"][case["size"]])
        with jax.enable_x64(True):
            found = predict(law, llama2_rates(case["curve"]), np.array(case["step"]))
        np.testing.assert_allclose(found, case["prediction"], rtol=1e-9)


def test_the_vectorised_law_equals_the_written_one():
    rates = np.append(0.0, np.random.default_rng(0).uniform(0.1, 1.0, 40)) * 1e-3
    with jax.enable_x64(True):
        found = predict(LAW, rates, np.array([1, 7, 40]))
    np.testing.assert_allclose(found, [plain(LAW, rates, t) for t in (1, 7, 40)], rtol=1e-12)


def test_warmup_conventions_differ_by_the_drop_of_the_peak():
    rates = warmed(table("wsd", 2000, 1e-3, cooldown=400 / 2000, end_value=1e-5), 50)
    steps = np.array([1000, 2000])
    slow = LAW._replace(speed=1e9)  # every change has taken its full effect
    with jax.enable_x64(True):
        linear, excluded = (
            predict(slow, rates, steps, warmup=mode, warmup_steps=50)
            for mode in ("linear", "s2_peak")
        )
        np.testing.assert_allclose(linear - excluded, 400 * 1e-3, rtol=1e-3)


def test_a_vanishing_rate_adds_nothing_unlike_in_the_annealing_law():
    rates = table("wsd", 2000, 1e-3, cooldown=0.2, shape="exponential", ratio=1e-7)
    padded = np.append(rates, np.full(500, 1e-10))
    with jax.enable_x64(True):
        found = predict(LAW, padded, np.array([2000, 2500]))
        assert abs(float(found[1] - found[0])) < 1e-4
        law = losscurves.law(
            losscurves.Annealing(0.999), floor=2.5, scale=0.5, annealing=0.4, exponent=0.5
        )
        annealing = losscurves.predict(law, padded)
        assert float(annealing[2500] - annealing[2000]) < -0.01


def test_gradients_in_rates_and_constants_are_finite_and_right():
    rates = np.random.default_rng(0).uniform(0.1, 1.0, 30) * 1e-3
    with jax.enable_x64(True):

        def loss(law, rates):
            return predict(law, rates, np.array([10, 29])).sum()

        law = jax.tree.map(jnp.float64, LAW)
        in_law, in_rates = jax.grad(loss, argnums=(0, 1))(law, jnp.asarray(rates))
        step = 1e-9 * np.eye(30)[5]
        expected = (loss(law, rates + step) - loss(law, rates - step)) / 2e-9
        assert all(np.isfinite(leaf) for leaf in in_law)
        assert abs(float(in_rates[5] / expected) - 1) < 1e-5


def test_grouped_falls_keep_every_fall():
    rates = np.concatenate([np.linspace(0, 1, 11), np.ones(5), np.linspace(1, 0.2, 13)[1:]])
    for group in (1, 4, 32):
        falls, after, before, index = multi_power._falls(rates, group)
        assert abs(falls.sum() + 0.2) < 1e-12
        assert (np.diff(index) > 0).all()
        np.testing.assert_allclose(after, rates[index])
        np.testing.assert_allclose(before, np.cumsum(rates)[index - 1])
    exact = multi_power._falls(rates, 1)[0]
    np.testing.assert_allclose(exact[exact != 0], -np.diff(rates)[np.diff(rates) != 0])


def exact_runs():
    made = [
        table("constant", 4000, 1e-3),
        table("cosine", 4000, 1e-3, end_value=1e-4),
        table("step", 4000, 1e-3, boundaries=(0.5,), factor=0.3),
    ]
    steps = np.arange(200, 4001, 100)
    with jax.enable_x64(True):
        losses = [np.asarray(predict(LAW, r, steps)) for r in made]
    return [losscurves.loss_curve(r, steps, loss) for r, loss in zip(made, losses, strict=True)]


@pytest.mark.slow
def test_a_fit_predicts_what_made_its_curves():
    runs = exact_runs()
    fitted = losscurves.fit(losscurves.MultiPower(group=4), runs)
    assert float(fitted.objective) < 1e-8
    wsd = table("wsd", 4000, 1e-3, cooldown=800 / 4000, end_value=1e-4)
    steps = np.arange(200, 4001, 200)
    found = losscurves.predict(fitted, np.stack([wsd, wsd]), steps=steps)
    with jax.enable_x64(True):
        exact = np.asarray(predict(LAW, wsd, steps))
    assert found.shape == (2, 20)
    np.testing.assert_allclose(found[0], exact, rtol=5e-4)
    # Seven constants on three curves: the prediction is known far better than the constants.
    assert fitted.condition_number > 1e3
    assert fitted.total_annealing == float(fitted.constants.drop)
    prior = {name: (getattr(LAW, name), 0.01) for name in LAW._fields[4:]}
    held = losscurves.fit(losscurves.MultiPower(group=4), runs, prior=prior)
    np.testing.assert_allclose(held.constants[4:], LAW[4:], rtol=0.02)
    assert held.condition_number < fitted.condition_number


@pytest.mark.parametrize("step", [2101, 99999, -1])
def test_steps_outside_the_schedule_are_refused(bad_input, step):
    with pytest.raises(ValueError, match=rf"steps must be in \[0, 2101\), got {step}"):
        predict(LAW, np.full(2101, 1e-3), np.array([step]))


def test_rates_of_zero_are_refused(bad_input):
    rates = table("cosine", 4000, 1e-3)
    with pytest.raises(ValueError, match=r"> 0 after index 0 .* got 0 at index 4000"):
        predict(LAW, rates, np.array([10]))
    runs = exact_runs()
    runs[0] = runs[0]._replace(learning_rates=rates)
    with pytest.raises(ValueError, match=r"curves\[0\].learning_rates must be > 0"):
        losscurves.fit(losscurves.MultiPower(), runs)


def test_a_faulty_prior_is_refused(bad_input):
    form, runs = losscurves.MultiPower(), exact_runs()
    with pytest.raises(ValueError, match="did you mean 'speed'"):
        losscurves.fit(form, runs, prior={"sped": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"prior\['speed'\] must be finite and in \(0, inf\)"):
        losscurves.fit(form, runs, prior={"speed": (1.0, 0.0)})
    with pytest.raises(ValueError, match="group must be an integer >= 1"):
        losscurves.MultiPower(group=0)


def test_a_second_prediction_of_a_law_compiles_nothing():
    rates = table("wsd", 60, 0.01, end_value=0.001)
    compiled = losscurves.MultiPower.loss._cache_size
    predict(LAW, rates, [10, 59])
    before = compiled()
    predict(LAW._replace(floor=2.6), rates, [20, 40])
    assert compiled() == before > 0
