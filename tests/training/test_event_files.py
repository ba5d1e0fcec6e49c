"""TensorBoard reads what was written, with what a resumed run withdrew left out."""

import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from jaxkit import training


class Seen(training.Silent):
    def __init__(self):
        self.rows = []

    def step(self, row):
        self.rows.append(row["step"])

    def evaluation(self, step, numbers):
        self.rows.append((step, numbers))


def scalars(folder):
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_the_steps_and_evaluations_of_a_run(tmp_path):
    seen = Seen()
    with training.EventFiles(tmp_path, every=2, beside=seen) as progress:
        for step in range(1, 6):
            row = {"step": step, "loss": 1 / step, "note": "no number", "epsilon": np.float64(step)}
            progress.step(row)
        progress.evaluation(5, {"validation_loss": 0.5})
    found = scalars(tmp_path)
    assert found.keys() == {"loss", "epsilon", "validation_loss"}
    assert found["loss"] == [(2, 0.5), (4, 0.25)]
    assert found["validation_loss"] == [(5, 0.5)]
    assert seen.rows == [1, 2, 3, 4, 5, (5, {"validation_loss": 0.5})]


def test_a_resumed_run_withdraws_the_steps_it_makes_again(tmp_path):
    for first, losses in ((0, [5.0, 4.0, 3.0]), (2, [2.0, 1.0])):
        with training.EventFiles(tmp_path, first) as progress:
            for step, loss in enumerate(losses, first + 1):
                progress.step({"step": step, "loss": loss})
    assert scalars(tmp_path)["loss"] == [(1, 5.0), (2, 4.0), (3, 2.0), (4, 1.0)]
