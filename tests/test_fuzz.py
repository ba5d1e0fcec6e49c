"""Whatever is stored or typed, a command answers in words: no traceback, nothing taken silently."""

import contextlib
import copy
import dataclasses
import io
import json
import math
import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxkit import cli, datasets, jobs, logs, losscurves, schedules, training
from jaxkit.jobs import runs, texts
from jaxkit.training import metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bad_input")]
MANY = hypothesis.settings(
    max_examples=1500, suppress_health_check=list(hypothesis.HealthCheck), database=None
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 0, 1.0, "NaN", "", "char", "../x", "rex", 2**31, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip
DESCRIPTION = {
    "config": dataclasses.asdict(jobs.TrainConfig()),
    "tokenizer": datasets.CharTokenizer("abc").to_config(),
    "data": {"train": "1", "validation": "2", "pilot": None},
}


def described(value, depth=0):
    """Every place in a description, as a list of keys."""
    places = [[name] for name in value]
    if depth < 2:
        for name, inner in value.items():
            if isinstance(inner, dict):
                places += [[name, *rest] for rest in described(inner, depth + 1)]
    return places


@MANY
@hypothesis.given(
    st.sampled_from(described(DESCRIPTION)),
    st.sampled_from(["change", "drop", "add", "cut", "flip"]),
    JSON,
    st.integers(0, 10**6),
)
def test_an_edited_description_is_read_as_it_stands_or_refused(
    tmp_path_factory, place, edit, value, at
):
    stored = copy.deepcopy(DESCRIPTION)
    holder = stored
    for name in place[:-1]:
        holder = holder[name]
    if edit == "change":
        holder[place[-1]] = value
    elif edit == "drop":
        del holder[place[-1]]
    elif edit == "add":
        holder[f"{place[-1]}s"] = value
    content = bytearray(json.dumps(stored, indent=2).encode())
    if edit == "cut":
        del content[at % len(content) :]
    elif edit == "flip":
        content[at % len(content)] ^= 1 << at % 8
    files = runs.RunFiles.at(tmp_path_factory.getbasetemp())
    files.config.write_bytes(content)
    try:
        read = runs.read_description(files)
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        assert json.loads(json.dumps(dataclasses.asdict(read))) == json.loads(content)
        assert edit not in ("drop", "add", "cut") or place[0] != "config"
        with contextlib.suppress(ValueError):
            assert texts.stored_tokenizer(read.tokenizer).to_config() == read.tokenizer
        return
    assert str(files.config) in said


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "step": st.integers(-1, 30) | st.floats(0, 30) | JSON,
        "loss": st.floats(0.1, 9) | JSON,
        "learning_rate": st.floats(0, 1) | JSON,
        "gradient_norm": st.floats(0, 9) | JSON,
    },
)


@MANY
@hypothesis.given(
    st.lists(ROWS.map(json.dumps) | st.text(max_size=12) | st.just('{"step": 1'), max_size=8),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.binary(max_size=3),
)
def test_any_log_is_read_by_the_rule_or_refused_by_place(tmp_path_factory, lines, end, ended, tail):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    text = end.join(lines) + (end if ended else "")
    path.write_bytes(text.encode("utf-8", "surrogatepass") + tail)
    readers = [
        training.read_metrics,
        logs.read_log,
        losscurves.read_curve,
        schedules.read_gradient_norms,
        lambda path: metrics.MetricsLog(path, 5).__exit__(),
    ]
    for reader in readers:
        before, said = path.read_bytes(), None
        try:
            found = reader(path)
        except (ValueError, OSError) as error:
            said = str(error)
        if said is not None:
            assert str(path) in said
            assert path.read_bytes() == before
        elif reader is training.read_metrics:
            steps = [row["step"] for row in found]
            assert steps == sorted(set(steps))
            assert all(type(step) is int and 0 <= step < 2**31 for step in steps)


WORDS = st.sampled_from(
    ["", "0", "1", "-1", "7", "0.5", "1e-3", "1e400", "nan", "inf", "-inf", "None", "True", "x",
     "../x", ".", "[/x]", "$\\frac{$", "\N{CJK UNIFIED IDEOGRAPH-4E00}", "4294967296",
     "2147483648", "9" * 30, "rex", "char", "replace", "byte", "data=2", "refined:"]
)  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(jobs.TrainConfig) if field.name != "privacy"]
IN_RANGE = {
    "steps": lambda n: 1 <= n < 2**31, "seed": lambda n: 0 <= n < 2**32,
    "d_model": lambda n: n >= 1, "num_heads": lambda n: n >= 1, "head_dim": lambda n: n >= 1,
    "num_layers": lambda n: n >= 1, "d_ff": lambda n: n >= 1, "batch_size": lambda n: n >= 1,
    "sequence_length": lambda n: n >= 1, "log_every": lambda n: n >= 1,
    "learning_rate": lambda x: math.isfinite(x) and x >= 0,
    "weight_decay": lambda x: math.isfinite(x) and x >= 0,
    "clip_norm": lambda x: math.isfinite(x) and x > 0,
    "b1": lambda x: 0 <= x < 1, "b2": lambda x: 0 <= x < 1,
    "name": lambda name: name.strip() == name != "" and "/" not in name and name[0] != ".",
    "runs": bool, "tokenizer": bool, "text": lambda text: text is None or bool(text),
}  # fmt: skip


def answered(words):
    """What a command says, which must be a refusal in words."""
    out, err = io.StringIO(), io.StringIO()
    # Deep in a folder of its own: a word may be taken for the name of a run's folder.
    with tempfile.TemporaryDirectory() as place:
        deep = pathlib.Path(place, "deep")
        deep.mkdir()
        with (
            contextlib.chdir(deep),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as stop,
        ):
            cli.main(words)
    assert stop.value.code == 2
    said = out.getvalue() + err.getvalue()
    assert said
    assert "Traceback" not in said
    return said


@hypothesis.settings(MANY, max_examples=500)
@hypothesis.given(st.dictionaries(st.sampled_from(FIELDS), WORDS, max_size=4))
def test_options_of_train_are_in_range_or_refused(options):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    said = answered(["train", *words, "--text", "no/such/text"])
    if "no/such/text does not exist" in said:
        config = cli.tyro.cli(jobs.TrainConfig, args=words)
        for name, good in IN_RANGE.items():
            assert good(getattr(config, name)), name


#: Words that end each command in a refusal whatever else is given, and options to try before it.
OPTIONS = {
    "sample": (["no/such/run"], ["--prompt", "--num-tokens", "--temperature", "--top-k", "--top-p",
                                 "--stop", "--unknown", "--seed"]),
    "evaluate": (["no/such/run"], ["--text", "--unknown"]),
    "decipher": (["no/such/run"], ["--text", "--probe-steps", "--seed"]),
    "refine-schedule": (["no/such/run"], ["--norm", "--smoothing"]),
    "fit-curve": (["no/such/run"], ["--predict", "--decay", "--level", "--warmup-steps",
                                    "--first-step", "--units-per-step", "--smoothing"]),
    "select": (["no/such/run"], ["--objective", "--kernel", "--columns", "--ids", "--header"]),
    "compile": (["--topology", "none"], ["--vocab-size", "--effort", "--mesh", "--steps"]),
    "classify": (["--data", "no/such"], ["--model", "--norm", "--recipe", "--image-size",
                                         "--epochs", "--budgets", "--schedules", "--momentum",
                                         "--learning-rates", "--warmup", "--batch-size", "--name",
                                         "--seeds", "--test-fraction", "--log-every"]),
    "continual": (["--stream", "no/such"], ["--method", "--threshold", "--classes-per-task",
                                            "--image-size", "--train-epochs", "--name", "--seed",
                                            "--train-learning-rate", "--checkpoint-every"]),
    "federated": (["--data", "no/such"], ["--layout", "--recipe", "--partition", "--clients",
                                          "--participation", "--method", "--model", "--rounds",
                                          "--batch-size", "--seeds", "--name", "--test-fraction",
                                          "--samples-per-client", "--local-epochs", "--rho",
                                          "--learning-rate", "--round-decay", "--mesh", "--eps",
                                          "--weight-decay", "--clip-norm", "--momentum", "--b1"]),
    "subrl": (["--seeds", "0"], ["--env", "--objective", "--signal", "--slip", "--horizon",
                                 "--num-steps", "--batch-size", "--learning-rate", "--seed"]),
    "reproduce": (["--parallel", "0"], ["--seed", "--out"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:learning_rate . prox_coef:UserWarning")  # said, not refused
@hypothesis.settings(MANY, max_examples=1000)
@hypothesis.given(st.sampled_from(sorted(OPTIONS)), st.lists(WORDS, max_size=3), st.data())
def test_options_of_every_command_are_answered(command, values, data):
    last, options = OPTIONS[command]
    names = data.draw(st.lists(st.sampled_from(options), max_size=3, unique=True))
    words = [f"{name}={value}" for name, value in zip(names, values, strict=False)]
    assert answered([command, *words, *last])
