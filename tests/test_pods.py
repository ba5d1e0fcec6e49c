"""What compilers make of a language model and of a program of each room, on many devices."""

import dataclasses
import importlib.util
import pathlib
import sys

import pytest

from jaxkit import training
from jaxkit.jobs import compilation


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
    state = closed.parameter_bytes + closed.optimizer_bytes
    assert cost.argument_bytes == pytest.approx(state, rel=0.01)
    assert cost.received() <= 1.2 * closed.exchange_bytes
    assert cost.temporary_bytes <= 1.3 * closed.temporary_bytes
    assert pods.moved_activations(found) == 0
    assert cost.unknown_loops == cost.unknown_kernels == 0


def test_on_simulated_devices_too_no_activation_crosses_fsdp(devices):
    config = dataclasses.replace(
        pods.PAPER,
        d_model=512,
        num_layers=9,
        num_heads=4,
        d_ff=2048,
        dtype="float32",
        mesh="data=2,fsdp=4",
        batch_size=24,
        sequence_length=80,
    )
    found = compilation.compile_program(config, "cpu:8", vocab_size=4096)
    cost, closed = found.cost, found.closed_form
    assert pods.moved_activations(found) == 0
    assert cost.received(["data"]) == pytest.approx(closed.data_exchange_bytes, rel=0.2)
    # CPUs sum whole gradients where TPUs leave each its part, and keep no gathered weight.
    assert cost.received() < 1.6 * closed.exchange_bytes
    assert cost.temporary_bytes < 1.3 * closed.temporary_bytes
