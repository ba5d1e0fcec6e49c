"""What a sceptic tries on a clipped sum, and the models it is tried on.

`check` isolates what each example adds to a sum: a claim is broken if one adds more than the clip
norm. `random_model` builds losses that use parameters in every way that comes to mind.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import privacy

TOLERANCE = 1e-5


def flat(tree):
    """All numbers of a tree in one float64 vector, a row for each example ``[B, P]``."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


def differences(gradient):
    """The differences to another point, as what `check` takes."""

    def apply(params, batch, key, mask, moved):
        return gradient.difference(params, moved, batch, 1.0, key, mask)

    return apply


def check(*sums, weights, batches):
    """No example of any batch may add more than 1; returns what they add ``[N, B, P]`` to each sum.

    One program makes all sums, clipped gradients or `differences`, of all batches, since compiling
    takes most of the time. `weights` are parameters, and others.
    """
    masks = jnp.eye(len(jax.tree.leaves(batches[0])[0]), dtype=jnp.int32)

    def each(weights, batches):
        def alone(batch):
            def totals(mask):
                found = []
                for each in sums:
                    other = () if isinstance(each, privacy.ClippedGradient) else weights[1:]
                    found.append(each(weights[0], batch, None, mask, *other).total)
                return found

            return jax.lax.map(totals, masks)

        return jax.lax.map(alone, batches)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    found = []
    for adds in jax.device_get(jax.jit(each)(weights, stacked)):
        count, rows = jax.tree.leaves(adds)[0].shape[:2]
        whole = flat(jax.tree.map(lambda x, n=count * rows: x.reshape(n, -1), adds))
        found.append(whole.reshape(count, rows, -1))
        norms = np.linalg.norm(found[-1], axis=2)
        assert np.all(norms <= 1 + TOLERANCE), (len(found), norms)
    return found


def poisoned(batch, row, value):
    """A batch whose real numbers in one row are all `value`."""

    def put(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.at[row].set(value)

    return jax.tree.map(put, batch)


# Random losses: a chain of layers over h [1, T, D], each using its parameters in its own way.


def dense(rng, d, t):
    out = int(rng.integers(1, 5))
    bias = rng.integers(2)

    def apply(p, h):
        return h @ p["w"] + (p["b"] if bias else 0)

    return {"w": (d, out), "b": (out,)}, apply, (t, out)


def from_the_left(rng, d, t):
    out = int(rng.integers(1, 5))
    return {"w": (out, d)}, lambda p, h: jnp.einsum("od,btd->bto", p["w"], h), (t, out)


def over_positions(rng, d, t):
    out = int(rng.integers(1, 4))
    return {"w": (t, out)}, lambda p, h: jnp.einsum("btd,to->bod", h, p["w"]), (out, d)


def whole_row(rng, d, t):
    return {"w": (t, d, 2, 2)}, lambda p, h: jnp.einsum("btd,tdxy->bxy", h, p["w"]), (2, 2)


def norm(rng, d, t):
    def apply(p, h):
        h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-3)
        return h * p["s"] + p["b"]

    return {"s": (d,), "b": (d,)}, apply, (t, d)


def positions(rng, d, t):
    return {"table": (t + 1, d)}, lambda p, h: h + p["table"][jnp.arange(t)], (t, d)


def latents(rng, d, t):
    n = int(rng.integers(1, 4))

    def apply(p, h):
        queries = p["latents"] @ p["w"]
        return jax.nn.softmax(queries @ jnp.swapaxes(h, 1, 2)) @ h

    return {"latents": (n, d), "w": (d, d)}, apply, (n, d)


def tokens(rng, d, t):
    out = int(rng.integers(1, 4))

    def apply(p, h):
        ids = jnp.clip(jnp.nan_to_num(h).sum(-1), -3, 2).astype(int)  # negative ones too
        return jnp.take(p["table"], jax.lax.stop_gradient(ids), axis=0)

    return {"table": (3, out)}, apply, (t, out)


def tied(rng, d, t):
    def apply(p, h):
        ids = jnp.argmax(jnp.nan_to_num(h), -1)
        return (h + p["table"][ids]) @ p["table"].T

    return {"table": (d, d)}, apply, (t, d)


def twice(rng, d, t):
    return {"w": (d, d)}, lambda p, h: jnp.tanh(h @ p["w"]) @ p["w"] + h @ p["w"].T, (t, d)


def convolution(rng, d, t):
    groups, (out, width, stride, spread) = int(rng.choice([1, d])), rng.integers(1, 4, 4).tolist()

    def apply(p, h):
        return jax.lax.conv_general_dilated(
            h, p["w"], (stride,), "SAME", rhs_dilation=(spread,), feature_group_count=groups,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    return {"w": (width, d // groups, out * groups)}, apply, (-(-t // stride), out * groups)


def stack(rng, d, t):
    shared = rng.integers(2)

    def apply(p, h):
        def step(h, w):
            return jnp.tanh(h @ w) + (h @ p["shared"] if shared else h), None

        return jax.lax.scan(step, h, p["w"])[0]

    return {"w": (2, d, d), "shared": (d, d)}, apply, (t, d)


def rematerialised(rng, d, t):
    @jax.checkpoint
    def block(w, h):
        return h + jnp.sin(h @ w)

    return {"w": (d, d)}, lambda p, h: block(p["w"], h), (t, d)


def time_major(rng, d, t):
    return {"w": (d, 3)}, lambda p, h: jnp.swapaxes(jnp.swapaxes(h, 0, 1) @ p["w"], 0, 1), (t, 3)


def gated(rng, d, t):
    def apply(p, h):
        return jax.lax.cond(jnp.sum(h) > 0, lambda: h @ p["w"], lambda: h * p["b"])

    return {"w": (d, d), "b": (d,)}, apply, (t, d)


def low_rank(rng, d, t):
    frozen = rng.normal(size=(d, d)).astype(np.float32)
    return {"a": (d, 1), "b": (1, d)}, lambda p, h: h @ (frozen + p["a"] @ p["b"]), (t, d)


LAYERS = [
    dense, from_the_left, over_positions, whole_row, norm, positions, latents, tokens, tied, twice,
    convolution, stack, rematerialised, time_major, gated, low_rank,
]  # fmt: skip


def random_model(seed):
    """A loss, parameters at two points, batches of ordinary and hostile rows, and layer names."""
    rng = np.random.default_rng(seed)
    t, d, rows = (int(rng.integers(1, 5)) for _ in range(3))
    start = (t, d)
    chosen = [LAYERS[i] for i in rng.integers(0, len(LAYERS), int(rng.integers(1, 4)))]
    shapes, applies = [], []
    for layer in chosen:
        shape, apply, (t, d) = layer(rng, d, t)
        shapes.append(shape)
        applies.append(apply)
    params = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in layer.items()}
        for layer in shapes
    ]
    bounded = rng.integers(2)

    def loss(params, batch, key):
        h, weight = batch
        for apply, p in zip(applies, params, strict=True):
            h = jnp.tanh(apply(p, h)) if bounded else apply(p, h)
        return jnp.mean(weight * jnp.sum(h**2, (1, 2)))

    x = rng.normal(size=(rows, *start)).astype(np.float32)
    weight = np.float32(10.0 ** rng.integers(-20, 20, rows))
    nearly = x.copy()
    nearly[:, -1] = nearly[:, 0] * np.float32(1 + 10.0 ** -rng.integers(3, 7))
    batches = [(x, np.ones(rows, np.float32)), (x, weight)]
    batches += [(nearly, weight), (nearly, 1e8 * weight)]
    batches += [(np.float32(scale) * x, weight) for scale in (1e-25, 1e12)]
    for value in (np.nan, np.inf, 1e38, 1e-30, 1e-42):
        spoiled = x.copy()
        spoiled[0, : int(rng.integers(1, 4))] = value
        batches.append((spoiled, weight))
    moved = jax.tree.map(lambda leaf: leaf * np.float32(1 + 10.0 ** -rng.integers(1, 6)), params)
    names = [layer.__name__ for layer in chosen]
    return loss, params, moved, batches, names
