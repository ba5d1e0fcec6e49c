import json

import numpy as np
import pytest

from jaxkit.jobs import curve_fit


def write_run(folder, rates, decay=0.9, noise=0.0):
    """A run whose losses follow the law exactly, but for the noise."""
    folder.mkdir()
    (folder / "config.json").write_text('{"config": {}, "tokenizer": {}, "data": {}}')
    # A curve counts the rate before its first step too.
    forward, annealing, momentum = rates[0], 0.0, 0.0
    rng, lines = np.random.default_rng(0), []
    for step, rate in enumerate(rates, 1):
        before = rates[max(step - 2, 0)]
        momentum = decay * momentum + (before - rate)
        forward, annealing = forward + rate, annealing + momentum
        loss = 2.0 + 0.6 * forward**-0.4 - 0.5 * annealing
        loss *= 1 + noise * rng.normal()
        lines.append(json.dumps({"step": step, "learning_rate": rate, "loss": loss}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_law_of_two_runs_predicts_and_ranks_other_schedules(tmp_path):
    flat = write_run(tmp_path / "flat", [0.01] * 400)
    linear = write_run(tmp_path / "linear", [0.01 * (1 - i / 400) for i in range(400)])
    found = curve_fit.fit_runs(
        [flat, linear], ["constant", "linear", "rex:300"], decay=0.9, out=tmp_path
    )
    np.testing.assert_allclose(list(found.fitted.law), [2.0, 0.6, 0.5, 0.4], rtol=0.03)
    losses = {row[0]: row[2] for row in found.predictions.rows}
    last = json.loads((linear / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert losses["linear"] == pytest.approx(last, rel=1e-3)
    assert [row[0] for row in found.predictions.rows] == sorted(losses, key=losses.get)
    assert {row[0]: row[1] for row in found.predictions.rows}["rex:300"] == 300
    assert found.figure.stat().st_size > 5000


def test_the_decay_is_found_where_it_is_not_given(tmp_path):
    flat = write_run(tmp_path / "flat", [0.01] * 400, decay=0.98)
    linear = write_run(tmp_path / "linear", [0.01 * (1 - i / 400) for i in range(400)], decay=0.98)
    assert curve_fit.fit_runs([flat, linear], out=tmp_path).decay == 0.98


@pytest.mark.usefixtures("bad_input")
def test_what_cannot_be_fitted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        curve_fit.fit_runs([tmp_path])
    with pytest.raises(ValueError, match="paths must name at least one run"):
        curve_fit.fit_runs([])
    flat = write_run(tmp_path / "flat", [0.01] * 100)
    linear = write_run(tmp_path / "linear", [0.01 * (1 - i / 100) for i in range(100)])
    with pytest.raises(ValueError, match="NAME or NAME:STEPS"):
        curve_fit.fit_runs([flat, linear], ["rex:ten"], decay=0.9, out=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        curve_fit.fit_runs([flat, linear], ["cosin"], decay=0.9, out=tmp_path)
