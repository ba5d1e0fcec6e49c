import numpy as np
import pytest

from jaxkit import jobs, schedules, training
from jaxkit.jobs import refinement


def test_a_finished_run_leaves_the_l1_norms_of_its_updates(finished_run):
    log = refinement.read_pilot(finished_run.folder)
    assert log.steps.tolist() == list(range(6))
    # The l1 norm is at least the l2 norm that the metrics hold.
    l2 = [row["gradient_norm"] for row in training.read_metrics(finished_run.metrics)]
    assert np.all(log.norms > l2)


@pytest.mark.slow
def test_a_refined_schedule_of_a_run_drives_the_next(finished_run, small_config, tmp_path):
    written = refinement.refine_run(finished_run.folder, out=tmp_path)
    assert written.figure.stat().st_size > 5000
    rows = written.table.read_text().splitlines()
    assert rows[0] == "step,learning_rate_fraction"
    config = small_config(
        tmp_path, schedule=f"refined:{finished_run.folder}", warmup_steps=None, steps=12
    )
    norms = refinement.read_pilot(finished_run.folder).norms
    expected = schedules.refined_schedule(norms, config.learning_rate, 12, norm="l1")
    files = jobs.train(config)
    logged = [row["learning_rate"] for row in training.read_metrics(files.metrics)]
    np.testing.assert_allclose(logged, [float(expected(i)) for i in range(12)], rtol=1e-6)
    assert jobs.open_run(files.folder).step == 12


def test_a_csv_needs_its_norm_named_and_gives_the_same_values(tmp_path):
    path = tmp_path / "norms.csv"
    norms = np.linspace(3.0, 1.0, 50)
    path.write_text("step,gradient_norm\n" + "".join(f"{i},{x}\n" for i, x in enumerate(norms)))
    with pytest.raises(ValueError, match="norm must say which norm the file holds"):
        refinement.refine_run(path)
    written = refinement.refine_run(path, norm="l2")
    values = [float(line.split(",")[1]) for line in written.table.read_text().splitlines()[1:]]
    np.testing.assert_allclose(values, schedules.refine_schedule(norms, norm="l2"), rtol=1e-5)


@pytest.mark.usefixtures("bad_input")
def test_a_pilot_that_cannot_serve_is_refused(finished_run, small_config, tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        refinement.read_pilot(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not finished"):
        refinement.read_pilot(tmp_path)
    with pytest.raises(FileNotFoundError, match="no gradient norms at"):
        refinement.read_pilot(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="warmup_steps must be 0 with a refined schedule"):
        small_config(tmp_path, schedule=f"refined:{finished_run.folder}", warmup_steps=2)
