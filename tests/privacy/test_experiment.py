"""The miniature of the paper still shows its claims."""

import numpy as np
import pytest

from jaxkit.experiments import dp_stationary, private_comparisons, private_descent


@pytest.mark.slow
@pytest.mark.claims
def test_the_quick_experiment_shows_every_claim():
    found = dp_stationary.run(quick=True)
    assert found.holds, [(claim.statement, claim.measured) for claim in found.claims]
    assert {claim.verdict for claim in found.claims} == {"shown"}
    assert set(found.figures) == {"dp_stationary_epsilon", "dp_stationary_dimension"}


def test_ratio_of_means_covers_the_true_ratio_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        over, under = 0.5 * random.normal(1, 0.1, 8), random.normal(1, 0.1, 8)
        _, (low, high) = dp_stationary.ratio(
            private_comparisons.Measured(over, ""), private_comparisons.Measured(under, "")
        )
        hits += low < 0.5 < high
    assert 0.9 < hits / 300 < 0.995


def test_the_problem_is_regular_as_its_constants_declare():
    problem = private_descent.vowel_problem()
    np.testing.assert_allclose(np.linalg.norm(problem.x, axis=1), 1, rtol=1e-6)
    assert problem.num_examples > 400_000
    low_rank = private_descent.low_rank_problem(16)
    assert np.max(np.linalg.norm(low_rank.x, axis=1)) <= 1 + 1e-6
    np.testing.assert_allclose(low_rank.basis.T @ low_rank.basis, np.eye(5), atol=1e-5)
