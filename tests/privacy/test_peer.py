"""Clipped sums beside jax_privacy's, option by option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import privacy

peer = pytest.importorskip("jax_privacy.clipping")

# The peer calls what optax has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")
B, C = 6, 0.8
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.normal(size=(4, 3)).astype(np.float32),
    "b": RNG.normal(size=3).astype(np.float32),
}
X = np.float32(RNG.normal(size=(B, 4)) * np.array([[1e-3, 1, 10, 1, 100, 1]]).T)
Y = np.float32(RNG.normal(size=(B, 3)))
PEOPLE = (X.reshape(3, 2, 4), Y.reshape(3, 2, 3))
SPOILED = (X + np.float32([[0, np.nan, 0, np.inf, 0, 0]]).T, Y)
PADDING = jnp.array([False, True, False, False, True, False])


def loss(params, batch, key=None):
    return jnp.mean(jnp.sum((jnp.tanh(batch[0] @ params["w"]) + params["b"] - batch[1]) ** 2, -1))


def with_aux(params, batch, key=None):
    value = loss(params, batch)
    return value, {"doubled": 2 * value}


def ours(batch=(X, Y), mask=None, fn=loss, **options):
    return privacy.clipped_grad_sum(fn, C, **options)(PARAMS, batch, None, mask)


def theirs(batch=(X, Y), fn=loss, call=None, **options):
    return peer.clipped_grad(fn, l2_clip_norm=C, **options)(PARAMS, batch, **(call or {}))


TABLE = {
    "flat": (lambda: ours().total, lambda: theirs()),
    "ghost": (lambda: ours(method="ghost").total, lambda: theirs()),
    "microbatches": (
        lambda: ours(microbatch_size=2, method="vmap").total, lambda: theirs(microbatch_size=3),
    ),
    "padding": (
        lambda: ours(mask=~PADDING).total,
        lambda: theirs(call={"is_padding_example": PADDING}),
    ),
    "rows that are not finite": (lambda: ours(SPOILED).total, lambda: theirs(SPOILED)),
    "rescaled to unit norm": (
        lambda: ours().scale(1 / C).total, lambda: theirs(rescale_to_unit_norm=True),
    ),
    "a mean": (lambda: ours().scale(1 / B).total, lambda: theirs(normalize_by=B)),
    "users": (
        lambda: ours(PEOPLE, unit="user").total, lambda: theirs(PEOPLE, keep_batch_dim=False),
    ),
    "aux": (
        lambda: ours(fn=with_aux, has_aux=True).aux["doubled"],
        lambda: theirs(fn=with_aux, has_aux=True)[1].aux["doubled"],
    ),
    "bfloat16": (
        lambda: ours((X.astype(jnp.bfloat16), Y)).total,
        lambda: theirs((X.astype(jnp.bfloat16), Y), dtype=jnp.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_results_are_those_of_jax_privacy(name):
    here, there = (jax.jit(way)() for way in TABLE[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), here, there)


def test_bounds_are_those_of_jax_privacy():
    mine = privacy.clipped_grad_sum(loss, C)
    made = peer.clipped_grad(loss, l2_clip_norm=C)
    assert float(mine.sensitivity("zero_out")) == pytest.approx(float(made.l2_norm_bound))
    scaled = peer.clipped_grad(loss, l2_clip_norm=C, rescale_to_unit_norm=True)
    total = jax.jit(mine)(PARAMS, (X, Y)).scale(1 / C)
    assert float(total.clip_norm) == pytest.approx(float(scaled.l2_norm_bound))
