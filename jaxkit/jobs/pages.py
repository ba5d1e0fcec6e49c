"""HTML pages that need no other file: figures lie inside, styles too."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxkit import files, plotting, training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
caption {{ text-align: left; font-weight: 600; padding-bottom: .3rem; }}
td, th {{ padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }}
.ruled td, .ruled th {{ border-bottom: 1px solid #ddd; }}
.shown {{ color: #00734f; }} .null {{ color: #8a6100; }} .missing {{ color: #b3261e; }}
pre {{ background: #f4f4f4; padding: 1rem; white-space: pre-wrap; }}
</style></head><body>
{body}
</body></html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Put parts, which are HTML already, on a page under its title."""
    title = html.escape(title)
    return _PAGE.format(title=title, body="\n".join([f"<h1>{title}</h1>", *parts]))


def facts(cells: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><th>{text(name)}</th>{_cell(value)}</tr>" for name, value in cells.items())
    return f"<table>{rows}</table>"


def table(
    columns: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str = "",
    classes: Mapping[Any, str] | None = None,
) -> str:
    """A table with a heading; cells equal to a key of `classes` get that class."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(_cell(cell, (classes or {}).get(cell, "")) for cell in row) + "</tr>"
        for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<table class="ruled">{title}<tr>{head}</tr>{body}</table>'


def write_comparison(
    path: pathlib.Path,
    title: str,
    notes: Iterable[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    parts: Iterable[str] = (),
    *,
    caption: str,
    options: Mapping[str, Any],
) -> pathlib.Path:
    """Say a table and write a page of it: notes, the table, further parts, the options."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for cells in (columns, *rows):
        line = "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True))
        training.say(line.rstrip(), out=True)
    body = [
        *(f"<p>{text(note)}</p>" for note in notes),
        table(columns, rows, caption=caption),
        *parts,
        facts(options),
    ]
    files.write_atomically(path, page(title, body))
    training.say(f"report  {path}", out=True)
    return path


def write_run(
    path: pathlib.Path,
    about: Mapping[str, Any],
    figures: Mapping[str, Figure],
    parts: Iterable[str] = (),
) -> pathlib.Path:
    """Save the figures of a run beside its page, and write that: facts, figures, further parts."""
    for name, figure in figures.items():
        plotting.save(figure, path.parent / f"{name}.png")
    drawn = [plotting.html_image(figure, name) for name, figure in figures.items()]
    return files.write_atomically(path, page(path.parent.name, [facts(about), *drawn, *parts]))


def _cell(value: Any, name: str = "") -> str:
    opening = f'<td class="{name}">' if name else "<td>"
    return f"{opening}{text(value)}</td>"


def text(value: Any) -> str:
    """A value as HTML text."""
    return html.escape(str(value))
