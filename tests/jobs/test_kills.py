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
OPENS = int(os.environ.get("JAXKIT_OPENS", "30"))
TESTS = pathlib.Path(__file__).parents[1]
#: One device; what is compared are bits of one program, however it was compiled.
FLAGS = "--xla_backend_optimization_level=0"

TRAIN = """
import sys
from jaxkit import jobs
from jaxkit.jobs.config import PrivacyConfig
jobs.train(jobs.TrainConfig(
    name="run", runs=sys.argv[1], steps={steps}, batch_size=4, sequence_length=16, d_model=16,
    num_layers=1, num_heads=1, head_dim=16, d_ff=16, warmup_steps=2, checkpoint_every=2,
    evaluate_every=8, evaluation_windows=4,
    privacy=PrivacyConfig({epsilon}, 1e-6, public_noise_seed=7)))  # a secret would differ
"""

CONTINUAL = """
import sys, numpy as np, jax
from jaxkit import continual
sys.path.insert(0, {tests!r} + "/continual")
import test_streams_and_runs as t
rng = np.random.default_rng(1)
shapes = jax.eval_shape(t.MODEL.init, jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
weights = jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
learner = continual.SEMALearner(t.CONFIG, weights)
continual.run_stream(learner, t.make_stream(), seed=3, folder=sys.argv[1] + "/run",
                     checkpoint_every=2)
"""

SUBRL = """
import sys, jax, optax
from jaxkit import subrl
world = subrl.coverage_world((2, 3), horizon=3, start=0, features="official_position")
policy = subrl.TabularPolicy(5, world.num_items, world.horizon)
training = subrl.make_training(world, policy, optax.adam(0.1), batch_size=8, num_steps=40)
subrl.fit(training, jax.random.key(0), num_seeds=2, chunk=1, folder=sys.argv[1] + "/run")
"""

FEDERATED = """
import sys, jax, jax.numpy as jnp, numpy as np
from jaxkit import federated
data = federated.stack_clients(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
local = federated.LocalTraining(lambda w, x, key: jnp.mean((w - x) ** 2), batch_size=2)
federated.simulate(
    federated.fedspeed(), local, jnp.zeros(()), data, federated.uniform_sampler(6, 3),
    num_rounds=60, key=jax.random.key(0), folder=sys.argv[1] + "/run", checkpoint_every=2,
    evaluate=lambda w: {"w": w}, evaluate_every=3)
"""

PROGRAMS = {
    "train": TRAIN.format(steps=24, epsilon=None),
    "private": TRAIN.format(steps=24, epsilon=8.0),
    "continual": CONTINUAL.format(tests=str(TESTS)),
    "subrl": SUBRL,
    "federated": FEDERATED,
}


#: Imports once, then forks a process for each life of a run: what it imports touches no folder.
FORKING = """
import os, sys, traceback
import jax, optax
from orbax.checkpoint import v1
from jaxkit import continual, federated, jobs, subrl
from jaxkit.jobs import config
program = compile(sys.argv.pop(), "run", "exec")
for folder in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["run", folder.strip()]
        try:
            exec(program, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Lives:
    """Processes of one program, one after the other."""

    def __init__(self, program):
        self._parent = subprocess.Popen(
            [sys.executable, "-c", FORKING, program], text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._parent.kill()
        self._parent.communicate()

    def start(self, folder):
        """The process number of a new life."""
        self._parent.stdin.write(f"{folder}\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def end(self):
        """The exit code of the present one, once it has ended."""
        return int(self._parent.stdout.readline())

    def finish(self, folder):
        """Everything that a run has when nobody disturbs it."""
        self.start(folder)
        assert self.end() == 0
        return final(folder / "run")


def alive(pid):
    """Whether a process has not ended; a parent that waits leaves no zombie for long."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
    return {"step": step.name, "record": record, **logs}, ocp.load(str(step / "state" / "0"))


def names(folder):
    place = folder / "run" / "checkpoints"
    return set(os.listdir(place)) if place.exists() else set()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(kind, tmp_path):
    """At start-up, twice in a row; while a checkpoint is written; anywhere between."""
    moments, codes = random.Random(0), []
    with Lives(PROGRAMS[kind]) as lives:
        facts, arrays = lives.finish(tmp_path / "whole")
        for number in range(KILLS):
            moment = ("writing", "running", "start", "start", "writing")[number % 5]
            before = names(tmp_path / "cut")
            pid = lives.start(tmp_path / "cut")
            if moment == "start":
                time.sleep(moments.uniform(0, 1))
            else:
                wanted = ".writing" if moment == "writing" else ""
                while alive(pid):
                    new = names(tmp_path / "cut") - before
                    if any(name.endswith(wanted) for name in new):
                        break
                    time.sleep(0.0005)
                time.sleep(moments.uniform(0, 0.01 if moment == "writing" else 0.2))
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
            codes.append(lives.end())
        again, restored = lives.finish(tmp_path / "cut")
    assert again == facts
    assert restored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(array))
    killed = codes.count(-signal.SIGKILL)
    print(f"{kind}: {killed} of {KILLS} kills met the run alive")
    assert killed == KILLS


def test_a_run_that_is_read_all_the_time_ends_with_the_same_bits(tmp_path):
    steps, run = [], tmp_path / "read" / "run"
    with Lives(TRAIN.format(steps=max(60, 2 * OPENS), epsilon=None)) as lives:
        facts, arrays = lives.finish(tmp_path / "whole")
        pid = lives.start(tmp_path / "read")
        while not any(name.isdigit() for name in names(tmp_path / "read")):
            assert alive(pid)
            time.sleep(0.01)
        for _ in range(OPENS):
            began = time.monotonic()
            steps.append(jobs.open_run(run, report=pytest.fail).step)
            time.sleep(max(0, began + 0.05 - time.monotonic()))
        assert lives.end() == 0
    again, restored = final(run)
    assert again == facts
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(array))
    print(f"{len(steps)} opens at {len(set(steps))} different steps")
    assert len(set(steps)) > min(OPENS, 60) / 12
    assert steps == sorted(steps)
