"""Prompts: what an image gets, what a step changes, a stream of digits."""

import dataclasses
import itertools
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from jaxkit import continual, datasets, models
from jaxkit.continual import prompts, prototypes
from jaxkit.datasets import ArraySplit

MODEL = models.VisionTransformer(8, 4, 1, width=16, depth=2, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module")
def backbone(random_backbone):
    """Random weights of moderate size."""
    return random_backbone(MODEL)


@pytest.fixture(scope="module")
def stream():
    """Digits 0 and 1, then 2 and 3."""
    digits = datasets.load_digits()

    def few(images, labels, count):
        rows = np.flatnonzero(np.asarray(labels) < 4)[:count]
        return images[rows], np.asarray(labels)[rows]

    train = few(digits.train_inputs, digits.train_labels, 300)
    test = few(digits.test_inputs, digits.test_labels, 120)
    return continual.class_incremental_stream(ArraySplit(*train, *test), 2)


METHODS = {
    "l2p": continual.L2P(pool_size=6, prompt_length=2, num_chosen=2),
    "dual": continual.DualPrompt(
        2, general_length=2, expert_length=3, general_blocks=(0,), expert_blocks=(1,)
    ),
    "coda": continual.CODAPrompt(2, num_components=6, prompt_length=4, blocks=(0, 1)),
}


@pytest.fixture(scope="module")
def learner(backbone):
    """`learner(name)`: a method with a few prompts."""
    made = {
        name: continual.PromptLearner(
            MODEL, backbone, 4, method, learning_rate=0.03, num_epochs=12, batch_size=16,
            scan_batch_size=16, steps_per_call=7,
        )
        for name, method in METHODS.items()
    }  # fmt: skip
    return made.get


@pytest.fixture(scope="module")
def whole(learner, stream):
    """The runs that nobody interrupts."""
    return {name: continual.run_stream(learner(name), stream, seed=3) for name in METHODS}


def rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def images(stream):
    return jnp.asarray(stream.tasks[0].train_images[:3])


@pytest.fixture(scope="module")
def queries(backbone, images):
    """Features by the bare backbone."""
    return prototypes.FrozenFeatures(MODEL, backbone, 3)(np.asarray(images))


def forward(backbone, images, prefixes):
    """The class token of a forward pass in NumPy, blocks attending to prefixes too."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), nn.meta.unbox(backbone)["params"])

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
        )

    def gelu(x):
        return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))

    x = np.asarray(MODEL.apply(backbone, images, method="embed"), np.float64)
    for i in range(MODEL.depth):
        p = params[f"block_{i}"]
        y, attn = norm(x, p["norm1"]), p["attn"]
        q, k, v = (
            np.einsum("bnd,dhe->bnhe", y, attn[name]["kernel"]) + attn[name]["bias"]
            for name in ("query", "key", "value")
        )
        if i in prefixes:
            before = (np.reshape(z, (len(x), -1, 2, 8)) for z in prefixes[i])
            k, v = (np.concatenate(pair, 1) for pair in zip(before, (k, v), strict=True))
        scores = np.einsum("bnhe,bmhe->bhnm", q, k) / np.sqrt(8)
        weights = scipy.special.softmax(scores, axis=-1)
        mixed = np.einsum("bhnm,bmhe->bnhe", weights, v)
        x = x + np.einsum("bnhe,hed->bnd", mixed, attn["out"]["kernel"]) + attn["out"]["bias"]
        y = norm(x, p["norm2"]) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
        x = x + gelu(y) @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]
    return norm(x, params["norm"])[:, 0]


def call(method, backbone, params, images, num_tasks, training):
    run = jax.jit(method.features, static_argnums=(0, 5))
    return run(MODEL, backbone, params, images, jnp.int32(num_tasks), training)


@pytest.mark.slow
def test_l2p_takes_the_prompts_whose_keys_point_an_images_way(backbone, images, queries):
    method = METHODS["l2p"]
    pool = method.init(jax.random.key(0), MODEL)
    cosines = rows(queries) @ rows(np.asarray(pool.keys)).T
    chosen = np.argsort(-cosines, axis=1)[:, :2]
    tokens = MODEL.apply(backbone, images, method="embed")
    joined = jnp.concatenate([pool.prompts[chosen].reshape(3, 4, MODEL.width), tokens], 1)
    ends = MODEL.apply(backbone, MODEL.apply(backbone, joined, method="encode")[0], method="finish")
    features, penalty = call(method, backbone, pool, images, 1, True)
    np.testing.assert_allclose(features, np.asarray(ends)[:, :4].mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(penalty, np.sort(cosines, 1)[:, -2:].sum(1) * -0.5, rtol=1e-4)


@pytest.mark.slow
def test_dual_prompt_trains_the_tasks_prefix_and_tests_with_the_nearest(backbone, images, queries):
    method = METHODS["dual"]
    params = method.init(jax.random.key(0), MODEL)
    cosines = rows(queries) @ rows(np.asarray(params.keys)).T
    general = [np.broadcast_to(half, (3, 2, 16)) for half in params.general[0]]
    for training, num_tasks in ((True, 1), (True, 2), (False, 2), (False, 1)):
        task = np.full(3, num_tasks - 1) if training else cosines[:, :num_tasks].argmax(1)
        expert = np.asarray(params.expert)[task, 0]
        expected = forward(backbone, images, {0: general, 1: (expert[:, 0], expert[:, 1])})
        features, penalty = call(method, backbone, params, images, num_tasks, training)
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(penalty, -cosines[np.arange(3), task], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_coda_prompt_sums_its_components_by_attention(backbone, images, queries):
    method = METHODS["coda"]
    params = method.begin(method.init(jax.random.key(0), MODEL), 0)
    for num_tasks in (1, 2):
        used, prefixes, penalty = 3 * num_tasks, {}, 0.0
        for e in range(2):
            p, k, a = (np.asarray(x, np.float64)[e, :used] for x in params)
            alpha = np.sum(rows(queries[:, None] * a) * rows(k), axis=2)
            prompts = np.einsum("bm,mld->bld", alpha, p)
            prefixes[e] = prompts[:, :2], prompts[:, 2:]
            for x in (p.reshape(used, -1), k, a):
                penalty += 0.1 * np.mean((x @ x.T - np.eye(used)) ** 2)
        features, found = call(method, backbone, params, images, num_tasks, True)
        np.testing.assert_allclose(
            features, forward(backbone, images, prefixes), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(found, penalty, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_new_components_are_orthogonal_and_older_ones_stay_to_the_bit(learner, stream, whole):
    first = learner("coda")
    after_one = continual.run_stream(
        first, dataclasses.replace(stream, tasks=stream.tasks[:1]), seed=3
    )
    old, new = after_one.state.params[0], whole["coda"].state.params[0]
    for one, two in zip(old, new, strict=True):
        np.testing.assert_array_equal(one[:, :3], two[:, :3])
        assert np.any(one[:, 3:] != two[:, 3:])
    begun = METHODS["coda"].begin(old, 1)
    for leaf in begun:
        flat = np.asarray(leaf).reshape(2, 6, -1)
        for block in flat:
            np.testing.assert_allclose(block[3:] @ block[3:].T, np.eye(3), atol=1e-5)
            np.testing.assert_allclose(block[3:] @ rows(block[:3]).T, 0, atol=1e-5)


def test_dual_prompt_leaves_the_prefixes_of_other_tasks_to_the_bit(learner, stream, whole):
    one_task = dataclasses.replace(stream, tasks=stream.tasks[:1])
    before = learner("dual").init(3).params[0]
    between = continual.run_stream(learner("dual"), one_task, seed=3).state.params[0]
    after = whole["dual"].state.params[0]
    for name in ("expert", "keys"):
        one, two, three = (np.asarray(getattr(x, name)) for x in (before, between, after))
        np.testing.assert_array_equal(one[1], two[1])
        np.testing.assert_array_equal(two[0], three[0])
        assert np.any(one[0] != two[0])
        assert np.any(two[1] != three[1])


def test_a_step_leaves_prompts_that_no_image_chose_to_the_bit(learner, stream, backbone):
    before = learner("l2p").init(5)
    (phase,) = learner("l2p").phases(stream, 0, 5)
    after, *_ = phase.run(before, 0, 1)
    queries = prototypes.FrozenFeatures(MODEL, backbone, 16)(stream.tasks[0].train_images)
    nearest = prompts.cosines(jnp.asarray(queries), before.params[0].keys).argsort(1)[:, -2:]
    never = ~np.isin(np.arange(6), nearest)
    assert 0 < never.sum() < 5
    for old, new in zip(before.params[0], after.params[0], strict=True):
        np.testing.assert_array_equal(old[never], new[never])
        assert np.any(old != new)


@pytest.mark.parametrize("name", METHODS)
def test_prompts_learn_a_stream_with_one_compilation(learner, whole, name):
    assert isinstance(learner(name), continual.Learner)
    assert whole[name].accuracy[0, 0] > 0.85
    assert np.isfinite(whole[name].accuracy[np.triu_indices(2)]).all()
    before = prompts._train._cache_size(), prompts._predict._cache_size()
    learner(name).predict(whole[name].state, np.zeros((5, 8, 8, 1), np.float32))
    assert (prompts._train._cache_size(), prompts._predict._cache_size()) == before


@pytest.mark.slow
def test_a_killed_run_of_prompts_resumes_to_the_same_bits(learner, whole, stream, tmp_path):
    """Of CODA-Prompt, the one whose prompts change when a task begins."""
    name = "coda"
    options = {"seed": 3, "folder": tmp_path / "run", "checkpoint_every": 40}
    asked = itertools.count()

    def stop(task, piece):
        if next(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = continual.run_stream(learner(name), stream, on_advance=stop, **options)
    assert not stopped.finished
    resumed = continual.run_stream(learner(name), stream, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole[name].state)
    np.testing.assert_array_equal(resumed.accuracy, whole[name].accuracy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: continual.L2P(num_chosen=11), "num_chosen must be at most pool_size=10, got 11"),
        (lambda: continual.L2P(prompt_length=0), "prompt_length"),
        (lambda: continual.L2P(pull=-1.0), "pull"),
        (lambda: continual.DualPrompt(0), "num_tasks"),
        (lambda: continual.DualPrompt(2).init(jax.random.key(0), MODEL), "blocks must be.*0 to 1"),
        (lambda: METHODS["dual"].begin(METHODS["dual"].init(jax.random.key(0), MODEL), 2),
         "num_tasks must be at least.*got 2"),
        (lambda: continual.CODAPrompt(3, num_components=100), "num_components must be a multiple"),
        (lambda: continual.CODAPrompt(2, prompt_length=3), "prompt_length must be a multiple of 2"),
        (lambda: continual.CODAPrompt(2, blocks=(0,)).init(jax.random.key(0), MODEL), "width 16"),
        (lambda: continual.PromptLearner(MODEL, {}, 4, continual.L2P(), learning_rate=np.nan),
         "learning_rate"),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
