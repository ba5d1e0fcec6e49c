"""The driver: what is told, saved and resumed, and how a run stops."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from jaxkit import training
from jaxkit.training import metrics

GRADUAL = optax.adam(0.1)


@jax.jit
def update(state, x):
    params, opt_state = state
    gradient = 2 * (params - x)
    updates, opt_state = GRADUAL.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), (params - x) ** 2


def start():
    params = jax.numpy.zeros(())
    return params, GRADUAL.init(params)


class Steps:
    """Steps whose data are their number; at one of them a fault or a signal."""

    def __init__(self, fault_at=None, stop_at=None, number=signal.SIGTERM):
        self.fault_at, self.stop_at, self.number = fault_at, stop_at, number
        self.told = []

    def __call__(self, state, step, most):
        if step + 1 == self.stop_at:
            os.kill(os.getpid(), self.number)
        state, loss = update(state, np.float32(np.nan if step + 1 == self.fault_at else step))

        def rows(seconds):
            training.require_finite(step + 1, float(loss))
            self.told.append(seconds)
            return [{"step": step + 1, "loss": float(loss)}]

        return training.Lap(state, rows=rows)


def drive(folder, advance, num_steps=10, cadence=None, **options):
    with training.Run(folder, keep=training.Keep(3)) as run:
        run.identify({})
        found = run.restore(start())
        return training.drive(
            advance,
            start() if found is None else found.state,
            first_step=0 if found is None else found.step,
            num_steps=num_steps,
            run=run,
            cadence=cadence or training.Cadence(checkpoint_every=3, evaluate_every=4),
            **options,
        )


def steps_of(path):
    return [row["step"] for row in training.read_metrics(path)]


def test_every_step_is_told_once_and_evaluations_when_due(tmp_path):
    steps = Steps()
    drive(tmp_path, steps, evaluate=lambda step, state: {"w": float(state[0])})
    assert steps_of(tmp_path / "metrics.jsonl") == list(range(1, 11))
    assert steps_of(tmp_path / "evaluations.jsonl") == [4, 8, 10]
    # The time of a step is known if nothing was saved or evaluated after it.
    unknown = [step for step, seconds in enumerate(steps.told, 1) if seconds is None]
    assert unknown == [3, 4, 6, 8, 9, 10]


def test_lines_are_as_rare_as_asked(tmp_path):
    drive(tmp_path, Steps(), cadence=training.Cadence(None, None, log_every=4))
    assert steps_of(tmp_path / "metrics.jsonl") == [4, 8]
    assert os.listdir(tmp_path / "checkpoints") == ["10"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_a_rerun_ends_with_the_same_bits(tmp_path, number):
    heeded = signal.default_int_handler  # a suite started in the background may ignore signals
    previous = signal.signal(number, heeded)
    try:
        whole = drive(tmp_path / "whole", Steps())
        stopped = drive(tmp_path / "cut", Steps(stop_at=5, number=number))
        assert signal.getsignal(number) is heeded
    finally:
        signal.signal(number, previous)
    assert (stopped.finished, stopped.step) == (False, 5)
    resumed = drive(tmp_path / "cut", Steps())
    assert (resumed.finished, resumed.step) == (True, 10)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_what_the_shell_ignores_stays_ignored(tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert drive(tmp_path, Steps(stop_at=5, number=signal.SIGHUP)).finished
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(("fault_at", "logged"), [(5, 4), (6, 5)])
def test_a_bad_step_stops_the_run_before_a_checkpoint_of_it(tmp_path, fault_at, logged):
    with pytest.raises(training.NonFiniteLossError, match=f"loss is nan at step {fault_at}"):
        drive(tmp_path, Steps(fault_at=fault_at))
    assert os.listdir(tmp_path / "checkpoints") == ["3"]
    assert steps_of(tmp_path / "metrics.jsonl") == list(range(1, logged + 1))


def test_a_finished_run_goes_on_when_it_is_made_longer(tmp_path):
    whole = drive(tmp_path / "whole", Steps())
    for num_steps in (4, 4, 10):
        result = drive(tmp_path / "parts", Steps(), num_steps)
    jax.tree.map(np.testing.assert_array_equal, result.state, whole.state)


def test_a_run_does_not_become_shorter(tmp_path):
    drive(tmp_path, Steps(), 4)
    with pytest.raises(ValueError, match="num_steps must be an integer >= 4, got 3"):
        drive(tmp_path, Steps(), 3)


def test_laps_of_several_steps_end_where_something_is_due():
    seen = []

    def advance(state, step, most):
        seen.append((step, most))
        return training.Lap(state, min(most, 4), lambda seconds: [{"step": step + min(most, 4)}])

    cadence = training.Cadence(checkpoint_every=6, evaluate_every=5)
    assert training.drive(advance, (), num_steps=11, cadence=cadence).step == 11
    assert seen == [(0, 5), (4, 1), (5, 1), (6, 4), (10, 1)]


@pytest.mark.parametrize("steps", [0, 9])
def test_a_lap_that_would_never_arrive_is_refused(steps):
    with pytest.raises(ValueError, match=f"advance must make 1 to most=3 steps, got {steps}"):
        training.drive(lambda state, step, most: training.Lap(state, steps), (), num_steps=3)
    with pytest.raises(TypeError, match="advance must return a Lap, got float"):
        training.drive(lambda state, step, most: 0.5, (), num_steps=3)  # type: ignore[arg-type]


def test_a_lap_may_end_the_run_and_ask_for_a_checkpoint(tmp_path):
    def advance(state, step, most):
        assert most is None
        return training.Lap(state + 1, checkpoint=step == 1, finished=step == 4)

    cadence = training.Cadence(None, None)
    with training.Run(tmp_path) as run:
        run.identify({})
        result = training.drive(advance, np.zeros(1), run=run, cadence=cadence,
                                record=lambda step: {"at": step})  # fmt: skip
    assert (result.state.item(), result.step, result.finished) == (5, 5, True)
    assert run.steps == [2, 5]
    assert training.read_run(tmp_path, np.zeros(1), step=2).record == {"at": 2}


def test_a_log_forgets_steps_after_the_checkpoint_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with metrics.MetricsLog(path, 2) as log:
        log.write({"step": 3, "loss": 1 / 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.3333333},
    ]


def test_reading_metrics_names_the_bad_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a JSON object"):
        training.read_metrics(path)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("field", ["checkpoint_every", "evaluate_every", "log_every"])
def test_a_cadence_is_made_of_positive_integers(field):
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"{field} must be an integer >= 1"):
            training.Cadence(**{field: bad})
    with pytest.raises(TypeError, match=f"{field} must be an integer"):
        training.Cadence(**{field: 1.5})


_TALKS = """
import sys
from jaxkit import training
with training.Console(3) as console:
    for step in (1, 2, 3):
        console.step({"step": step, "loss": 1.0})
        console.evaluation(step, {"[/x]": 1.0})
        training.say("[/x] news")
        training.say("$\\\\frac{$ result", out=True)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("shell", ["| true", ">&- 2>&-"])
def test_nobody_who_stops_reading_stops_a_run(tmp_path, shell):
    program = tmp_path / "talks.py"
    program.write_text(_TALKS)
    line = f"set -o pipefail; {sys.executable} {program} {tmp_path / 'end'} {shell}"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (tmp_path / "end").read_text() == "done"
    assert "Traceback" not in finished.stderr
    assert finished.returncode == 0


def test_names_are_no_markup(capsys):
    with training.Console(2) as console:
        console.step({"step": 1, "doing": "[/x]"})
        console.evaluation(1, {"[/x]": 1.0})
    assert capsys.readouterr().out == "step 1/2  [/x] 1.0000\n"
