"""Every algorithm against float64 references and recorded vectors."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import privacy

_SPEC = importlib.util.spec_from_file_location(
    "privacy_reference", pathlib.Path(__file__).parent / "reference.py"
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

LOSSES = {"logistic": privacy.logistic_loss, "sigmoid": privacy.sigmoid_loss}
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


@pytest.mark.parametrize("name", NAMES)
def test_spiderboost_follows_recorded_trajectory(vectors, name, replay, close):
    case = case_named(vectors, name)
    # The estimator draws noise of size z * bound; the recorded sizes are given apart from the
    # clip norms, so the normals are scaled from one to the other.
    steps, n = len(case["batches"]), len(case["X"])
    clip = case["clip1"] or 1.0
    smoothness = case["clip2"] or 0.25
    iterates = np.asarray([case["w0"], *case["iterates_w1_to_wT"]])
    distances = np.linalg.norm(np.diff(iterates, axis=0), axis=1)
    normals = np.asarray(case["normals"] or np.zeros((steps, len(case["w0"]))))
    recorded = np.asarray(case["noise_std_per_step"])
    scaled = []
    for t in range(steps):
        anchor = t % case["q"] == 0
        bound = clip if anchor else min(smoothness * distances[t - 1], 2 * clip)
        size = case["denom1"] if anchor else case["denom2"]
        scaled.append(normals[t] * recorded[t] * size / bound)
    counts = np.zeros((steps, n), np.int32)
    for t, rows in enumerate(case["batches"]):
        counts[t, rows] = 1
    estimator = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(LOSSES[case["loss"]], clip),
        difference_clip=smoothness,
        anchor_noise_multiplier=1.0,
        variation_noise_multiplier=1.0,
        anchor_size=case["denom1"],
        variation_size=case["denom2"],
        draw=replay(scaled),
    )
    masks = jnp.asarray(counts)
    data, regulariser = data_of(case), penalty(case["lam_nonconvex"])

    @jax.jit
    def trajectory(params):
        def step(carry, t):
            state, params = carry
            anchored, _ = estimator.anchor(state, params, data, masks[t])
            varied, _ = estimator.variation(state, params, data, masks[t])
            state = optax.tree.where(t % case["q"] == 0, anchored, varied)
            params = params - case["eta"] * (state.estimate + regulariser(params))
            return (state, params), (params, state.estimate)

        start = (estimator.init(params, jax.random.key(0)), params)
        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    measured, estimates = trajectory(jnp.asarray(case["w0"], jnp.float32))
    close(measured, case["iterates_w1_to_wT"])
    close(estimates, case["estimates"])


@pytest.mark.parametrize("index", range(4))
def test_tree_spider_follows_recorded_leaves(vectors, index, close):
    case = vectors["tree_spider"]["cases"][index]
    leaves, directions, stopped, used = reference.tree_spider(case)
    np.testing.assert_allclose(leaves, case["leaf_params"], atol=1e-10)
    np.testing.assert_allclose(directions, case["leaf_grads"], atol=1e-10)
    assert (stopped, used) == (case["stopped_at_leaf"], case["examples_used"])

    z = case["sigma_scale"] * np.sqrt(2 * np.log(1.25 / case["delta"])) / case["eps"]
    table = jnp.asarray(case["normals"], jnp.float32)
    run = jax.jit(
        lambda data, key: privacy.tree_spider(
            privacy.glm_clipped_grad_sum(LOSSES[case["loss"]], case["L0"]),
            jnp.zeros(3),
            data,
            key,
            depth=case["D"],
            root_size=case["b"],
            num_rounds=case["rounds"],
            smoothness=case["L1"],
            beta=case["beta"],
            noise_multiplier=z,
            stop_threshold=2 * case["alpha_tilde"],
            difference_bound="worst_case",
            carry_last_step=case["carry_last_step"],
            regulariser_gradient=penalty(case["lam_nonconvex"]),
            draw=lambda key, index, like: table[index],
        )
    )(data_of(case), jax.random.key(0))
    visited = np.asarray(run.visited)
    assert visited.sum() == len(case["leaf_params"])
    assert bool(run.stopped) == (case["stopped_at_leaf"] is not None)
    close(run.leaf_params[visited], case["leaf_params"])
    close(run.leaf_directions[visited], case["leaf_grads"])
    close(run.params, case["leaf_params"][-1])
    best = np.argmin(np.linalg.norm(case["leaf_grads"], axis=1))
    close(run.best_params, case["leaf_params"][best])
    assert any(np.array_equal(run.random_params, leaf) for leaf in run.leaf_params[visited])
    steps = np.linalg.norm(np.diff(run.leaf_params[: 2 ** case["D"]][visited[:4]], axis=0), axis=1)
    np.testing.assert_allclose(steps, case["beta"] / (2 ** (case["D"] / 2) * 0.25), rtol=1e-5)


@pytest.mark.parametrize("index", range(3))
def test_tree_visits_right_children_in_recorded_order(vectors, index):
    case = vectors["tree_spider"]["cases"][index]
    log = [(len(name), size) for r, name, size in case["right_child_log"] if r == 0]
    visits = privacy.tree_visits(case["D"])
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
    normals = [xi for t, k in enumerate(case["Ks"]) for xi in case["normals"][t][: k - 1]]
    run = jax.jit(
        lambda data, sigmas, key: privacy.recursive_regularization(
            privacy.glm_clipped_grad_sum(privacy.logistic_loss, 10.0),
            jnp.zeros(3),
            data,
            key,
            regularisation=case["lam"],
            steps_per_round=case["Ks"],
            radius=case["R0"],
            stddevs=list(sigmas),
            draw=replay(normals),
        )
    )(data_of(case), jnp.asarray(sigmas), jax.random.key(0))
    close(jnp.stack(run.round_params), expected)


def test_selector_weights_equal_recorded_ones_and_never_overflow(vectors):
    case = vectors["recursive_regularization"]
    np.testing.assert_allclose(
        privacy.selector_weights(7, 0.1 * 0.5),
        case["selector_weights_K7_eta_0p1_lam_0p5"],
        rtol=1e-5,
    )
    extreme = privacy.selector_weights(10_000, 0.9)
    assert float(jnp.sum(extreme)) == pytest.approx(1, rel=1e-5)


def test_projected_spiderboost_gives_recorded_parameters(vectors, close):
    case = vectors["jl_glm"]
    phi = jnp.asarray(case["Phi"], jnp.float32)
    x, y = data_of(case)
    embedded = privacy.jl_embed(x, phi, radius=100.0)
    close(embedded, case["embedded"])
    estimator = privacy.spiderboost(
        privacy.glm_clipped_grad_sum(privacy.logistic_loss, 10.0),
        difference_clip=10.0,
        anchor_noise_multiplier=0.0,
        variation_noise_multiplier=0.0,
        anchor_size=10,
        variation_size=10,
    )
    run = jax.jit(
        lambda data, key: privacy.run_spiderboost(
            estimator,
            optax.sgd(case["eta"]),
            jnp.zeros(5),
            data,
            key,
            num_steps=case["T"],
            phase_length=case["q"],
        )
    )((embedded, y), jax.random.key(0))
    close(run.params, case["w_low"])
    lifted = privacy.jl_lift(run.params, phi)
    close(lifted, case["w_lifted"])
    mean_loss = lambda w, x: jnp.mean(jax.vmap(privacy.logistic_loss)(x @ w, y))  # noqa: E731
    full, low = jax.grad(mean_loss)(lifted, x), jax.grad(mean_loss)(run.params, embedded)
    close(full, case["grad_full_at_lifted"])
    close(phi @ full, low)
    close(low, case["grad_low_at_w_low"])
