"""How a run shows itself: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What `fit` tells as it goes; a context manager around the whole run.

    Example:
        >>> class Losses(Silent):
        ...     def step(self, row):
        ...         print(f"step {row['step']}: {row['loss']}")
        >>> with Losses() as progress:
        ...     progress.step({"step": 1, "loss": 2.5})
        step 1: 2.5
    """

    def __enter__(self) -> Any:
        """Begin to show."""
        ...

    def __exit__(self, *exception: Any) -> None:
        """Show the end."""
        ...

    def step(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of one step."""
        ...

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of an evaluation."""
        ...


class Silent:
    """Shows nothing.

    Example:
        >>> with Silent() as progress:
        ...     progress.step({"step": 1, "loss": 2.5})
    """

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def step(self, row: Mapping[str, Any]) -> None:
        """Ignore a step."""

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Ignore an evaluation."""


class Console:
    """A rich progress bar with loss, speed and remaining time; plain lines without a terminal.

    Args:
        total_steps: steps of the whole run.
        first_step: steps made before (a resumed run).
        extra: names of further numbers of a step to show, as they are logged.

    Example:
        >>> with Console(2) as progress:
        ...     progress.evaluation(1, {"validation_loss": 1.5})
        step 1/2  validation_loss 1.5000
    """

    def __init__(self, total_steps: int, first_step: int = 0, extra: tuple[str, ...] = ()):
        from rich import console, progress

        self._total, self._extra = total_steps, extra
        self._terminal = console.Console().is_terminal
        self._numbers: dict[str, float] = {}
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            disable=not self._terminal,
        )
        self._task = self._bar.add_task(
            "train", total=total_steps, completed=first_step, numbers=""
        )

    def __enter__(self) -> Console:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def step(self, row: Mapping[str, Any]) -> None:
        """Move the bar to this step."""
        shown = ("loss", "tokens_per_second", "mfu", *self._extra)
        self._numbers |= {name: row[name] for name in shown if name in row}
        self._bar.update(self._task, completed=row["step"], numbers=_line(self._numbers))

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show an evaluation; without a terminal, as a line of its own."""
        if not self._terminal:
            line = _line({**self._numbers, **numbers})
            print(f"step {step}/{self._total}  {line}", flush=True)
        self._numbers |= numbers


_FORMATS = {"tokens_per_second": "{:,.0f} tokens/s", "mfu": "mfu {:.1%}"}


def _line(numbers: Mapping[str, float]) -> str:
    return "  ".join(
        _FORMATS.get(name, name + " {:.4f}").format(value) for name, value in numbers.items()
    )
