"""Epsilon and noise against recorded values, closed forms and monotonicity."""

import itertools
import math
import statistics

import pytest

from jaxkit import privacy
from jaxkit.privacy import accounting, mechanisms, statement

GRADIENT = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)


def poisson(rate, n=10_000):
    return privacy.Sampling("poisson", n, n * rate, n)


def sampled(rate):
    return privacy.full_batches(10_000) if rate == 1 else poisson(rate)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_epsilon_of_dp_sgd_equals_recorded(vectors, index, accountant):
    row = vectors["dpsgd_epsilon"]["rows"][index]
    mechanism = mechanisms.dp_sgd_mechanism(
        sampled(row["sampling_prob"]), row["noise_multiplier"], row["steps"]
    )
    epsilon = privacy.epsilon_spent(mechanism, row["delta"], accountant=accountant)
    tolerance = 1e-6 if row["sampling_prob"] == 1 and accountant == "pld" else 1e-3
    assert epsilon == pytest.approx(row[f"eps_{accountant}"], rel=tolerance)


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_calibrated_noise_of_dp_sgd_equals_recorded(vectors, index):
    row = vectors["dpsgd_calibration"]["rows"][index]
    for accountant in ("rdp", "pld"):
        z = privacy.dp_sgd(
            GRADIENT,
            sampled(row["sampling_prob"]),
            row["steps"],
            epsilon=row["eps"],
            delta=row["delta"],
            accountant=accountant,
        ).noise_multiplier
        assert z == pytest.approx(row[f"z_{accountant}"], rel=1e-3)


@pytest.mark.parametrize("index", range(4))
def test_full_batch_spiderboost_is_calibrated_exactly(vectors, index):
    row = vectors["spiderboost_fullbatch_calibration"]["rows"][index]
    everyone = privacy.full_batches(10_000)
    noise = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0),
        everyone,
        everyone,
        num_steps=row["T"],
        phase_length=row["q"],
        epsilon=row["eps"],
        delta=row["delta"],
        difference_clip=0.25,
        anchor_share=row["anchor_fraction"],
    )
    assert mechanisms.spiderboost_counts(row["T"], row["q"]) == (row["K1"], row["K2"])
    assert noise.anchor_noise_multiplier == pytest.approx(row["z1"], rel=1e-6)
    assert noise.variation_noise_multiplier == pytest.approx(row["z2"], rel=1e-6)
    assert noise.mechanism.gaussian == pytest.approx(row["mu"], rel=1e-6)
    exact = privacy.epsilon_spent(noise.mechanism, row["delta"])
    assert exact == pytest.approx(row["eps_pld_check"], rel=1e-6)
    rdp = privacy.epsilon_spent(noise.mechanism, row["delta"], accountant="rdp")
    assert rdp == pytest.approx(row["eps_rdp_check"], rel=1e-3)


def test_full_batch_closed_form_equals_the_pld_accountant():
    library = mechanisms.dp_accounting()
    everyone = privacy.full_batches(10_000)
    mechanism = mechanisms.dp_sgd_mechanism(everyone, 20.0, 100)
    exact = privacy.epsilon_spent(mechanism, 1e-6)
    pld = library.pld.PLDAccountant().compose(mechanism.event).get_epsilon(1e-6)
    assert exact == pytest.approx(pld, rel=1e-6)


@pytest.mark.parametrize("index", range(2))
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_epsilon_of_subsampled_spiderboost_equals_recorded(vectors, index, accountant):
    row = vectors["spiderboost_subsampled_epsilon"]["rows"][index]
    mechanism = mechanisms.spiderboost_mechanism(
        sampled(row["p1"]),
        sampled(row["p2"]),
        row["z1"],
        row["z2"],
        num_steps=row["T"],
        phase_length=row["q"],
    )
    epsilon = privacy.epsilon_spent(mechanism, row["delta"], accountant=accountant)
    assert epsilon == pytest.approx(row[f"eps_{accountant}"], rel=1e-3)


def test_calibrated_subsampled_spiderboost_meets_its_budget_with_the_share_asked_for():
    everyone, few = privacy.full_batches(510_663), poisson(0.01, 510_663)
    noise = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0),
        everyone,
        few,
        num_steps=3000,
        phase_length=300,
        epsilon=1.0,
        delta=1e-6,
        difference_clip=0.25,
        accountant="rdp",
    )
    spent = privacy.epsilon_spent(noise.mechanism, 1e-6, accountant="rdp")
    assert 0.999 < spent <= 1.0
    assert noise.anchor_noise_multiplier == pytest.approx(20.2, rel=0.02)
    assert noise.variation_noise_multiplier == pytest.approx(3.61, rel=0.02)


def test_epsilon_of_fixed_size_batches_equals_recorded_and_refuses_other_relations(vectors):
    for row in vectors["fixed_size_wor_epsilon"]["rows"]:
        sampling = privacy.fixed_sampling(row["n"], row["b"])
        mechanism = mechanisms.dp_sgd_mechanism(
            sampling, 2 * row["z_over_true_sensitivity"], row["steps"]
        )
        assert mechanism.neighbours == "replace"
        epsilon = privacy.epsilon_spent(mechanism, row["delta"])
        assert epsilon == pytest.approx(row["eps_rdp_replace_one"], rel=1e-3)
    with pytest.raises(ValueError, match="rdp"):
        privacy.epsilon_spent(mechanism, 1e-5, accountant="pld")
    with pytest.raises(ValueError, match="neighbours must be 'replace'"):
        mechanisms.dp_sgd_mechanism(sampling, 2.0, 1, neighbours="add_or_remove")
    with pytest.raises(ValueError, match="neighbours must be 'add_or_remove'"):
        mechanisms.dp_sgd_mechanism(poisson(0.1), 2.0, 1, neighbours="replace")
    with pytest.raises(ValueError, match="must not mix"):
        mechanisms.spiderboost_mechanism(
            poisson(0.1, 1000), sampling, 1.0, 1.0, num_steps=4, phase_length=2
        )


def test_one_gaussian_equals_recorded_scales(vectors):
    for row in vectors["gaussian"]["rows"]:
        plan = privacy.one_pass(GRADIENT, epsilon=row["eps"], delta=row["delta"])
        z = plan.noise_multiplier
        # Replacing an example moves a sum by twice its bound.
        assert z / 2 == pytest.approx(row["sigma_analytic"], rel=1e-6)
        assert 2 / z == pytest.approx(row["mu"], rel=1e-6)
        assert plan.epsilon() == pytest.approx(row["eps"], rel=1e-6)
    source = privacy.NoiseSource.from_os()
    assert "replacing one example" in plan.statement(source)
    assert "NOT PRIVATE" in plan.statement(privacy.NoiseSource.public(0))
    plan.key(source)
    with pytest.raises(ValueError, match="another run needs a source of its own"):
        plan.key(source)


def test_replacing_an_example_halves_the_noise_multiplier_and_escapes_the_doubling(vectors):
    trap = vectors["accountant_convention_trap"]
    everyone = privacy.full_batches(1000)
    added = mechanisms.dp_sgd_mechanism(everyone, 1.0, 1)
    replaced = mechanisms.dp_sgd_mechanism(everyone, 2.0, 1, neighbours="replace")
    for mechanism in (added, replaced):
        assert mechanism.gaussian == 1.0
        exact = privacy.epsilon_spent(mechanism, 1e-5)
        assert exact == pytest.approx(trap["pld_add_remove"], rel=1e-4)
        rdp = privacy.epsilon_spent(mechanism, 1e-5, accountant="rdp")
        assert rdp == pytest.approx(trap["rdp_add_remove"], rel=1e-4)


def test_epsilon_grows_with_steps_rate_and_trees_and_falls_with_noise_and_longer_phases():
    def spent(mechanism):
        return privacy.epsilon_spent(mechanism, 1e-5, accountant="rdp")

    base = spent(mechanisms.dp_sgd_mechanism(poisson(0.01), 1.0, 100))
    assert spent(mechanisms.dp_sgd_mechanism(poisson(0.01), 1.0, 200)) > base
    assert spent(mechanisms.dp_sgd_mechanism(poisson(0.02), 1.0, 100)) > base
    assert spent(mechanisms.dp_sgd_mechanism(poisson(0.01), 1.5, 100)) < base
    everyone = privacy.full_batches(1000)
    phases = [
        spent(
            mechanisms.spiderboost_mechanism(
                everyone, poisson(0.01, 1000), 8.0, 4.0, num_steps=100, phase_length=q
            )
        )
        for q in (3, 10, 50)
    ]
    assert phases[0] > phases[1] > phases[2]
    trees = [spent(mechanisms.dp_ftrl_mechanism(4.0, s, n)) for s, n in ((8, 1), (64, 1), (64, 2))]
    assert trees[0] < trees[1] < trees[2]


def test_overflowing_batches_are_paid_for_or_refused():
    sampling = privacy.poisson_sampling(10_000, 0.01, num_steps=100, delta=1e-5, epsilon=2.0)
    mechanism = mechanisms.dp_sgd_mechanism(sampling, 1.0, 100)
    assert 0 < mechanism.lost * (1 + math.exp(2.0)) <= 0.01 * 1e-5
    paid = privacy.epsilon_spent(mechanism, 1e-5, accountant="rdp")
    endless = mechanisms.dp_sgd_mechanism(sampling._replace(overflow=0.0), 1.0, 100)
    assert privacy.epsilon_spent(endless, 1e-5, accountant="rdp") < paid
    tight = sampling._replace(padded_size=110, overflow=0.15)
    with pytest.raises(ValueError, match="padded_size must be larger"):
        privacy.epsilon_spent(mechanisms.dp_sgd_mechanism(tight, 1.0, 100), 1e-5, accountant="rdp")


def test_paper_constants_equal_recorded_ones(vectors):
    names = {
        "L0": "lipschitz", "L1": "smoothness", "eps": "epsilon", "n": "num_examples",
        "b1": "anchor_size", "b2": "variation_size", "T": "num_steps", "q": "phase_length",
        "c": "constant", "F0": "suboptimality", "d": "dimension", "p": "failure", "delta": "delta",
    }  # fmt: skip

    def arguments(row):
        return {names[key]: value for key, value in row.items() if key != "out"}

    fields = {
        "eta": "learning_rate", "b1": "anchor_size", "b2": "variation_size", "T": "num_steps",
        "q": "phase_length", "alpha_bar": "alpha_bar", "n_min": "n_min", "rate": "rate",
    }  # fmt: skip
    for row in vectors["theorem_B3"]["rows"]:
        found = privacy.spiderboost_theory(**arguments(row))
        for key, field in fields.items():
            assert getattr(found, field) == pytest.approx(row["out"][key], rel=1e-9)


def test_statement_names_unit_relation_delta_and_what_is_not_covered():
    sampling = privacy.poisson_sampling(10_000, 0.01, num_steps=100, delta=1e-5)
    mechanism = mechanisms.dp_sgd_mechanism(sampling, 1.0, 100)
    text = statement.of_run(mechanism, 1e-5, "window of text")
    for part in (
        "delta = 1e-05",
        "adding or removing one window of text",
        "Poisson batches, rate 0.01 of 10,000",
        "PLD",
        "truncated at random",
        "Not covered:",
    ):
        assert part in text
    spent = privacy.epsilon_spent(mechanism, 1e-5)
    assert f"epsilon = {spent:.4f}" in text


def test_large_delta_warns():
    with pytest.warns(UserWarning, match="publishing a whole example"):
        privacy.dp_sgd(GRADIENT, privacy.full_batches(100), 1, epsilon=1.0, delta=0.01)


def test_the_analysis_is_the_tightest_valid_one_and_says_so():
    words = lambda mechanism, delta=1e-5: accounting.analysis(mechanism, delta)[1]  # noqa: E731
    assert words(mechanisms.dp_ftrl_mechanism(1.0, 4)) == "RDP"
    assert words(mechanisms.dp_sgd_mechanism(poisson(0.1), 1.0, 1)) == "PLD"
    assert words(mechanisms.one_pass_mechanism(1.0)) == "exact"
    tiny = mechanisms.dp_sgd_mechanism(poisson(1e-3), 1.0749, 1000)
    assert words(tiny, 1e-16).startswith("RDP, because PLD has no answer")
    assert 2.0 < privacy.epsilon_spent(tiny, 1e-16) < 3.0


@pytest.mark.parametrize(
    ("rate", "steps", "epsilon", "delta"),
    [
        (0.01, 1000, 50.0, 1e-5), (1e-3, 1000, 2.0, 1e-14), (1.0, 10**6, 700.0, 1e-300),
        (1.0, 1, 1e-6, 0.1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1e-6, 1000, 0.1, 1e-12), *itertools.product(
                (1e-6, 0.5), (1, 10**6), (0.1, 50.0, 1e308), (1e-5,)
            )]
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:delta = 0.1 is not below")
def test_extreme_budgets_get_noise_that_keeps_them_or_one_sentence(rate, steps, epsilon, delta):
    sentence = None
    try:
        plan = privacy.dp_sgd(GRADIENT, sampled(rate), steps, epsilon=epsilon, delta=delta)
    except ValueError as error:
        sentence = str(error)
    if sentence is None:
        assert plan.epsilon() <= epsilon
        # A delta above the chance to be drawn at all is kept by no noise: epsilon is 0 then, as it
        # is where the divergence of one step is below the smallest float.
        assert plan.epsilon() > 0.97 * epsilon or rate * steps <= delta or delta < 1e-12
    else:
        assert epsilon > 700 or delta < 1e-12 or epsilon < 1e-3
        assert "epsilon" in sentence
        assert "\n" not in sentence


def central_limit(rate, z, steps, delta):
    """Epsilon of many small releases: a Gaussian mechanism, solved in closed form."""
    mu = rate * math.sqrt(steps * math.expm1(z**-2))
    cdf = statistics.NormalDist().cdf
    low, high = 0.0, 30 * mu
    for _ in range(60):
        epsilon = (low + high) / 2
        left = cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)
        low, high = (epsilon, high) if left > delta else (low, epsilon)
    return high


def test_tiny_budgets_need_the_noise_of_the_central_limit_and_are_kept():
    for epsilon in (1e-4, 1e-8):
        plan = privacy.dp_sgd(GRADIENT, poisson(1e-3), 1000, epsilon=epsilon, delta=1e-9)
        true = central_limit(1e-3, plan.noise_multiplier, 1000, 1e-9)
        assert true <= plan.epsilon() <= epsilon <= 1.02 * true


@pytest.mark.parametrize("accountant", [None, "rdp"])
def test_what_rounds_to_nothing_is_not_claimed_to_be_nothing(accountant):
    # The divergences of these steps are below the last digit of what they are logarithms of.
    run = mechanisms.dp_sgd_mechanism(poisson(1e-3), 1e6, 1000)
    claimed = privacy.epsilon_spent(run, 1e-9, accountant=accountant)
    assert claimed >= central_limit(1e-3, 1e6, 1000, 1e-9) > 0


def test_very_long_runs_are_planned_by_what_answers():
    for steps, epsilon in ((10**8, 1.0), (10**7, 0.1)):
        plan = privacy.dp_sgd(GRADIENT, poisson(1e-3), steps, epsilon=epsilon, delta=1e-9)
        assert 0.99 * epsilon < plan.epsilon() <= epsilon
        assert central_limit(1e-3, plan.noise_multiplier, steps, 1e-9) <= epsilon


@pytest.mark.slow
@pytest.mark.parametrize("z", [0.7, 1.0, 4.0])
def test_epsilons_are_those_of_the_library_called_directly(z):
    library = mechanisms.dp_accounting()
    for rate, steps, delta in itertools.product((1e-4, 0.01, 0.2), (1, 100, 2000), (1e-3, 1e-10)):
        mechanism = mechanisms.dp_sgd_mechanism(poisson(rate), z, steps)
        found = privacy.epsilon_spent(mechanism, delta)
        event = library.SelfComposedDpEvent(
            library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(z)), steps
        )
        # The library's own grid, 1e-4, is as coarse as the losses of the smallest of these.
        grid = 1e-4 if mechanism.usual_loss > 0.01 else 1e-5
        pld = library.pld.PLDAccountant(value_discretization_interval=grid)
        accountants = pld, library.rdp.RdpAccountant()
        direct = min(a.compose(event).get_epsilon(delta) for a in accountants)
        assert found >= direct * (1 - 1e-3) - 1e-4
        # Above some twenty, which protects nobody, a looser bound may be taken.
        assert direct > 20 or found == pytest.approx(direct, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("z", "steps", "rate"), [(0.47, 2, 0.005), (0.9, 1, 0.9), (1.0, 2000, 0.01), (20.0, 500, 0.02)]
)
def test_a_coarse_analysis_claims_no_less_and_the_fine_one_what_the_finest_grid_does(
    z, steps, rate
):
    sampling = privacy.poisson_sampling(1000, rate, num_steps=steps, delta=1e-5)
    run = privacy.dp_sgd_mechanism(sampling, z, steps)
    coarse, fine = (accounting.analysis(run, 1e-5, coarse=c)[0] for c in (True, False))
    assert fine <= coarse * (1 + 1e-9)
    library = mechanisms.dp_accounting().pld.PLDAccountant().compose(run.event)
    assert fine == pytest.approx(library.get_epsilon(0.99e-5), rel=2e-5)
