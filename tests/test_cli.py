import os
import re
import subprocess
import sys

import pytest

import jaxkit
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
    (tmp_path / "notes").touch()
    cases = {"": "holds no config.json", "none": "does not exist", "notes": "is a file"}
    for name, lack in cases.items():
        folder = str(tmp_path / name)
        for command in (["sample", folder], ["evaluate", folder, "--text", "x"]):
            code, _, err = outcome(capsys, *command)
            assert (code, err.count("\n")) == (2, 1)
            assert f"is not a run: it {lack}" in err


@pytest.mark.parametrize("typo", ["trian", "Train", "sampel", "fit_curve", "--vesion"])
def test_a_mistyped_command_is_answered_with_the_closest(capsys, typo):
    code, _, err = outcome(capsys, typo, "--seed", "1")
    assert (code, err.count("\n")) == (2, 1)
    closest = {"sampel": "sample", "fit_curve": "fit-curve", "--vesion": "--version"}
    assert f"got {typo!r}: did you mean {closest.get(typo, 'train')!r}?" in err


def test_version_and_the_list_of_commands(capsys):
    code, out, _ = outcome(capsys, "--version")
    assert (code, out) == (0, f"jaxkit {jaxkit.__version__}\n")
    code, listed, _ = outcome(capsys, "--help")
    assert code == 0
    assert [line for line in cli.COMMANDS if f"  {line} " not in listed] == []
    for name in cli.COMMANDS:
        summary = re.search(rf"^  {name} +(.*)$", listed, flags=re.MULTILINE)[1]
        assert summary in " ".join(outcome(capsys, name, "--help")[1].split())
    code, out, err = outcome(capsys)
    assert (code, out, err) == (2, "", listed)


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (MemoryError("Unable to allocate 2 PiB"), "the memory does not suffice: Unable to"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the memory does not suffice: RESOUR"),
        (OverflowError("int too large"), "int too large"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, monkeypatch, raised, line):
    def command(seed: int = 0):
        """Raise."""
        raise raised

    monkeypatch.setitem(cli.COMMANDS, "sample", command)
    code, _, err = outcome(capsys, "sample")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"jaxkit: error: {line}")


@pytest.mark.parametrize("bug", [KeyError("x"), TypeError("x"), RuntimeError("x"), IndexError(1)])
def test_a_bug_of_ours_is_not_hidden(capsys, monkeypatch, bug):
    def command(seed: int = 0):
        """Raise."""
        raise bug

    monkeypatch.setitem(cli.COMMANDS, "sample", command)
    with pytest.raises(type(bug)):
        cli.main(["sample"])


def modules_after(code):
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    return set(result.stdout.split())


def test_importing_jaxkit_is_light_and_so_is_help():
    for code in ("import jaxkit", "from jaxkit import cli; cli.main(['--help'])"):
        assert not {"jax", "flax", "optax", "numpy"} & modules_after(code)


def test_importing_the_rooms_brings_nothing_that_is_rarely_needed():
    loaded = modules_after(
        "from jaxkit import continual, datasets, federated, jobs, lexinvariant, losscurves, models"
        ", privacy, schedules, submodular, subrl, training, width"
    )
    rare = {"dp_accounting", "flax.nnx", "grain", "matplotlib", "optimistix", "orbax",
            "safetensors", "scipy.optimize", "scipy.signal", "scipy.stats", "sklearn",
            "tokenizers"}  # fmt: skip
    assert not rare & loaded


@pytest.mark.usefixtures("bad_input")
def test_a_bad_budget_is_one_line_that_names_its_option(capsys, tmp_path):
    code, _, err = outcome(capsys, "train", "--runs", str(tmp_path), "--privacy.epsilon", "-1")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("jaxkit: error: privacy.epsilon must be")


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--seed", "4294967296"], "seed must be"),
        (["train", "--seed", "-1"], "seed must be"),
        (["train", "--num-heads", "2147483648"], "num_heads must be at most"),
        (["train", "--d-model", "99999999999999999999"], "d_model must be at most"),
        (["train", "--num-layers", "9999999", "--d-ff", "999999"], "must make at most"),
        (["train", "--steps", "2147483648"], "steps must be at most"),
        (["train", "--head-dim", "0"], "head_dim must be an integer >= 1"),
        (["train", "--name", "../x"], "name must be"),
        (["train", "--name", "a/b"], "name must be"),
        (["train", "--name", ".."], "name must be"),
        (["train", "--name="], "--name must not be empty"),
        (["train", "--text", ""], "--text must not be empty"),
        (["train", "--runs", ""], "--runs must not be empty"),
        (["train", "--tokenizer", ""], "--tokenizer must not be empty"),
        (["train", "--learning-rate", "nan"], "learning_rate must be finite"),
        (["continual", "--name", "../x"], "name must be"),
        (["continual", "--name", "/tmp/x"], "name must be"),
        (["continual", "--weights", ""], "--weights must not be empty"),
        (["continual", "--stream", ""], "--stream must not be empty"),
        (["continual", "--image-size", "0"], "image_size must be"),
        (["continual", "--seed", "4294967296"], "seed must be"),
        (["subrl", "--out", ""], "--out must not be empty"),
        (["subrl", "--seed", "4294967296"], "seed must be"),
        (["reproduce", "--seed", "4294967296"], "seed must be"),
        (["sample", ""], "sample must not be empty"),
        (["select", "", "3"], "select must not be empty"),
        (["fit-curve", "a", ""], "a must not be empty"),
        (["refine-schedule", ""], "refine-schedule must not be empty"),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = outcome(capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []
