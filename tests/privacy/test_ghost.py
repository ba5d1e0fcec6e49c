"""Ghost clipping against per-example gradients by torch and by vmap."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import privacy
from jaxkit.privacy import factors


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(jnp.tanh(nn.Dense(5, name="first")(x)))


class Transformer(nn.Module):
    """Token and position tables, attention, norms, an MLP, tied to nothing."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8, deterministic=True)(h, h)
        x = x + nn.Dense(8)(nn.relu(nn.Dense(6, use_bias=False)(nn.RMSNorm()(x))))
        return nn.Dense(11)(x)


def classification_losses(apply, batch, key):
    del key
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch[0]), batch[1])


def next_token_losses(apply, batch, key):
    del key
    logits = apply(batch[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
    return jnp.mean(losses, axis=1)


def mean_loss(model, losses_fn):
    def loss(params, batch, key):
        apply = lambda *args: model.apply({"params": params}, *args)  # noqa: E731
        return jnp.mean(losses_fn(apply, batch, key))

    return loss


def perceptron_params(leaves):
    w1, b1, w2, b2 = (jnp.asarray(leaf, jnp.float32) for leaf in leaves)
    return {"first": {"kernel": w1, "bias": b1}, "second": {"kernel": w2, "bias": b2}}


def test_ghost_sums_equal_recorded_torch_gradients(vectors, close):
    case = vectors["mlp_per_example"]
    params, previous = (perceptron_params(case[name]) for name in ("params", "prev_params"))
    batch = (jnp.asarray(case["x"], jnp.float32), jnp.asarray(case["y"]))

    @jax.jit
    def sums(params, previous, clip, bound):
        gradient = privacy.ghost_clipped_grad_sum(Perceptron(), classification_losses, clip)
        return gradient(params, batch), gradient.difference(params, previous, batch, bound)

    bound = case["clip2"] * case["param_distance"]
    clipped, difference = sums(params, previous, case["clip1"], bound)
    recorded = (case["clipped_grad_sum"], case["clipped_diff_sum_at_clip2_times_distance"])
    for measured, leaves in zip((clipped, difference), recorded, strict=True):
        expected = perceptron_params(leaves)
        jax.tree.map(close, measured.total, expected)
    for found, norms, limit in (
        (clipped, case["grad_norms"], case["clip1"]),
        (difference, case["diff_norms"], bound),
    ):
        # The recorded limit is one example's own norm: rounding decides about that one.
        near = np.isclose(norms, limit, rtol=1e-5)
        certain = np.sum((np.asarray(norms) > limit) & ~near)
        assert certain <= int(found.clipped) <= certain + near.sum()
        assert near.sum() <= 1
    # A sum of one row at a vanishing clip norm has that norm: ghost norms are the recorded ones.
    rows = jnp.eye(6, dtype=jnp.int32)

    @jax.jit
    @jax.vmap
    def norms(mask):
        gradient = privacy.ghost_clipped_grad_sum(Perceptron(), classification_losses, 1e6)
        here = gradient(params, batch, None, mask).total
        change = gradient.difference(params, previous, batch, 1e6, None, mask).total
        return optax.tree.norm(here), optax.tree.norm(change)

    close(norms(rows)[0], case["grad_norms"])
    close(norms(rows)[1], case["diff_norms"])


@pytest.fixture(scope="module")
def transformer():
    model = Transformer()
    random = np.random.default_rng(0)
    tokens = random.integers(0, 11, (5, 6)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens[:, :-1])["params"]
    draw = lambda scale: jax.tree.map(  # noqa: E731
        lambda leaf: np.float32(scale * random.normal(size=leaf.shape)), shapes
    )
    params = draw(0.4)
    return model, tokens, params, jax.tree.map(np.add, params, draw(0.01))


@pytest.mark.slow  # compilation
def test_ghost_clipping_of_a_transformer_equals_vmap(transformer):
    model, tokens, params, moved = transformer
    mask = jnp.array([True, True, False, True, True])

    @jax.jit
    def both(clip, bound):
        ghost = privacy.ghost_clipped_grad_sum(model, next_token_losses, clip)
        plain = privacy.clipped_grad_sum(mean_loss(model, next_token_losses), clip)
        return [
            (g(params, tokens, None, mask), g.difference(moved, params, tokens, bound, None, mask))
            for g in (ghost, plain)
        ]

    ghost, plain = both(1.0, 0.05)
    for here, there in zip(ghost, plain, strict=True):
        assert 0 < int(there.clipped) <= 4
        assert int(here.clipped) == int(there.clipped)
        assert int(here.count) == 4
        np.testing.assert_allclose(here.loss, there.loss, rtol=1e-5)
        scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(there.total))
        for a, b in zip(*map(jax.tree.leaves, (here.total, there.total)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * scale)


class Tagger(nn.Module):
    """Sequences: a table, a norm, heads that share one kernel, and their joining."""

    @nn.compact
    def __call__(self, tokens):
        heads = nn.DenseGeneral((2, 3))(nn.LayerNorm()(nn.Embed(4, 4)(tokens)))
        return nn.DenseGeneral(1, axis=(-2, -1), use_bias=False)(jnp.sin(heads))


def test_ghost_clipping_of_sequences_equals_vmap():
    model, random = Tagger(), np.random.default_rng(3)
    tokens = random.integers(0, 4, (3, 4)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params, moved = (
        jax.tree.map(lambda leaf: np.float32(random.normal(size=leaf.shape)), shapes)
        for _ in range(2)
    )
    losses = lambda apply, batch, key: jnp.sum(jnp.square(apply(batch)), (1, 2))  # noqa: E731

    @jax.jit
    def both(params, moved):
        ghost = privacy.ghost_clipped_grad_sum(model, losses, 5.0)
        plain = privacy.clipped_grad_sum(mean_loss(model, losses), 5.0)
        return [g.difference(moved, params, tokens, 7.0) for g in (ghost, plain)]

    ghost, plain = both(params, moved)
    assert 0 < int(ghost.clipped) == int(plain.clipped)
    for a, b in zip(*map(jax.tree.leaves, (ghost.total, plain.total)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_ghost_clipping_zeroes_non_finite_examples_exactly(close):
    params = perceptron_params([np.ones((4, 5)), np.zeros(5), np.ones((5, 3)) / 9, np.zeros(3)])
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    y = jnp.array([0, 1, 2])
    gradient = privacy.ghost_clipped_grad_sum(
        Perceptron(), classification_losses, 1.0, mode="per_layer"
    )
    sums = jax.jit(lambda x, mask: gradient(params, (x, y), None, mask))
    poisoned = x.copy()
    poisoned[1, 2] = np.nan
    broken = sums(poisoned, jnp.ones(3, bool))
    without = sums(x, jnp.array([True, False, True]))
    assert int(broken.non_finite) == 1
    jax.tree.map(close, broken.total, without.total)
    assert all(
        float(jnp.sqrt(jnp.sum(leaf**2))) <= 2 / 4**0.5 * (1 + 1e-5)
        for leaf in jax.tree.leaves(broken.total)
    )


@pytest.mark.parametrize(("length", "rows", "columns"), [(1, 3, 2), (2, 9, 8), (4, 2, 3)])
def test_factored_norms_and_sums_equal_explicit_ones(length, rows, columns):
    random = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    here = factors.OuterProducts(draw(2, length, rows), draw(2, length, columns))
    there = factors.OuterProducts(draw(2, length, rows), draw(2, length, columns))
    explicit = lambda f: np.einsum("bti,bto->bio", f.inputs, f.deltas)  # noqa: E731
    change = explicit(here) - explicit(there)
    weights = jnp.array([0.5, 2.0])
    for factored, dense in ((here, explicit(here)), (here.minus(there), change)):
        squares = np.sum(np.square(dense), (1, 2))
        np.testing.assert_allclose(factored.norms_squared(), squares, rtol=1e-5)
        expected = np.einsum("b,bio->io", weights, dense)
        np.testing.assert_allclose(factored.weighted_sum(weights), expected, rtol=1e-5, atol=1e-5)


def test_norms_of_tiny_differences_do_not_cancel():
    random = np.random.default_rng(0)
    a, d = random.normal(size=(1, 1, 50)), random.normal(size=(1, 1, 50))
    step_a, step_d = (1e-5 * random.normal(size=(1, 1, 50)) for _ in range(2))
    single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    here = factors.OuterProducts(single(a + step_a), single(d + step_d))
    there = factors.OuterProducts(single(a), single(d))
    # float64 on the rounded float32 inputs
    outer = lambda f: np.einsum(  # noqa: E731
        "bti,bto->bio", np.float64(f.inputs), np.float64(f.deltas)
    )
    expected = np.sum(np.square(outer(here) - outer(there)))
    np.testing.assert_allclose(here.minus(there).norms_squared(), [expected], rtol=1e-4)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(5, 4)
        return table.attend(table(tokens))


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        return layer(layer(x))


class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) * self.param("gain", nn.initializers.ones, (2,))


class Mixing(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4)(x)
        return h - jnp.mean(h, axis=0)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Tied(), jnp.zeros((2, 3), jnp.int32), "tied weights"),
        (Twice(), jnp.zeros((2, 4)), "called 2 times"),
        (Own(), jnp.zeros((2, 4)), "not for the layer of gain"),
    ],
)
def test_layers_that_ghost_norms_would_get_wrong_are_refused(model, x, message):
    losses = lambda apply, batch, key: jnp.sum(apply(batch).reshape(2, -1) ** 2, -1)  # noqa: E731
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    gradient = privacy.ghost_clipped_grad_sum(model, losses, 1.0)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(gradient, params, x)


def test_check_ghost_notices_losses_that_mix_rows():
    losses = lambda apply, batch, key: jnp.sum(apply(batch) ** 2, -1)  # noqa: E731
    params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    with pytest.raises(ValueError, match="a loss of its own"):
        privacy.check_ghost(Mixing(), losses, params, batch)
