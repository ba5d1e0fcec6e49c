"""What the TPU's compiler makes of a program of each room, for 16 chips that are not here."""

import importlib.util
import pathlib
import sys

import pytest

from jaxkit import training


def _benchmark():
    path = pathlib.Path(__file__).parents[1] / "scripts" / "benchmarks" / "pods.py"
    spec = importlib.util.spec_from_file_location("benchmark_pods", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pods = _benchmark()


@pytest.mark.tpu
@pytest.mark.usefixtures("bad_input")  # programs are lowered from descriptions of arrays
@pytest.mark.parametrize(
    "make",
    [make for makes in pods.ROOMS.values() for make in makes],
    ids=lambda make: make.__name__,
)
def test_a_program_of_each_room_receives_on_a_pod_what_it_must(pod, make):
    program = make(pod)
    cost = training.program_cost(program.lowered.compile(), program.mesh)
    assert cost.received() <= 1.2 * program.expected + 2**10
