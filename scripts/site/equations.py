"""Equations as MathML, which browsers draw by themselves: no script, no font, no network."""

import re

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx


def setup(app: Sphinx) -> None:
    """Let Sphinx write equations as MathML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))


def mathml(source: str, display: str) -> str:
    r"""The MathML of LaTeX; `display` is `"inline"` or `"block"`.

    Raises:
        ValueError: if the LaTeX holds a command that has no MathML.
    """
    source = re.sub(r"\\arg\s*\\(max|min)", r"\\arg\1", source)
    result = converter.convert(source, display=display)
    if "<mtext>\\" in result or "<mi>\\" in result:
        raise ValueError(f"no MathML for {source!r}")
    return result


def _inline(writer, node: nodes.Element) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode
