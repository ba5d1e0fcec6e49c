"""Run the experiments, print what they found, keep the figures."""

from __future__ import annotations

import importlib
import os
import pathlib
import pkgutil
import time

from rich import console, table

from jaxkit import experiments, plotting, validation
from jaxkit.experiments import evidence

_COLOURS = {"shown": "green", "null result": "yellow", "not shown": "red"}


def experiment_names() -> list[str]:
    """The experiments there are: modules of `jaxkit.experiments` with a `run`.

    Example:
        >>> "width" in experiment_names()
        True
    """
    return [
        module.name
        for module in pkgutil.iter_modules(experiments.__path__)
        if hasattr(importlib.import_module(f"jaxkit.experiments.{module.name}"), "run")
    ]


def reproduce(
    names: list[str],
    *,
    quick: bool = False,
    seed: int = 0,
    out: str | os.PathLike[str] = "evidence",
) -> bool:
    """Run experiments, print their claims and tables, and save their figures.

    Args:
        names: experiments, or `["all"]`.
        quick: a smaller version of each, about half a minute.
        seed: first seed.
        out: folder for the figures, one sub-folder an experiment.

    Returns:
        Whether every claim still shows.

    Raises:
        ValueError: if there is no such experiment.
    """
    known = experiment_names()
    chosen = known if names == ["all"] else names
    for name in chosen:
        validation.choice("experiment", name, [*known, "all"])
    terminal = console.Console()
    holds = True
    for name in chosen:
        start = time.perf_counter()
        found = importlib.import_module(f"jaxkit.experiments.{name}").run(quick=quick, seed=seed)
        _print(terminal, found, time.perf_counter() - start)
        for figure_name, figure in found.figures.items():
            path = plotting.save(figure, pathlib.Path(out) / name / f"{figure_name}.png")
            terminal.print(f"figure {path}", soft_wrap=True)
        holds = holds and found.holds
    return holds


def _print(terminal: console.Console, found: evidence.Evidence, seconds: float) -> None:
    terminal.rule(f"{found.title} ({seconds:.0f} s)", align="left")
    claims = table.Table("claim", "paper", "measured", "95 % interval", "verdict", show_lines=True)
    for claim in found.claims:
        interval = "" if claim.interval is None else "{:.3g} to {:.3g}".format(*claim.interval)
        colour = _COLOURS[claim.verdict]
        verdict = f"[{colour}]{claim.verdict}[/{colour}]"
        claims.add_row(claim.statement, claim.paper, claim.measured, interval, verdict)
    terminal.print(claims)
    for shown in found.tables:
        rows = table.Table(*map(str, shown.columns), title=shown.title, title_justify="left")
        for row in shown.rows:
            rows.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in row))
        terminal.print(rows)
