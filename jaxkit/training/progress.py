"""How a run shows itself: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax


def say(line: str, *, out: bool = False) -> None:
    """Tell the user a line, from process 0 only; a closed pipe or terminal stops nothing.

    Args:
        line: the text, shown as it is.
        out: to standard output, as a result; otherwise to standard error, as news.

    Example:
        >>> say("loss 1.5", out=True)
        loss 1.5
    """
    if jax.process_index() == 0:
        _write(sys.stdout if out else sys.stderr, line + "\n")


def _write(stream: Any, text: str) -> None:
    if stream is None:  # closed before the process began
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:
        # Nobody reads any more (`| head`, a terminal closed). What is buffered would raise again,
        # at the latest when the interpreter ends.
        if isinstance(error, ValueError) and not stream.closed:
            raise
        if not stream.closed:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def terminal() -> Any:
    """Make a Rich console on standard output, whose reader may go away; markup is text.

    Example:
        >>> terminal().print("loss [/x]")
        loss [/x]
    """
    from rich import console

    stream: Any = _Tolerant(sys.stdout or io.StringIO())
    return console.Console(file=stream, markup=False)


@runtime_checkable
class Progress(Protocol):
    """What `drive` tells as it goes; a context manager around the whole run.

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
        from rich import progress

        self._total, self._extra = total_steps, extra
        shown = terminal()
        self._terminal = shown.is_terminal
        self._numbers: dict[str, float] = {}
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}", markup=False),
            progress.TimeRemainingColumn(),
            console=shown,
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
        """Move the bar to this step; a row's `"doing"` is shown in front of it."""
        shown = ("loss", "tokens_per_second", "mfu", *self._extra)
        self._numbers |= {name: row[name] for name in shown if name in row}
        self._bar.update(
            self._task,
            completed=row["step"],
            numbers=_line(self._numbers),
            description=row.get("doing", "train"),
        )

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show an evaluation; without a terminal, as a line of its own."""
        if not self._terminal:
            line = _line({**self._numbers, **numbers})
            say(f"step {step}/{self._total}  {line}", out=True)
        self._numbers |= numbers


class _Tolerant:
    """A stream whose reader may go away."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        _write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_FORMATS = {"tokens_per_second": "{:,.0f} tokens/s", "mfu": "mfu {:.1%}"}


def _line(numbers: Mapping[str, float]) -> str:
    return "  ".join(
        _FORMATS.get(name, name + " {:.4f}").format(value) for name, value in numbers.items()
    )
