import pathlib
import re

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
