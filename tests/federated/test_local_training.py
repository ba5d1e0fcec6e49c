"""Local training: ragged clients, any optimizer, any gradient, any dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl
from jaxkit.federated import cohorts, local_training, perturbation


def test_each_epoch_takes_every_example_of_a_ragged_client_once():
    training = fl.LocalTraining(lambda w, b, k: w, batch_size=3, num_epochs=2)
    batches = local_training.plan_batches(training, 8, jnp.int32(5), jax.random.key(0))
    assert batches.examples.shape == (6, 3)
    for epoch in range(2):
        part = slice(3 * epoch, 3 * epoch + 3)
        taken = np.asarray(batches.examples[part])[np.asarray(batches.real[part])]
        assert sorted(taken.tolist()) == [0, 1, 2, 3, 4]
    assert batches.real.any(axis=1).tolist() == [True, True, False] * 2
    assert int(batches.examples.max()) < 5  # an empty place holds a real example


def test_a_random_order_sorts_uniform_scores_at_any_size():
    """Small orders are sorted as packed integers, large ones as pairs: the same order."""
    for seed in range(5):
        key = jax.random.key(seed)
        expected = np.argsort(jax.random.uniform(key, (200,)), stable=True)
        for size in (200, 512, 513):
            order = np.asarray(local_training.random_order(key, size, 200))
            np.testing.assert_array_equal(order[:200], expected)
            np.testing.assert_array_equal(order[200:], np.arange(200, size))


def test_a_dropped_remainder_leaves_whole_batches_only():
    training = fl.LocalTraining(lambda w, b, k: w, batch_size=3, num_epochs=1, drop_remainder=True)
    batches = local_training.plan_batches(training, 8, jnp.int32(5), jax.random.key(0))
    assert batches.real.tolist() == [[True] * 3, [False] * 3]


def test_ragged_clients_train_as_if_each_were_alone(problem, quick_jit):
    """Masking is exact: each client of a padded cohort equals a client without padding."""
    counts = np.array([8, 5, 3])
    ragged = fl.stack_clients({k: v[:3] for k, v in problem.examples.items()}, counts)
    method = fl.scaffold()
    training = fl.LocalTraining(problem.loss, batch_size=4, num_epochs=2)

    def step(data, clients, num_clients):
        state = fl.init_state(method, problem.params, num_clients, jax.random.key(5))
        sampler = cohorts.fixed_sampler([clients], num_clients)
        return quick_jit(lambda s: fl.federated_round(method, training, s, data, sampler))(state)[0]

    together = step(ragged, [0, 1, 2], 3)
    for client in (1, 2):
        # The client keeps its number, and with it its key; the others are not asked.
        alone = fl.stack_clients(
            {k: v[:3, : counts[client]] for k, v in problem.examples.items()},
            np.minimum(counts, counts[client]),
        )
        single = step(alone, [client], 3)
        for ours, theirs in zip(
            jax.tree.leaves(together.clients), jax.tree.leaves(single.clients), strict=True
        ):
            np.testing.assert_allclose(ours[client], theirs[client], atol=1e-6)


def test_a_masked_loss_is_the_mean_over_the_real_examples(problem):
    gradient = local_training.weighted_gradient(problem.loss)
    batch = {k: jnp.asarray(v[0]) for k, v in problem.examples.items()}
    weights = jnp.array([1, 1, 1, 1, 1, 0, 0, 0], jnp.float32)
    masked = gradient(problem.params, batch, weights, jax.random.key(0))
    plain = jax.value_and_grad(problem.loss)(
        problem.params, jax.tree.map(lambda x: x[:5], batch), None
    )
    for ours, theirs in zip(jax.tree.leaves(masked), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_both_gradients_of_a_step_see_the_same_noise(quick_jit):
    """With rho = 0 the second gradient must be the first one, dropout and all."""

    def noisy(w, batch, key):
        return jnp.mean((w * jax.random.bernoulli(key, 0.5, w.shape) - batch.mean()) ** 2)

    data = fl.stack_clients(jnp.ones((2, 4)))
    training = fl.LocalTraining(noisy, batch_size=2, num_epochs=2)
    sampler = fl.uniform_sampler(2, 2)

    def final(method):
        state = fl.init_state(method, jnp.full(20, 3.0), 2, jax.random.key(0))
        return quick_jit(lambda s: fl.federated_round(method, training, s, data, sampler))(state)[
            0
        ].params

    np.testing.assert_array_equal(final(fl.fedspeed(rho=0.0)), final(fl.feddyn()))


def test_half_precision_models_keep_their_duals_in_float32(problem, quick_jit):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params)
    fedspeed, sampler = fl.fedspeed(), fl.uniform_sampler(10, 5)
    state = fl.init_state(fedspeed, half, 10, jax.random.key(0))
    state, metrics = quick_jit(
        lambda s: fl.federated_round(fedspeed, problem.training, s, problem.data, sampler)
    )(state)
    assert state.params["w"].dtype == jnp.bfloat16
    assert state.clients["memory"]["dual"]["w"].dtype == jnp.float32
    assert int(metrics.nonfinite_clients) == 0


def test_sam_of_optax_and_ours_agree(problem):
    """`optax.contrib.sam` on normalised steps is the quasi-gradient at alpha = 1."""
    batch = {k: jnp.asarray(v[0]) for k, v in problem.examples.items()}
    gradient = jax.grad(lambda w: problem.loss(w, batch, None))
    normalised = optax.contrib.sam(
        optax.sgd(0.3),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
    )
    ours = optax.chain(fl.quasi_gradient(0.1), optax.sgd(0.3))
    updates = []
    for optimizer in (normalised, ours):
        update, _ = optimizer.update(
            gradient(problem.params),
            optimizer.init(problem.params),
            problem.params,
            grad_fn=lambda at, step: gradient(at),
        )
        updates.append(update)
    np.testing.assert_allclose(updates[0]["w"], updates[1]["w"], atol=1e-6)


def test_the_ascent_direction_ignores_the_scale_of_the_loss_and_a_zero_gradient():
    gradient = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    one = perturbation.ascent_step(gradient, 0.1)
    scaled = perturbation.ascent_step(jax.tree.map(lambda g: 100 * g, gradient), 0.1)
    np.testing.assert_allclose(one["a"], scaled["a"], rtol=1e-5)
    assert float(optax.tree.norm(one)) == pytest.approx(0.1, rel=1e-5)
    zero = perturbation.ascent_step(jax.tree.map(jnp.zeros_like, gradient), 0.1)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zero))


def test_any_optax_chain_trains_clients_and_may_keep_its_state(problem, quick_jit):
    """FedSpeed whose clients run Adam on a REX schedule, with and without their moments."""
    from jaxkit import schedules

    steps_a_round = 4
    chain = optax.adamw(
        schedules.schedule_from_profile("rex", 1e-2, 3 * steps_a_round), weight_decay=1e-3
    )
    sampler = fl.uniform_sampler(10, 10)
    for keep_state, expected in ((True, 3 * steps_a_round), (False, None)):
        method = fl.fedspeed(fl.local_optimizer(chain, keep_state=keep_state))
        state = fl.init_state(method, problem.params, 10, jax.random.key(0))
        step = quick_jit(
            lambda s, method=method: fl.run_rounds(
                method, problem.training, s, problem.data, sampler, num_rounds=3
            )
        )
        state, metrics = step(state)
        assert metrics.loss[-1] < metrics.loss[0]
        kept = state.clients.get("optimizer_state")
        assert (kept is not None) == keep_state
        if keep_state:
            counts = optax.tree.get_all_with_path(kept, "count")
            assert all((np.asarray(count) == expected).all() for _, count in counts)


def test_width_scaled_adamw_trains_clients(problem, quick_jit):
    from jaxkit import width

    def shapes(width_):
        kernel = jax.ShapeDtypeStruct((width_, 3), "float32")
        return {"w": kernel, "b": jax.ShapeDtypeStruct((3,), "float32")}

    chain = width.adamw_width_scaled(1e-2, 1e-3, width.width_scaling(shapes(2), shapes(4)))
    method, sampler = fl.fedavg(fl.local_optimizer(chain)), fl.uniform_sampler(10, 10)
    state = fl.init_state(method, problem.params, 10, jax.random.key(0))
    _, metrics = quick_jit(
        lambda s: fl.run_rounds(method, problem.training, s, problem.data, sampler, num_rounds=3)
    )(state)
    assert metrics.loss[-1] < metrics.loss[0]


def test_per_example_clipping_bounds_a_clients_every_step(problem, quick_jit):
    """Example-level privacy: the gradient is optax's DP aggregate of per-example gradients."""
    clip = 0.01

    def private_gradient(params, batch, weights, key):
        assert weights is None
        ones = jax.tree.map(lambda x: x[:, None], batch)
        losses, gradients = jax.vmap(jax.value_and_grad(problem.loss), in_axes=(None, 0, None))(
            params, ones, key
        )
        private = optax.contrib.differentially_private_aggregate(clip, 0.0, key)
        gradient, _ = private.update(gradients, private.init(params))
        return losses.mean(), gradient

    training = fl.LocalTraining(
        problem.loss, batch_size=4, num_epochs=2, gradient_fn=private_gradient
    )
    method = fl.fedavg(fl.local_sgd(1.0))
    state = fl.init_state(method, problem.params, 10, jax.random.key(0))
    after, _ = quick_jit(
        lambda s: fl.federated_round(method, training, s, problem.data, fl.uniform_sampler(10, 10))
    )(state)
    moved = float(optax.tree.norm(optax.tree.sub(after.params, state.params)))
    assert 0 < moved <= 4 * clip * (1 + 1e-5)  # 4 steps at rate 1


def test_wrong_use_of_local_steps_is_refused():
    with pytest.raises(ValueError, match=r"SCAFFOLD divides .* got local_optimizer"):
        fl.scaffold(fl.local_optimizer(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="FedCM divides"):
        fl.fedcm(fl.local_optimizer(optax.sgd(0.1)))
    piece = fl.quasi_gradient()
    with pytest.raises(ValueError, match=r"needs the extra argument grad_fn"):
        piece.update(jnp.ones(2), (), jnp.ones(2))
