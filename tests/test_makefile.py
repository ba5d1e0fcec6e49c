import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def test_the_fast_tests_are_there_and_enter_every_room():
    (listed,) = re.findall(r"^FAST := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    tests, rooms = listed.replace("\\\n", " ").split("$(addprefix jaxkit/,")
    paths = [*tests.split(), *(f"jaxkit/{name}" for name in rooms.rstrip(")").split())]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    entered = {path.split("/")[1] for path in paths if path.startswith("jaxkit/")}
    assert entered == {path.parent.name for path in ROOT.glob("jaxkit/*/__init__.py")}


def test_an_accelerator_is_installed_beside_what_training_needs():
    plan = ["make", "-n", "-B", "train", "JAX=cuda13"]
    said = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".[train,cuda13]" in said
