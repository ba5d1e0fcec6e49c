"""Whole trainings: one program, the same on any number of devices, seeds and chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from jaxkit import subrl, training
from jaxkit.subrl import subpo


def _world(**options):
    return subrl.coverage_world((2, 3), horizon=3, start=0, features="official_position", **options)


def _split(options):
    """Options of the estimator, and those of `make_training`."""
    names = {field.name for field in dataclasses.fields(subrl.Estimator)}
    mine = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return subrl.Estimator(**mine), rest


def _training(num_steps=5, env=None, **options):
    env = _world() if env is None else env
    policy = subrl.TabularPolicy(5, env.num_items, env.horizon)
    estimator, options = _split({"batch_size": 16, **options})
    return subrl.make_training(
        env, policy, optax.adam(0.1), estimator, num_steps=num_steps, **options
    )


@pytest.fixture(scope="module")
def seeds():
    """Metrics `[2, 5]` of two seeds trained together."""
    return jax.jit(jax.vmap(_training().run))(jax.random.split(jax.random.key(0), 2))


def test_chunks_of_a_fit_are_the_whole_run_and_are_compiled_once(
    seeds, count_traces, tmp_path, monkeypatch
):
    _, metrics = seeds
    counted = count_traces(subrl.Training.step)
    monkeypatch.setattr(subrl.Training, "step", lambda self, *args: counted(self, *args))
    short = dataclasses.replace(_training(), num_steps=4)
    fitted = subrl.fit(short, jax.random.key(0), num_seeds=2, chunk=2, folder=tmp_path)
    assert counted.count == 2  # once more to know the program by
    for name in ("mean", "loss", "best", "entropy"):
        got = getattr(fitted.metrics, name)
        np.testing.assert_allclose(got, getattr(metrics, name)[:, :4], rtol=1e-5, atol=1e-6)
    rows = training.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    np.testing.assert_allclose(rows[-1]["mean"], metrics.mean[:, 3].mean(), rtol=1e-5)


def test_eight_devices_give_the_metrics_of_one(seeds, devices):
    _, metrics = seeds
    mesh = jax.make_mesh((8,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    train = _training(mesh=mesh)
    # The batch of each seed is spread over the mesh.
    key = jax.random.split(jax.random.key(0), 2)[0]
    _, spread = jax.jit(train.run)(key)
    for name in metrics._fields:
        np.testing.assert_allclose(
            getattr(spread, name), getattr(metrics, name)[0], rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_devices_exchange_a_gradient_and_no_decision(devices):
    mesh = jax.make_mesh((8,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    train = _training(mesh=mesh)
    cost = training.program_cost(jax.jit(train.run).lower(jax.random.key(0)).compile(), mesh)
    params = jax.eval_shape(train.init, jax.random.key(0)).params
    gradient = 2 * 7 / 8 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert gradient <= cost.received() / train.num_steps < 2 * gradient
    # Of each episode no more than its value crosses, for the median.
    assert cost.received(kind="all-gather") <= train.num_steps * 2 * 4 * 16


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = subrl.fit(_training(4), jax.random.key(0), chunk=1)
    subrl.fit(_training(2), jax.random.key(0), chunk=1, folder=tmp_path)
    rest = subrl.fit(_training(4), jax.random.key(0), chunk=1, folder=tmp_path)
    assert int(rest.state.step) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        (whole.metrics, whole.state.params),
        (rest.metrics, rest.state.params),
    )
    with pytest.raises(ValueError, match=r"key was '.*num_seeds was 1, is now 2"):
        subrl.fit(_training(4), jax.random.key(1), num_seeds=2, folder=tmp_path)
    with pytest.raises(ValueError, match=r"program.sha256 was"):
        subrl.fit(_training(4, batch_size=8), jax.random.key(0), folder=tmp_path)


@pytest.mark.slow
def test_seeds_together_are_seeds_one_by_one(seeds):
    _, metrics = seeds
    run = jax.jit(_training().run)
    for index, key in enumerate(jax.random.split(jax.random.key(0), 2)):
        alone = run(key)[1]
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-6),
            alone,
            metrics,
        )


@pytest.mark.slow
def test_seeds_spread_over_devices_are_seeds_on_one(devices):
    mesh = jax.make_mesh((8,), ("seeds",), devices=devices, axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 8)
    run = jax.jit(jax.vmap(_training().run))
    here = run(keys)[1]
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))
    there = run(jax.device_put(keys, sharding))[1]
    assert len(there.mean.sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), here, there)


@pytest.mark.slow
def test_weights_and_slips_can_be_swept_by_vmap():
    env = _world(slip=0.5)
    run = _training(env=env).run

    def with_slip(slip):
        params = env.default_params
        dynamics = params.dynamics._replace(slip=slip)
        return run(jax.random.key(0), params._replace(dynamics=dynamics))[1].mean

    swept = jax.jit(jax.vmap(with_slip))(jnp.array([0.0, 0.5]))
    alone = jax.jit(with_slip)(jnp.array(0.5))
    np.testing.assert_allclose(swept[1], alone, rtol=1e-5)
    assert not np.allclose(swept[0], swept[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"signal": "total"},
        {"baseline": "leave_one_out"},
        {"baseline": "critic", "gae_lambda": 0.95, "discount": 0.99},
        {"clip_ratio": 0.2, "passes": 4},
        {"entropy_coefficient": 0.1},
    ],
    ids=lambda o: next(iter(o.items()))[0],
)
def test_every_variant_learns_a_tiny_world(options):
    env = _world()
    train = _training(100, env, batch_size=64, **options)
    metrics = jax.jit(train.run)(jax.random.key(1))[1]
    optimum = float(subrl.exhaustive_plan(env).value)
    assert float(metrics.mean[0]) < 0.85 * optimum
    assert float(metrics.mean[-1]) > 0.97 * optimum


@pytest.mark.slow
def test_a_modular_reward_gives_subpo_and_modpo_one_gradient():
    """On items that cannot be met twice, F is modular and the two objectives are one."""
    from jaxkit import submodular

    # A line walked to the right: "stay" is not possible, so no state repeats.
    table = np.array([[1, 2], [3, 4], [4, 5], [6, 6], [6, 6], [6, 6], [6, 6]])
    dynamics, numbers = subrl.table_dynamics(table)
    f = submodular.modular(jnp.arange(7.0))
    env = subrl.make_environment(dynamics, numbers, f, horizon=3, features="official_position")
    policy = subrl.TabularPolicy(2, 7, 3)
    runs = [
        jax.jit(
            subrl.make_training(
                env, policy, optax.sgd(1.0), subrl.Estimator(objective), batch_size=32, num_steps=3
            ).run
        )(jax.random.key(0))
        for objective in subpo.OBJECTIVES
    ]
    np.testing.assert_allclose(
        *[state.params["policy"]["params"]["logits"] for state, _ in runs], rtol=1e-6
    )
    np.testing.assert_allclose(runs[0][1].mean, runs[0][1].modular, rtol=1e-6)


def _last_means(env, *, hidden=(64, 32), rate, num_steps, **options):
    estimator, options = _split(options)
    policy, optimizer = subrl.CategoricalPolicy(5, hidden), optax.adam(rate)
    options = {"batch_size": 200, **options}
    train = subrl.make_training(env, policy, optimizer, estimator, num_steps=num_steps, **options)
    keys = jax.random.split(jax.random.key(0), 2)
    return np.asarray(jax.jit(jax.vmap(train.run))(keys)[1].mean[:, -1])


@pytest.mark.slow
def test_a_markov_policy_passes_the_greedy_planner_on_a_gp_map(gp_world, vectors):
    means = _last_means(gp_world, rate=0.01, num_steps=140)
    assert (means >= 280).all(), means
    assert (means > vectors["coverage_gp_30x30"]["greedy_F"]).all()


@pytest.mark.slow
def test_on_a_gp_map_memory_comes_near_to_beam_search(vectors):
    """With the raw state numbers of the published program; beam search reaches 286.36."""
    weights = jnp.array(vectors["coverage_gp_30x30"]["weights"])
    env = subrl.coverage_world(weights=weights, features="official_history")
    means = _last_means(env, rate=0.001, num_steps=140)
    assert (means >= 268).all(), means
    assert (means <= 286.4).all(), means


@pytest.mark.slow
@pytest.mark.parametrize(("features", "low"), [("position", 17.3), ("visited", 20)])
def test_items_are_collected_and_with_memory_nearly_all(vectors, features, low):
    golden = vectors["item_collection"]
    shape = (golden["rows"], golden["cols"])
    env = subrl.item_world(golden["groups"], golden["caps"], shape, features=features)
    means = _last_means(env, rate=0.005, num_steps=150)
    assert (means >= low).all(), means


@pytest.mark.slow
def test_a_gradient_accumulated_over_slices_is_that_of_all_decisions_together():
    """Also where episodes end, so that slices hold different numbers of decisions."""
    env = subrl.point_mass_world(half_side=0.2, cells_a_side=4, block=1, horizon=9)
    policy = subrl.GaussianPolicy(2, hidden=(4,))
    runs = []
    for slices in (1, 16):  # half the episodes of a step at a time
        train = subrl.make_training(
            env, policy, optax.sgd(1.0),
            subrl.Estimator(entropy_coefficient=0.5, baseline="critic", critic=subrl.Critic((4,))),
            batch_size=8, num_steps=2, slices=slices,
        )  # fmt: skip
        runs.append(jax.jit(train.run)(jax.random.key(0)))
    act = train.act(runs[0][0])
    drawn = jax.jit(lambda key: subrl.rollout(key, env, act, 8))(jax.random.key(0))
    assert 0 < int(drawn.active[:, -1].sum()) < 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (runs[0][0].params, runs[0][1]),
        (runs[1][0].params, runs[1][1]),
    )


@pytest.mark.parametrize("logits", [[0.0, 1.0, -1.0], [2.0, 0.0, -np.inf]])
def test_actions_are_drawn_with_their_probabilities(logits):
    n = 200_000
    table = jnp.broadcast_to(jnp.array(logits), (n, 3))
    drawn = subrl.CategoricalPolicy(3).sample(jax.random.key(0), table)
    want = np.asarray(jax.nn.softmax(jnp.array(logits)))
    counts = np.bincount(np.asarray(drawn), minlength=3)
    # Five standard errors; an action of probability 0 is never drawn.
    np.testing.assert_array_less(np.abs(counts / n - want), 5 * np.sqrt(want / n) + 1e-12)


@pytest.mark.slow
def test_the_value_of_single_places_is_the_same_in_every_compilation():
    """XLA's CPU compiler folded it to zeros in about one compilation of three."""
    covariance = subrl.random_posterior(jax.random.key(2), (15, 15))
    field = subrl.design_world(covariance, (15, 15), horizon=20, start=112)
    act = lambda key, seen: jax.random.randint(key, (len(seen),), 0, 5)  # noqa: E731
    expected = 0.5 * np.log1p(covariance[112, 112] / 1e-3)
    for _ in range(12):
        draw = jax.jit(lambda key: subrl.rollout(key, field, act, 8).first)
        np.testing.assert_allclose(draw(jax.random.key(0)), expected, rtol=1e-5)
