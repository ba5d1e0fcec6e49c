"""The miniature of SEMA."""

import pytest

from jaxkit.experiments import sema


@pytest.mark.slow
@pytest.mark.claims
def test_quick_mode_shows_growth_at_the_shifts_and_reports_that_prototypes_win():
    found = sema.run(quick=True)
    assert found.holds
    verdicts = {claim.statement: claim.verdict for claim in found.claims}
    assert verdicts["SEMA is above SimpleCIL, which trains nothing"] == "null result"
    assert set(found.figures) == {
        "sema_expansion", "sema_accuracy", "sema_router", "sema_methods"
    }  # fmt: skip
