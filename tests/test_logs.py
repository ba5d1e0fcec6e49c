"""Logs of runs, as people have them: one rule for overlaps, gaps, NaN and damage."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import logs, training
from jaxkit.training import metrics


def write(tmp_path, *rows, name="m.jsonl"):
    path = tmp_path / name
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_later_lines_win_after_a_resume(tmp_path):
    rows = [{"step": s, "loss": float(v)} for s, v in [(1, 9), (2, 8), (3, 7), (2, 5), (3.0, 4)]]
    path = write(tmp_path, *rows)
    assert training.read_metrics(path) == [
        {"step": 1, "loss": 9.0}, {"step": 2, "loss": 5.0}, {"step": 3, "loss": 4.0}
    ]  # fmt: skip
    cut = write(tmp_path, *rows[:4])
    assert [row["step"] for row in training.read_metrics(cut)] == [1, 2]


def test_a_late_row_of_an_evaluation_alone_leaves_the_losses(tmp_path):
    losses = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    path = write(tmp_path, *losses, {"step": 2, "eval_loss": 1.5}, {"step": 3, "loss": None})
    log = logs.read_log(path)
    assert [row.step for row in log.rows] == [1, 2, 3]
    assert log.column("loss")[1].tolist() == [1.0, 1.0, 1.0]
    assert log.column("eval_loss")[0].tolist() == [2]


def test_csv_and_json_lines_follow_one_rule(tmp_path):
    rows = [(1, 3.0, None), (2, float("nan"), 0.5), (3, float("inf"), None), (2, 2.0, None)]
    lines = [
        json.dumps({"step": step, "loss": loss, "rate": rate}) + "\n" for step, loss, rate in rows
    ]
    cells = [f"{step},{loss},{'' if rate is None else rate}\n" for step, loss, rate in rows]
    found = []
    for name, text in (("a.jsonl", lines), ("a.csv", ["\ufeffstep, loss,rate\n", *cells])):
        path = tmp_path / name
        path.write_text("".join(text), encoding="utf-8")
        found.append(logs.read_log(path))
    for name in ("loss", "rate"):
        for one, other in zip(*(log.column(name) for log in found), strict=True):
            np.testing.assert_array_equal(one, other)
    assert found[0].column("loss")[1].tolist() == [3.0, 2.0]
    np.testing.assert_array_equal(found[0].column("rate")[1], [np.nan, 0.5])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"loss": 1}\n', r"a.jsonl:1: step is missing"),
        ("a.jsonl", '{"step": null}\n', r"a.jsonl:1: step must be a whole number"),
        ("a.jsonl", '{"step": true}\n', r"a.jsonl:1: step must be a number"),
        ("a.jsonl", '{"step": "x"}\n', r"a.jsonl:1: step must be a number"),
        ("a.jsonl", '{"step": 1}\n{"step": 1.5}\n', r"a.jsonl:2: step must be a whole number"),
        ("a.jsonl", '{"step": -1}\n', r"a.jsonl:1: step must be a whole number"),
        ("a.jsonl", '{"step": 3e11}\n', r"a.jsonl:1: step must be .* got 3000000"),
        ("a.jsonl", f'{{"step": {10**400}}}\n', r"a.jsonl:1: step must be a number"),
        ("a.jsonl", '{"step": NaN}\n', r"a.jsonl:1: step must be a whole number"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"step": 1}\n\n{"step":\n', r"a.jsonl:3: not a JSON object"),
        ("a.jsonl", '{"step": 1, "loss": []}\n', r"a.jsonl:1: loss must be a number"),
        ("a.jsonl", '{"step": 1, "loss": "high"}\n', r"a.jsonl:1: loss must be a number"),
        ("a.csv", "", r"a.csv:1: the header names no step"),
        ("a.csv", "loss\n1\n", r"a.csv:1: the header names no step"),
        ("a.csv", "step,loss,loss\n1,2,3\n", r"a.csv:1: the header names 'loss' twice"),
        ("a.csv", "step,loss\n1\n", r"a.csv:2: 2 columns expected, got 1"),
        ("a.csv", "step,loss\n1,2\n\n1_0,2\n", r"a.csv:4: step must be a number"),
        ("a.csv", "step,loss\n1,two\n", r"a.csv:2: loss must be a number"),
    ],
)
def test_faults_name_file_line_and_field(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        logs.read_log(path).column("loss")


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    for name, start in (("a.csv", b"step,loss\n"), ("a.jsonl", b'{"step": 1}\n')):
        (tmp_path / name).write_bytes(start + b"\xff\xfe1,2\n")
        with pytest.raises(ValueError, match=rf"{name}:\d: .*can't decode"):
            logs.read_log(tmp_path / name)


def test_a_hole_is_found_in_a_log_that_is_otherwise_dense():
    steps = np.r_[1:11, 41:60]
    assert logs.holes(steps) == [(10, 41)]
    assert logs.holes(np.r_[0:100:10, 150:250:10]) == [(90, 150)]
    assert logs.holes(np.r_[1:20, 30:60, 90:99]) == [(19, 30), (59, 90)]
    for even in (steps[:10], np.r_[1:20, 20:100:10], np.r_[0:100:10, 95], np.array([5]), []):
        assert logs.holes(np.array(even)) == []


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.sampled_from("ab"), min_size=1)), max_size=12)
)
def test_each_column_is_what_its_last_lines_say(rows):
    """Against the rule read word by word: a line forgets its columns from its step on."""
    lines = [
        (number, {"step": step, **dict.fromkeys(names, number)})
        for number, (step, names) in enumerate(rows, 1)
    ]
    kept = {name: {} for name in "ab"}
    for number, row in lines:
        for name in row.keys() - {"step"}:
            kept[name] = {s: v for s, v in kept[name].items() if s < row["step"]}
            kept[name][row["step"]] = number
    log = logs.from_lines("m.jsonl", lines)
    for name, values in kept.items():
        steps, found = log.column(name)
        assert dict(zip(steps.tolist(), found.tolist(), strict=True)) == values


def test_a_resumed_log_refuses_a_damaged_line_and_leaves_the_file(tmp_path):
    for line in ("[3]", '{"loss": 1}', '{"step": null}', "{" * 100_000):
        path = write(tmp_path, {"step": 1}, line + "\n", {"step": 2})
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"m.jsonl:2: "):
            metrics.MetricsLog(path, 5)
        assert path.read_bytes() == before
