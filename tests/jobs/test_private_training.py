import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import jobs, models, privacy, training
from jaxkit.jobs import private_training
from jaxkit.jobs.config import PrivacyConfig

BUDGET = PrivacyConfig(epsilon=8.0, delta=1e-3, clip_norm=0.5)


def source():
    """Gives each key once, so every stream has its own."""
    return privacy.NoiseSource.public(1)


@pytest.fixture(scope="module")
def plan(small_config):
    """Batches of 8 of 40 windows on average."""
    config = small_config("runs", steps=4, privacy=BUDGET)
    return made_for(config, privacy.clipped_grad_sum(config.loss(config.model(20)), 0.5))


def made_for(config, gradient, noise_multiplier=1.0):
    sampling = privacy.poisson_sampling(40, 0.2, num_steps=4, delta=1e-3, epsilon=8.0, multiple=8)
    plan = privacy.dp_sgd(gradient, sampling, 4, delta=1e-3, noise_multiplier=noise_multiplier)
    return private_training.PrivateTraining(plan, config)


def test_a_plan_spends_its_budget_by_the_last_step_and_not_before(small_config, tmp_path):
    config = small_config("runs", steps=4, privacy=BUDGET)
    plan = private_training.plan_private_training(config, 20, config.batch_size, folder=tmp_path)
    spent = [
        private_training.budget_row(plan.plan, step, source())["epsilon_if_secret"]
        for step in range(5)
    ]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[3] < spent[4] <= 8.0
    assert spent[4] == pytest.approx(8.0, rel=1e-3)
    statement = plan.statement(privacy.NoiseSource.from_os())
    assert "epsilon = 8.0" in statement
    assert "window of 33 tokens" in statement
    assert "which characters occur" in statement
    assert "NOT PRIVATE: epsilon = none" in plan.statement(source())
    by_bytes = dataclasses.replace(plan, config=dataclasses.replace(config, tokenizer="byte"))
    assert "which characters occur" not in by_bytes.statement(source())


@pytest.mark.slow
def test_the_noise_that_was_planned_is_kept_with_the_run(small_config, tmp_path, monkeypatch):
    config = small_config("runs", steps=4, privacy=BUDGET)

    def planned(config):
        return private_training.plan_private_training(
            config, 20, 4 * config.batch_size, folder=tmp_path
        ).plan.noise_multiplier

    first = planned(config)

    def refuse(*args, **kwargs):
        raise AssertionError("calibrated again")

    monkeypatch.setattr("jaxkit.privacy.calibration.calibrate", refuse)
    assert planned(config) == first
    with pytest.raises(AssertionError, match="calibrated again"):
        planned(dataclasses.replace(config, steps=5))


def test_a_loss_that_joins_windows_is_refused_before_the_first_step(plan, monkeypatch):
    init = models.initializer(plan.config.model(20))
    params, loss = jax.jit(init)(jax.random.key(0)), plan.config.loss(plan.config.model(20))
    plan.check(params, 20)
    joined = lambda params, batch, key: loss(params, batch, key) ** 2  # noqa: E731
    monkeypatch.setattr(type(plan.config), "loss", lambda self, model: joined)
    with pytest.raises(ValueError, match="no private run: the loss joins rows: changing row 1"):
        plan.check(params, 20)


def test_another_run_is_refused_before_anything_is_planned_or_written(finished_run, small_config):
    folder = finished_run.folder
    other = small_config(folder.parent, name=folder.name, privacy=BUDGET)
    with pytest.raises(ValueError, match=r"config.privacy.epsilon was None, is now 8.0"):
        jobs.train(other)
    assert not (folder / private_training.PRIVATE).exists()


def test_windows_do_not_overlap_and_a_stream_goes_on_where_it_was(plan):
    tokens = np.arange(40 * 33 + 20) % 251
    batches = private_training.PrivateBatches(tokens, plan, source())
    drawn = [next(batches) for _ in range(3)]
    for step, batch in enumerate(drawn):
        assert batch["tokens"].shape == (plan.plan.sampling.padded_size, 33)
        for row, index, real in zip(batch["tokens"], batch["index"], batch["mask"], strict=True):
            window = index - 40 * step
            assert not real or np.array_equal(row, tokens[33 * window : 33 * (window + 1)])
    assert len({tuple(batch["noise"][0]) for batch in drawn}) == 3
    resumed = private_training.PrivateBatches(tokens, plan, source())
    next(resumed)
    state = resumed.get_state()
    assert (
        state["epsilon_if_secret"]
        == private_training.budget_row(plan.plan, 1, source())["epsilon_if_secret"]
    )
    assert "epsilon" not in state
    secret = private_training.PrivateBatches(tokens, plan, privacy.NoiseSource.from_os())
    assert secret.get_state()["epsilon"] == 0.0
    resumed = private_training.PrivateBatches(tokens, plan, source())
    resumed.set_state(state)
    again = next(resumed)
    for name, rows in drawn[1].items():
        np.testing.assert_array_equal(again[name], rows)
    halves = [private_training.PrivateBatches(tokens, plan, source(), part, 2) for part in range(2)]
    both = np.concatenate([next(half)["index"] for half in halves])
    np.testing.assert_array_equal(both, drawn[0]["index"])
    # Another text or setting draws other noise from the same secret.
    other = dataclasses.replace(plan, config=dataclasses.replace(plan.config, learning_rate=0.1))
    for changed in (
        private_training.PrivateBatches(tokens[1:], plan, source()),
        private_training.PrivateBatches(tokens, other, source()),
    ):
        assert not np.array_equal(next(changed)["noise"], drawn[0]["noise"])


def test_a_stream_made_under_other_noise_is_refused(plan):
    tokens = np.zeros(40 * 33, int)
    state = private_training.PrivateBatches(tokens, plan, source()).get_state()
    other = made_for(plan.config, plan.plan.gradient, 2.0)
    for changed in (
        private_training.PrivateBatches(tokens, other, source()),
        private_training.PrivateBatches(tokens, plan, privacy.NoiseSource.public(2)),
    ):
        with pytest.raises(ValueError, match="going on would not be what its epsilon says"):
            changed.set_state(state)


def test_the_gradient_is_the_noisy_sum_of_clipped_ones_over_the_expected_size(plan):
    def loss(params, batch, key):
        return jnp.mean(jnp.sum(params * batch["tokens"], axis=-1))

    size = plan.plan.sampling.padded_size
    rows = np.random.default_rng(0).normal(size=(size, 20_000)).astype(np.float32)
    mask = np.arange(size) < 3
    training = made_for(plan.config, privacy.clipped_grad_sum(loss, 0.5))
    noise = source().key_data("noise", "run", 0)
    batch = {
        "tokens": jnp.asarray(rows), "index": jnp.arange(size), "mask": jnp.asarray(mask),
        "noise": jnp.broadcast_to(noise, (size, 2)),
    }  # fmt: skip
    value, gradient = jax.jit(training.gradient())(jnp.ones(20_000), batch, jax.random.key(0))
    clipped = rows * np.minimum(1, 0.5 / np.linalg.norm(rows, axis=1, keepdims=True))
    added = np.asarray(gradient) - clipped[mask].sum(0) / 8
    assert np.std(added) == pytest.approx(1.0 * 0.5 / 8, rel=0.03)  # z x clip norm / batch
    assert float(value) == pytest.approx(rows[mask].sum() / 3, rel=1e-4)


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
        private_training.plan_private_training(config, 20, num_windows=7)


@pytest.mark.slow
def test_a_private_run_cut_and_moved_to_another_mesh_spends_what_the_whole_one_does(
    small_config, tmp_path, train_until_killed
):
    budget = dataclasses.replace(BUDGET, public_noise_seed=5)
    config = small_config(tmp_path / "whole", steps=4, privacy=budget)
    whole = jobs.train(config)
    config = dataclasses.replace(config, runs=str(tmp_path / "moved"))
    train_until_killed(config, step=4)
    files = jobs.train(dataclasses.replace(config, mesh="data=4,fsdp=2"))
    rows, expected = training.read_metrics(files.metrics), training.read_metrics(whole.metrics)
    spent, whole_spent = ([row["epsilon_if_secret"] for row in r] for r in (rows, expected))
    assert spent == whole_spent
    assert spent[-1] == pytest.approx(8.0, rel=1e-3)
    for a, b in zip(
        jax.tree.leaves(jobs.open_run(files.folder).params),
        jax.tree.leaves(jobs.open_run(whole.folder).params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert "privacy" in whole.report.read_text("utf-8")


@pytest.mark.slow
def test_two_runs_of_one_command_share_no_draw_and_give_none_away(small_config, tmp_path):
    found = []
    for name in ("one", "two"):
        config = small_config(tmp_path / name, steps=2, warmup_steps=1, privacy=BUDGET)
        files = jobs.train(config)
        found.append(jax.tree.leaves(jobs.open_run(files.folder).params))
        secret = (files.folder / private_training.PRIVATE / "noise.secret").read_bytes()
        for path in files.folder.rglob("*"):
            if path.is_file() and path.parent.name != private_training.PRIVATE:
                content = path.read_bytes()
                assert secret not in content
                assert secret.hex().encode() not in content
    assert not any(np.array_equal(a, b) for a, b in zip(*found, strict=True) if a.size > 100)
    jobs.train(config)  # a finished run is opened again with its secret
