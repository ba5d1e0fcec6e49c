"""Compile a run's program for devices that are not here, and say what it will cost there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import pickle
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import tyro
from jax.sharding import Mesh
from rich import console
from rich import table as tables

from jaxkit import files, models, training, validation
from jaxkit.jobs import options, private_training, program, texts
from jaxkit.jobs.config import TrainConfig
from jaxkit.models import decoder_cost

Effort = Literal["default", "low"]
EFFORTS = ("default", "low")

#: Utilisation reached over the bound of `Compilation.utilization`, on average over four published
#: runs of 16B to 128B on 256 chips (MaxText, v5e): 0.75 to 0.89.
REACHED = 0.8


class Compilation(NamedTuple):
    """What became of a program on a topology.

    Attributes:
        config: what was compiled.
        topology: the devices compiled for.
        mesh: their mesh.
        seconds: that compiling took.
        effort: how hard the compiler tried; low effort needs more memory than default effort, and
            communicates the same.
        cost: what the program needs of a device; None if it does not fit.
        refusal: what the compiler said if the program does not fit into memory.
        closed_form: what it should need.
        executable: the program.
    """

    config: TrainConfig
    topology: str
    mesh: Mesh
    seconds: float
    effort: Effort
    cost: training.ProgramCost | None
    refusal: str | None
    closed_form: decoder_cost.StepCost
    executable: Any

    @property
    def roofline(self) -> training.Roofline | None:
        """The least time of a step; None where it does not fit or no rates are known."""
        return None if self.cost is None else training.roofline(self.cost, self.mesh)

    def utilization(self, seconds: float) -> float:
        """Model FLOPs of a step, none counted twice, over what the devices could do in a time.

        Attention counts in full, as is usual, so that a causal kernel on a long context may pass 1.
        """
        assert self.cost is not None
        assert self.roofline is not None
        return self.closed_form.flops / self.cost.flops * self.roofline.compute / seconds


def compile_program(
    config: TrainConfig,
    topology: str,
    *,
    vocab_size: int | None = None,
    effort: Effort = "default",
) -> Compilation:
    """Compile the step that `train` would run on a topology."""
    validation.choice("effort", effort, EFFORTS)
    mesh = training.make_mesh(config.mesh, training.topology_devices(topology))
    if vocab_size is not None:
        validation.integer("vocab_size", vocab_size, minimum=1)
    plan = None
    if vocab_size is None or config.private:
        corpus = texts.load_text(config).train
        tokenizer = texts.make_tokenizer(config, corpus)
        if vocab_size is None:
            vocab_size = tokenizer.vocab_size
        if config.private:
            tokens = texts.encode(corpus, tokenizer)
            windows = private_training.num_private_windows(tokens, config.sequence_length)
            plan = private_training.plan_private_training(config, vocab_size, windows, mesh)
    job = program.training_program(config, vocab_size, mesh, plan)
    closed_form = models.step_cost(
        job.model.config,
        job.optimizer,
        mesh,
        job.batch["tokens"].shape[0],
        config.sequence_length,
    )
    start, cost, refusal, executable = time.perf_counter(), None, None, None
    try:
        with _compiler_effort(effort):
            executable = job.step.lower(job.state, job.batch).compile()
        cost = training.program_cost(executable, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).split("RESOURCE_EXHAUSTED: ")[-1].splitlines()[0]
    seconds = time.perf_counter() - start
    return Compilation(
        config, topology, mesh, seconds, effort, cost, refusal, closed_form, executable
    )


@contextlib.contextmanager
def _compiler_effort(effort: Effort) -> Iterator[None]:
    # JAX 0.12 has levels where versions before it have an effort.
    name, low = "jax_exec_time_optimization_effort", -1.0
    if not hasattr(jax.config, name):
        name, low = "jax_optimization_level", "O0"
    before = getattr(jax.config, name)
    if effort == "low":
        jax.config.update(name, low)
    try:
        yield
    finally:
        jax.config.update(name, before)


def compile_run(
    config: TrainConfig,
    topology: str,
    vocab_size: int | None = None,
    effort: Effort = "default",
    out: options.Path = "compiled",
    save: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> Compilation:
    """Compile what train would run for devices that need not be here; say what it costs there.

    Args:
        config: what to train; its mesh divides the devices of the topology.
        topology: v5e:16x16, v5p:4x4x4, v6e:4x4, ...; cpu:8 for simulated devices; local.
        vocab_size: size of the vocabulary; by default that of the text.
        effort: of the compiler: low takes a tenth of the time, and more memory in the program.
        out: folder for the report, as JSON and text.
        save: write the compiled step there too.
    """
    if topology != "local" and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    folder = options.output_folder(out)
    found = compile_program(config, topology, vocab_size=vocab_size, effort=effort)
    text = json.dumps(compilation_report(found), indent=1)
    files.write_atomically(folder / "report.json", text + "\n")
    shown, page = compilation_tables(found), io.StringIO()
    console.Console(file=page, width=120).print(*shown)
    files.write_atomically(folder / "report.txt", page.getvalue())
    if save and found.executable is not None:
        save_program(found.executable, folder / "step.bin")
    training.terminal().print(*shown)
    return found


def save_program(executable: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Write a compiled step to a file."""
    from jax.experimental import serialize_executable

    payload, *_ = serialize_executable.serialize(executable)
    return files.write_atomically(path, payload)


def load_program(path: str | os.PathLike[str], job: program.Program) -> Any:
    """Read a compiled step back, on devices like those that it was compiled for."""
    from jax.experimental import serialize_executable

    arguments = jax.tree.structure(((job.state, job.batch), {}))
    results = jax.tree.structure(jax.eval_shape(job.step, job.state, job.batch))
    payload = pathlib.Path(path).read_bytes()
    try:
        return serialize_executable.deserialize_and_load(payload, arguments, results)
    except (jax.errors.JaxRuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} holds no program for these devices: {error}") from None


def compilation_report(found: Compilation) -> dict[str, Any]:
    """A compilation as JSON: bytes of one device, seconds and operations of one step."""
    cost, closed = found.cost, found.closed_form
    report: dict[str, Any] = {
        "topology": found.topology,
        "devices": found.mesh.devices.size,
        "device_kind": found.mesh.devices.flat[0].device_kind,
        "mesh": dict(found.mesh.shape),
        "compiler": {"effort": found.effort, "seconds": round(found.seconds, 1)},
        "fits": found.refusal is None,
        "refusal": found.refusal,
        "closed_form": closed._asdict(),
    }
    if cost is None:
        return report
    report["memory"] = {
        "arguments": cost.argument_bytes,
        "outputs": cost.output_bytes,
        "temporaries": cost.temporary_bytes,
    }
    report["flops"] = cost.flops
    report["unknown"] = {"loops": cost.unknown_loops, "kernels": cost.unknown_kernels}
    report["memory_traffic"] = cost.memory_bytes
    report["received"] = {
        "total": cost.received(),
        "by_axes": {"+".join(axes): cost.received(axes) for axes in _axes(cost)},
        "operations": [one._asdict() for one in cost.collectives],
    }
    if (line := found.roofline) is not None:
        bound = found.utilization(line.seconds)
        report["roofline"] = {
            **line._asdict(),
            "limit": line.limit,
            "utilization_if_all_overlaps": bound,
            "utilization_if_nothing_overlaps": found.utilization(line.serial_seconds),
            "utilization_expected": REACHED * bound,
        }
    return report


def _axes(cost: training.ProgramCost) -> list[tuple[str, ...]]:
    """The axes that something crosses, most bytes first."""
    crossed = {one.axes for one in cost.collectives}
    return sorted(crossed, key=cost.received, reverse=True)


def compilation_tables(found: Compilation, largest: int = 8) -> list[tables.Table]:
    """A compilation to print: what a device needs, what crosses devices, how long it takes."""
    cost, closed = found.cost, found.closed_form
    axes = " x ".join(f"{axis}={size}" for axis, size in found.mesh.shape.items())
    title = f"{found.topology}, {found.mesh.devices.flat[0].device_kind}, {axes}"
    needs = tables.Table(
        *("a device and step", "compiled", "closed form", "ratio"),
        title=title,
        caption=f"compiled in {found.seconds:.0f} s, {found.effort} effort",
    )
    state = closed.parameter_bytes + closed.optimizer_bytes
    if cost is None:
        for name, size in (
            ("parameters, optimizer", state),
            ("temporaries", closed.temporary_bytes),
        ):
            needs.add_row(name, "", _mebi(size))
        needs.add_row("does not fit", found.refusal)
        return [needs]

    def row(name: str, compiled: float, expected: float | None, show: Any) -> None:
        ratio = "" if not expected else f"{compiled / expected:.2f}"
        needs.add_row(name, show(compiled), "" if expected is None else show(expected), ratio)

    row("arguments", cost.argument_bytes, state, _mebi)
    row("temporaries", cost.temporary_bytes, closed.temporary_bytes, _mebi)
    expected: dict[tuple[str, ...], int] = {
        ("data",): closed.data_exchange_bytes,
        ("fsdp",): closed.fsdp_exchange_bytes,
        ("tensor",): closed.tensor_exchange_bytes,
    }
    for crossed in _axes(cost):
        name = f"received over {', '.join(crossed)}"
        row(name, cost.received(crossed), expected.get(crossed), _mega)
    row("received", cost.received(), closed.exchange_bytes, _mega)
    row("operations", cost.flops, closed.executed_flops, _operations)
    if cost.unknown_loops or cost.unknown_kernels:
        needs.add_row(
            "loops and kernels not counted", f"{cost.unknown_loops}, {cost.unknown_kernels}"
        )
    crossing = tables.Table("operation", "over", "times", "received", "makes", "for")
    for one in cost.collectives[:largest]:
        source = "/".join(one.source.rsplit("/", 3)[-3:])
        crossing.add_row(
            one.kind,
            ", ".join(one.axes),
            str(one.executions),
            _mega(one.received),
            one.shape[:40],
            source,
        )
    shown = [needs, crossing] if cost.collectives else [needs]
    if (line := found.roofline) is not None:
        shown.append(_time_table(found, line))
    return shown


def _time_table(found: Compilation, line: training.Roofline) -> tables.Table:
    table = tables.Table("a step needs", "ms", "utilization", caption=f"limit: {line.limit}")
    for name, seconds in line._asdict().items():
        table.add_row(name, f"{seconds * 1e3:.2f}", "")
    for name, seconds in (
        ("at least, if all overlaps", line.seconds),
        ("if no exchange overlaps", line.serial_seconds),
        (f"expected, {REACHED:g} of the bound", line.seconds / REACHED),
    ):
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{100 * found.utilization(seconds):.1f} %")
    return table


def _mebi(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**17 else f"{size / 2**10:,.1f} KiB"


def _mega(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _operations(flops: float) -> str:
    return f"{flops / 1e12:,.3f} TFLOP" if flops >= 1e11 else f"{flops / 1e9:,.3f} GFLOP"
