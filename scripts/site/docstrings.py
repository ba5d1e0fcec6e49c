"""Docstrings, written in Markdown with Google's sections, as Sphinx reads them."""

import inspect
import pathlib
import re

from sphinx.application import Sphinx

#: What stays as it is: doctests, code and equations.
_KEPT = re.compile(
    r"``.+?``|`[^`]+`|\$\$.+?\$\$|\$[^$]+\$|(?<![\w*])\*\w[\w -]*\*(?![\w*])", re.DOTALL
)
_ARXIV = re.compile(r"\barXiv[: ](\d{4}\.\d{4,5})")


def setup(app: Sphinx) -> None:
    """Translate each docstring before Napoleon reads its sections."""
    app.connect("autodoc-process-docstring", _translate_lines, priority=400)


def first_line(module, name: str) -> str:
    """What a name is, in one line."""
    text = inspect.getdoc(getattr(module, name)) or ""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    return translated(re.split(r"(?<=[\w)\]`$]\.)\s", paragraph, maxsplit=1)[0])


def comment(module, name: str) -> str:
    """The lines `#:` above a constant, wherever in its room the constant is made."""
    pattern = re.compile(rf"^((?:#: ?.*\n)+)(?:#.*\n)*{name}\b.*=", re.MULTILINE)
    for path in sorted(pathlib.Path(module.__file__).parent.glob("*.py")):
        found = pattern.search(path.read_text("utf-8"))
        if found:
            return translated(" ".join(re.sub(r"^#: ?", "", found[1], flags=re.MULTILINE).split()))
    return ""


def translated(text: str) -> str:
    """Markdown with dollar equations as reStructuredText."""
    pieces, end = [], 0
    for found in _KEPT.finditer(text):
        pieces.append(_prose(text[end : found.start()]))
        pieces.append(_kept(found[0], text[found.end() : found.end() + 1]))
        end = found.end()
    return "".join([*pieces, _prose(text[end:])])


def _translate_lines(app, what, name, value, options, lines: list[str]) -> None:
    blocks: list[list[str]] = [[]]
    for line in lines:
        # A doctest reaches to the next blank line, and is left as it is.
        inside = blocks[-1] and blocks[-1][0].lstrip().startswith(">>>")
        if not line.strip() or (line.lstrip().startswith(">>>") and not inside):
            blocks.append([])
        blocks[-1].append(line)
        if not line.strip():
            blocks.append([])
    result: list[str] = []
    for block in blocks:
        if block and block[0].lstrip().startswith(">>>"):
            result += block
        elif block and block[0].lstrip().startswith("| "):
            result += _table(block)
        elif block and block[0].lstrip().startswith(".. math::"):
            result += block
        elif block and block[0].lstrip().startswith("$$"):
            result += _display(block)
        else:
            result += translated("\n".join(block)).split("\n") if block else []
    lines[:] = result


def _kept(piece: str, following: str) -> str:
    if piece.startswith("$"):
        piece = f":math:`{' '.join(piece.strip('$').split())}`"
    elif (
        piece.startswith("`")
        and not piece.startswith("``")
        and not re.fullmatch(r"`[A-Za-z_][\w.]*`", piece)
    ):
        piece = f"`{piece}`"
    return piece + ("\\ " if following and (following.isalnum() or following in "([") else "")


def _prose(text: str) -> str:
    text = re.sub(r"\*|\|(?=\S)|(?<=\w)_(?=\W|$)", r"\\\g<0>", text)
    text = _ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)
    return text


def _display(block: list[str]) -> list[str]:
    """An equation that begins a paragraph stands by itself; what follows it is text again."""
    indent = block[0][: len(block[0]) - len(block[0].lstrip())]
    _, body, rest = "\n".join(block).split("$$", 2)
    lines = [f"{indent}.. math:: {' '.join(body.split())}", ""]
    rest = " ".join(rest.split())
    return lines + ([f"{indent}{translated(rest)}"] if rest else [])


def _table(block: list[str]) -> list[str]:
    indent = block[0][: len(block[0]) - len(block[0].lstrip())]
    rows = [
        [translated(cell.strip()) for cell in line.strip().strip("|").split("|")]
        for line in block
        if line.strip() and not set(line.strip()) <= set("|-: ")
    ]
    lines = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in rows:
        lines += [f"{indent}   {'* -' if not i else '  -'} {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]
