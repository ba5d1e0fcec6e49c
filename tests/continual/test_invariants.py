"""What must hold whatever the numbers are."""

import contextlib
import dataclasses
import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from jaxkit import continual, models
from jaxkit.continual import adapters, batches, descriptors, sema, sema_programs, sema_task

MODEL = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
_z = jax.jit(descriptors.z_scores)
_record = jax.jit(descriptors.record_errors)
CONFIG = continual.SEMAConfig(MODEL, 3, 2, 2, 0, 0, capacity=2)


@pytest.fixture(scope="module")
def layer():
    """Random adapters and a router of 3 slots, pooled features and a residual stream."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    made = adapters.Adapter(draw(3, 8, 2), draw(3, 2), draw(3, 2, 8), draw(3, 8))
    return made, adapters.Router(draw(8, 3), draw(3)), draw(5, 4, 8)


@functools.partial(jax.jit, static_argnames="routing")
def mixed(stack, router, x, active, key, routing="soft"):
    pooled = x.mean(1)
    errors = jnp.abs(pooled[:, :1] * jnp.array([1.0, 0.5, 2.0])).T
    weights = adapters.router_weights(
        router, pooled, active, routing=routing, errors=errors, key=key
    )
    return weights, adapters.mixture_of_adapters(stack, x, weights)


def test_an_added_adapter_keeps_the_ratios_of_the_old_weights(layer):
    stack, router, x = layer
    before, _ = mixed(stack, router, x, jnp.array([True, True, False]), jax.random.key(0))
    after, _ = mixed(stack, router, x, jnp.array([True, True, True]), jax.random.key(0))
    np.testing.assert_allclose(after[:, 0] / after[:, 1], before[:, 0] / before[:, 1], rtol=1e-5)
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("routing", adapters.ROUTINGS)
def test_every_routing_weighs_active_slots_only(layer, routing):
    stack, router, x = layer
    active = jnp.array([True, True, False])
    weights, _ = mixed(stack, router, x, active, jax.random.key(0), routing=routing)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert np.all(weights[:, 2] == 0)
    expected = {
        "average": lambda: np.full((5, 2), 0.5),
        "top1": lambda: np.eye(2)[np.argmax((x.mean(1) @ router.kernel + router.bias)[:, :2], 1)],
        "descriptor": lambda: np.eye(2)[np.ones(5, int)],
    }
    if routing in expected:
        np.testing.assert_allclose(weights[:, :2], expected[routing](), rtol=1e-6)
    if routing == "random_choice":
        assert set(np.unique(weights)) == {0.0, 1.0}


def test_the_order_of_samples_does_not_matter(layer):
    stack, router, x = layer
    active, order = jnp.ones(3, bool), jnp.array([3, 1, 4, 0, 2])
    _, one = mixed(stack, router, x, active, jax.random.key(0))
    _, other = mixed(stack, router, x[order], active, jax.random.key(0))
    np.testing.assert_allclose(one[order], other, atol=1e-6)


@pytest.mark.slow
def test_capacity_does_not_change_results_and_garbage_cannot_leak():
    """Three of four slots hold NaN: forward pass and gradient equal those of exactly one slot."""
    key = jax.random.key(0)
    exact = continual.SEMAConfig(MODEL, 4, 2, 3, 0, 0, capacity=1, buffer_size=6)
    small = continual.init_sema(key, exact)
    small = small._replace(
        params=jax.tree.map(lambda x: x + 0.1, small.params),
        records=small.records._replace(
            values=small.records.values + jnp.arange(6.0), count=small.records.count + 6
        ),
    )
    larger = dataclasses.replace(exact, capacity=4)
    empty = jax.tree.map(lambda x: 0 * x, continual.init_sema(key, larger))
    grown = jax.tree.map(lambda a, b: a.at[tuple(map(slice, b.shape))].set(b), empty, small)
    active = continual.active_slots(grown)

    def spoil(leaf):
        mask = active.reshape(*active.shape, *(1,) * (leaf.ndim - 2))
        return jnp.where(mask, leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    router = grown.params.router
    spoilt = grown._replace(
        params=grown.params._replace(
            adapters=jax.tree.map(spoil, grown.params.adapters),
            router=adapters.Router(
                jnp.where(active[:, None], router.kernel, jnp.nan), spoil(router.bias)
            ),
        ),
        descriptors=jax.tree.map(spoil, grown.descriptors),
        records=jax.tree.map(spoil, grown.records),
    )
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    backbone = _backbone()

    def evaluate(config):
        def loss(params, state):
            seen = continual.adapted_forward(
                config, backbone, state._replace(params=params), images
            )
            scores = continual.expansion_scores(config, state, seen.pooled, 3)
            return seen.features.sum(), (seen.features, scores)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    (_, wanted), gradient = evaluate(exact)(small.params, small)
    (_, found), spoilt_gradient = evaluate(larger)(spoilt.params, spoilt)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    kept = jax.tree.map(lambda a: a[:, :1], spoilt_gradient.adapters)
    for a, b in zip(kept, gradient.adapters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(np.all(a[:, 1:] == 0) for a in spoilt_gradient.adapters)


@functools.cache
def _backbone():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    shapes = nn.meta.unbox(shapes)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def test_a_fresh_adapter_moves_a_block_only_through_the_router():
    state = continual.init_sema(jax.random.key(0), CONFIG)
    grown = continual.add_adapter(jax.random.key(1), CONFIG, state, 0)
    assert grown.num_active.tolist() == [2]
    fresh = jax.tree.map(lambda x: x[0, 1], grown.params.adapters)
    assert np.all(adapters.functional_adapter(fresh, jnp.ones((2, 8))) == 0)
    old = jax.tree.map(lambda x: x[:, :1], (state.params.adapters, state.descriptors))
    new = jax.tree.map(lambda x: x[:, :1], (grown.params.adapters, grown.descriptors))
    assert jax.tree.all(jax.tree.map(np.array_equal, old, new))
    np.testing.assert_array_equal(
        state.params.router.kernel[..., 0], grown.params.router.kernel[..., 0]
    )


def test_no_descriptor_beats_principal_components():
    """With m codes the error is at least the sum of the d - m smallest eigenvalues over d."""
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(64, 8)) * np.linspace(0.2, 1.5, 8)
    centred = pooled - pooled.mean(0)
    values, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
    best = descriptors.Descriptor(
        vectors[:, -3:], -pooled.mean(0) @ vectors[:, -3:], vectors[:, -3:].T, pooled.mean(0)
    )
    bound = values[:-3].sum() / 8
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (best, pooled))

    def loss(descriptor):
        return descriptors.representation_error(descriptor, arrays[1]).mean()

    assert float(loss(arrays[0])) == pytest.approx(bound, rel=1e-5)
    rule = optax.sgd(0.3, momentum=0.9)

    @jax.jit
    def train(descriptor):
        def step(carry, _):
            descriptor, state = carry
            value, gradient = jax.value_and_grad(loss)(descriptor)
            updates, state = rule.update(gradient, state)
            return (optax.apply_updates(descriptor, updates), state), value

        return jax.lax.scan(step, (descriptor, rule.init(descriptor)), length=600)[1]

    losses = train(descriptors.init_descriptor(jax.random.key(0), 8, 3))
    assert losses.min() >= bound - 1e-6
    assert float(losses[-1]) == pytest.approx(bound, rel=0.02)


@hypothesis.given(
    st.lists(st.floats(0.1, 3), min_size=3, max_size=6),
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
def test_z_scores_do_not_depend_on_the_unit_of_errors(history, scale, shift):
    if np.std(history) < 0.05:
        return
    padded = np.zeros(6, np.float32)
    padded[: len(history)] = history
    query = jnp.array([0.5, 1.0, 2.0])

    def z(values, query):
        return _z(descriptors.ErrorRecords(jnp.asarray(values), jnp.asarray(len(history))), query)

    np.testing.assert_allclose(
        z(scale * padded + np.float32(shift), scale * query + shift), z(padded, query),
        rtol=5e-3, atol=5e-3,
    )  # fmt: skip


def test_familiar_errors_score_about_four_fifths():
    rng = np.random.default_rng(0)
    records = _record(descriptors.empty_records(500), jnp.asarray(rng.normal(size=500) + 5), 500)
    scores = _z(records, jnp.asarray(rng.normal(size=2000) + 5))
    assert float(jnp.abs(scores).mean()) == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)


def test_equal_errors_on_record_make_any_other_error_infinitely_strange():
    records = _record(descriptors.empty_records(3), jnp.ones(3), 3)
    assert _z(records, jnp.array([1.0, 2.0, 0.5])).tolist() == [0, np.inf, -np.inf]


@hypothesis.given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(0, 99))
def test_records_equal_a_list_that_follows_the_official_rules(sizes, seed):
    rng = np.random.default_rng(seed)
    kept, records = [], descriptors.empty_records(5)
    for size in sizes:
        errors = rng.random(7).astype(np.float32)
        new = errors[:size].tolist()
        kept = (kept + new)[-5:] if len(kept) == 5 else kept + new[: 5 - len(kept)]
        records = _record(records, jnp.asarray(errors), size)
    np.testing.assert_array_equal(records.values[: int(records.count)], kept)
    assert int(records.count) == len(kept)


def test_another_descriptor_never_raises_the_score():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)) * 3)
    for rule in descriptors.SHIFT_RULES:
        two = descriptors.shift_score(z, jnp.array([True, True, False]), 6, rule)
        three = descriptors.shift_score(z, jnp.array([True, True, True]), 6, rule)
        assert three <= two


def test_padding_does_not_count_in_scores():
    z = jnp.array([[1.0, -1.0, 99.0]])
    for rule, expected in (("batch_mean_abs", 1.0), ("signed_any_sample", 1.0)):
        assert float(descriptors.shift_score(z, jnp.array([True]), 2, rule)) == expected


def walk(score, threshold, blocks=2, batches=3):
    """The method's own loop, on scores and phases that are given instead of computed."""
    config = dataclasses.replace(CONFIG, threshold=threshold)
    added = []

    class Given:
        is_first = False

        def scan(self, number, batch, closed):
            for b in range(batch, batches):
                block = sema_task.growing_block(config, score(b, added), closed)
                if block is not None:
                    return {"block": block, "batch": b}
            return {"block": None}

        def grow(self, block, found):
            added.append((block, found["batch"]))

        def train(self, blocks):
            trained.append(blocks)

        def describe(self, blocks):
            assert blocks == trained[-1]

    trained, given = [], Given()
    config = dataclasses.replace(
        config, model=dataclasses.replace(MODEL, depth=blocks), expand_to=blocks - 1
    )
    given.blocks = list(range(blocks))
    phases = sema.grow_on_shift(given)
    event = None
    with contextlib.suppress(StopIteration):
        while True:
            event = phases.send(event)
    assert trained == ([[block] for block, _ in added] or [[]])
    return added


@pytest.mark.parametrize(
    ("hot", "expected"),
    [
        ({(0, 1), (2, 0)}, [(1, 0), (0, 2)]),  # deep at batch 0, shallow at batch 2: deep first
        ({(1, 0), (1, 1)}, [(0, 1), (1, 1)]),  # one batch: shallow, and deep in the next pass
        ({(0, 0), (1, 0), (2, 0)}, [(0, 0)]),  # a block grows once a task
        (set(), []),
    ],
)
def test_blocks_grow_in_the_official_order(hot, expected):
    def score(batch, added):
        return [2.0 if (batch, block) in hot else 0.5 for block in range(2)]

    assert walk(score, 1.0) == expected


def test_higher_thresholds_grow_fewer_blocks_and_infinity_none():
    scores = np.random.default_rng(0).random((4, 3)) * 3
    counts = [
        len(walk(lambda b, added: scores[b].tolist(), t, 3, 4)) for t in (0, 1, 2, 2.9, np.inf)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 3
    assert counts[-1] == 0


def test_a_score_that_is_no_number_raises_instead_of_never_growing_again():
    with pytest.raises(FloatingPointError, match="must be numbers"):
        sema_task.growing_block(CONFIG, [np.nan], ())


def test_frozen_entries_stand_still_under_momentum_and_weight_decay():
    rule = sema_programs.sgd(dataclasses.replace(CONFIG, weight_decay=0.1))
    params, mask = {"w": jnp.ones(3)}, {"w": jnp.array([True, False, True])}
    state = rule.init(params)
    for _ in range(3):
        updates, state = rule.update({"w": jnp.ones(3)}, state, params, trainable=mask)
        params = optax.apply_updates(params, optax.tree.scale(-0.1, updates))
    assert params["w"][1] == 1
    assert np.all(params["w"][jnp.array([0, 2])] < 0.5)


def test_a_step_in_parts_is_the_step_of_the_whole_batch():
    """One image at a time is in memory; of the batch's four three count."""
    rng = np.random.default_rng(0)
    steps = batches.StepBatches(
        rng.random((2, 4, 8, 8, 1), np.float32), rng.integers(0, 3, (2, 4)).astype(np.int32),
        np.full(2, 3, np.int32), np.full(2, 0.5, np.float32), np.arange(2, dtype=np.int32),
        np.int32(2),
    )  # fmt: skip
    trainable = sema_programs.Trainable(np.array(True), np.ones(1, bool))
    key = jax.random.key(0)

    def learnt(config):
        learning = sema_programs.begin_phase(config, continual.init_sema(key, config))
        learning, losses = sema_programs.train_steps(
            config, "images", _backbone(), learning, trainable, np.ones(3, bool), steps, key
        )
        seen = sema_programs.predict_images(
            config, _backbone(), learning.sema, steps.inputs[0], key
        )
        return learning, losses, seen

    whole, parts = learnt(CONFIG), learnt(dataclasses.replace(CONFIG, activation_bytes=1))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, parts, whole)
    assert whole[0].sema.records.count[0, 0] == 6


def test_unequal_test_sets_separate_the_two_averages():
    accuracy = np.array([[1.0, 0.5], [0.0, 1.0]])
    assert continual.average_accuracy(accuracy) == 0.75
    np.testing.assert_allclose(
        continual.pooled_accuracies(accuracy, np.array([300, 100])), [1.0, 0.625]
    )
    assert continual.backward_transfer(accuracy) == -0.5
    constant = np.triu(np.full((4, 4), 0.7))
    assert continual.forgetting(constant) == 0
