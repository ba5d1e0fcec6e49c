"""Faults are planted in the library, one at a time: some test of a guarantee must see each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated, privacy
from jaxkit.federated import algorithm
from jaxkit.privacy import batches, clipping, factors, mechanisms, noise, randomness

CLIP, ROWS = 0.7, 4
PARAMS = {
    "table": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
    "w": np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32),
    "b": np.ones(3, np.float32),
}
MOVED = {name: leaf * np.float32(1.1) for name, leaf in PARAMS.items()}
TOKENS = np.array([[0, 1, 1], [2, -1, 3], [1, 1, 1], [4, 0, 2]])
WEIGHT = np.array([1e3, 1e-3, np.nan, 30.0], np.float32)


def loss(params, batch, key):
    h = params["table"][batch[0]] @ params["w"] + params["b"]
    return jnp.mean(batch[1] * jnp.sum(h**2, (1, 2)))


def sums(method, difference=False, mode="flat"):
    """What each row adds alone, with its bound; masks are ones, zeros and copies."""
    gradient = privacy.clipped_grad_sum(loss, CLIP, method=method, mode=mode)

    def one(mask):
        if difference:
            return gradient.difference(PARAMS, MOVED, (TOKENS, WEIGHT), CLIP / 2, None, mask)
        return gradient(PARAMS, (TOKENS, WEIGHT), None, mask)

    found = jax.jit(jax.vmap(one))(
        jnp.concatenate([jnp.eye(ROWS, dtype=int), jnp.zeros((1, ROWS), int)])
    )
    leaves = [
        np.asarray(leaf, np.float64).reshape(ROWS + 1, -1) for leaf in jax.tree.leaves(found.total)
    ]
    return np.concatenate(leaves, 1), np.asarray(found.clip_norm)


def bounded(method="ghost", difference=False, mode="flat"):
    total, bound = sums(method, difference, mode)
    norms = np.linalg.norm(total, axis=1)
    declared = CLIP / 2 if difference else CLIP
    assert np.all(norms <= declared * (1 + 1e-5))  # NaN fails too
    np.testing.assert_allclose(bound, declared, rtol=1e-6)
    assert not total[-1].any()  # masked rows add nothing
    assert not total[2].any()  # nor what is not finite
    assert norms[0] >= 0.95 * declared  # and clipping is no more than was asked


def fresh():
    """Noise of three runs under one source and another, one of them interrupted."""
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x * sum(map(jnp.sum, w))), CLIP)
    params = [jnp.zeros(60), jnp.zeros((6, 10))]
    total = gradient(params, jnp.zeros(ROWS))
    residuals = []
    source = privacy.NoiseSource.from_os()
    for z, origin in ((1.0, source), (2.0, source), (1.0, privacy.NoiseSource.from_os())):
        plan = privacy.dp_sgd(
            gradient, privacy.full_batches(ROWS), 6, delta=1e-3, noise_multiplier=z
        )
        optimizer = plan.optimizer(optax.identity())
        state = optimizer.init(params)
        for step in range(6):
            key = plan.noise_key(origin, step)
            mean, state = optimizer.update(total, state, params, key=key)
            residuals.append(jax.tree.map(lambda leaf, z=z: leaf * ROWS / (z * CLIP), mean))
    assert privacy.audit_noise(jax.tree.map(lambda *x: np.stack(x), *residuals)).passed


def fresh_over_trees():
    """Steps of a tree draw each node once: the prefix sums have the nodes' variance."""
    tree = noise.privatize_tree_sum(1.0, 1, 4, jax.random.key(0))
    none = jnp.zeros((), jnp.int32)
    total = privacy.BoundedSum(jnp.zeros(3000), 1.0, none, none, none, none).sealed()
    state, released = tree.init(None), []
    for _ in range(4):
        mean, state = tree.update(total, state)
        released.append(np.asarray(mean, np.float64))
    prefix = np.cumsum(released, 0)
    np.testing.assert_allclose(
        np.cov(prefix), [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 1]], atol=0.15
    )


def once():
    plan = privacy.dp_sgd(
        privacy.clipped_grad_sum(loss, CLIP), privacy.full_batches(ROWS), 2, delta=1e-3,
        noise_multiplier=1.0,
    )  # fmt: skip
    source = privacy.NoiseSource.from_os()
    plan.noise_key(source, 0)
    with pytest.raises(ValueError, match="another run needs a source of its own"):
        plan.noise_key(source, 0)
    with pytest.raises(ValueError, match="below the 2 steps"):
        plan.noise_key(source, 2)


def only_this_sum():
    gradient = privacy.clipped_grad_sum(lambda w, x, key: jnp.mean(x * w), CLIP)
    plan = privacy.dp_sgd(gradient, privacy.full_batches(4), 2, delta=1e-3, noise_multiplier=1.0)
    optimizer, key = plan.optimizer(optax.identity()), jax.random.key(0)
    total = gradient(jnp.zeros(()), jnp.ones(3))
    with pytest.raises(TypeError, match="sum over the 4 rows"):
        optimizer.update(total, optimizer.init(jnp.zeros(())), key=key)


def sampled():
    """Each example as often as was said, independently, once in a batch, all of it masked right."""
    keys = jax.random.split(jax.random.key(0), 400)
    for sampling in (
        privacy.Sampling("poisson", 50, 10.0, 50), privacy.fixed_sampling(50, 10),
    ):  # fmt: skip
        drawn = jax.jit(jax.vmap(sampling.draw))(keys)
        counts = np.zeros((len(keys), 50))
        for row, (indices, mask) in enumerate(zip(drawn.indices, drawn.mask, strict=True)):
            np.add.at(counts[row], np.asarray(indices)[np.asarray(mask)], 1)
        assert counts.max() == 1
        error = 5 * (0.2 * 0.8 / len(keys)) ** 0.5
        assert np.all(np.abs(counts.mean(0) - 0.2) < error)


def accounted():
    """Against the Gaussian mechanism's exact formula and a recorded sampled one."""
    from scipy import stats

    for neighbours, mu in (("add_or_remove", 3**0.5), ("replace", 2 * 3**0.5)):
        made = privacy.dp_sgd_mechanism(privacy.full_batches(9), 1.0, 3, neighbours=neighbours)
        epsilon = privacy.epsilon_spent(made, 1e-5)
        exact = stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(
            -mu / 2 - epsilon / mu
        )
        assert exact == pytest.approx(1e-5, rel=1e-4)
    library = mechanisms.dp_accounting()
    poisson = privacy.Sampling("poisson", 1000, 10.0, 1000)
    made = privacy.dp_sgd_mechanism(poisson, 1.0, 100)
    event = library.PoissonSampledDpEvent(0.01, library.GaussianDpEvent(1.0))
    direct = library.pld.PLDAccountant().compose(event, 100).get_epsilon(1e-5)
    assert privacy.epsilon_spent(made, 1e-5) == pytest.approx(direct, rel=1e-3)


def clients():
    sampler = federated.uniform_sampler(4, 4)
    method = federated.with_client_privacy(
        federated.fedavg(), sampler, privacy.NoiseSource.from_os(), clip_norm=CLIP,
        noise_multiplier=1.0, num_rounds=1,
    )  # fmt: skip
    delta = {"w": jnp.full(9, 50.0)}
    result = algorithm.LocalResult(delta, {}, jnp.float32(1), delta, jnp.int32(0))
    message, _ = method.report({}, {}, result)
    assert float(optax.tree.norm(message)) <= CLIP * (1 + 1e-5)
    zeros = jax.tree.map(jnp.zeros_like, message)
    keys = jax.random.split(jax.random.key(0), 60)
    means = [method.aggregate(zeros, jnp.float32(1), key).mean for key in keys]
    draws = np.stack([mean["delta"]["w"] for mean in means])
    assert privacy.audit_noise(draws * 4 / CLIP).passed


SCALES, BOUND, DRAW = clipping.clip_scales, clipping.bound_leaves, noise.gaussian_draw
KEY_DATA, EVENT, BATCH = randomness.NoiseSource.key_data, mechanisms._event, batches.poisson_batch
SUM, DIFFERENCE = privacy.ClippedGradient.__call__, privacy.ClippedGradient.difference


def each_array_alone(norms, clip_norm, mode):
    found = [BOUND([norm], clip_norm, mode) for norm in norms]
    return found[0]._replace(scales=[f.scales[0] for f in found])


def with_bound(self, *args, **kwargs):
    found = SUM(self, *args, **kwargs)
    return dataclasses.replace(found, clip_norm=found.clip_norm / 2).sealed()


def same_for_arrays(key, index, like):
    key = jax.random.fold_in(key, index)
    return jax.tree.map(lambda leaf: jax.random.normal(key, (leaf.size,)).reshape(leaf.shape), like)


def derived(change):
    """Keys of another purpose, run or step than was asked for, past the ledger."""

    def key_data(self, purpose, run, step):
        digest = self._digest("\0".join(map(str, change(purpose, run, step))))
        return np.frombuffer(digest[:8], np.uint32).copy()

    return key_data


def public(self, purpose, run, step):
    return np.asarray([0, step], np.uint32)


def joined(arrays):
    return jnp.abs(jnp.concatenate([array.ravel() for array in arrays]))


MODULE = {
    "clip": clipping, "noise": noise, "source": randomness.NoiseSource, "mechanisms": mechanisms,
    "sum": privacy.ClippedGradient, "batches": batches, "factors": factors,
    "outer": factors.OuterProducts, "privacy": privacy, "plan": privacy.PrivacyPlan,
    "sampling": privacy.Sampling,
}  # fmt: skip

FAULTS = {
    "nothing is clipped": (
        "clip",
        "clip_scales",
        lambda n, c, mode="flat": jnp.ones_like(n),
        bounded,
    ),
    "clipped at twice the bound": (
        "clip",
        "clip_scales",
        lambda n, c, mode="flat": SCALES(n, 2 * c, mode),
        bounded,
    ),
    "each array clipped alone": ("clip", "bound_leaves", each_array_alone, bounded),
    "the largest entry for a norm": ("clip", "norm_bound", lambda *x: joined(x).max(), bounded),
    "the mean square for a norm": (
        "clip",
        "norm_bound",
        lambda *x: jnp.sqrt(jnp.mean(joined(x) ** 2)),
        lambda: bounded("vmap"),
    ),
    "a norm over the wrong axis": (
        "clip",
        "norm_bound",
        lambda *x: jnp.linalg.norm(joined([each[..., 0] for each in x])),
        lambda: bounded("vmap"),
    ),
    "the largest array for all": (
        "clip",
        "joint_norm",
        lambda norms: jnp.max(jnp.stack(norms), 0),
        bounded,
    ),
    "positions forgotten in a product": (
        "outer",
        "norms",
        lambda self, direct=False: jax.vmap(factors._direct_norm)(
            self.inputs[:, :1], self.deltas[:, :1]
        ),
        bounded,
    ),
    "squares of positions without cross terms": (
        "factors",
        "_lookup_norm",
        lambda rows, d: jnp.sqrt(jnp.sum(d**2)),
        bounded,
    ),
    "what is not finite is kept": ("clip", "finite_entries", lambda leaf: leaf, bounded),
    "the mask is ignored": (
        "sum",
        "__call__",
        lambda self, p, b, k=None, m=None: SUM(self, p, b, k, None),
        bounded,
    ),
    "the sum says half its bound": ("sum", "__call__", with_bound, bounded),
    "differences at another bound": (
        "sum",
        "difference",
        lambda self, p, v, b, c, k=None, m=None: DIFFERENCE(self, p, v, b, 8 * c, k, m),
        lambda: bounded("ghost", True),
    ),
    "automatic clipping scales by the bound": (
        "clip",
        "clip_scales",
        lambda n, c, mode="flat": c * jnp.ones_like(n),
        lambda: bounded("ghost", False, "automatic"),
    ),
    "half the noise": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: optax.tree.scale(0.5, DRAW(k, i, t)),
        fresh,
    ),
    "noise divided by the devices": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: optax.tree.scale(8**-0.5, DRAW(k, i, t)),
        fresh,
    ),
    "noise twice": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: optax.tree.add(DRAW(k, i, t), DRAW(k, i + 99, t)),
        fresh,
    ),
    "one draw for all arrays": ("noise", "gaussian_draw", same_for_arrays, fresh),
    "noise follows another bound": ("sum", "__call__", with_bound, fresh),
    "one key for all steps": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: DRAW(jax.random.key(1), 0, t),
        fresh,
    ),
    "a key again after three steps": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: DRAW(jax.random.key(1), i % 3, t),
        fresh,
    ),
    "one key for two plans": ("source", "key_data", derived(lambda p, r, s: (p, s)), fresh),
    "keys from a public number": ("source", "key_data", public, fresh),
    "a key given twice": ("source", "key_data", derived(lambda *parts: parts), once),
    "steps beyond the plan": ("plan", "_planned", lambda self, step: step, once),
    "nodes of a tree share a draw": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: DRAW(jax.random.key(1), 0, t),
        fresh_over_trees,
    ),
    "a larger rate than was said": (
        "batches",
        "poisson_batch",
        lambda k, n, p, m: BATCH(k, n, 1.5 * p, m),
        sampled,
    ),
    "a batch that is always the same": (
        "batches",
        "poisson_batch",
        lambda k, n, p, m: BATCH(jax.random.key(0), n, p, m),
        sampled,
    ),
    "examples twice in a batch": (
        "batches",
        "fixed_batch",
        lambda k, n, b: batches.Batch(
            jax.random.randint(k, (b,), 0, n), jnp.ones(b, bool), jnp.zeros((), bool)
        ),
        sampled,
    ),
    "padding counted as examples": (
        "batches",
        "poisson_batch",
        lambda k, n, p, m: BATCH(k, n, p, m)._replace(mask=jnp.ones(m, bool)),
        sampled,
    ),
    "replacing costs as little as adding": (
        "privacy",
        "dp_sgd_mechanism",
        lambda s, z, n, neighbours=None: mechanisms.dp_sgd_mechanism(s, z, n),
        accounted,
    ),
    "amplified twice": (
        "mechanisms",
        "_event",
        lambda lib, s, z: (
            EVENT(lib, s._replace(expected_size=s.expected_size * s.rate), z)
            if s.kind == "poisson"
            else EVENT(lib, s, z)
        ),
        accounted,
    ),
    "clients are not clipped": (
        "privacy",
        "clip_per_example",
        lambda g, c: clipping.ClippedExamples(g, *[None] * 3),
        clients,
    ),
    "clients draw the same noise": (
        "noise",
        "gaussian_draw",
        lambda k, i, t: DRAW(jax.random.key(1), 0, t),
        clients,
    ),
    "sums of other batches are taken": (
        "plan",
        "optimizer",
        lambda self, o: noise.privatize_sum(1.0, 4),
        only_this_sum,
    ),
}
GUARANTEES = {
    "ghost": bounded, "vmap": lambda: bounded("vmap"),
    "differences": lambda: bounded("ghost", True),
    "automatic": lambda: bounded("ghost", False, "automatic"), "noise": fresh,
    "trees": fresh_over_trees, "keys": once, "sums": only_this_sum, "batches": sampled,
    "epsilon": accounted, "clients": clients,
}  # fmt: skip


@pytest.mark.parametrize("name", GUARANTEES)
def test_a_guarantee_holds(name):
    GUARANTEES[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name, monkeypatch):
    where, what, fault, guarantee = FAULTS[name]
    monkeypatch.setattr(MODULE[where], what, fault)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        guarantee()
