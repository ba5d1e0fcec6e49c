import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import jobs, privacy, schedules, training
from jaxkit.jobs import private_training
from jaxkit.jobs.config import PrivacyConfig

BUDGET = PrivacyConfig(epsilon=8.0, delta=1e-3, clip_norm=0.5)


@pytest.fixture(scope="module")
def plan(small_config):
    """Batches of 8 of 40 windows on average."""
    config = small_config("runs", steps=4, privacy=BUDGET)
    sampling = privacy.poisson_sampling(40, 0.2, num_steps=4, delta=1e-3, epsilon=8.0, multiple=8)
    return private_training.PrivateTraining(sampling, 1.0, config)


def test_a_plan_spends_its_budget_by_the_last_step_and_not_before(small_config):
    config = small_config("runs", steps=4, privacy=BUDGET)
    plan = private_training.plan_private_training(config, num_windows=config.batch_size)
    spent = [plan.spent(step) for step in range(5)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[3] < spent[4] <= 8.0
    assert spent[4] == pytest.approx(8.0, rel=1e-3)
    assert "epsilon = 8.0" in plan.statement()
    assert "window of 33 tokens" in plan.statement()
    assert "which characters occur" in plan.statement()
    by_bytes = dataclasses.replace(plan, config=dataclasses.replace(config, tokenizer="byte"))
    assert "which characters occur" not in by_bytes.statement()


def test_windows_do_not_overlap_and_a_stream_goes_on_where_it_was(plan):
    tokens = np.arange(40 * 33 + 20) % 251
    batches = private_training.PrivateBatches(tokens, plan)
    drawn = [next(batches) for _ in range(3)]
    for step, batch in enumerate(drawn):
        assert batch["tokens"].shape == (plan.sampling.padded_size, 33)
        for row, index, real in zip(batch["tokens"], batch["index"], batch["mask"], strict=True):
            window = index - 40 * step
            assert not real or np.array_equal(row, tokens[33 * window : 33 * (window + 1)])
    resumed = private_training.PrivateBatches(tokens, plan)
    next(resumed)
    state = resumed.get_state()
    assert state["epsilon"] == plan.spent(1)
    resumed = private_training.PrivateBatches(tokens, plan)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed)["index"], drawn[1]["index"])
    halves = [private_training.PrivateBatches(tokens, plan, part, 2) for part in range(2)]
    both = np.concatenate([next(half)["index"] for half in halves])
    np.testing.assert_array_equal(both, drawn[0]["index"])


def test_a_stream_made_under_other_noise_is_refused(plan):
    tokens = np.zeros(40 * 33, int)
    state = private_training.PrivateBatches(tokens, plan).get_state()
    other = dataclasses.replace(plan, noise_multiplier=2 * plan.noise_multiplier)
    with pytest.raises(ValueError, match="going on would not be what its epsilon says"):
        private_training.PrivateBatches(tokens, other).set_state(state)


def test_the_gradient_is_the_sum_of_clipped_ones_over_the_expected_size(plan):
    def loss(params, batch, key):
        return jnp.mean(jnp.sum(params * batch["tokens"], axis=-1))

    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    mask = np.array([True, True, False, True, False])
    batch = {"tokens": jnp.asarray(rows), "index": jnp.arange(5), "mask": jnp.asarray(mask)}
    value, gradient = plan.gradient(loss)(jnp.ones(3), batch, jax.random.key(0))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped = rows * np.minimum(1, 0.5 / norms)
    np.testing.assert_allclose(gradient, clipped[mask].sum(0) / 8, rtol=1e-5)
    assert float(value) == pytest.approx(rows[mask].sum() / 3, rel=1e-5)


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"epsilon": -1.0}}, "privacy.epsilon must be finite and in .*, got -1"),
        ({"privacy": {"delta": 1.0}}, "privacy.delta must be"),
        ({"privacy": {"clip_norm": 0.0}}, "privacy.clip_norm must be finite and in .*, got 0"),
        ({"accumulation_steps": 2}, "accumulation_steps must be left out of a private run, got 2"),
        (
            {"embedding": "relabel", "anneal_p": 0.5},
            "anneal_p must be left out of a private run, got 0.5",
        ),
    ],
)
def test_a_bad_budget_is_refused(small_config, changes, message):
    privacy = {"epsilon": 1.0, **changes.get("privacy", {})}
    with pytest.raises(ValueError, match=message):
        small_config("runs", **{**changes, "privacy": PrivacyConfig(**privacy)})


def test_a_text_of_fewer_windows_than_a_batch_is_refused(small_config):
    config = small_config("runs", privacy=BUDGET)
    with pytest.raises(ValueError, match="batch_size must be at most the 7 windows"):
        private_training.plan_private_training(config, num_windows=7)


@pytest.mark.slow
def test_a_private_run_cut_and_moved_to_another_mesh_spends_what_the_whole_one_does(
    small_config, tmp_path, train_until_killed
):
    config = small_config(tmp_path / "whole", steps=4, privacy=BUDGET)
    whole = jobs.train(config)
    for name, mesh, atol in (("same", "", 0.0), ("moved", "data=4,fsdp=2", 1e-5)):
        config = dataclasses.replace(config, runs=str(tmp_path / name))
        train_until_killed(config, step=4)
        files = jobs.train(dataclasses.replace(config, mesh=mesh))
        rows, expected = training.read_metrics(files.metrics), training.read_metrics(whole.metrics)
        assert [row["epsilon"] for row in rows] == [row["epsilon"] for row in expected]
        assert rows[-1]["epsilon"] == pytest.approx(8.0, rel=1e-3)
        for a, b in zip(
            jax.tree.leaves(jobs.open_run(files.folder).params),
            jax.tree.leaves(jobs.open_run(whole.folder).params),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert "privacy" in whole.report.read_text("utf-8")


def test_the_job_trains_with_the_noise_and_the_gradient_of_its_plan(
    plan, small_config, tmp_path, monkeypatch
):
    """Hand the optimizer that the job compiles a zero gradient: what it records is the noise."""
    given = {}

    class Compiled(Exception):
        pass

    def take(loss, optimizer, **options):
        given.update(loss=loss, optimizer=optimizer, **options)
        raise Compiled

    monkeypatch.setattr(private_training, "plan_private_training", lambda *_, **__: plan)
    monkeypatch.setattr(training, "make_train_step", take)
    with pytest.raises(Compiled):
        jobs.train(small_config(tmp_path, steps=4, privacy=BUDGET))
    params = {"layers": {"up": jnp.zeros((200, 100))}}
    optimizer = given["optimizer"]
    update = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[1])
    recorded = float(schedules.recorded_norms(update(params))[0])
    stddev = 1.0 * 0.5 / 8  # noise multiplier x clip norm / expected batch
    assert recorded == pytest.approx(stddev * np.sqrt(2 / np.pi) * 20_000, rel=0.03)
    assert given["gradient_fn"] is not None
