"""Real language-model curves, where they lie beside the project: golden fits and predictions."""

import numpy as np
import pytest
import scipy

from jaxkit import losscurves
from jaxkit.experiments import annealing_law, published_curves

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def curves(shared_data):
    return published_curves.real_curves(shared_data("loss_curves"))


def test_llama2_fits_equal_the_golden_ones_and_predict_as_well(golden, curves):
    fits = golden("annealing_law")["real_llama2"]["fits"]
    assert len(fits) == 15
    for case in fits:
        found = curves[f"llama2 {case['size']}"]
        fitted = losscurves.fit(
            losscurves.Annealing(case["decay"]),
            [found[name] for name in case["fit_on"]],
            warmup=case["warmup_mode"],
            warmup_steps=2159,
        )
        assert len(fitted.residuals) == case["points"]
        assert abs(float(fitted.objective) / case["objective"] - 1) < 1e-4
        np.testing.assert_allclose(fitted.constants, case["L0_A_C_alpha"], rtol=1e-4)
        errors = []
        for name, expected in case["test"].items():
            curve = found[name]
            predicted = losscurves.predict(fitted, curve.learning_rates, steps=curve.steps)
            error = losscurves.score(np.asarray(predicted), curve.losses).mean_relative
            errors.append(error)
            assert abs(error / expected["PredE"] - 1) < 1e-3
        assert np.mean(errors) <= 1.1 * case["test_mean"]["PredE"]


def test_instant_annealing_gives_the_initial_guess_of_the_published_code(curves):
    expected = {"25M": (2.482e-4, 378.2), "100M": (2.210e-4, 456.9), "400M": (3.352e-4, 541.6)}
    for size, (objective, annealing) in expected.items():
        found = curves[f"llama2 {size}"]
        fitted = losscurves.fit(
            losscurves.Annealing(0.0),
            [found[name] for name in ("cosine_24000", "constant_24000", "wsdcon_9")],
            warmup="s2_peak",
            warmup_steps=2159,
        )
        assert abs(float(fitted.objective) / objective - 1) < 3e-4
        assert abs(float(fitted.constants.annealing) / annealing - 1) < 2e-4


def test_124m_fits_predict_and_order_the_unseen_schedules(golden, curves, shared_data):
    found = curves["124M, rate 0.001"]
    for case in golden("annealing_law")["real_llama124m"]["fits"]:
        if case["base_lr"] != 1e-3:
            continue
        fitted = losscurves.fit(
            losscurves.Annealing(case["decay"]),
            [found[name] for name in case["fit_on"]],
            warmup=case["warmup_mode"],
            warmup_steps=300,
            first_step=1000,
            last_step=25000,
        )
        assert len(fitted.residuals) == case["points"]
        assert abs(float(fitted.objective) / case["objective"] - 1) < 1e-4
        np.testing.assert_allclose(fitted.constants, case["L0_A_C_alpha"], rtol=1e-4)
        errors = []
        for name in case["test_PredE"]:
            curve = found[name]
            predicted = losscurves.predict(fitted, curve.learning_rates, steps=curve.steps)
            errors.append(losscurves.score(np.asarray(predicted), curve.losses).mean_relative)
        assert len(errors) == case["n_test"]
        assert np.mean(errors) <= 1.1 * case["test_mean"]["PredE"]
        finals = published_curves.full_losses(shared_data("loss_curves"))
        ranked = losscurves.rank_schedules(
            fitted, {name: found[name].learning_rates for name in finals}
        )
        rank = scipy.stats.spearmanr(
            [one.loss for one in ranked], [finals[one.name] for one in ranked]
        ).statistic
        assert len(finals) == case["final_loss_rank"]["n"]
        assert abs(rank - case["final_loss_rank"]["spearman"]) < 1e-6
        assert rank >= 0.95 or case["decay"] != 0.999


def test_the_profile_of_real_curves_lies_where_it_was_measured(curves):
    found = curves["llama2 100M"]
    profile = losscurves.profile_decay(
        [found[name] for name in ("cosine_24000", "constant_24000", "wsdcon_9")],
        [0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999],
        warmup="s2_peak",
        warmup_steps=2159,
    )
    assert profile.best == 0.998
    assert profile.objectives[-1] > 3 * profile.objectives.min()


@pytest.mark.claims
def test_the_experiment_shows_its_claims():
    evidence = annealing_law.run(quick=True)
    assert evidence.holds, [(claim.statement, claim.measured) for claim in evidence.claims]
    assert len(evidence.claims) >= 4
    assert all(claim.measured for claim in evidence.claims)
    prediction = evidence.claims[0]
    assert prediction.verdict == "shown", prediction.measured
