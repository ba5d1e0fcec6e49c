import os
import re
import subprocess
import sys

import pytest

from jaxkit import cli


def outcome(capsys, *arguments):
    """Exit code, output and error text of a command."""
    try:
        cli.main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_documents_every_option(capsys, command):
    code, out, _ = outcome(capsys, command, "--help")
    assert code == 0
    # Each option is followed, on its line or the next, by what it does.
    undocumented = re.findall(r"^\s*(--[a-z0-9-]+ \S+)\s*\n\s*(?:--|$)", out, flags=re.MULTILINE)
    assert undocumented == []
    assert out.count("--") >= 2


def test_an_unknown_option_is_answered_with_the_closest(capsys):
    code, out, err = outcome(capsys, "train", "--lerning-rate", "0.1")
    assert code == 2
    assert "--learning-rate" in out + err


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "empty"),
        (lambda path: path.write_bytes(b"ab\0cd" * 100), "binary"),
        (lambda path: path.write_bytes(b"abc\xff\xfe" * 100), "UTF-8"),
        (lambda path: path.write_text("too short"), "shorter than one context"),
    ],
)
def test_a_bad_text_is_one_line_and_exit_code_2(capsys, tmp_path, make, message):
    path = tmp_path / "text.txt"
    make(path)
    code, _, err = outcome(capsys, "train", "--text", str(path), "--runs", str(tmp_path / "runs"))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("jaxkit: error: ")
    assert message in err
    assert str(path) in err


@pytest.mark.usefixtures("bad_input")
def test_a_run_that_is_not_there_is_one_line_and_exit_code_2(capsys, tmp_path):
    for command in (["sample", str(tmp_path)], ["evaluate", str(tmp_path), "--text", "x"]):
        code, _, err = outcome(capsys, *command)
        assert (code, err.count("\n")) == (2, 1)
        assert "is not a run" in err


def test_importing_jaxkit_is_light():
    code = "import sys, jaxkit; print(sorted({'jax', 'flax', 'optax', 'numpy'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.usefixtures("bad_input")
def test_a_bad_budget_is_one_line_that_names_its_option(capsys, tmp_path):
    code, _, err = outcome(capsys, "train", "--runs", str(tmp_path), "--privacy.epsilon", "-1")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("jaxkit: error: privacy.epsilon must be")
