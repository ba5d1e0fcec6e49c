"""Readers and the checks of a curve: every fault is reported by file and line."""

import json

import jax
import numpy as np
import optax
import pytest

from jaxkit import losscurves, schedules


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
    curve = losscurves.read_curve(path, warmup_steps=0)
    assert curve.steps.tolist() == [1, 3]
    assert curve.learning_rates.tolist() == [0.1, 0.1, 0.4, 0.2]
    validation = losscurves.read_curve(path, loss="validation_loss", first_step=3, warmup_steps=0)
    assert validation.losses.tolist() == [4.2]


def test_rows_are_read_as_people_have_them(tmp_path):
    text = (
        '{"step": 1.0, "lr": 0.1, "loss": 5.0}\n'
        '{"step": 2, "lr": 0.1, "loss": NaN}\n'
        '{"step": 3, "lr": 0.1, "loss": 4.0}\n'
        '{"step": 3, "eval_loss": 4.4}\n'
        '{"step": 2, "lr": 0.1, "loss": 4.5}\n'
        '{"step": 3, "lr": 0.1, "loss": 4.25}\n'
        '{"step": 4, "lr": 0.1, "lo'
    )
    curve = losscurves.read_curve(write(tmp_path, "a.jsonl", text))
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.losses.tolist() == [5.0, 4.5, 4.25]


def test_other_names_and_units_of_steps_are_read(tmp_path):
    exports = {
        "wandb.csv": 'Step,"run - lr","run - loss"\n1,0.1,5\n2,0.1,4\n',
        "history.jsonl": '{"_step": 1, "train/lr": 0.1, "train/loss": 5}\n'
        '{"_step": 2, "train/lr": 0.1, "train/loss": 4}\n',
    }
    for name, text in exports.items():
        curve = losscurves.read_curve(write(tmp_path, name, text))
        assert (curve.steps.tolist(), curve.losses.tolist()) == ([1, 2], [5.0, 4.0])
    tokens = write(tmp_path, "t.csv", "tokens,lr,loss\n524288,0.1,5\n1048576,0.1,4\n")
    curve = losscurves.read_curve(tokens, step="tokens", units_per_step=524288)
    assert curve.steps.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"t.csv:3: tokens 1048576 is 2\.09715 steps of 500000"):
        losscurves.read_curve(tokens, step="tokens", units_per_step=500_000)
    epochs = {"epoch": [0.25, 1.0], "lr": [0.1, 0.1], "loss": [5.0, 4.0]}
    curve = losscurves.read_curve(epochs, step="epoch", units_per_step=1 / 40, warmup_steps=0)
    assert curve.steps.tolist() == [10, 40]
    two = write(tmp_path, "two.csv", "step,lr,a/loss,b/loss\n1,0.1,5,6\n")
    with pytest.raises(ValueError, match=r"may be any of \['a/loss', 'b/loss'\]: name the column"):
        losscurves.read_curve(two)
    assert losscurves.read_curve(two, loss="b/loss").losses.tolist() == [6.0]


def test_event_files_of_tensorboard_are_read(tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto import event_pb2, summary_pb2

    events = writer.EventFileWriter(str(tmp_path))
    for step, loss in ((1, 5.0), (2, 4.0)):
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in (("train/loss", loss), ("train/lr", 0.5))
        ]
        summary = summary_pb2.Summary(value=values)
        events.add_event(event_pb2.Event(step=step, summary=summary, wall_time=0.0))
    events.close()
    curve = losscurves.read_curve(tmp_path)
    assert (curve.steps.tolist(), curve.losses.tolist()) == ([1, 2], [5.0, 4.0])
    assert curve.learning_rates.tolist() == [0.5, 0.5, 0.5]


def test_smoothing_is_undone():
    losses, smoothed, last = np.array([5.0, 4.0, 4.5, 3.0]), [], 0.0
    for count, loss in enumerate(losses, 1):
        last = 0.9 * last + 0.1 * loss
        smoothed.append(last / (1 - 0.9**count))
    columns = {"step": np.arange(1, 5), "lr": np.ones(4), "loss": np.array(smoothed)}
    np.testing.assert_allclose(losscurves.read_curve(columns, smoothing=0.9).losses, losses)


def test_a_hole_is_noticed():
    steps = np.array([*range(1, 11), *range(41, 60)])
    columns = {"step": steps, "lr": np.ones(len(steps)), "loss": np.linspace(5, 4, len(steps))}
    with pytest.warns(UserWarning, match="no loss between steps 10 and 41"):
        losscurves.read_curve(columns)


@pytest.mark.parametrize("every", [1, 7, 10, 50])
def test_a_schedule_is_rebuilt_from_rows_of_any_spacing_and_its_warm_up(every):
    schedule = schedules.schedule_from_profile("cosine", 1e-3, 2000, warmup_steps=130)
    at = np.arange(every, 2001, every)
    columns = {"step": at, "lr": np.asarray(schedule(at - 1)), "loss": np.linspace(5, 4, len(at))}
    with pytest.raises(ValueError, match="warm-up cannot be told from the log: give warmup_steps"):
        losscurves.read_curve(columns)
    curve = losscurves.read_curve(columns, warmup_steps=130)
    exact = losscurves.rates_of(schedule, 1999)
    exact = np.append(exact[:1], exact)
    found = curve.learning_rates
    np.testing.assert_allclose(found[131:], exact[131 : len(found)], rtol=0, atol=1e-6)
    assert curve.warmup_steps == 130
    assert curve.steps[0] > 130
    given = losscurves.read_curve(columns, learning_rates=schedule, warmup_steps=130)
    np.testing.assert_allclose(given.learning_rates, exact[: len(found)], rtol=1e-6)


FAULTS = {
    "missing column": ("a.csv", "step,loss\n1,2\n", "column 'learning_rate' is missing"),
    "empty": ("a.csv", "", r"a.csv:1: column 'step' is missing"),
    "short row": ("a.csv", "step,lr,loss\n1,0.1,5\n2,0.1\n", "a.csv:3: 3 columns expected, got 2"),
    "text": ("a.csv", "step,lr,loss\n1,0.1,five\n", "a.csv:2: loss must be a number, got 'five'"),
    "nan": ("a.csv", "step,lr,loss\n1,0.1,nan\n", "a.csv: no row with a 'loss'"),
    "negative loss": ("a.csv", "step,lr,loss\n1,0.1,-1\n", "a.csv: point 0 .* logarithm"),
    "negative rate": ("a.csv", "step,lr,loss\n1,-0.1,1\n", "a.csv: learning_rate must be >= 0"),
    "half step": ("a.csv", "step,lr,loss\n1.5,0.1,1\n", "a.csv:2: step must be a whole number"),
    "no point": ("a.csv", "step,lr,loss\n1,0.1,\n", "no row with a 'loss'"),
    "broken json": ("a.jsonl", '{"step": 1,\n', "a.jsonl:1: not a JSON object"),
    "json list": ("a.jsonl", "[1, 2]\n", "a.jsonl:1: not a JSON object"),
    "json column": ("a.jsonl", '{"loss": 1.0}\n', "a.jsonl:1: column 'step' is missing"),
    "ending": ("a.txt", "", r"must end in .csv, .jsonl or .ndjson"),
    "zero rates": (
        "a.csv",
        "step,lr,loss\n1,0,1\n2,0,1\n",
        "a.csv: learning_rates must have a pos",
    ),
    "warm-up": ("a.csv", "step,lr,loss\n1,0.1,5\n2,0.2,4\n", "rises from 0.1 to 0.2, so the warm"),
    "late start": ("a.csv", "step,lr,loss\n10,0.1,5\n20,0.1,4\n", "first row is of step 10, so"),
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


def test_schedules_of_any_maker_are_tabulated():
    np.testing.assert_allclose(losscurves.rates_of(lambda count: 0.1, 2), 0.1)
    cosine = losscurves.rates_of(optax.cosine_decay_schedule(1e-3, 100), 100)
    ours = losscurves.rates_of(schedules.schedule_from_profile("cosine", 1e-3, 100))
    np.testing.assert_allclose(ours, cosine, atol=1e-10)
    with pytest.raises(ValueError, match="total_steps must be given"):
        losscurves.rates_of(optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match=r"give np.append\(rates\[:1\], rates\)"):
        losscurves.loss_curve(np.ones(3), [1, 2, 3], [3.0, 2.0, 1.0])


@pytest.mark.slow
def test_every_function_that_takes_curves_takes_data_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    form = losscurves.Annealing(0.9)
    known = {"floor": 2.0, "scale": 0.6, "annealing": 0.5, "exponent": 0.4}
    law, made, frames = losscurves.law(form, **known), {}, {}
    for name, end in (("flat", 0.01), ("half", 0.005), ("fallen", 0.0)):
        schedule = schedules.schedule_from_profile(
            "linear", 0.01, 300, warmup_steps=20, end_value=end
        )
        rates = losscurves.rates_of(schedule, 299)
        rates, at = np.append(rates[:1], rates), np.arange(30, 301, 10)
        losses = np.asarray(losscurves.predict(law, rates, steps=at, warmup_steps=20), float)
        losses *= 1 + 1e-4 * np.sin(at)
        made[name] = losscurves.loss_curve(rates, at, losses, warmup_steps=20)
        columns = {"step": at, "learning_rate": rates[at], "loss": losses}
        frames[name] = pandas.DataFrame(columns)
    told = {"warmup_steps": 20}
    whole = losscurves.read_curve(frames["half"], **told)
    for frame in (frames["half"].set_index("step"), frames["half"].astype(object)):
        for field, same in zip(losscurves.read_curve(frame, **told), whole, strict=True):
            np.testing.assert_array_equal(field, same)
    with pytest.raises(ValueError, match="warm-up cannot be told from the log"):
        losscurves.fit(form, list(frames.values()))
    curves, tables = list(made.values()), list(frames.values())
    fitted, again = losscurves.fit(form, curves), losscurves.fit(form, tables, **told)
    np.testing.assert_allclose(again.constants, fitted.constants, rtol=1e-6)
    decays = [0.8, 0.9]
    np.testing.assert_allclose(
        losscurves.profile_decay(tables, decays, **told).objectives,
        losscurves.profile_decay(curves, decays).objectives, rtol=1e-4,
    )  # fmt: skip
    np.testing.assert_allclose(
        losscurves.leave_one_out(form, tables, **told), losscurves.leave_one_out(form, curves),
        rtol=1e-3,
    )  # fmt: skip
    key = jax.random.key(0)
    sampled = losscurves.bootstrap_fit(key, form, tables, num_samples=4, **told)
    wanted = losscurves.predict(fitted, made["fallen"])
    np.testing.assert_allclose(losscurves.predict(again, frames["fallen"]), wanted, rtol=1e-5)
    found = losscurves.prediction_interval(sampled, frames["fallen"], **told)
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    assert losscurves.comparison_table({"a": again}, frames, **told).rows
    ranked, exact = (losscurves.rank_schedules(again, one, **told) for one in (frames, made))
    assert [one.name for one in ranked] == [one.name for one in exact]
    assert len(losscurves.prediction_figure(again, frames, **told).axes) == 2
