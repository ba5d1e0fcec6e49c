"""What can be trained privately is told from what cannot, before the first step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import privacy

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 1, 0, 1, 0], np.int32)
W = {"w": np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)}


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, key):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(5)(x)), rng=key))


class Normalised(nn.Module):
    running: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=self.running)(nn.Dense(5)(x)))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plain(p, batch, key):
    return cross_entropy(batch[0] @ p["w"], batch[1])


def masked_positions(p, batch, key):
    each = jnp.where(batch[0] > 0, (batch[0] @ p["w"])[:, :1] ** 2, 0)
    return jnp.mean(each.sum(1) / jnp.maximum((batch[0] > 0).sum(1), 1))


def dropout(p, batch, key):
    return cross_entropy(Dropped().apply({"params": p}, batch[0], key), batch[1])


@functools.cache
def variables():
    return jax.jit(Normalised().init)(jax.random.key(0), X)


def normalised(running):
    def loss(p, batch, key):
        given = {"params": p, "batch_stats": variables()["batch_stats"]}
        found = Normalised(running).apply(given, batch[0], mutable=["batch_stats"])
        return cross_entropy(found[0], batch[1])

    return loss


def contrastive(p, batch, key):
    z = batch[0] @ p["w"]
    return cross_entropy(z @ z.T, jnp.arange(len(z)))


def centred(p, batch, key):
    z = batch[0] @ p["w"]
    return jnp.mean((z - z.mean(0)) ** 2)


def rolled(p, batch, key):
    z = batch[0] @ p["w"]
    return jnp.mean(z * jnp.roll(z, 1, 0))


def weighted(p, batch, key):
    each = jnp.sum((batch[0] @ p["w"]) ** 2, 1)
    return jnp.sum(batch[1] * each) / jnp.maximum(jnp.sum(batch[1]), 1)


def hardest(p, batch, key):
    return jnp.max(jnp.sum((batch[0] @ p["w"]) ** 2, 1))


def shuffled(p, batch, key):
    z = batch[0] @ p["w"]
    return jnp.mean(z * jax.random.permutation(key, z, axis=0))


def total_variance(p, batch, key):
    return jnp.var(batch[0] @ p["w"])


FIT = [plain, masked_positions, dropout, normalised(True)]
JOINS = "the loss joins rows|leading size|fails"
UNFIT = [
    (normalised(False), "BatchNorm_0 normalises by statistics of the batch: use running averages"),
    (contrastive, JOINS), (centred, JOINS), (rolled, JOINS), (weighted, JOINS), (hardest, JOINS),
    (shuffled, JOINS), (total_variance, JOINS),
    (lambda p, batch, key: batch[0] @ p["w"], "one real number for a row"),
    (lambda p, batch: jnp.sum(p["w"]), "must take three arguments"),
    (lambda p, batch, key: (plain(p, batch, key), 1), "has_aux=True"),
    (lambda p, batch, key: plain(p, batch, key) * jnp.nan, "no row has a finite gradient"),
    (lambda p, batch, key: jnp.mean(batch[0]), "no parameter has a gradient"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(FIT)))
def test_losses_of_single_rows_pass(index):
    params = [W, W, Dropped().init(jax.random.key(0), X, jax.random.key(1))["params"],
              variables()["params"]][index]  # fmt: skip
    found = privacy.check_private(FIT[index], params, (X, Y), jax.random.key(0), gradients=False)
    assert found.passed, found
    if index == 0:
        assert privacy.check_private(FIT[index], params, (X, Y), jax.random.key(0)).passed


@pytest.mark.parametrize("index", range(len(UNFIT)))
def test_what_cannot_be_trained_is_told_with_its_reason(index):
    loss, reason = UNFIT[index]
    params = variables()["params"] if index == 0 else W
    found = privacy.check_private(loss, params, (X, Y), jax.random.key(0))
    assert not found.passed
    with pytest.raises(ValueError, match=reason):
        raise ValueError(" / ".join(found.problems))


def test_notes_name_what_is_no_obstacle():
    spoiled = jnp.asarray(X).at[2].set(jnp.nan)
    params = W | {"unused": jnp.ones(3)}
    found = privacy.check_private(plain, params, (spoiled, Y))
    assert found.passed
    assert any("['unused']" in note for note in found.notes)
    assert "1 of 6 rows have no finite gradient and count as 0" in found.notes
    integers = privacy.check_private(plain, {"w": jnp.ones((4, 2), int)}, (X, Y))
    assert "params must hold arrays of real numbers, got int32" in integers.problems[0]
    assert privacy.check_private(plain, W, (X[:1], Y[:1])).problems[0].endswith("got 1")
    gradient = privacy.clipped_grad_sum(plain, 1.0)
    loud = privacy.dp_sgd(gradient, privacy.full_batches(6), 9, delta=1e-3, noise_multiplier=0.2)
    told = privacy.check_private(plain, W, (X, Y), plan=loud)
    assert "is no meaningful guarantee" in told.problems[0]
