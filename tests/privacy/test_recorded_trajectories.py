"""Every algorithm against float64 references and recorded vectors."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import privacy
from jaxkit.privacy.recursive_regularization import noisy_gd, selector_weights
from jaxkit.privacy.tree_spider import tree_visits

_SPEC = importlib.util.spec_from_file_location(
    "privacy_reference", pathlib.Path(__file__).parent / "reference.py"
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

NAMES = (
    "noiseless_full_batch_equals_gd",
    "noiseless_minibatch",
    "fixed_noise_full_batch",
    "fixed_noise_minibatch_cap_binds",
    "clipped_minibatch",
)


def case_named(vectors, name):
    return next(case for case in vectors["spiderboost"]["cases"] if case["name"] == name)


def penalty(strength):
    return lambda w: strength * 2 * w / (1 + w**2) ** 2


def data_of(case):
    return jnp.asarray(case["X"], jnp.float32), jnp.asarray(case["y"], jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_reference_of_spiderboost_equals_recorded_trajectory(vectors, name):
    case = case_named(vectors, name)
    iterates, estimates = reference.spiderboost(case)
    np.testing.assert_allclose(iterates, case["iterates_w1_to_wT"], atol=1e-10)
    np.testing.assert_allclose(estimates, case["estimates"], atol=1e-10)


def padded(array, *shape):
    array = np.asarray(array, np.float64)
    return np.pad(array, [(0, size - old) for size, old in zip(shape, array.shape, strict=True)])


def spiderboost_inputs(case, steps=11, n=14, d=4):
    """A recorded case, padded so that all cases fit one program."""
    clip = case["clip1"] or 1.0
    smoothness = case["clip2"] or 0.25
    iterates = np.asarray([case["w0"], *case["iterates_w1_to_wT"]])
    distances = np.linalg.norm(np.diff(iterates, axis=0), axis=1)
    counts, normals = np.zeros((steps, n), np.int32), np.zeros((steps, d))
    for t, rows in enumerate(case["batches"]):
        counts[t, rows] = 1
        if case["normals"] is None:
            continue
        # The estimator's noise is z times the clip's bound; the recorded one has a size of its
        # own, so the normals are scaled from one to the other.
        anchor = t % case["q"] == 0
        bound = clip if anchor else min(smoothness * distances[t - 1], 2 * clip)
        size = case["denom1"] if anchor else case["denom2"]
        scale = case["noise_std_per_step"][t] * size / bound
        normals[t, : len(case["w0"])] = scale * np.asarray(case["normals"][t])
    floats = {
        "x": padded(case["X"], n, d),
        "y": padded(case["y"], n),
        "normals": normals,
        "clip": clip,
        "smoothness": smoothness,
        "eta": case["eta"],
        "denom1": case["denom1"],
        "denom2": case["denom2"],
        "penalty": case["lam_nonconvex"],
    }
    other = {"q": case["q"], "counts": counts, "logistic": case["loss"] == "logistic"}
    return {key: np.asarray(value, np.float32) for key, value in floats.items()} | other


@pytest.fixture(scope="module")
def replayed_spiderboost(vectors):
    """Iterates and estimates of all recorded cases, in one compiled program."""

    def trajectory(case):
        def loss(score, label):
            logistic = privacy.logistic_loss(score, label)
            return jnp.where(case["logistic"], logistic, jax.nn.sigmoid(-label * score))

        plan = privacy.spiderboost(
            privacy.glm_clipped_grad_sum(loss, case["clip"]),
            privacy.Sampling("fixed", 14, case["denom1"], 14),
            privacy.Sampling("fixed", 14, case["denom2"], 14),
            num_steps=11,
            phase_length=11,
            difference_clip=case["smoothness"],
            noise_multipliers=(1.0, 1.0),
            delta=1e-5,
            draw_normals=lambda key, index, like: case["normals"][index],
        )
        data = case["x"], case["y"]

        def step(carry, t):
            state, params = carry
            counts = case["counts"][t]
            anchored, _ = plan.anchor(state, params, data, jax.random.key(0), counts)
            varied, _ = plan.variation(state, params, data, jax.random.key(0), counts)
            state = optax.tree.where(t % case["q"] == 0, anchored, varied)
            params -= case["eta"] * (state.estimate + penalty(case["penalty"])(params))
            return (state, params), (params, state.estimate)

        start = (plan.init(jnp.zeros(4)), jnp.zeros(4))
        return jax.lax.scan(step, start, jnp.arange(11))[1]

    cases = [spiderboost_inputs(case_named(vectors, name)) for name in NAMES]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    iterates, estimates = jax.jit(jax.vmap(trajectory))(stacked)
    return dict(zip(NAMES, zip(iterates, estimates, strict=True), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_spiderboost_follows_recorded_trajectory(vectors, name, replayed_spiderboost, close):
    case = case_named(vectors, name)
    steps, d = len(case["batches"]), len(case["w0"])
    iterates, estimates = replayed_spiderboost[name]
    close(np.asarray(iterates)[:steps, :d], case["iterates_w1_to_wT"])
    close(np.asarray(estimates)[:steps, :d], case["estimates"])


@pytest.fixture(scope="module")
def replayed_tree():
    """Tree SPIDER with recorded normals; cases of one shape share a compiled program."""

    @functools.partial(jax.jit, static_argnames=("depth", "root_size", "num_rounds", "carry"))
    def run(data, normals, z, threshold, strength, *, depth, root_size, num_rounds, carry):
        gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
        return privacy.tree_spider(
            privacy.one_pass(gradient, noise_multiplier=z, delta=1e-5),
            jnp.zeros(3),
            data,
            jax.random.key(0),
            depth=depth,
            root_size=root_size,
            num_rounds=num_rounds,
            smoothness=0.25,
            beta=0.3,
            stop_threshold=threshold,
            difference_bound="worst_case",
            carry_last_step=carry,
            regulariser_gradient=penalty(strength),
            draw=lambda key, index, like: normals[index],
        )

    return run


@pytest.mark.parametrize(
    "index", [0, 1, pytest.param(2, marks=pytest.mark.slow), 3]
)  # each shape costs a compilation; 2 differs from 1 in where a round starts
def test_tree_spider_follows_recorded_leaves(vectors, index, replayed_tree, close):
    case = vectors["tree_spider"]["cases"][index]
    leaves, directions, stopped, used = reference.tree_spider(case)
    np.testing.assert_allclose(leaves, case["leaf_params"], atol=1e-10)
    np.testing.assert_allclose(directions, case["leaf_grads"], atol=1e-10)
    assert (stopped, used) == (case["stopped_at_leaf"], case["examples_used"])
    assert (case["L0"], case["L1"], case["beta"]) == (1.0, 0.25, 0.3)

    # A round more than recorded where that makes two cases one program.
    rounds = 3 if case["D"] == 2 else case["rounds"]
    rows = rounds * privacy.tree_examples(case["b"], case["D"])
    x, y = padded(case["X"], rows, 3), padded(case["y"], rows)
    run = replayed_tree(
        (np.float32(x), np.float32(y)),
        np.float32(padded(case["normals"], rounds * 2 ** case["D"], 3)),
        2 * case["sigma_scale"] * np.sqrt(2 * np.log(1.25 / case["delta"])) / case["eps"],
        2 * case["alpha_tilde"],
        case["lam_nonconvex"],
        depth=case["D"],
        root_size=case["b"],
        num_rounds=rounds,
        carry=case["carry_last_step"],
    )
    visited, recorded = np.asarray(run.visited), len(case["leaf_params"])
    measured = np.asarray(run.leaf_params)[visited][:recorded]
    close(measured, case["leaf_params"])
    close(np.asarray(run.leaf_directions)[visited][:recorded], case["leaf_grads"])
    assert bool(run.stopped) == (case["stopped_at_leaf"] is not None)
    assert any(np.array_equal(run.random_params, leaf) for leaf in run.leaf_params)
    if rounds == case["rounds"]:
        assert visited.sum() == recorded
        close(run.params, case["leaf_params"][-1])
        best = np.argmin(np.linalg.norm(case["leaf_grads"], axis=1))
        close(run.best_params, case["leaf_params"][best])
    steps = np.linalg.norm(np.diff(measured[: 2 ** case["D"]], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.3 / (2 ** (case["D"] / 2) * 0.25), rtol=1e-5)


@pytest.mark.parametrize("index", range(3))
def test_tree_visits_right_children_in_recorded_order(vectors, index):
    case = vectors["tree_spider"]["cases"][index]
    log = [(len(name), size) for r, name, size in case["right_child_log"] if r == 0]
    visits = tree_visits(case["D"])
    assert [(level, case["b"] >> level) for level, _ in visits] == log
    sizes = np.asarray([2 ** (case["D"] - level) for level, _ in visits])
    ends = visits[:, 1] + sizes
    assert visits[0, 1] == 2 ** case["D"]  # after the root's batch
    np.testing.assert_array_equal(visits[1:, 1], ends[:-1])  # fresh rows, none twice, none left
    per_round = privacy.tree_examples(case["b"], case["D"])
    assert ends[-1] * case["b"] // 2 ** case["D"] == per_round
    assert per_round * case["rounds"] == case["examples_used"]


@pytest.mark.parametrize("noisy", [True, False])
def test_recursive_regularization_gives_recorded_outputs(vectors, noisy, replay, close):
    case = vectors["recursive_regularization"]
    sigmas = case["sigmas"] if noisy else [0.0] * 3
    expected = case["outputs"] if noisy else case["outputs_noiseless"]
    measured = reference.recursive_regularization(case, sigmas)
    np.testing.assert_allclose(measured, expected, atol=1e-10)
    # The recorded noise has sizes of its own, so the normals are scaled to them.
    chunk = len(case["X"]) // len(case["Ks"])
    normals = [
        np.asarray(xi) * sigmas[t] * chunk / (10.0 * math.sqrt(k - 1))
        for t, k in enumerate(case["Ks"])
        for xi in case["normals"][t][: k - 1]
    ]
    run = jax.jit(
        lambda data, key: privacy.recursive_regularization(
            privacy.one_pass(
                privacy.glm_clipped_grad_sum(privacy.logistic_loss, 10.0),
                noise_multiplier=1.0,
                delta=1e-5,
            ),
            jnp.zeros(3),
            data,
            key,
            regularisation=case["lam"],
            steps_per_round=case["Ks"],
            radius=case["R0"],
            draw=replay(normals),
        )
    )(data_of(case), jax.random.key(0))
    close(jnp.stack(run.round_params), expected)


def test_the_noise_is_not_what_a_random_loss_draws():
    # With one key for both, the gradient of this loss would cancel the noise, for one row exactly.
    loss = lambda w, row, key: -w * jax.random.normal(key)  # noqa: E731
    moved = noisy_gd(
        privacy.clipped_grad_sum(loss, 100.0), jnp.zeros(()), jnp.zeros((1, 1)),
        jax.random.key(0), num_steps=2, learning_rate=1.0, stddev=1.0,
    )  # fmt: skip
    assert abs(float(moved)) > 1e-3


def test_selector_weights_equal_recorded_ones_and_never_overflow(vectors):
    case = vectors["recursive_regularization"]
    np.testing.assert_allclose(
        selector_weights(7, 0.1 * 0.5),
        case["selector_weights_K7_eta_0p1_lam_0p5"],
        rtol=1e-5,
    )
    extreme = selector_weights(10_000, 0.9)
    assert float(jnp.sum(extreme)) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_projected_spiderboost_gives_recorded_parameters(vectors, close):
    case = vectors["jl_glm"]
    phi = jnp.asarray(case["Phi"], jnp.float32)
    x, y = data_of(case)
    embedded = privacy.jl_embed(x, phi, radius=100.0)
    close(embedded, case["embedded"])
    everyone = privacy.full_batches(10)
    plan = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 10.0),
        everyone,
        everyone,
        num_steps=case["T"],
        phase_length=case["q"],
        difference_clip=10.0,
        noise_multipliers=(0.0, 0.0),
        delta=1e-5,
    )
    run = jax.jit(
        lambda data, key: privacy.run_spiderboost(
            plan, optax.sgd(case["eta"]), jnp.zeros(5), data, key
        )
    )((embedded, y), jax.random.key(0))
    close(run.params, case["w_low"])
    lifted = np.asarray(privacy.jl_lift(run.params, phi), np.float64)
    close(lifted, case["w_lifted"])

    def mean_gradient(x, w):
        return reference.gradients({**case, "X": x, "loss": "logistic"}, w, slice(None)).mean(0)

    full = mean_gradient(case["X"], lifted)
    low = mean_gradient(case["embedded"], np.asarray(run.params, np.float64))
    close(full, case["grad_full_at_lifted"])
    close(low, case["grad_low_at_w_low"])
    close(np.asarray(case["Phi"]) @ full, low)
