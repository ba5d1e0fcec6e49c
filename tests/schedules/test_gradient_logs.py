"""Logs of gradient norms: what is read, and how faults are reported."""

import json

import numpy as np
import pytest

from jaxkit.schedules import read_gradient_norms


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_csv_columns_are_found_by_name(tmp_path):
    file = write(tmp_path / "a.csv", "loss,step, gradient_norm\n3,0,2.5\n2,10,2.25\n\n1,20,2\n")
    log = read_gradient_norms(file)
    assert log.steps.tolist() == [0, 10, 20]
    assert log.norms.tolist() == [2.5, 2.25, 2.0]


def test_a_run_folder_is_read_and_its_other_lines_passed_over(tmp_path):
    write(
        tmp_path / "metrics.jsonl",
        jsonl(
            {"step": 1, "gradient_norm": 2.0, "loss": 3.0},
            {"step": 1, "validation_loss": 3.0},
            {"step": 2, "gradient_norm": None},
            {"step": 3, "gradient_norm": 1.0},
        ),
    )
    log = read_gradient_norms(tmp_path)
    assert log.steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(log.norms, [2.0, np.nan, 1.0])


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    steps = [(0, 9.0), (1, 8.0), (2, 7.0), (1, 4.0), (2, 3.0), (3, 2.0)]
    file = write(tmp_path / "m.jsonl", jsonl(*({"step": s, "gradient_norm": g} for s, g in steps)))
    assert read_gradient_norms(file).norms.tolist() == [9.0, 4.0, 3.0, 2.0]


def test_uneven_logs_are_interpolated_to_even_steps(tmp_path):
    file = write(tmp_path / "a.csv", "step,gradient_norm\n0,0\n1,1\n9,9\n")
    with pytest.warns(UserWarning, match="no norm between steps 1 and 9"):
        log = read_gradient_norms(file)
    np.testing.assert_allclose(log.norms, [0.0, 4.5, 9.0])


def test_real_logs_are_read_whole(shared_data):
    log = read_gradient_norms(shared_data("gradient_norms/roberta_l1.csv"))
    assert len(log.norms) > 20_000
    assert (log.norms > 0).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a.csv:1: the header names no step"),
        (
            "a.csv",
            "step,norm\n0,1\n",
            r"at least 2 rows of gradient_norm, found 0 .* \['norm', 'step'\]",
        ),
        ("a.csv", "step,gradient_norm\n0,1\n1\n", r"a.csv:3: 2 columns expected, got 1"),
        ("a.csv", "step,gradient_norm\n0,1\nx,2\n", r"a.csv:3: step must be a number"),
        ("a.csv", "step,gradient_norm\n0,1\n0.5,2\n", r"a.csv:3: step must be a whole number"),
        (
            "a.csv",
            "step,gradient_norm\n0,-1\n1,2\n",
            r"a.csv:2: gradient_norm must be >= 0, got -1",
        ),
        ("a.csv", "step,gradient_norm\n0,abc\n1,2\n", r"a.csv:2: gradient_norm must be a number"),
        ("a.csv", "step,gradient_norm\n3,1\n3,1\n", r"a.csv: must hold at least 2 .* found 1"),
        ("a.jsonl", '{"step": 0,\n', r"a.jsonl:1: not a JSON object"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: not a JSON object"),
        ("a.jsonl", jsonl({"gradient_norm": 1.0}), r"a.jsonl:1: step is missing"),
        ("a.jsonl", jsonl({"step": True, "gradient_norm": 1.0}), r"a.jsonl:1: step must be"),
    ],
)
def test_faults_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_gradient_norms(write(tmp_path / name, text))


def test_a_missing_file_says_what_may_be_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a CSV, a JSONL file or a run"):
        read_gradient_norms(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match=r"metrics.jsonl"):
        read_gradient_norms(tmp_path)
