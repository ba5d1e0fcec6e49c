"""Build the site from what already stands: README, rooms' docstrings, notebooks, public names.

Run by `make docs`; the pages come to `site/`. Nothing on them is fetched when they are read:
equations are MathML, made while building, and the theme brings its own styles and search.
"""

import argparse
import base64
import importlib
import json
import pathlib
import pkgutil
import re
import shutil
import sys
import tempfile

import docstrings
from sphinx.application import Sphinx

import jaxkit

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {f"scripts/site/pages/{name}.md": name for name in ("recipes", "scaling", "evidence")}
REPOSITORY_FILES = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
#: Modules of names that are for every room, and packages that are no rooms.
NOT_ROOMS = {"experiments", "jobs"}

SETTINGS = {
    "project": "jaxkit",
    "release": jaxkit.__version__,
    "extensions": [
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx_design",
        "myst_nb",
        "docstrings",
        "equations",
    ],
    "html_theme": "furo",
    "html_title": f"jaxkit {jaxkit.__version__}",
    "html_math_renderer": "mathml",
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_sphinx": False,
    "default_role": "py:obj",
    "nb_execution_mode": "off",
    "myst_enable_extensions": ["colon_fence", "dollarmath"],
    "myst_heading_anchors": 3,
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "none",
    "autodoc_preserve_defaults": True,
    "napoleon_attr_annotations": False,
    "napoleon_use_rtype": False,
    "add_module_names": False,
    "python_use_unqualified_type_names": True,
    "python_maximum_signature_line_length": 100,
    "toc_object_entries_show_parents": "hide",
    "suppress_warnings": ["myst.header", "mystnb.unknown_mime_type"],
    # Furo's dark variant of the code style doubles the sheet; the light one is read in both.
    "pygments_style": "default",
}


def rooms() -> list[str]:
    """Packages with public names, in the order of the README's table, then by name."""
    found = [m.name for m in pkgutil.iter_modules(jaxkit.__path__) if m.ispkg]
    order = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    return sorted(
        (name for name in found if name not in NOT_ROOMS),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )


def room_page(room: str) -> str:
    """The docstring of a room, its names at a glance, then each of them."""
    module = importlib.import_module(f"jaxkit.{room}")
    names = [name for name in module.__all__ if not name.startswith("_")]
    callables = [name for name in names if callable(getattr(module, name))]
    glance = "\n".join(
        f"   * - :py:obj:`~jaxkit.{room}.{name}`\n     - {docstrings.first_line(module, name)}"
        for name in callables
    )
    return "\n".join(
        [
            room,
            "=" * len(room),
            "",
            f".. automodule:: jaxkit.{room}",
            "   :no-members:",
            "",
            "Names",
            "-----",
            "",
            ".. list-table::",
            "   :widths: 30 70",
            "   :class: glance",
            "",
            glance,
            "",
            "Reference",
            "---------",
            "",
            *(directive for name in names for directive in _reference(module, room, name)),
        ]
    )


def _reference(module, room: str, name: str) -> list[str]:
    value = getattr(module, name)
    if isinstance(value, type):
        # The class's docstring tells its fields.
        fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", ())
        left_out = [f"   :exclude-members: {', '.join(fields)}"] if fields else []
        return [f".. autoclass:: jaxkit.{room}.{name}", "   :members:", *left_out, ""]
    if callable(value) and hasattr(value, "__code__"):
        return [f".. autofunction:: jaxkit.{room}.{name}", ""]
    return [
        f".. py:data:: {name}",
        f"   :module: jaxkit.{room}",
        "",
        f"   {docstrings.comment(module, name)}",
        "",
    ]


def notebook_card(path: pathlib.Path, images: pathlib.Path) -> str:
    """A card of the gallery: title, first sentence and first figure of a notebook."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    text = "".join(next(c["source"] for c in cells if c["cell_type"] == "markdown"))
    title, _, rest = text.partition("\n")
    first = re.split(r"(?<=[.!?])\s", " ".join(rest.split()), maxsplit=1)[0]
    lines = [
        f":::{{grid-item-card}} {title.lstrip('# ')}",
        f":link: {path.stem}",
        ":link-type: doc",
    ]
    for output in (o for c in cells for o in c.get("outputs", ())):
        picture = output.get("data", {}).get("image/png")
        if picture:
            images.mkdir(parents=True, exist_ok=True)
            (images / f"{path.stem}.png").write_bytes(base64.b64decode(picture))
            lines.append(f":img-top: {images.name}/{path.stem}.png")
            break
    return "\n".join([*lines, "", first, ":::"])


def write_sources(folder: pathlib.Path) -> None:
    """Write the pages that Sphinx reads."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (folder / "notebooks").mkdir()
    (folder / "rooms").mkdir()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in paths:
        shutil.copy(path, folder / "notebooks")
    cards = "\n".join(notebook_card(path, folder / "notebooks" / "figures") for path in paths)
    (folder / "notebooks" / "index.md").write_text(
        f"# Notebooks\n\n::::{{grid}} 1 2 2 3\n:gutter: 3\n\n{cards}\n::::\n\n"
        + _contents([path.stem for path in paths]),
        "utf-8",
    )
    for room in rooms():
        (folder / "rooms" / f"{room}.rst").write_text(room_page(room), "utf-8")
    copied = {**PAGES, **REPOSITORY_FILES}
    for name, target in copied.items():
        shutil.copy(ROOT / name, folder / f"{target}.md")
    linked = re.sub(
        r"^\| `(\w+)` \|",
        lambda found: (
            f"| [`{found[1]}`](rooms/{found[1]}.rst) |" if found[1] in rooms() else found[0]
        ),
        readme,
        flags=re.MULTILINE,
    )
    for name, target in copied.items():
        linked = linked.replace(f"({name})", f"({target}.md)")
    pages = [f"rooms/{room}" for room in rooms()]
    (folder / "index.md").write_text(
        linked
        + "\n"
        + _contents([*PAGES.values()], "Guide")
        + _contents(pages, "Rooms")
        + _contents(["notebooks/index"], "Gallery")
        + _contents([*REPOSITORY_FILES.values()], "Project"),
        "utf-8",
    )


def _contents(pages: list[str], caption: str = "") -> str:
    options = [":hidden:"] + ([f":caption: {caption}"] if caption else [])
    return "\n".join(["```{toctree}", *options, "", *pages, "```", "", ""])


def main() -> int:
    """Build the site; the exit status says whether Sphinx had anything to complain of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="site", help="folder of the pages")
    out = pathlib.Path(parser.parse_args().out).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        # The notebooks' pictures are also put beside the pages.
        source, pages = pathlib.Path(scratch) / "source", pathlib.Path(scratch) / "built" / "pages"
        source.mkdir()
        write_sources(source)
        app = Sphinx(
            source,
            None,
            pages,
            pathlib.Path(scratch) / "doctrees",
            "html",
            confoverrides=SETTINGS,
            freshenv=True,
            warningiserror=False,
        )
        app.build(force_all=True)
        for needless in ("_sources", ".buildinfo"):
            shutil.move(pages / needless, scratch)
        shutil.copytree(pages, out, dirs_exist_ok=True)
    return app.statuscode


if __name__ == "__main__":
    sys.exit(main())
