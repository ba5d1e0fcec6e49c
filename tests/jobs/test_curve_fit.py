import dataclasses
import json

import numpy as np
import pytest

from jaxkit import cli, losscurves, schedules
from jaxkit.jobs import TrainConfig, curve_fit


def write_run(folder, name, decay=0.9, noise=0.0, steps=400, every=1, warmup=0, seed=0):
    """A run whose losses follow the law but for the noise, logged every so many steps."""
    folder.mkdir()
    config = TrainConfig(schedule=name, learning_rate=0.01, steps=steps, warmup_steps=warmup)
    description = {"config": dataclasses.asdict(config), "tokenizer": {}, "data": {}}
    (folder / "config.json").write_text(json.dumps(description))
    rates = losscurves.rates_of(
        schedules.schedule_from_profile(name, 0.01, steps, warmup_steps=warmup), steps - 1
    )
    rates = np.append(rates[:1], rates)  # a curve counts the rate before its first step too
    known = {"floor": 2.0, "scale": 0.6, "annealing": 0.5, "exponent": 0.4}
    law = losscurves.law(losscurves.Annealing(decay), **known)
    losses = np.array(losscurves.predict(law, rates, warmup_steps=warmup))
    losses *= 1 + noise * np.random.default_rng(seed).normal(size=losses.shape)
    lines = [
        json.dumps({"step": step, "learning_rate": rates[step], "loss": float(losses[step])})
        for step in range(every, steps + 1, every)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_the_law_of_two_runs_predicts_and_ranks_other_schedules(tmp_path, capsys):
    flat = write_run(tmp_path / "flat", "constant", noise=1e-3)
    linear = write_run(tmp_path / "linear", "linear", noise=1e-3, seed=1)
    asked = ("constant", "linear", "wsd_sqrt", "rex:800")
    found = curve_fit.fit_runs([flat, linear], asked, decay=0.9, out=tmp_path)
    np.testing.assert_allclose(list(found.law.constants), [2.0, 0.6, 0.5, 0.4], rtol=0.1)
    rows = {row[0]: row[1:] for row in found.predictions.rows}
    assert rows["rex:800"][0] == 800
    last = json.loads((linear / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert rows["linear"][1] == pytest.approx(last, rel=4e-3)
    losses = [row[2] for row in found.predictions.rows]
    assert losses == sorted(losses)
    assert all(low < loss < high for _, loss, low, high in rows.values())
    assert [w for w in found.warnings if "sums its rates to" in w and "extrapolates" in w]
    assert found.figure.stat().st_size > 5000
    assert losscurves.read_law(found.path).constants == found.law.constants
    cli.main(["fit-curve", str(flat), str(linear), "--predict", "rex", "--decay", "0.9",
              "--out", str(tmp_path)])  # fmt: skip
    shown = capsys.readouterr().out
    assert "90 % from" in shown
    assert "takes three runs or more" in shown


def test_three_runs_print_the_error_of_each_left_out_and_drive_a_training(tmp_path, small_config):
    runs = [
        write_run(tmp_path / name, name, noise=1e-3, seed=seed)
        for seed, name in enumerate(("constant", "linear", "cosine"))
    ]
    found = curve_fit.fit_runs(runs, decay=0.9, out=tmp_path)
    assert set(found.left_out) == {"constant", "linear", "cosine"}
    assert all(0 < error < 0.5 for error in found.left_out.values())
    config = small_config(
        tmp_path, schedule=f"law:{tmp_path}", learning_rate=0.01, warmup_steps=4, steps=40
    )
    chosen = losscurves.chosen_schedule(found.law, 40, peak_value=0.01, warmup_steps=4)
    made = config.schedule_function()
    assert [float(made(i)) for i in range(41)] == [float(chosen(i)) for i in range(41)]


@pytest.mark.slow
@pytest.mark.parametrize("every", [7, 50])
def test_a_run_logged_now_and_then_gives_the_same_law_and_ranking(tmp_path, every):
    asked = ("constant", "linear", "cosine", "wsd_sqrt")
    found = []
    for step in (1, every):
        runs = [
            write_run(tmp_path / f"{name}-{step}", name, decay=0.98, noise=3e-4, steps=2000,
                      every=step, warmup=130, seed=seed)
            for seed, name in enumerate(("constant", "cosine"))
        ]  # fmt: skip
        found.append(curve_fit.fit_runs(runs, asked, decay=0.98, out=tmp_path))
    whole, thin = found
    for row, other in zip(whole.predictions.rows, thin.predictions.rows, strict=True):
        assert row[0] == other[0]
        assert other[3] < row[2] < other[4]  # within the interval of the thinner log
    spread = [np.std(values) for values in thin.law.samples]
    gaps = np.abs(np.subtract(whole.law.constants, thin.law.constants))
    assert (gaps < 4 * np.array(spread)).all()
    csv = tmp_path / "cosine.csv"
    text = (tmp_path / f"cosine-{every}" / "metrics.jsonl").read_text()
    lines = map(json.loads, text.splitlines())
    rows = [f"{r['step']},{r['learning_rate']},{r['loss']}" for r in lines]
    csv.write_text("step,learning_rate,loss\n" + "\n".join(rows) + "\n")
    flat = tmp_path / f"constant-{every}"
    exported = curve_fit.fit_runs([flat, csv], asked, decay=0.98, out=tmp_path, warmup_steps=130)
    assert [row[0] for row in exported.predictions.rows] == [r[0] for r in thin.predictions.rows]
    np.testing.assert_allclose(exported.law.constants, thin.law.constants, rtol=0.02)
    with pytest.raises(ValueError, match="warm-up cannot be told from the log"):
        curve_fit.fit_runs([flat, csv], asked, decay=0.98, out=tmp_path)


@pytest.mark.usefixtures("bad_input")
def test_what_cannot_be_fitted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        curve_fit.fit_runs([tmp_path])
    with pytest.raises(ValueError, match="paths must name at least one run"):
        curve_fit.fit_runs([])
    flat = write_run(tmp_path / "flat", "constant")
    linear = write_run(tmp_path / "linear", "linear")
    with pytest.raises(ValueError, match="NAME or NAME:STEPS"):
        curve_fit.fit_runs([flat, linear], ["rex:ten"], decay=0.9, out=tmp_path)
    with pytest.raises(ValueError, match=r"predict must be .* did you mean 'cosine'"):
        curve_fit.fit_runs([flat, linear], ["cosin"], decay=0.9, out=tmp_path)
