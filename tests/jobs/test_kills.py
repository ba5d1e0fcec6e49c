"""Runs of every kind, killed at any moment and read while they are written.

`JAXKIT_KILLS=10 JAXKIT_OPENS=1000 pytest -m slow tests/jobs/test_kills.py` gives the full numbers.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxkit import jobs, training

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("JAXKIT_KILLS", "3"))
OPENS = int(os.environ.get("JAXKIT_OPENS", "60"))
TESTS = pathlib.Path(__file__).parents[1]

TRAIN = """
import sys
from jaxkit import jobs
from jaxkit.jobs.config import PrivacyConfig
jobs.train(jobs.TrainConfig(
    name="run", runs=sys.argv[1], steps={steps}, batch_size=4, sequence_length=16, d_model=16,
    num_layers=1, num_heads=1, head_dim=16, d_ff=16, warmup_steps=2, checkpoint_every=2,
    evaluate_every=20, evaluation_windows=4, privacy=PrivacyConfig({epsilon}, 1e-6)))
"""

CONTINUAL = """
import sys, numpy as np, jax
from jaxkit import continual
sys.path.insert(0, {tests!r} + "/continual")
import test_streams_and_runs as t
rng = np.random.default_rng(1)
shapes = jax.eval_shape(t.MODEL.init, jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
weights = jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
learner = continual.SEMALearner(t.CONFIG, weights, t.SETTINGS)
continual.run_stream(learner, t.make_stream(), seed=3, folder=sys.argv[1] + "/run",
                     checkpoint_every=2)
"""

SUBRL = """
import sys, jax, optax
from jaxkit import subrl
world = subrl.coverage_world((2, 3), horizon=3, start=0, features="official_position")
policy = subrl.TabularPolicy(5, world.num_items, world.horizon)
training = subrl.make_training(world, policy, optax.adam(0.1), batch_size=8, epochs=40)
subrl.fit(training, jax.random.key(0), num_seeds=2, chunk=1, folder=sys.argv[1] + "/run")
"""

FEDERATED = """
import sys, jax, jax.numpy as jnp, numpy as np
from jaxkit import federated
data = federated.stack_clients(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
local = federated.local_training(lambda w, x, key: jnp.mean((w - x) ** 2), batch_size=2)
federated.simulate(
    federated.fedspeed(), local, jnp.zeros(()), data, federated.uniform_sampler(6, 3),
    num_rounds=60, key=jax.random.key(0), folder=sys.argv[1] + "/run", checkpoint_every=2,
    evaluate=lambda w: {"w": w}, evaluate_every=3)
"""

PROGRAMS = {
    "train": TRAIN.format(steps=60, epsilon=None),
    "private": TRAIN.format(steps=60, epsilon=8.0),
    "continual": CONTINUAL.format(tests=str(TESTS)),
    "subrl": SUBRL,
    "federated": FEDERATED,
}


def start(program, folder):
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(program, folder):
    process = start(program, folder)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said.decode()[-3000:]
    return final(folder / "run")


def final(run):
    """Everything that a run has at its end: arrays, record and logs but for times."""
    step = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    logs = {
        path.name: [
            {name: value for name, value in row.items() if name not in ("tokens_per_second", "mfu")}
            for row in training.read_metrics(path)
        ]
        for path in run.glob("*.jsonl")
    }
    record = json.loads((step / "record.json").read_text())
    return {"step": step.name, "record": record, **logs}, ocp.load(str(step / "state"))


def names(folder):
    place = folder / "run" / "checkpoints"
    return set(os.listdir(place)) if place.exists() else set()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(kind, tmp_path):
    """At start-up, twice in a row; while a checkpoint is written; anywhere between."""
    program, moments, killed = PROGRAMS[kind], random.Random(0), []
    facts, arrays = finish(program, tmp_path / "whole")
    for number in range(KILLS):
        moment = ("writing", "running", "start", "start", "writing")[number % 5]
        process, before = start(program, tmp_path / "cut"), names(tmp_path / "cut")
        if moment == "start":
            time.sleep(moments.uniform(0.1, 5))
        else:
            wanted = ".writing" if moment == "writing" else ""
            while process.poll() is None:
                new = names(tmp_path / "cut") - before
                if any(name.endswith(wanted) for name in new):
                    break
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.01 if moment == "writing" else 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.append(process.returncode == -signal.SIGKILL)
    again, restored = finish(program, tmp_path / "cut")
    assert again == facts
    assert restored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(array))
    print(f"{kind}: {sum(killed)} of {KILLS} kills met the run alive")
    assert all(killed)


def test_a_run_that_is_read_all_the_time_ends_with_the_same_bits(tmp_path):
    program = TRAIN.format(steps=max(60, 2 * OPENS), epsilon=None)
    facts, arrays = finish(program, tmp_path / "whole")
    process, run, steps = start(program, tmp_path / "read"), tmp_path / "read" / "run", []
    while not any(name.isdigit() for name in names(tmp_path / "read")):
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(OPENS):
        began = time.monotonic()
        steps.append(jobs.open_run(run, report=pytest.fail).step)
        time.sleep(max(0, began + 0.05 - time.monotonic()))
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said.decode()[-3000:]
    again, restored = final(run)
    assert again == facts
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(array))
    print(f"{len(steps)} opens at {len(set(steps))} different steps")
    assert len(set(steps)) > min(OPENS, 60) / 12
    assert steps == sorted(steps)
