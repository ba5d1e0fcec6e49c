"""Run the experiments, print what they found as it comes, and keep it in one page."""

from __future__ import annotations

import collections
import concurrent.futures
import importlib
import multiprocessing
import os
import pkgutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import tyro
from rich import console, progress, table, text

from jaxkit import experiments, files, plotting, training, validation
from jaxkit.experiments.evidence import Claim, Evidence
from jaxkit.jobs import options, pages

_COLOURS = {"shown": "green", "null result": "yellow", "not shown": "red"}
_CLASSES = {
    "shown": "shown",
    "null result": "null",
    "not shown": "missing",
    "not shown (known)": "null",
}
_CLAIM_COLUMNS = ("claim", "paper", "measured", "95 % interval", "verdict")
#: These begin first, so that no worker waits at the end for the one that takes minutes.
_LONGEST = ("lexinvariant", "width_llama", "submodular")
_VERDICT_COLUMNS = ("experiment", *_COLOURS, "seconds")


class Result(NamedTuple):
    """What one experiment found, and how long it took, in seconds."""

    name: str
    evidence: Evidence
    seconds: float


def experiment_names() -> list[str]:
    """The experiments there are: modules of `jaxkit.experiments` with a `run`."""
    return [
        module.name
        for module in pkgutil.iter_modules(experiments.__path__)
        if hasattr(importlib.import_module(f"jaxkit.experiments.{module.name}"), "run")
    ]


def reproduce(
    papers: tyro.conf.Positional[Sequence[str]] = ("all",),
    quick: tyro.conf.FlagCreatePairsOff[bool] = False,
    seed: int = 0,
    out: options.Path = "evidence",
    parallel: int | None = None,
) -> bool:
    """Show each paper's claim in miniature; the exit code says whether all still show.

    Args:
        papers: experiments by name, or all.
        quick: a smaller version of each, about half a minute.
        seed: first seed.
        out: folder for the page `report.html` and the figures.
        parallel: experiments at a time; by default one a core, up to 4, or one on an accelerator.
    """
    validation.seed("seed", seed)
    known = experiment_names()
    chosen = known if tuple(papers) == ("all",) else list(papers)
    for name in chosen:
        validation.choice("experiment", name, [*known, "all"])
    if parallel is None:
        parallel = min(4, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    parallel = min(len(chosen), validation.integer("parallel", parallel, minimum=1))
    folder, results = options.output_folder(out), list[Result]()
    terminal = training.terminal()
    columns = (progress.SpinnerColumn(), progress.MofNCompleteColumn(),
               progress.TimeElapsedColumn(), progress.TextColumn("{task.description}"))  # fmt: skip
    with progress.Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task(", ".join(chosen), total=len(chosen))
        for result in _results(chosen, quick, seed, parallel):
            results = sorted([*results, result], key=lambda r: chosen.index(r.name))
            _print(terminal, result)
            for name, figure in result.evidence.figures.items():
                plotting.save(figure, folder / result.name / f"{name}.png")
            files.write_atomically(folder / "report.html", evidence_page(results, quick=quick))
            missing = [name for name in chosen if name not in {r.name for r in results}]
            bar.update(task, advance=1, description=", ".join(missing))
    _print_table(terminal, "Evidence", _VERDICT_COLUMNS, _verdict_rows(results))
    terminal.print(f"{folder / 'report.html'}", soft_wrap=True, highlight=False)
    return all(result.evidence.holds for result in results)


def _results(chosen: list[str], quick: bool, seed: int, parallel: int) -> Iterator[Result]:
    """What each experiment found, in the order in which they end."""
    if parallel == 1:
        yield from (_run(name, quick, seed) for name in chosen)
        return
    # Forked processes would share the state of a JAX that has started.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(parallel, mp_context=context) as pool:
        try:
            first = sorted(chosen, key=lambda name: name not in _LONGEST)
            futures = [pool.submit(_run, name, quick, seed) for name in first]
            yield from (f.result() for f in concurrent.futures.as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _run(name: str, quick: bool, seed: int) -> Result:
    start = time.perf_counter()
    found = importlib.import_module(f"jaxkit.experiments.{name}").run(quick=quick, seed=seed)
    return Result(name, found, time.perf_counter() - start)


def evidence_page(results: list[Result], *, quick: bool) -> str:
    """One self-contained HTML page of everything found."""
    size = "The quick versions." if quick else "The full versions."
    parts = [
        f"<p>{size} A null result is an effect that is absent at this size, as it was expected to "
        "be. A claim that is not shown, and never was, is marked known.</p>",
        pages.table(_VERDICT_COLUMNS, _verdict_rows(results)),
    ]
    for name, found, seconds in results:
        title = pages.text(f"{found.title} ({name}, {seconds:.0f} s)")
        parts.append(f'<h2 id="{name}">{title}</h2>')
        rows = [_claim_cells(claim) for claim in found.claims]
        parts.append(pages.table(_CLAIM_COLUMNS, rows, classes=_CLASSES))
        parts += [plotting.html_image(figure, alt) for alt, figure in found.figures.items()]
        parts += [
            pages.table(t.columns, map(_printable, t.rows), caption=t.title) for t in found.tables
        ]
    return pages.page("Each paper's claims in miniature", parts)


def _claim_cells(claim: Claim) -> tuple[str, ...]:
    interval = "" if claim.interval is None else "{:.3g} to {:.3g}".format(*claim.interval)
    return claim.statement, claim.paper, claim.measured, interval, claim.label


def _verdict_rows(results: list[Result]) -> list[tuple[Any, ...]]:
    rows = []
    for name, found, seconds in results:
        count = collections.Counter(claim.verdict for claim in found.claims)
        rows.append((name, *(count[verdict] for verdict in _COLOURS), f"{seconds:.0f}"))
    totals = [sum(row[column] for row in rows) for column in range(1, 1 + len(_COLOURS))]
    return [*rows, ("all", *totals, f"{sum(result.seconds for result in results):.0f}")]


def _printable(row: Any) -> list[str]:
    return [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]


def _print(terminal: console.Console, result: Result) -> None:
    found = result.evidence
    terminal.rule(f"{found.title} ({result.seconds:.0f} s)", align="left")
    claims = table.Table(*_CLAIM_COLUMNS, show_lines=True)
    for claim in found.claims:
        *cells, label = _claim_cells(claim)
        colour = _COLOURS[claim.verdict]
        claims.add_row(*cells, text.Text(label, colour))
    terminal.print(claims)
    for shown in found.tables:
        _print_table(terminal, shown.title, shown.columns, shown.rows)


def _print_table(terminal: console.Console, title: str, columns: Any, rows: Any) -> None:
    printed = table.Table(*map(str, columns), title=title, title_justify="left")
    for row in rows:
        printed.add_row(*_printable(row))
    terminal.print(printed)
