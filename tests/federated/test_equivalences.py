"""Methods that must coincide, and what they converge to on quadratics, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl


def run(problem, algorithm, jit, *, rounds=3, sampler=None, key=0, data=None, training=None):
    sampler = sampler or fl.uniform_sampler(problem.num_clients, problem.num_clients)
    state = fl.init_state(algorithm, problem.params, problem.num_clients, jax.random.key(key))
    step = jit(
        lambda s: fl.run_rounds(
            algorithm,
            training or problem.training,
            s,
            data or problem.data,
            sampler,
            num_rounds=rounds,
        )
    )
    return step(state)


def gap(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_fedspeed_without_ascent_is_feddyn_bit_for_bit(problem, quick_jit):
    some = fl.uniform_sampler(problem.num_clients, 4)
    feddyn, _ = run(problem, fl.feddyn(), quick_jit, sampler=some)
    fedspeed, _ = run(problem, fl.fedspeed(rho=0.0), quick_jit, sampler=some)
    for ours, theirs in zip(
        jax.tree.leaves((fedspeed.params, fedspeed.clients, fedspeed.shared)),
        jax.tree.leaves((feddyn.params, feddyn.clients, feddyn.shared)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_at_full_participation_feddyn_fedpd_fedadmm_and_both_averages_coincide(problem, quick_jit):
    client = fl.simulator_sgd(0.1, clip_norm=None)
    reference, _ = run(problem, fl.feddyn(client), quick_jit)
    for other in (
        fl.fedspeed(client, rho=0.0, dual_average="active"),
        fl.fedpd(client),
        fl.fedadmm(client),
    ):
        state, _ = run(problem, other, quick_jit)
        assert gap(state.params, reference.params) < 2e-6, other.name


@pytest.mark.slow
def test_without_clip_both_clip_modes_are_the_same_step(problem, quick_jit):
    client = fl.simulator_sgd(0.1, clip_norm=None)
    ours, _ = run(problem, fl.fedspeed(client), quick_jit)
    simulators, _ = run(problem, fl.fedspeed(client, clip_mode="simulator"), quick_jit)
    assert gap(ours.params, simulators.params) < 2e-6


@pytest.mark.parametrize(("dual_average", "factor"), [("all", 1 + 4 / 10), ("active", 2.0)])
def test_first_server_step_is_the_mean_displacement_times(problem, quick_jit, dual_average, factor):
    some = fl.uniform_sampler(problem.num_clients, 4)
    fedspeed = fl.fedspeed(dual_average=dual_average)
    state, _ = run(problem, fedspeed, quick_jit, rounds=1, sampler=some)
    duals = state.clients["memory"]["dual"]
    mean = jax.tree.map(lambda h: h.sum(0) / 4, duals)  # only the cohort's are not zero
    expected = optax.tree.add_scale(problem.params, factor, mean)
    assert gap(state.params, expected) < 1e-6


def test_dual_is_the_sum_of_displacements_and_its_mean_is_kept(problem, quick_jit):
    cohorts = [[0, 1, 2], [2, 3, 4], [2, 5, 0], [1, 2, 3]]
    sampler = fl.cohorts.fixed_sampler(cohorts, problem.num_clients)
    fedspeed = fl.fedspeed()
    state = fl.init_state(fedspeed, problem.params, problem.num_clients, jax.random.key(0))
    step = quick_jit(
        lambda s: fl.federated_round(fedspeed, problem.training, s, problem.data, sampler)
    )
    history = [state]
    for _ in cohorts:
        history.append(step(history[-1])[0])
    duals = history[-1].clients["memory"]["dual"]
    for untouched in (6, 7, 8, 9):
        assert all(not leaf[untouched].any() for leaf in jax.tree.leaves(duals))
    recomputed = jax.tree.map(lambda h: h.mean(0), duals)
    assert gap(recomputed, history[-1].shared["dual_mean"]) < 1e-6
    # The last model is mean_S(w_K) + mean(h), with w_K - x the last change of a client's h.
    before, cohort = history[-2], jnp.asarray(cohorts[-1])
    changes = optax.tree.sub(duals, before.clients["memory"]["dual"])
    local = jax.tree.map(lambda x, c: x + c[cohort].mean(0), before.params, changes)
    assert gap(history[-1].params, optax.tree.add(local, recomputed)) < 1e-6


def test_correction_is_a_moving_average_of_quasi_gradients(problem, quick_jit):
    """ghat+ = (1-gamma) ghat + sum_k gamma_k g_k, gamma_k = (eta/lambda)(1-eta/lambda)^(K-1-k)."""
    eta, mu, num_steps = 0.1, 0.5, 4
    client = fl.local_sgd(eta)
    fedspeed = fl.fedspeed(client, prox_coef=mu, rho=0.05)
    training = fl.LocalTraining(
        problem.loss, batch_size=4, num_epochs=num_steps // 2, shuffle=False
    )
    first, _ = run(problem, fedspeed, quick_jit, rounds=1, training=training)
    second, _ = run(problem, fedspeed, quick_jit, rounds=2, training=training)

    gradient = jax.jit(jax.grad(lambda w, batch: problem.loss(w, batch, None)))
    piece = fl.quasi_gradient(0.05)
    client_id = 3
    of = lambda state: jax.tree.map(lambda h: h[client_id], state.clients["memory"]["dual"])  # noqa: E731
    dual, start, w = of(first), first.params, first.params
    weights = [mu * eta * (1 - mu * eta) ** (num_steps - 1 - k) for k in range(num_steps)]
    expected = jax.tree.map(lambda h: (1 - sum(weights)) * (-mu * h), dual)
    for k in range(num_steps):
        rows = slice(4 * (k % 2), 4 * (k % 2) + 4)
        batch = {name: leaf[client_id, rows] for name, leaf in problem.examples.items()}
        quasi, _ = piece.update(
            gradient(w, batch), (), w, grad_fn=lambda at, _, batch=batch: gradient(at, batch)
        )
        expected = optax.tree.add_scale(expected, weights[k], quasi)
        w = jax.tree.map(
            lambda w, q, h, w0: w - eta * (q + mu * (h + w - w0)), w, quasi, dual, start
        )
    correction = jax.tree.map(lambda h: -mu * h, of(second))
    assert gap(correction, expected) < 5e-6


def quadratic(instance):
    """f_i(x) = x'A_i x/2 - b_i'x, one full batch a step."""
    A, b = np.asarray(instance["A"]), np.asarray(instance["b"])

    def loss(x, batch, key):
        del key
        return jnp.mean(0.5 * jnp.einsum("i,nij,j->n", x, batch["A"], x) - batch["b"] @ x)

    return loss, fl.stack_clients({"A": A[:, None], "b": b[:, None]}), A, b


def solve(instance, algorithm, num_steps, rounds, jit):
    loss, data, _, b = quadratic(instance)
    training = fl.LocalTraining(loss, batch_size=None, num_epochs=num_steps, shuffle=False)
    sampler = fl.uniform_sampler(len(b), len(b))
    state = fl.init_state(algorithm, jnp.zeros(b.shape[1]), len(b), jax.random.key(0))

    def round_(state, _):
        state, _ = fl.federated_round(algorithm, training, state, data, sampler)
        return state, state.params

    return np.asarray(jit(lambda s: jax.lax.scan(round_, s, length=rounds)[1])(state))


def plain_sgd(lr):
    return fl.local_sgd(lr)


@pytest.mark.parametrize("index", [0, 1])
def test_fedspeed_reaches_its_closed_form_limit_for_every_interval_and_penalty(
    golden, quick_jit, index
):
    instance = golden("fedspeed")["quadratics"][index]
    with jax.enable_x64(True):
        for num_steps, prox_coef in ((instance["first_rounds_K"], instance["lamb"]), (5, 0.8)):
            fedspeed = fl.fedspeed(
                plain_sgd(instance["lr"]),
                prox_coef=prox_coef,
                rho=instance["rho"],
                alpha=instance["sam_alpha"],
                normalize=False,
            )
            path = solve(instance, fedspeed, num_steps, 800, quick_jit)
            if prox_coef == instance["lamb"]:
                want = [r["server"] for r in instance["first_rounds"]]
                np.testing.assert_allclose(path[: len(want)], want, atol=1e-12)
            np.testing.assert_allclose(path[-1], instance["fedspeed_fixed_point"], atol=1e-9)


@pytest.mark.parametrize("name", ["feddyn", "fedpd", "fedadmm", "scaffold"])
def test_dual_methods_and_scaffold_reach_the_minimiser_fedavg_does_not(golden, quick_jit, name):
    instance = golden("fedspeed")["quadratics"][0]
    options = {} if name == "scaffold" else {"prox_coef": instance["lamb"]}
    with jax.enable_x64(True):
        method = fl.ALGORITHMS[name](plain_sgd(instance["lr"]), **options)
        path = solve(instance, method, 5, 1500, quick_jit)
    np.testing.assert_allclose(path[-1], instance["minimizer"], atol=1e-9)


def test_fedavg_reaches_its_biased_fixed_point(golden, quick_jit):
    instance = golden("fedspeed")["quadratics"][0]
    with jax.enable_x64(True):
        for num_steps, want in instance["fedavg_fixed_point_by_K"].items():
            fedavg = fl.fedavg(plain_sgd(instance["lr"]))
            path = solve(instance, fedavg, int(num_steps), 1500, quick_jit)
            np.testing.assert_allclose(path[-1], want, atol=1e-9)


def test_by_default_fedadmm_keeps_the_mean_over_all_clients(problem, quick_jit):
    """x is mean_i(w_K + h_i), clients that never took part counting as x^0."""
    method = fl.fedadmm(fl.local_sgd(0.1))
    state, _ = run(problem, method, quick_jit, sampler=fl.uniform_sampler(10, 2))
    held = jax.tree.map(lambda leaf: leaf.mean(0), state.clients["memory"]["augmented"])
    assert gap(state.params, held) < 1e-6


def test_published_fedadmm_code_reaches_its_biased_closed_form(golden, quick_jit):
    """sum_i grad F_i(x) = -(mu m/(2 eta_s))(x - x0): "reset" is for reproduction only."""
    instance = golden("fedspeed")["quadratics"][0]
    mu, eta_s = instance["lamb"], 0.5
    with jax.enable_x64(True):
        reset = fl.fedadmm(plain_sgd(instance["lr"]), optax.sgd(eta_s), prox_coef=mu, form="reset")
        x = solve(instance, reset, 20, 1500, quick_jit)[-1]
        _, _, A, b = quadratic(instance)
    residual = (A @ x - b).sum(0)
    np.testing.assert_allclose(residual, -mu * len(b) / (2 * eta_s) * x, atol=1e-8)
    assert np.linalg.norm(x - instance["minimizer"]) > 0.1


def test_one_local_round_on_a_quadratic_in_closed_form(golden, quick_jit):
    """w_K = R^K x + (I - R^K) M^-1 (c + (x - h)/lambda)."""
    instance = golden("fedspeed")["quadratics"][0]
    eta, mu, rho, num_steps = instance["lr"], instance["lamb"], instance["rho"], 7
    with jax.enable_x64(True):
        loss, data, A, b = quadratic(instance)
        fedspeed = fl.fedspeed(plain_sgd(eta), prox_coef=mu, rho=rho, normalize=False)
        training = fl.LocalTraining(loss, batch_size=None, num_epochs=num_steps, shuffle=False)
        sampler = fl.uniform_sampler(len(b), len(b))
        state = fl.init_state(fedspeed, jnp.ones(b.shape[1]), len(b), jax.random.key(0))
        step = quick_jit(lambda s: fl.federated_round(fedspeed, training, s, data, sampler)[0])
        before = step(state)
        after = step(before)
    x, h = np.asarray(before.params), np.asarray(before.clients["memory"]["dual"])
    got = np.asarray(after.clients["memory"]["dual"]) - h + x
    eye = np.eye(len(x))
    for i in range(len(b)):
        ascended = eye + rho * A[i]
        M = ascended @ A[i] + mu * eye
        R = np.linalg.matrix_power(eye - eta * M, num_steps)
        target = np.linalg.solve(M, ascended @ b[i] + mu * (x - h[i]))
        np.testing.assert_allclose(got[i], R @ x + (eye - R) @ target, atol=1e-12)
