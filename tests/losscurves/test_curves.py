"""Readers and the checks of a curve: every fault is reported by file and line."""

import json

import numpy as np
import optax
import pytest

from jaxkit import losscurves


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_json_lines_of_one_run_read_the_same(tmp_path):
    rows = [(1, 1e-3, 5.0), (3, 8e-4, 4.0), (4, 0.0, 3.5)]
    csv = "step,learning_rate,loss\n" + "".join(f"{s},{r},{x}\n" for s, r, x in rows)
    lines = "".join(
        json.dumps({"step": s, "loss": x, "learning_rate": r, "gradient_norm": 1.0}) + "\n"
        for s, r, x in rows
    )
    curves = [
        losscurves.read_curve(write(tmp_path, "a.csv", csv)),
        losscurves.read_curve(write(tmp_path, "a.jsonl", lines)),
    ]
    for curve in curves:
        np.testing.assert_allclose(curve.learning_rates, [1e-3, 1e-3, 9e-4, 8e-4, 0.0])
        np.testing.assert_array_equal(curve.steps, [1, 3, 4])
        np.testing.assert_array_equal(curve.losses, [5.0, 4.0, 3.5])


def test_the_rate_column_may_be_called_lr_and_the_schedule_may_be_given(tmp_path):
    path = write(tmp_path, "a.csv", "step,lr,loss\n1,0.1,5\n\n3,0.1,4\n")
    assert losscurves.read_curve(path).learning_rates.tolist() == [0.1] * 4
    given = losscurves.read_curve(path, learning_rates=np.linspace(0.1, 0.0, 6), model_size=1e6)
    assert given.learning_rates.size == 6
    assert given.model_size == 1e6


def test_rows_without_the_loss_keep_their_learning_rate(tmp_path):
    text = (
        '{"step": 1, "learning_rate": 0.1, "loss": 5.0}\n'
        '{"step": 2, "learning_rate": 0.4, "validation_loss": 4.5}\n'
        '{"step": 3, "learning_rate": 0.2, "loss": 4.0, "validation_loss": 4.2}\n'
    )
    path = write(tmp_path, "metrics.jsonl", text)
    curve = losscurves.read_curve(path)
    assert curve.steps.tolist() == [1, 3]
    assert curve.learning_rates.tolist() == [0.1, 0.1, 0.4, 0.2]
    validation = losscurves.read_curve(path, loss="validation_loss", first_step=3)
    assert validation.losses.tolist() == [4.2]


FAULTS = {
    "missing column": ("a.csv", "step,loss\n1,2\n", r"a.csv:1: column 'learning_rate' is missing"),
    "empty": ("a.csv", "", r"a.csv:1: column 'step' is missing"),
    "short row": ("a.csv", "step,lr,loss\n1,0.1,5\n2,0.1\n", "a.csv:3: 3 columns expected, got 2"),
    "text": ("a.csv", "step,lr,loss\n1,0.1,five\n", "a.csv:2: loss must be a number, got 'five'"),
    "nan": ("a.csv", "step,lr,loss\n1,0.1,nan\n", "a.csv:2: loss must be finite and > 0, got nan"),
    "negative loss": ("a.csv", "step,lr,loss\n1,0.1,-1\n", "a.csv:2: loss .* logarithm"),
    "negative rate": ("a.csv", "step,lr,loss\n1,-0.1,1\n", "a.csv:2: learning_rate must be finite"),
    "infinite rate": ("a.csv", "step,lr,loss\n1,inf,1\n", "a.csv:2: learning_rate must be finite"),
    "half step": ("a.csv", "step,lr,loss\n1.5,0.1,1\n", "a.csv:2: step must be an integer"),
    "repeated step": (
        "a.csv",
        "step,lr,loss\n1,0.1,1\n1,0.1,1\n",
        "a.csv:3: step 1 must come after step 1",
    ),
    "no point": ("a.csv", "step,lr,loss\n1,0.1,\n", "no row with a 'loss'"),
    "broken json": ("a.jsonl", '{"step": 1,\n', "a.jsonl:1: not a JSON object"),
    "json list": ("a.jsonl", "[1, 2]\n", "a.jsonl:1: not a JSON object"),
    "json null": (
        "a.jsonl",
        '{"step": 1, "learning_rate": null, "loss": 1.0}\n',
        "a.jsonl:1: learning_rate must be a number, got None",
    ),
    "json column": ("a.jsonl", '{"loss": 1.0}\n', "a.jsonl:1: column 'step' is missing"),
    "ending": ("a.txt", "", r"must end in .csv, .jsonl, .ndjson"),
    "zero rates": (
        "a.csv",
        "step,lr,loss\n1,0,1\n2,0,1\n",
        "a.csv: learning_rates must have a pos",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_reported_by_line(tmp_path, fault):
    name, text, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        losscurves.read_curve(write(tmp_path, name, text))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        losscurves.read_curve(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.1]], [0], [1.0]), ValueError, r"learning_rates must have shape \[steps\]"),
        (([0.1], [0.5], [1.0]), TypeError, "steps must be integers"),
        (([0.1], [0], ["a"]), TypeError, "losses must be a real number"),
        (([0.1], [0], [1.0], [-1.0]), ValueError, "weights must be finite and in"),
        (([0.1], [0], [1.0], [1.0, 1.0]), ValueError, "one length"),
        (([0.1], [-1], [1.0]), ValueError, "outside the schedule"),
    ],
)
def test_a_faulty_curve_is_refused(bad_input, arguments, error, message):
    with pytest.raises(error, match=message):
        losscurves.loss_curve(*map(np.array, arguments))


def test_a_model_size_of_zero_is_refused(bad_input):
    with pytest.raises(ValueError, match="model_size"):
        losscurves.loss_curve(np.ones(3), np.array([1]), np.ones(1), model_size=0)


def test_schedules_and_tables_are_inverse():
    rates = np.linspace(0.1, 0.0, 11)
    schedule = losscurves.tabulated_schedule(rates)
    np.testing.assert_allclose(losscurves.rates_of(schedule, 10), rates, rtol=1e-6)
    assert float(schedule(99)) == 0.0
    np.testing.assert_allclose(losscurves.rates_of(lambda count: 0.1, 2), 0.1)
    cosine = losscurves.rates_of(optax.cosine_decay_schedule(1e-3, 100), 100)
    np.testing.assert_allclose(cosine, losscurves.cosine_rates(100, 1e-3), atol=1e-10)


def test_a_tabulated_schedule_drives_optax():
    optimizer = optax.sgd(losscurves.tabulated_schedule(np.array([0.5, 0.25])))
    params, state = np.float32(1.0), optimizer.init(np.float32(1.0))
    for expected in (-0.5, -0.25, -0.25):
        update, state = optimizer.update(np.float32(1.0), state, params)
        assert float(update) == expected


def test_a_faulty_table_is_refused(bad_input):
    with pytest.raises(ValueError, match="got nan at index 1"):
        losscurves.tabulated_schedule(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match=r"shape \[steps\]"):
        losscurves.tabulated_schedule(np.ones((2, 2)))
