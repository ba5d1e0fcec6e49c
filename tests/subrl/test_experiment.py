"""The experiment's claims hold, and its interval is Student's."""

import numpy as np
import pytest
import scipy

from jaxkit import intervals
from jaxkit.experiments import subrl as experiment


@pytest.mark.parametrize("seeds", [2, 3, 11, 12, 30])
def test_the_interval_of_a_mean_is_the_one_of_scipy(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    half = scipy.stats.t.ppf(0.975, seeds - 1) * scipy.stats.sem(values)
    low, high = intervals.mean_interval(values)
    np.testing.assert_allclose((high - low) / 2, half, rtol=1e-3)
    np.testing.assert_allclose((high + low) / 2, values.mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.claims
def test_the_claims_show_in_quick_mode():
    evidence = experiment.run(quick=True)
    assert evidence.holds, [(claim.statement, claim.measured) for claim in evidence.claims]
    assert set(evidence.figures) == {"subrl_curves", "subrl_paths_two_rooms"}
