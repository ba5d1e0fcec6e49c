"""What an experiment returns: claims with their verdicts, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxkit import intervals

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


def verdict(holds: Any, otherwise: Verdict = "not shown") -> Verdict:
    """Return `"shown"` if the claim holds, else what its absence means."""
    return "shown" if bool(holds) else otherwise


def number_ticks(panel: Axes, values: Sequence[Any]) -> None:
    """Mark the horizontal axis, on a log scale, at these numbers alone."""
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()


def interval_over_seeds(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds, for a `Claim`; None for a single seed."""
    if len(values) < 2:
        return None
    low, high = intervals.mean_interval(values)
    return float(low), float(high)
