"""Whole runs: metrics, evaluation, checkpoints that resume bit for bit."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import federated as fl
from jaxkit import training


def evaluator(problem):
    x, y = problem.examples["x"].reshape(-1, 4), problem.examples["y"].reshape(-1)

    def evaluate(params):
        return {"accuracy": ((x @ params["w"] + params["b"]).argmax(-1) == y).mean()}

    return evaluate


def run(problem, **options):
    method = options.pop("method", fl.fedspeed())
    sampler = options.pop("sampler", fl.uniform_sampler(10, 5))
    options = {"num_rounds": 6, "key": jax.random.key(3), **options}
    params = options.pop("params", problem.params)
    training_ = options.pop("training", problem.training)
    return fl.simulate(method, training_, params, problem.data, sampler, **options)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits_and_the_same_log(problem, tmp_path):
    method = fl.with_relaxed_start(fl.fedsmoo())
    options = {"method": method, "checkpoint_every": 2, "evaluate": evaluator(problem)}
    whole = run(problem, folder=tmp_path / "whole", **options)
    run(problem, folder=tmp_path / "parts", num_rounds=4, **options)
    # A line that was written after the last checkpoint must not be told twice.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 5, "loss": -1.0}) + "\n")
    parts = run(problem, folder=tmp_path / "parts", **options)
    for ours, theirs in zip(
        jax.tree.leaves(parts.state), jax.tree.leaves(whole.state), strict=True
    ):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)
    logs = [training.read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts")]
    assert [row["step"] for row in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert whole.history[-1] == parts.history[-1]
    assert ["accuracy" in row for row in parts.history] == [False] * 3 + [True, False, True]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params)
    other = {**problem.examples, "x": 1 + problem.examples["x"]}
    other = types.SimpleNamespace(**{**vars(problem), "data": fl.stack_clients(other)})
    for changed, message in (
        ({"method": fl.fedspeed()}, "algorithm was .FedSMOO"),
        ({"method": fl.with_relaxed_start(fl.fedsmoo(), 0.2)}, "program.sha256 was"),
        ({"params": half}, "params was"),
        ({"key": jax.random.key(4)}, "key was"),
        ({"training": fl.LocalTraining(problem.loss, batch_size=3)}, "local.batch_size was"),
        ({"sampler": fl.uniform_sampler(10, 4)}, "sampler.cohort_size was 5, is now 4"),
    ):
        with pytest.raises(ValueError, match=message):
            run(problem, folder=tmp_path / "parts", **{**options, **changed})
    with pytest.raises(ValueError, match=r"num_rounds must be at least the 6 that .* got 5"):
        run(problem, folder=tmp_path / "parts", num_rounds=5, **options)
    with pytest.raises(ValueError, match="data was"):
        run(other, folder=tmp_path / "parts", **options)
    with (
        training.Run(tmp_path / "parts"),
        pytest.raises(OSError, match="parts is being written by another process"),
    ):
        run(problem, folder=tmp_path / "parts", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedsmoo", "scaffold"])
def test_clients_in_host_memory_make_the_same_run_to_the_bit(problem, tmp_path, name):
    pool = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), problem.examples)
    rows = list(np.arange(80).reshape(10, 8))
    np.save(tmp_path / "x.npy", pool["x"])
    mapped = {**pool, "x": np.load(tmp_path / "x.npy", mmap_mode="r")}
    options = {
        "method": fl.with_relaxed_start(fl.ALGORITHMS[name]()), "num_rounds": 3,
        "sampler": fl.bernoulli_sampler(10, 0.3), "client_map": fl.vmap_clients(4),
    }  # fmt: skip
    found = []
    for data in (fl.client_data(pool, rows), fl.client_data(mapped, rows, on_host=True)):
        own = types.SimpleNamespace(**{**vars(problem), "data": data})
        found.append(run(own, folder=tmp_path / f"run{len(found)}", **options).state)
    assert isinstance(jax.tree.leaves(found[1].clients)[0], np.ndarray)
    assert training.fingerprint(found[0]) == training.fingerprint(found[1])


def test_history_has_every_round_and_evaluations_where_asked(problem, capsys):
    progress = training.Console(6)
    result = run(problem, evaluate=evaluator(problem), evaluate_every=4, progress=progress)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert ["accuracy" in row for row in result.history] == [False] * 3 + [True, False, True]
    assert {row["num_participants"] for row in result.history} == {5}
    assert "accuracy" in capsys.readouterr().out
    figure = fl.accuracy_figure({"FedSpeed": result.history}, target=0.5)
    (panel,) = figure.axes
    assert panel.lines[0].get_xdata().tolist() == [4, 6]


@pytest.mark.slow
def test_a_simulation_is_run_rounds_and_traces_once(problem, count_traces):
    counted = count_traces(problem.loss)
    local = fl.LocalTraining(counted, batch_size=4, num_epochs=2)
    result = run(problem, training=local, num_rounds=2)
    once = counted.count
    again = run(problem, training=local)
    assert counted.count <= 2 * once
    method = fl.fedspeed()
    state = fl.init_state(method, problem.params, 10, jax.random.key(3))
    state, metrics = jax.jit(
        lambda s: fl.run_rounds(
            method, problem.training, s, problem.data, fl.uniform_sampler(10, 5), num_rounds=6
        )
    )(state)
    np.testing.assert_allclose(again.state.params["w"], state.params["w"], atol=1e-6)
    np.testing.assert_allclose([row["loss"] for row in again.history], metrics.loss, rtol=1e-5)
    assert int(result.state.round) == 2


def test_an_evaluation_of_another_shape_is_refused_before_the_first_round(problem):
    for evaluate in (lambda params: {"b": params["b"]}, lambda params: params["b"].sum()):
        with pytest.raises(TypeError, match=r"evaluate must return \{name: scalar\}, got"):
            run(problem, evaluate=evaluate, progress=None)


def test_a_diverging_client_stops_the_run_by_name(problem):
    exploding = fl.fedavg(fl.simulator_sgd(1e30, clip_norm=None))
    with pytest.raises(training.NonFiniteLossError, match=r"of 5 clients diverged in round \d"):
        run(problem, method=exploding)


def test_figures_show_every_class_and_seed_band():
    counts = np.array([[3, 0, 1], [1, 2, 0]])
    figure = fl.label_distribution_figure({"a": counts, "b": counts[::-1]})
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == counts.T.ravel().tolist()
    banded = fl.accuracy_figure({"x": np.array([[0.1, 0.3], [0.3, 0.5]])})
    np.testing.assert_allclose(banded.axes[0].lines[0].get_ydata(), [0.2, 0.4])
    with pytest.raises(ValueError, match="at least one run"):
        fl.accuracy_figure({})
    with pytest.raises(ValueError, match=r"histories\['x'\] has no row with 'accuracy'"):
        fl.accuracy_figure({"x": [{"step": 1}]})
    with pytest.raises(ValueError, match="at least one partition"):
        fl.label_distribution_figure({})
