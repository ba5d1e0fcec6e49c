"""The quick mode of the experiment, and the verdicts it computes."""

import numpy as np
import pytest

from jaxkit.experiments import lexinvariant as experiment
from jaxkit.experiments import symbol_tasks


@pytest.mark.slow
@pytest.mark.claims
def test_the_quick_mode_shows_the_markov_language():
    evidence = experiment.run(quick=True)
    assert evidence.holds
    assert len(evidence.claims) == 4
    (table,) = evidence.tables
    rows = {name: np.array(values, float) for name, *values in table.rows}
    # Nothing beats the exact predictor, which comes down to the true chain.
    assert np.all(rows["renamed ids"] >= rows["exact lexinvariant"] - 0.02)
    assert rows["exact lexinvariant"][-1] - rows["true chain"][-1] < 0.02
    assert set(evidence.figures) == {"lexinvariant_chain"}


@pytest.mark.parametrize(
    ("renamed", "standard", "verdict"),
    [(0.9, 0.0, "shown"), (0.2, 0.0, "null result"), (0.9, 0.5, "not shown")],
)
def test_guessing_is_no_achievement(monkeypatch, renamed, standard, verdict):
    """Three times the standard model's accuracy counts only above that of guessing."""

    def accuracies(steps, seed):
        value = {"fixed": standard, "relabel": renamed, "lexinvariant": renamed}
        return {
            m: {t: {"seen": 1.0, "unseen": value[m]} for t in symbol_tasks.TASKS} for m in steps
        }

    monkeypatch.setattr(symbol_tasks, "measure", accuracies)
    claims, *_ = experiment._tasks(0)
    assert [claim.verdict for claim in claims] == [verdict] * 4
