"""What an experiment returns: claims with their verdicts, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxkit import intervals, plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Verdict = Literal["shown", "not shown", "null result"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper and what was measured of it.

    Attributes:
        statement: what should hold, with its threshold, as a sentence.
        paper: what the paper reports.
        measured: what was measured, as a sentence with numbers and units.
        verdict: `"shown"`, `"not shown"`, or `"null result"` where no effect was expected at this
            size and none was seen.
        interval: 95 % confidence interval of the measured effect over seeds, where there is one.
        used_to_show: False for a claim of the paper that has never shown in a run of this size.
    """

    statement: str
    paper: str
    measured: str
    verdict: Verdict
    interval: tuple[float, float] | None = None
    used_to_show: bool = True

    @property
    def label(self) -> str:
        """The verdict, and whether its absence is known."""
        known = self.verdict == "not shown" and not self.used_to_show
        return f"{self.verdict} (known)" if known else self.verdict


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table: column names and rows of printable cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything an experiment found.

    Attributes:
        title: the experiment in a few words.
        claims: the claims examined, in order.
        tables: the numbers behind them.
        figures: figures by file name without ending.
    """

    title: str
    claims: Sequence[Claim]
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every claim that used to show still does."""
        return all(c.verdict != "not shown" or not c.used_to_show for c in self.claims)


def claim(
    statement: str,
    paper: str,
    measured: str,
    holds: Any,
    effect: np.ndarray | None = None,
    *,
    absent: Verdict = "not shown",
    interval: tuple[float, float] | None = None,
    used_to_show: bool = True,
) -> Claim:
    """Judge a claim: shown if it `holds`, else `absent`; `effect` `[seeds]` gives its interval."""
    interval = interval if effect is None else interval_over_seeds(effect)
    return Claim(
        statement, paper, measured, "shown" if bool(holds) else absent, interval, used_to_show
    )


def gathered(
    title: str, *parts: tuple[Sequence[Claim], Sequence[Table], Mapping[str, Figure]]
) -> Evidence:
    """Put the claims, tables and figures of an experiment's parts together."""
    return Evidence(
        title,
        [claim for claims, _, _ in parts for claim in claims],
        [table for _, tables, _ in parts for table in tables],
        {name: figure for _, _, figures in parts for name, figure in figures.items()},
    )


def paired(difference: np.ndarray) -> str:
    """Mean of paired differences with its 95 % interval, printable."""
    low, high = intervals.mean_interval(difference)
    return f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def interval_over_seeds(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds; None for a single seed."""
    if len(values) < 2:
        return None
    low, high = intervals.mean_interval(values)
    return float(low), float(high)


def log_axes(panel: Axes, ticks: Sequence[Any] | None = None, *, base: int = 10) -> None:
    """Make both axes logarithmic, and mark the horizontal one at these numbers alone."""
    panel.set_xscale("log", base=base)
    panel.set_yscale("log")
    if ticks is not None:
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()


def seed_lines(panel: Axes, x: Any, found: Mapping[str, np.ndarray], **labels: str) -> None:
    """Draw the mean over seeds of each `[seeds, len(x)]`, in a band from the least to the most."""
    plotting.lines(
        panel,
        {name: (x, values.mean(0)) for name, values in found.items()},
        bands={name: (values.min(0), values.max(0)) for name, values in found.items()},
        **labels,
    )
