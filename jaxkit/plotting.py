"""The look that every figure of the project shares, and how a figure reaches a file.

Figures are made without pyplot, so that drawing in a library, a test or a server leaves no global
state; in a notebook, a figure as the last expression of a cell is shown.
"""

from __future__ import annotations

import base64
import html
import io
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxkit import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour-blind safe cycle (Okabe and Ito), dark to light.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")

_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "font.size": 10,
}


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
        import matplotlib.text
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jaxkit[train]'") from error
    return mpl


def axes(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = 4.6,
    height: float = 3.2,
    **options: Any,
) -> tuple[Figure, Any]:
    """Make a figure of `rows` x `columns` panels in the project's style.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        width: width of one panel in inches.
        height: height of one panel in inches.
        **options: passed to `matplotlib.figure.Figure.subplots` (`sharex`, `sharey`, ...).

    Returns:
        The figure, and one `Axes` (1 x 1) or an array of them.

    Raises:
        ImportError: if matplotlib is not installed, naming the extra that brings it.

    Example:
        >>> figure, panel = axes()
        >>> line = panel.plot([0, 1], [1, 0], label="linear")
    """
    mpl = _matplotlib()
    with mpl.rc_context({**_STYLE, "axes.prop_cycle": mpl.cycler(color=COLORS)}):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **options)


def lines(
    panel: Axes,
    curves: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    bands: Mapping[str, tuple[Any, Any]] | None = None,
) -> None:
    """Draw named curves, each `(x, y)`, with an optional `(low, high)` band of the same name.

    Example:
        >>> figure, panel = axes()
        >>> lines(panel, {"a": ([0, 1], [1, 0])}, xlabel="step", bands={"a": ([0.9, 0], [1.1, 0])})
    """
    for index, (name, (x, y)) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        # A curve of one point has no line to show it.
        panel.plot(x, y, label=name, color=color, marker="o" if len(x) == 1 else None)
        if bands and name in bands:
            panel.fill_between(x, *bands[name], color=color, alpha=0.18, linewidth=0)
    panel.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(curves) > 1:
        panel.legend(frameon=False)


def png(figure: Figure, *, dpi: int = 130) -> bytes:
    r"""Render a figure to PNG bytes.

    Example:
        >>> png(axes()[0])[:4]
        b'\x89PNG'
    """
    _take_text_as_it_is(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _take_text_as_it_is(figure: Figure) -> None:
    """Names of files, tasks and methods may hold `$` and are no mathematics; powers on axes are."""
    mpl = _matplotlib()
    powers = set()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            powers.add(axis.offsetText)
            if isinstance(axis.get_major_formatter(), mpl.ticker.LogFormatter):
                powers |= {*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)}
    texts: Any = figure.findobj(mpl.text.Text)
    for text in texts:
        if text not in powers:
            text.set_parse_math(False)


def html_image(figure: Figure, alt: str) -> str:
    """Render a figure to an HTML `<img>` that needs no other file.

    Example:
        >>> html_image(axes()[0], "empty")[:32]
        '<img alt="empty" src="data:image'
    """
    data = base64.b64encode(png(figure)).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 130) -> pathlib.Path:
    """Write a figure to `path` as PNG, atomically.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(axes()[0], pathlib.Path(folder) / "f.png").name
        'f.png'
    """
    return files.write_atomically(path, png(figure, dpi=dpi))
