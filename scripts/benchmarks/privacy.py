"""Clipped gradient sums beside jax-privacy, a naive vmap and a plain gradient; time and memory."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from jaxkit import privacy
from jaxkit.experiments.evidence import Table

ROUNDS = 21
PLAIN = "plain gradient"


class Perceptron(nn.Module):
    """One hidden layer."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        """Logits of 10 classes."""
        return nn.Dense(10)(jnp.tanh(nn.Dense(self.hidden)(x)))


class Convolutions(nn.Module):
    """Two convolutions of 3 x 3, pooled by halves, and a head."""

    @nn.compact
    def __call__(self, x):
        """Logits of 10 classes."""
        for features in (16, 32):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """Two pre-norm blocks of width 64 over 64 tokens."""

    vocab_size: int = 96

    @nn.compact
    def __call__(self, tokens):
        """Next-token logits."""
        positions = nn.Embed(64, 64)(jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        x = nn.Embed(self.vocab_size, 64)(tokens) + positions
        for _ in range(2):
            h = nn.LayerNorm()(x)
            mask = nn.make_causal_mask(tokens)
            x = x + nn.MultiHeadDotProductAttention(4, deterministic=True)(h, h, mask=mask)
            x = x + nn.Dense(64)(nn.relu(nn.Dense(256)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocab_size)(nn.LayerNorm()(x))


def class_losses(apply, batch, key):
    """Cross-entropy of each row."""
    del key
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch[0]), batch[1])


def token_losses(apply, batch, key):
    """Mean next-token cross-entropy of each sequence."""
    del key
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(batch[0]), batch[1])
    return jnp.mean(losses, axis=1)


def run() -> list[Table]:
    """Time the ways to a clipped sum on two perceptrons, a Transformer and convolutions."""
    random = np.random.default_rng(0)

    def rows(size, *shape):
        x = random.normal(size=(size, *shape)).astype(np.float32)
        return jnp.asarray(x), jnp.asarray(random.integers(0, 10, size))

    tokens = jnp.asarray(random.integers(0, 96, (32, 65)))
    sequences = tokens[:, :-1], tokens[:, 1:]
    return [
        compare("MLP 64-128-10, batch 256", Perceptron(128), class_losses, rows(256, 64)),
        compare("MLP 256-256-10, batch 64", Perceptron(256), class_losses, rows(64, 256)),
        compare("Transformer, 2 x 64, batch 32 x 64", Transformer(), token_losses, sequences),
        compare(
            "CNN 16-32, batch 32 of 28 x 28", Convolutions(), class_losses, rows(32, 28, 28, 1)
        ),
    ]


def compare(title: str, model: nn.Module, losses_fn: Any, batch: Any) -> Table:
    """Time every way on one model, interleaved."""
    params = model.init(jax.random.key(0), batch[0])["params"]

    def loss(params, batch, key=None):
        return jnp.mean(losses_fn(lambda x: model.apply({"params": params}, x), batch, key))

    def naive(params, batch):
        rows = jax.tree.map(lambda x: x[:, None], batch)
        gradients = jax.vmap(jax.grad(loss), (None, 0))(params, rows)
        norms = jax.vmap(optax.tree.norm)(gradients)
        scales = jnp.minimum(1, 1 / norms)
        return jax.tree.map(lambda g: jnp.tensordot(scales, g, 1), gradients)

    def ours(method):
        gradient = privacy.clipped_grad_sum(loss, 1.0, method=method)
        return lambda params, batch: gradient(params, batch).total

    ways: dict[str, Callable] = {
        PLAIN: jax.grad(loss),
        **{f"clipped_grad_sum, {method}": ours(method) for method in ("ghost", "vmap", "auto")},
        "naive vmap": naive,
        **jax_privacy_ways(loss, batch[0].shape[0]),
    }
    compiled = {name: jax.jit(way).lower(params, batch).compile() for name, way in ways.items()}
    check(compiled, params, batch)
    seconds = timing.interleaved(
        {name: lambda f=f: f(params, batch) for name, f in compiled.items()}, ROUNDS
    )
    rows = []
    for name, values in seconds.items():
        megabytes = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
        ratio = values / seconds[PLAIN]
        rows.append([name, f"{np.median(values) * 1e3:.2f} ms", *spread(ratio), f"{megabytes:.1f}"])
    peers = {name: v for name, v in seconds.items() if name.startswith("jax-privacy")}
    if peers:
        best = min(peers, key=lambda name: float(np.median(peers[name])))
        for name in (name for name in ways if name.startswith("clipped")):
            ratio = seconds[name] / seconds[best]
            rows.append([f"{name} / {best}", "", *spread(ratio), ""])
    backend = jax.default_backend()
    return Table(
        f"Clipped gradient sums: {title} ({backend})",
        ["", "median", "ratio to plain gradient", "range of ratio", "temporary MiB"],
        rows,
    )


def jax_privacy_ways(loss: Callable, rows: int) -> dict[str, Callable]:
    """The peer at several microbatch sizes, if it is installed."""
    try:
        from jax_privacy import clipping
    except ImportError:
        print("jax-privacy is not installed: left out")
        return {}
    version = importlib.metadata.version("jax-privacy")

    def way(microbatch_size):
        gradient = clipping.clipped_grad(
            lambda params, batch: loss(params, batch),
            l2_clip_norm=1.0,
            batch_argnums=1,
            microbatch_size=microbatch_size,
        )
        return lambda params, batch: gradient(params, batch)

    sizes = [size for size in (None, 1, 2, 4, 8, 16, 32) if size is None or size < rows]
    return {f"jax-privacy {version}, microbatch {size}": way(size) for size in sizes}


def check(compiled: Mapping[str, Any], params: Any, batch: Any) -> None:
    """All ways must give one sum before their times mean anything."""
    results = {n: f(params, batch) for n, f in compiled.items() if n != PLAIN}
    expected = results["naive vmap"]
    scale = float(optax.tree.norm(expected))
    for name, result in results.items():
        error = float(optax.tree.norm(optax.tree.sub(result, expected))) / scale
        if error > 1e-4:
            raise AssertionError(f"{name} differs from the naive sum by {error:.1e}")


def spread(ratios: np.ndarray) -> list[str]:
    """Median and inner range of ratios taken turn by turn."""
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return [f"{middle:.2f}x", f"{low:.2f}-{high:.2f}x"]
