"""The miniature of the paper still shows its claims."""

import numpy as np
import pytest

from jaxkit.experiments import fedspeed


@pytest.mark.slow
@pytest.mark.claims
def test_the_quick_experiment_shows_every_claim():
    found = fedspeed.run(quick=True)
    assert found.holds, [(claim.statement, claim.measured) for claim in found.claims]
    assert {claim.verdict for claim in found.claims} == {"shown"}
    assert set(found.figures) == {"fedspeed_accuracy", "fedspeed_clients", "fedspeed_quadratics"}


def test_rounds_to_a_target_count_a_moving_average_and_may_be_never():
    accuracy = np.array([[0.0] * 4 + [1.0] * 6, [0.0] * 10])
    curves = fedspeed.Curves(accuracy, accuracy)
    assert fedspeed.rounds_to(curves, 0.6).tolist() == [7.0, np.inf]
