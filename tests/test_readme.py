"""What the front page and the recipes show is run, and leads where it says."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_composed_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 3e-3
    assert len([line for line in code.splitlines() if line]) <= 15


def test_every_room_has_its_line():
    rooms = {path.parent.name for path in README.parent.glob("jaxkit/*/__init__.py")}
    listed = set(re.findall(r"^\| `(\w+)` \| .* \| `\w+\.", README.read_text("utf-8"), flags=re.M))
    assert rooms - {"experiments", "jobs"} == listed


@pytest.mark.parametrize("recipe", ["A plain pytree", "NNX", "Equinox"])
def test_each_recipe_trains(recipe, capsys):
    text = (README.parent / "scripts/site/pages/recipes.md").read_text("utf-8")
    (code,) = re.findall(rf"## {recipe}\n.*?```python\n(.*?)```", text, flags=re.DOTALL)
    if recipe == "Equinox":
        pytest.importorskip("equinox")
    exec(compile(code, "recipes.md", "exec"), {})
    assert float(capsys.readouterr().out) < 1e-3
    assert len([line for line in code.splitlines() if line]) < 20


def test_links_of_the_front_page_lead_to_files():
    found = re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text("utf-8"))
    assert found
    assert [name for name in found if not (README.parent / name).exists()] == []
