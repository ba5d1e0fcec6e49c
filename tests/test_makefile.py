import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_fast_tests_are_there_and_enter_every_room():
    (listed,) = re.findall(r"^FAST := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    tests, rooms = listed.replace("\\\n", " ").split("$(addprefix jaxkit/,")
    paths = [*tests.split(), *(f"jaxkit/{name}" for name in rooms.rstrip(")").split())]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    entered = {path.split("/")[1] for path in paths if path.startswith("jaxkit/")}
    assert entered == {path.parent.name for path in ROOT.glob("jaxkit/*/__init__.py")}
