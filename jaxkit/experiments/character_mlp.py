"""The tiny character model that the schedule experiments train by the hundred.

Next-character prediction on CPython's own reference prose: 8 characters of context, an embedding of
16, one ReLU layer. Small enough that a whole grid of schedules, learning rates and seeds is one
compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Float, Int, Key

from jaxkit import schedules
from jaxkit.experiments import language_training

CONTEXT, EMBEDDING, HIDDEN, BATCH = 8, 16, 96, 32
#: (learning rate, momentum) of one update to the transformation that makes it.
MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]


class Corpus(NamedTuple):
    """Text as int32 character indices, nine tenths and the rest, and how many there are."""

    train: np.ndarray
    valid: np.ndarray
    vocabulary: int


@functools.cache
def corpus() -> Corpus:
    """Read the embedded prose."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[key] for key in sorted(topics.topics))
    characters, index = np.unique(list(text), return_inverse=True)
    split = len(index) * 9 // 10
    index = index.astype(np.int32)
    return Corpus(index[:split], index[split:], len(characters))


def init(key: Key[Array, ""], vocabulary: int, scale: float = 1.0) -> dict[str, Array]:
    """Draw weights of standard deviation `scale` / sqrt(fan in), and an embedding of 1."""
    shapes = {
        "hidden": (CONTEXT * EMBEDDING, HIDDEN),
        "output": (HIDDEN, vocabulary),
    }
    embedding_key, *keys = jax.random.split(key, 1 + len(shapes))
    weights: dict[str, Array] = {
        name: scale * jax.random.normal(k, shape) / shape[0] ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    biases = {f"{name}_bias": jnp.zeros(shape[1]) for name, shape in shapes.items()}
    embedding = jax.random.normal(embedding_key, (vocabulary, EMBEDDING))
    return {"embedding": embedding, **weights, **biases}


def loss(params: Any, windows: Int[Array, "batch window"]) -> Float[Array, ""]:
    """Mean negative log-likelihood in nats of the last character of each window."""
    x = params["embedding"][windows[:, :-1]].reshape(len(windows), -1)
    h = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"])
    logits = h @ params["output"] + params["output_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()


def train(
    key: Key[Array, ""],
    rates: Float[Array, " steps"],
    momenta: Float[Array, " steps"],
    make_optimizer: MakeOptimizer,
    scale: float,
    record: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "*steps"]]:
    """Train one model; return its validation loss and, if asked, the gradient norms of the run.

    The key seeds the weights and the order of the data; `rates` and `momenta` (SGD's, or b1 of
    Adam) are those of each update; `record` is None, `"l2"` or `"l1"`.
    """
    data = corpus()
    sample = language_training.windows(jnp.asarray(data.train), BATCH, CONTEXT + 1)
    init_key, data_key = jax.random.split(key)
    params = init(init_key, data.vocabulary, scale)
    recorder = schedules.record_gradient_norms(len(rates), len(rates), record or "l2")

    def optimizer(rate, momentum):
        inner = make_optimizer(rate, momentum)
        return inner if record is None else optax.chain(recorder, inner)

    def update(carry, inputs):
        params, state = carry
        step, rate, momentum = inputs
        gradient = jax.grad(loss)(params, sample(jax.random.fold_in(data_key, step)))
        updates, state = optimizer(rate, momentum).update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), None

    state = optimizer(rates[0], momenta[0]).init(params)
    (params, state), _ = lax.scan(update, (params, state), (jnp.arange(len(rates)), rates, momenta))
    held_out = language_training.spread_windows(jnp.asarray(data.valid), 4096, CONTEXT + 1)
    norms = jnp.zeros(0) if record is None else schedules.recorded_norms(state)
    return loss(params, held_out), norms


@functools.partial(jax.jit, static_argnames=("make_optimizer", "scale"))
def grid_losses(
    keys: Key[Array, " seeds"],
    peaks: Float[Array, " peaks"],
    shapes: Float[Array, "schedules steps"],
    momenta: Float[Array, "schedules steps"],
    *,
    make_optimizer: MakeOptimizer,
    scale: float = 1.0,
) -> Float[Array, "schedules peaks seeds"]:
    """Validation losses of every schedule at every peak for every seed, in one program.

    All schedules and peaks have the same weights and batches. `shapes` are learning rates over
    peak; `make_optimizer` is a module-level function, so that the program is compiled once.
    """

    def one(shape, momentum, peak, key):
        return train(key, peak * shape, momentum, make_optimizer, scale)[0]

    over_seeds = jax.vmap(one, in_axes=(None, None, None, 0))
    over_peaks = jax.vmap(over_seeds, in_axes=(None, None, 0, None))
    return jax.vmap(over_peaks, in_axes=(0, 0, None, None))(shapes, momenta, peaks, keys)


class Tuned(NamedTuple):
    """Paired losses `[seeds]` and best peak by schedule; `edge`: those best at the grid's edge."""

    losses: dict[str, np.ndarray]
    peaks: dict[str, float]
    edge: list[str]


def tune(
    names: Sequence[str], peaks: np.ndarray, grid: Float[Array, "schedules peaks seeds"]
) -> Tuned:
    """Choose each schedule's best peak by its mean loss over seeds; a diverged run is worst."""
    losses = np.nan_to_num(np.asarray(grid, np.float64), nan=np.inf, posinf=np.inf)
    best = losses.mean(axis=-1).argmin(axis=-1)
    return Tuned(
        {name: losses[i, best[i]] for i, name in enumerate(names)},
        {name: float(peaks[best[i]]) for i, name in enumerate(names)},
        [name for i, name in enumerate(names) if best[i] in (0, len(peaks) - 1)],
    )
