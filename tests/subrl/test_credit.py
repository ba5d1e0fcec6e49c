"""The estimator follows the exact gradient; the signals of the published program do not."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkit import subrl
from jaxkit.subrl import credit, grids, policies, rollouts, trees

# Tests are not a package, so their shared module is loaded by path.
_spec = importlib.util.spec_from_file_location(
    "subrl_replays", pathlib.Path(__file__).with_name("replays.py")
)
replays = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(replays)


def _tiny(case, block=2, **options):
    return subrl.coverage_world(
        (case["rows"], case["cols"]),
        jnp.array(case["weights"]),
        block=block,
        horizon=case["horizon"],
        start=case["start"],
        slip=case.get("slip", 0.0),
        features="official_position",
        **options,
    )


def _policy(env):
    return subrl.TabularPolicy(env.num_actions, env.num_items, env.horizon)


def _variables(logits):
    return {"params": {"logits": jnp.array(logits)}}


SIGNALS = {
    name: lambda r, signal=signal: signal(r.first, r.gains, 1.0)
    for name, signal in credit.SIGNALS.items()
}


def test_signals_are_the_golden_ones(vectors):
    golden = vectors["credit"]
    first, gains = jnp.array(golden["first"]), jnp.array(golden["gains"])
    got = {name: signal(first, gains, 1.0) for name, signal in credit.SIGNALS.items()}
    np.testing.assert_allclose(got["to_go"], golden["to_go"], rtol=1e-5)
    np.testing.assert_allclose(got["prefix"], golden["prefix"], rtol=1e-5)
    np.testing.assert_allclose(got["total"][:, 0], golden["total"], rtol=1e-5)
    np.testing.assert_allclose(
        credit.reward_to_go(gains, 0.9), golden["discounted_to_go_0p9"], rtol=1e-5
    )
    np.testing.assert_allclose(
        credit.centre_over_batch(got["to_go"]), golden["time_mean_centred_to_go"], atol=1e-6
    )


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
def test_advantages_with_lambda_1_are_gains_to_go_less_values(discount, gae_lambda, seed):
    rng = np.random.default_rng(seed)
    gains, values = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    later = np.concatenate([values[:, 1:], np.zeros((3, 1))], 1)
    delta = gains + discount * later - values
    want = np.zeros_like(gains)
    running = np.zeros(3)
    for t in reversed(range(5)):
        running = want[:, t] = delta[:, t] + discount * gae_lambda * running
    got = credit.generalised_advantage(gains, values, discount, gae_lambda)
    np.testing.assert_allclose(got, want, atol=1e-5)
    ones = credit.generalised_advantage(gains, values, discount, 1.0)
    np.testing.assert_allclose(ones, credit.reward_to_go(gains, discount) - values, atol=1e-5)


@pytest.mark.parametrize(
    "index", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["sure", "slip"]
)
def test_the_expected_estimate_is_the_exact_gradient(vectors, index):
    case = vectors["exact_gradients"]["cases"][index]
    env = _tiny(case)
    policy, variables = _policy(env), _variables(case["logits"])
    tree = trees.move_tree(env)

    def exact(logits, modular=False):
        chances = trees.tabular_probabilities(tree, logits)
        return trees.exact_value(tree, chances, modular=modular)

    logits = jnp.array(case["logits"])
    value, gradient = jax.jit(jax.value_and_grad(exact))(logits)
    np.testing.assert_allclose(value, case["J"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["grad_J"], atol=1e-5)
    modular = jax.jit(lambda x: jax.value_and_grad(exact)(x, True))(logits)
    np.testing.assert_allclose(modular[0], case["J_modular"], rtol=1e-5)
    np.testing.assert_allclose(modular[1], case["grad_J_modular"], atol=1e-5)

    def baseline(r):
        # Any function of the states up to the action.
        past = jnp.cumsum(r.elements[:, :-1] + 1, axis=1)
        return SIGNALS["to_go"](r) - jnp.sin(past.astype(jnp.float32))

    credits = {
        **SIGNALS,
        "baseline": baseline,
        "modular": lambda r: credit.reward_to_go(r.singles),
    }
    estimates = replays.expected_estimates(env, policy, variables, credits)
    for name in ("to_go", "total", "baseline"):
        np.testing.assert_allclose(estimates[name], gradient, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(estimates["modular"], modular[1], atol=1e-5)
    for name in ("one_step", "prefix"):
        want = case["expected_one_step_signal"]
        np.testing.assert_allclose(estimates[name], want, atol=1e-5, err_msg=name)
    gap = np.abs(estimates["one_step"] - gradient).max()
    np.testing.assert_allclose(gap, case["max_abs_difference_one_step_vs_grad"], atol=1e-4)


def test_the_counter_example_turns_the_signals_against_each_other(vectors):
    case = vectors["line_counterexample"]
    env = _tiny(case, block=1)
    policy = _policy(env)
    variables = _variables(np.zeros((case["horizon"] - 1, 7, 5)))
    estimates = replays.expected_estimates(env, policy, variables, SIGNALS)
    at_start = {name: estimate[0, case["start"]] for name, estimate in estimates.items()}
    np.testing.assert_allclose(at_start["to_go"], case["grad_J_step0_start"], atol=1e-5)
    for name in ("one_step", "prefix"):
        want = case["one_step_signal_step0_start"]
        np.testing.assert_allclose(at_start[name], want, atol=1e-5)
    assert int(at_start["to_go"].argmax()) == 1  # right, where 10.1 lies
    assert int(at_start["one_step"].argmax()) == 3  # left, where 0.2 lies
    np.testing.assert_allclose(subrl.greedy_plan(env).value, case["greedy_value"], rtol=1e-5)
    np.testing.assert_allclose(subrl.exhaustive_plan(env).value, case["optimum"], rtol=1e-5)


@pytest.mark.slow
def test_one_action_gives_the_softmax_gradient_in_closed_form():
    env = _tiny({"rows": 2, "cols": 3, "weights": np.arange(6.0), "horizon": 2, "start": 1})
    logits = np.linspace(-1, 1, 30).reshape(1, 6, 5)
    got = replays.expected_estimates(env, _policy(env), _variables(logits), SIGNALS)["to_go"]
    pi = np.exp(logits[0, 1]) / np.exp(logits[0, 1]).sum()
    cover = grids.grid_blocks((2, 3))
    have = set(cover[1])
    gains = np.array([sum(set(cover[s]) - have) for s in grids.grid_moves((2, 3))[1]])
    np.testing.assert_allclose(got[0, 1], pi * (gains - pi @ gains), atol=1e-5)


def _golden_variables(shapes):
    """The golden file's parameters: 0.2 sin(0.7 k + tensor), weights [out, in]."""
    tensors = []
    for layer, (fan_in, out) in enumerate(shapes):
        weight = 0.2 * np.sin(0.7 * np.arange(out * fan_in) + 2 * layer).reshape(out, fan_in)
        bias = 0.2 * np.sin(0.7 * np.arange(out) + 2 * layer + 1)
        tensors.append({"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)})
    return {"params": dict(zip(("hidden_0", "hidden_1", "logits"), tensors, strict=True))}


@pytest.mark.parametrize(
    ("section", "features", "width"),
    [
        pytest.param("update_M", "official_position", 2, marks=pytest.mark.slow),
        ("update_NM", "official_history", 5),
    ],
)
def test_losses_and_gradients_of_the_official_program(vectors, section, features, width):
    golden = vectors[section]
    env = subrl.coverage_world(horizon=golden["horizon"], features=features)
    episodes = subrl.replay(env, np.array(golden["actions_time_major"]).T)
    assert episodes.elements.T.tolist() == golden["states_time_major"]
    policy = subrl.CategoricalPolicy(5)
    variables = _golden_variables([(width, 64), (64, 32), (32, 5)])
    assert float(env.default_params.return_scale) == golden["max_return"]
    # The golden paper loss has no entropy bonus.
    bonus = {"prefix": golden["entropy_coefficient"] / (golden["epoch_index"] + 1), "to_go": 0.0}

    @jax.jit
    def measure(variables, episodes):
        log_prob = policy.log_prob(policy.apply(variables, episodes.observations), episodes.actions)
        measured = []
        for name in ("prefix", "to_go"):
            advantages = SIGNALS[name](episodes) / golden["max_return"]
            measured.append(
                jax.value_and_grad(credit.subpo_loss, has_aux=True)(
                    variables, policy, episodes, advantages, bonus[name]
                )
            )
        return log_prob, measured

    log_prob, measured = measure(variables, episodes)
    np.testing.assert_allclose(np.asarray(log_prob).T.reshape(-1), golden["log_prob"], rtol=1e-4)
    for name, ((loss, parts), gradient) in zip(("official", "paper"), measured, strict=True):
        np.testing.assert_allclose(loss, golden[f"{name}_loss"], rtol=1e-5)
        np.testing.assert_allclose(parts.entropy, golden["entropy_mean"], rtol=1e-5)
        layers = [gradient["params"][layer] for layer in ("hidden_0", "hidden_1", "logits")]
        norms = [np.linalg.norm(t) for layer in layers for t in (layer["kernel"], layer["bias"])]
        np.testing.assert_allclose(norms, golden[f"{name}_grad_l2_by_tensor"], rtol=2e-4)
        np.testing.assert_allclose(
            layers[-1]["bias"], golden[f"{name}_grad_last_bias"], rtol=2e-4, atol=1e-6
        )


@pytest.mark.slow
def test_a_clipped_loss_with_unchanged_parameters_has_the_plain_gradient():
    env = _tiny({"rows": 2, "cols": 2, "weights": np.ones(4), "horizon": 3, "start": 0})
    policy, variables = _policy(env), _variables(np.linspace(-1, 1, 40).reshape(2, 4, 5))
    episodes = subrl.replay(env, [[1, 2], [2, 0], [3, 1]])
    advantages = jnp.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0]])

    @jax.jit
    def gradients(variables):
        old = policy.log_prob(policy.apply(variables, episodes.observations), episodes.actions)
        plain = jax.grad(lambda p: credit.subpo_loss(p, policy, episodes, advantages)[0])
        clipped = jax.grad(
            lambda p: credit.clipped_loss(
                p, policy, episodes, advantages, old_log_prob=old, clip_ratio=0.2
            )[0]
        )
        return plain(variables), clipped(variables)

    plain, clipped = gradients(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, clipped)


def test_gaussian_densities_and_entropies_are_those_of_scipy():
    from scipy import stats

    policy = subrl.GaussianPolicy(2)
    outputs = policies.Gaussian(jnp.array([[0.1, -0.3]]), jnp.array([[0.2, -1.0]]))
    actions = np.array([[0.5, 0.0]], np.float32)
    normal = stats.norm(np.asarray(outputs.mean), np.exp(outputs.log_std))
    np.testing.assert_allclose(
        policy.log_prob(outputs, actions), normal.logpdf(actions).sum(1), rtol=1e-5
    )
    np.testing.assert_allclose(policy.entropy(outputs), normal.entropy().sum(1), rtol=1e-5)


@pytest.mark.slow
def test_baselines_lower_the_variance_on_a_gp_map(gp_world):
    """Trace of the covariance of the estimate: to_go with baseline <= to_go <= total."""
    env, policy = gp_world, subrl.CategoricalPolicy(5)
    variables = policy.init(jax.random.key(0), jnp.zeros(3))

    @jax.jit
    def estimates(key):
        drawn = subrl.rollout(key, env, rollouts.policy_act(policy, variables), 50)

        def gradient(advantages):
            grads = jax.grad(lambda p: credit.subpo_loss(p, policy, drawn, advantages)[0])(
                variables
            )
            return jax.flatten_util.ravel_pytree(grads)[0]

        to_go = credit.reward_to_go(drawn.gains)
        total = credit.SIGNALS["total"](drawn.first, drawn.gains, 1.0)
        return jnp.stack([gradient(credit.leave_one_out(to_go)), gradient(to_go), gradient(total)])

    draws = jax.lax.map(estimates, jax.random.split(jax.random.key(1), 200))
    traces = np.asarray(draws).var(0).sum(-1)
    assert traces[0] < traces[1] < traces[2]


@pytest.mark.slow
def test_monte_carlo_agrees_with_the_exact_gradient(vectors):
    """2e5 episodes, each entry within 4.5 standard errors (180 entries)."""
    case = vectors["exact_gradients"]["cases"][1]
    env = _tiny(case)
    policy, variables = _policy(env), _variables(case["logits"])
    count, parts = 2000, 100

    @jax.jit
    def estimate(key):
        drawn = subrl.rollout(key, env, rollouts.policy_act(policy, variables), count)
        advantages = credit.leave_one_out(credit.reward_to_go(drawn.gains)) * drawn.gains.shape[1]
        loss = jax.grad(lambda p: -credit.subpo_loss(p, policy, drawn, advantages)[0])
        return loss(variables)["params"]["logits"]

    draws = np.asarray(jax.lax.map(estimate, jax.random.split(jax.random.key(0), parts)))
    error = draws.std(0, ddof=1) / np.sqrt(parts)
    gap = np.abs(draws.mean(0) - case["grad_J"])
    assert (gap <= 4.5 * error + 1e-7).all()
    assert error.max() < 0.01


@pytest.mark.slow
def test_policies_run_under_nnx():
    from flax import nnx

    for module in (subrl.CategoricalPolicy(5, hidden=(4,)), subrl.Critic((4,))):
        assert isinstance(module, nn.Module)
        wrapped = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0))
        nnx.bridge.lazy_init(wrapped, jnp.zeros((1, 3)))
        linen = module.apply(
            {"params": nnx.to_pure_dict(nnx.state(wrapped, nnx.Param))}, jnp.ones((1, 3))
        )
        np.testing.assert_allclose(wrapped(jnp.ones((1, 3))), linen, rtol=1e-6)
