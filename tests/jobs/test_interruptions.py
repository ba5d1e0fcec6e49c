"""Runs of whole processes: killed, resumed, moved between devices, spread over processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxkit import jobs, training

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]

OPTIONS = {
    "batch-size": 8,
    "sequence-length": 32,
    "d-model": 32,
    "num-layers": 2,
    "num-heads": 2,
    "head-dim": 16,
    "d-ff": 64,
    "warmup-steps": 5,
    "evaluate-every": 20,
    "evaluation-windows": 8,
}


def command(folder, **options):
    words = [sys.executable, "-m", "jaxkit", "train", "--runs", str(folder)]
    for name, value in {**OPTIONS, **options}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def environment(devices=1):
    # Optimised or not, a program is compared with another compiled alike.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def train(folder, devices=1, processes=1, **options):
    words = command(folder, **options)
    if processes > 1:
        launcher = str(ROOT / "scripts" / "launch_local_cluster.py")
        words = [sys.executable, launcher, str(processes), "--", *words]
    result = subprocess.run(
        words, env=environment(devices), capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / options.get("name", "default")


def parameters(run):
    return jax.tree.leaves(jax.device_get(jobs.open_run(run).params))


def losses(run):
    return np.array([row["loss"] for row in training.read_metrics(run / "metrics.jsonl")])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    return train(tmp_path_factory.mktemp("whole"), steps=200, checkpoint_every=7)


def test_a_run_killed_on_one_device_goes_on_on_eight(whole, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, steps=200, checkpoint_every=7),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / "default" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run = train(tmp_path, devices=8, mesh="data=2,fsdp=2,tensor=2", steps=200, checkpoint_every=7)
    assert "checkpoints" in os.listdir(run)
    for a, b in zip(parameters(run), parameters(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_sigterm_stops_cleanly_and_a_rerun_ends_with_the_same_bits(whole, tmp_path):
    words = command(tmp_path, steps=200, checkpoint_every=50)
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "default" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(training.read_metrics(metrics)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "run the same command to resume" in output
    run = train(tmp_path, steps=200, checkpoint_every=50)
    for a, b in zip(parameters(run), parameters(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    one = train(tmp_path / "one", steps=30)
    two = train(tmp_path / "two", processes=2, steps=30, mesh="fsdp=2")
    np.testing.assert_allclose(losses(two), losses(one), rtol=0, atol=1e-5)
