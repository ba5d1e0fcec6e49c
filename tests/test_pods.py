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


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("151M, V = 32,000", (2, 8, 1)), ("151M lexinvariant, V = 128", (2, 4, 2))],
)
def test_a_language_model_keeps_to_its_budget(pod, name, sizes):
    config, vocab_size, rows, *_ = pods.LANGUAGE_MODELS[name]
    found = pods.compiled_step(config, vocab_size, sizes, rows)
    cost, closed = found.cost, found.closed_form
    assert cost.received() <= 1.2 * closed.exchange_bytes
    assert cost.temporary_bytes <= 1.3 * closed.temporary_bytes
    assert pods.moved_activations(found) == 0
    assert cost.unknown_loops == cost.unknown_kernels == 0
