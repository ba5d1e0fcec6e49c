"""The character model that the width experiment trains: residual feed-forward blocks.

Next-character prediction on the embedded prose: 8 characters of context, an embedding of 16 each,
two blocks `x + W_down silu(W_up rms_norm(x))` of width d, and a readout with muP's factor 1/m.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxkit import datasets, width
from jaxkit.experiments import language_training

CONTEXT = 8
EMBED = 16
BASE_WIDTH = 32


class Text(NamedTuple):
    """Encoded text: train and validation characters, and how many different ones there are."""

    train: Int[Array, " n"]
    validation: Int[Array, " k"]
    vocab_size: int


@functools.cache
def prose() -> Text:
    """Encode the embedded prose by byte."""
    split = datasets.embedded_prose()
    parts = [np.asarray(split.train.data), np.asarray(split.validation.data)]
    vocabulary, codes = np.unique(np.concatenate(parts), return_inverse=True)
    train, validation = np.split(codes.astype(np.int32), [len(parts[0])])
    return Text(jnp.asarray(train), jnp.asarray(validation), len(vocabulary))


def shapes(d: int, vocab_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameter shapes of the character model at width d."""
    lengths = {
        "embed": (vocab_size, EMBED),
        "read": (CONTEXT * EMBED, d),
        "gain": (2, d),
        "up": (2, d, d),
        "down": (2, d, d),
        "final_gain": (d,),
        "readout": (d, vocab_size),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in lengths.items()}


def init(key: jax.Array, d: int, vocab_size: int) -> dict[str, Array]:
    """Draw fresh parameters: fan-in scale on kernels, gains of one, a readout of zeros."""
    std = {"embed": 1.0, "read": (CONTEXT * EMBED) ** -0.5, "up": d**-0.5, "down": d**-0.5}
    leaves, params = shapes(d, vocab_size), {}
    keys = jax.random.split(key, len(leaves))
    for (name, leaf), leaf_key in zip(leaves.items(), keys, strict=True):
        fill = 1.0 if "gain" in name else 0.0
        draw = std.get(name, 0.0) * jax.random.normal(leaf_key, leaf.shape)
        params[name] = draw if name in std else jnp.full(leaf.shape, fill)
    return params


def _rms_norm(x: Float[Array, "... d"], gain: Float[Array, " d"]) -> Float[Array, "... d"]:
    return gain * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def apply(
    params: dict[str, Array], context: Int[Array, "batch context"], base_width: int = BASE_WIDTH
) -> tuple[Float[Array, "batch vocab"], list[tuple[Array, Array]]]:
    """Predict the next character; also return input and output of every hidden matrix.

    The matrices come in the order up, down, up, down.
    """
    x = params["embed"][context].reshape(context.shape[0], -1) @ params["read"]
    sublayers = []
    for layer in range(2):
        h = _rms_norm(x, params["gain"][layer])
        hidden = h @ params["up"][layer]
        active = jax.nn.silu(hidden)
        out = active @ params["down"][layer]
        sublayers += [(h, hidden), (active, out)]
        x = x + out
    d = x.shape[-1]
    multiplier = width.readout_multiplier(d, base_width)
    return multiplier * _rms_norm(x, params["final_gain"]) @ params["readout"], sublayers


class Trained(NamedTuple):
    """Validation loss in nats a character; gain and top singular value of each hidden matrix.

    On validation text, in the order up, down, up, down.
    """

    loss: Float[Array, ""]
    gain: Float[Array, " 4"]
    sigma: Float[Array, " 4"]


@functools.partial(jax.jit, static_argnames=("d", "rule", "vocab_size", "num_steps", "base_width"))
def _train(
    texts: tuple[Array, Array],
    key: jax.Array,
    rates: tuple[Array, Array],
    *,
    d: int,
    rule: str,
    vocab_size: int,
    num_steps: int,
    base_width: int,
) -> Trained:
    base, target, delta = (shapes(w, vocab_size) for w in (base_width, d, 2 * base_width))
    scaling = width.width_scaling(base, target, delta=delta, rule=matrix_rule(rule))
    tx = scaled_adamw(*rates, scaling, num_steps, eps=1e-12)
    init_key, data_key, value_key = jax.random.split(key, 3)

    def loss_fn(params: Any, window: Array) -> Array:
        logits, _ = apply(params, window[:, :-1], base_width)
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, -1]).mean()

    sample = language_training.windows(texts[0], 64, CONTEXT + 1)
    params, _ = language_training.descend(
        tx,
        lambda params, key: loss_fn(params, sample(key)),
        init(init_key, d, vocab_size),
        jax.random.split(data_key, num_steps),
    )
    held_out = language_training.spread_windows(texts[1], 4096, CONTEXT + 1)
    _, sublayers = apply(params, held_out[:, :-1], base_width)
    values = width.top_singular_values(params, key=value_key, scaling=scaling)
    return Trained(
        loss_fn(params, held_out),
        jnp.stack([width.sublayer_gain(x, y) for x, y in sublayers]),
        jnp.stack([values["up"], values["down"]], axis=1).reshape(4),
    )


def matrix_rule(rule: str) -> width.WidthRule:
    """A rule by name, vectors undecayed, so that only the matrices differ between rules."""
    known = width.RULES[rule]
    return width.WidthRule(known.learning_rate_exponent, known.weight_decay_exponent)


def scaled_adamw(
    learning_rate: Array, weight_decay: Array, scaling: Any, num_steps: int, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AdamW at rates of the base width: warm-up over a tenth of the run, cosine to a tenth."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, num_steps // 10, num_steps, 0.1)
    return width.adamw_width_scaled(
        lambda count: learning_rate * shape(count), weight_decay, scaling, eps=eps
    )


def train(
    text: Text,
    d: int,
    rule: str,
    *,
    learning_rate: float | Array = 2.0**-6,
    weight_decay: float | Array = 0.2,
    num_steps: int = 1500,
    seed: int = 0,
    base_width: int = BASE_WIDTH,
) -> Trained:
    """Train the character model and measure loss, gain and top singular value.

    Learning rate and decay are those at the base width; `vmap` over both works.
    """
    return _train(
        (text.train, text.validation),
        jax.random.key(seed),
        (jnp.asarray(learning_rate, jnp.float32), jnp.asarray(weight_decay, jnp.float32)),
        d=d,
        rule=rule,
        vocab_size=text.vocab_size,
        num_steps=num_steps,
        base_width=base_width,
    )
