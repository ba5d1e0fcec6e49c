"""What tests share: 8 simulated devices, checked calls, golden vectors, a counter of traces."""

import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The quick tests compile thousands of small programs, and half of that is optimisation.
        "--xla_backend_optimization_level=0" * ("JAXKIT_QUICK_COMPILE" in os.environ),
        # Not a flag of later versions. And one module of code a program: they are small.
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        * ("JAXKIT_QUICK_COMPILE" in os.environ)
        * importlib.metadata.version("jaxlib").startswith("0.10."),
    ]
)
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import jaxtyping
import pytest


def jaxtyped_when_called(*, typechecker, jaxtyped=jaxtyping.jaxtyped):
    """As `jaxtyped`, but read the annotations of a function when it is first called.

    To read them all takes longer than to collect the tests, and most are not called by the few
    tests that one process runs.
    """

    def decorate(found):
        if not inspect.isfunction(found):
            return jaxtyped(found, typechecker=typechecker)

        @functools.cache
        def checked():
            return jaxtyped(found, typechecker=typechecker)

        @functools.wraps(found)
        def call(*args, **kwargs):
            return checked()(*args, **kwargs)

        return call

    return decorate


# Before anything imports `jaxkit`.
if not os.environ.get("JAXTYPING_DISABLE"):
    jaxtyping.jaxtyped = jaxtyped_when_called
    jaxtyping.install_import_hook(
        "jaxkit", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )

hypothesis.settings.register_profile("jaxkit", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("jaxkit")


#: Above this a worker forgets its compiled programs, some 3 MB each: before the next file of tests,
#: and before the next test, which may have to compile again what it shares with the last.
_MOST_RESIDENT_BYTES = {"file": 1.4e9, "test": 1.6e9}


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage among the modules, then seldom: that was a tenth of the tests' time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000, 10, 10)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Forget programs; unlike other hooks this one also sees the examples of docstrings."""
    try:
        return (yield)
    finally:
        kind = "test" if nextitem is not None and nextitem.path == item.path else "file"
        statm = pathlib.Path("/proc/self/statm")
        resident = int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0
        if resident > _MOST_RESIDENT_BYTES[kind]:
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def golden():
    """Load golden vectors by topic: `golden("schedules")`."""

    def load(topic):
        return json.loads(
            (pathlib.Path(__file__).parent / "golden" / f"{topic}.json").read_text("utf-8")
        )

    return load


@pytest.fixture(scope="session")
def shared_data():
    """Find measurement data kept beside the project, or skip: `shared_data("wikitext2")`."""
    root = pathlib.Path(__file__).parents[2] / "shared" / "data"

    def find(name):
        path = root / name
        if not path.exists():
            pytest.skip(f"measurement data {name!r} is not beside the project")
        return path

    return find


class TraceCounter:
    """Wraps a function and counts how often JAX traces it."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def count_traces():
    """`counted = count_traces(f); jax.jit(counted)(x); assert counted.count == 1`."""
    return TraceCounter


@pytest.fixture(scope="session")
def devices():
    """The 8 simulated devices."""
    found = jax.devices()
    assert len(found) == 8
    return found


@pytest.fixture(scope="session")
def pod():
    """16 TPUs to compile for, at low effort; they are not here."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the tpu extra is not installed: make test-tpu")
    from jaxkit import training

    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    return training.topology_devices("v5e:4x4")


@pytest.fixture(scope="session")
def on_processes():
    """`on_processes(program, 2, *words)`: run a program in the processes of a local cluster.

    They have 8 devices together, or as many as `devices` says. Process 0 prints `RESULT` and JSON,
    which is returned.
    """
    launcher = pathlib.Path(__file__).parents[1] / "scripts" / "launch_local_cluster.py"

    def run(program, num_processes, *words, devices=8):
        flags = f"--xla_force_host_platform_device_count={devices // num_processes}"
        command = [sys.executable, "-c", program, *map(str, words)]
        finished = subprocess.run(
            [sys.executable, str(launcher), str(num_processes), "--", *command],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            cwd=launcher.parents[1],
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        (line,) = [row for row in finished.stdout.splitlines() if row.startswith("RESULT ")]
        return json.loads(line.removeprefix("RESULT "))

    return run


@pytest.fixture
def bad_input():
    """Switch the annotation checks off, so that a test sees the error a user would see."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
