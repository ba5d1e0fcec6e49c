import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import training


class Numbers:
    """Batches whose values are their position."""

    def __init__(self, fault_at=None, stop_at=None):
        self.position, self.fault_at, self.stop_at = 0, fault_at, stop_at

    def __next__(self):
        self.position += 1
        if self.position == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        value = np.nan if self.position == self.fault_at else self.position
        return {"x": np.full(8, value, np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def loss_fn(params, batch, key):
    return jnp.mean((params["w"] - batch["x"] + jax.random.normal(key)) ** 2)


def start():
    mesh = training.make_mesh("data=8")
    optimizer = optax.adam(0.1)
    key = jax.random.key(0)
    init = lambda key: {"w": jax.random.normal(key)}  # noqa: E731
    shardings = training.state_shardings(init, optimizer, key, mesh)
    state = training.init_state(init, optimizer, key, mesh)
    return mesh, training.make_train_step(loss_fn, optimizer, shardings=shardings), state


def fit(folder, batches, steps=10, **options):
    mesh, step, state = start()
    with training.Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        restored = checkpoints.restore(state)
        if restored:
            state = restored.state
            batches.set_state(restored.record["batches"])
        with training.MetricsLog(folder / "metrics.jsonl", int(state.step)) as log:
            return training.fit(
                step,
                state,
                batches,
                mesh=mesh,
                cadence=training.Cadence(steps, checkpoint_every=3, evaluate_every=4),
                log=log,
                checkpoints=checkpoints,
                **options,
            )


def test_every_step_is_logged_once_with_its_facts(tmp_path):
    seen = []
    fit(
        tmp_path,
        Numbers(),
        evaluate=lambda step, params: seen.append(step) or {"w": float(params["w"])},
        facts=lambda step: {"learning_rate": step / 10},
        tokens_per_step=8,
    )
    rows = training.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["learning_rate"] for row in rows] == [step / 10 for step in range(1, 11)]
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
    assert any("tokens_per_second" in row for row in rows)
    assert seen == [4, 8, 10]


def test_sigterm_checkpoints_and_a_rerun_ends_with_the_same_bits(tmp_path):
    whole = fit(tmp_path / "whole", Numbers())
    stopped = fit(tmp_path / "cut", Numbers(stop_at=5))
    assert (stopped.finished, int(stopped.state.step)) == (False, 5)
    resumed = fit(tmp_path / "cut", Numbers())
    assert (resumed.finished, int(resumed.state.step)) == (True, 10)
    np.testing.assert_array_equal(resumed.state.params["w"], whole.state.params["w"])
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_handlers_of_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    fit(tmp_path, Numbers(stop_at=2))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(training.NonFiniteLossError, match="loss is nan at step 5"):
        fit(tmp_path, Numbers(fault_at=5))
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [3]
    assert [row["step"] for row in training.read_metrics(tmp_path / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
    ]


def test_a_checkpoint_is_never_written_after_a_bad_step(tmp_path):
    with pytest.raises(training.NonFiniteLossError, match="step 6"):
        fit(tmp_path, Numbers(fault_at=6))
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [3]


def test_a_log_forgets_steps_after_the_checkpoint_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with training.MetricsLog(path, 2) as log:
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
@pytest.mark.parametrize(
    "field", ["total_steps", "checkpoint_every", "evaluate_every", "log_every"]
)
def test_a_cadence_is_made_of_positive_integers(field):
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"{field} must be an integer >= 1"):
            training.Cadence(**{"total_steps": 5, field: bad})
    with pytest.raises(TypeError, match=f"{field} must be an integer"):
        training.Cadence(**{"total_steps": 5, field: 1.5})
