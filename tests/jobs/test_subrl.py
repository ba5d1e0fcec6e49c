import json

import pytest

from jaxkit import subrl, training
from jaxkit.jobs import subrl as job


@pytest.mark.slow
def test_a_run_writes_its_metrics_and_figures_and_beats_nothing_impossible(tmp_path):
    options = {
        "env": "two-rooms", "horizon": 6, "seeds": 2, "batch_size": 32, "out": tmp_path,
        "progress": training.Silent(), "learning_rate": 0.02,
    }  # fmt: skip
    first = job.train_world(num_steps=10, **options)
    rows = [json.loads(line) for line in first.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert first.curves.stat().st_size > 5000
    assert first.paths.stat().st_size > 5000
    optimum = first.values["optimum, by enumeration"]
    assert first.values["SubPO, best episode"] <= optimum + 1e-4
    assert first.values["greedy planner"] <= first.values["beam search, width 1000"] <= optimum
    resumed = job.train_world(num_steps=20, **options)
    rows = [json.loads(line) for line in resumed.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert resumed.values["SubPO"] > first.values["SubPO"] - 0.5


@pytest.mark.slow
def test_a_second_training_of_one_folder_is_refused(tmp_path):
    options = {"env": "items", "horizon": 3, "seeds": 1, "batch_size": 4, "out": tmp_path,
               "progress": training.Silent()}  # fmt: skip
    folder = job.train_world(num_steps=1, **options).metrics.parent
    before = (folder / "metrics.jsonl").read_text()
    with (
        training.Run(folder),
        pytest.raises(OSError, match=f"{folder.name} is being written by another process"),
    ):
        job.train_world(num_steps=2, **options)
    assert (folder / "metrics.jsonl").read_text() == before


def test_planners_are_left_out_where_moves_are_not_sure():
    assert job.known_values(subrl.two_rooms_world(slip=0.1)) == {}
    assert job.known_values(subrl.car_world()) == {}


@pytest.mark.usefixtures("bad_input")
def test_an_unknown_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'two-rooms'"):
        job.train_world("two-room", out=tmp_path)
