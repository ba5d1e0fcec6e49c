"""This project beside its peers: each room's benchmark, both sides in one run, interleaved.

    python scripts/benchmark.py [ROOM ...] [--list]
    python scripts/benchmark.py ROOM TABLE [--ARGUMENT VALUE ...]

Prints Markdown tables, each room from a process of its own, so that it can fix its threads and no
other room's memory or caches are in its way. A peer that is not installed is named. The second form
makes one table of a room, as `submodular stream --elements 1000000`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
from types import ModuleType

import tyro

from jaxkit.experiments.evidence import Table

FOLDER = pathlib.Path(__file__).parent / "benchmarks"
#: Rooms whose tables compare one thread with one thread.
ONE_THREAD = ("continual", "federated", "limits", "submodular", "subrl")


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "---|" * len(table.columns))
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def keep_to_one_thread() -> None:
    """Keep this process to one core, where the system can, before any library starts its pools."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def load(name: str) -> ModuleType:
    """Import `benchmarks/NAME.py` by its path: scripts are not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(words: list[str]) -> int:
    """Run the benchmarks named, or all; returns the exit code."""
    known = sorted(path.stem for path in FOLDER.glob("*.py"))
    if words == ["--list"]:
        print("\n".join(known))
        return 0
    table = words[1] if len(words) > 1 and words[0] in known and words[1] not in known else None
    unknown = [word for word in words if word not in known]
    if unknown and not table:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if len(words) != 1 and not table:
        each = [[sys.executable, __file__, name] for name in words or known]
        return max(subprocess.run(command).returncode for command in each)
    if words[0] in ONE_THREAD:
        keep_to_one_thread()
    room = load(words[0])
    if table and not hasattr(room, table):
        print(f"benchmark {words[0]!r} has no table {table!r}", file=sys.stderr)
        return 2
    result = tyro.cli(getattr(room, table), args=words[2:]) if table else room.run()
    for table in [result] if isinstance(result, Table) else result:
        print(markdown(table), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
