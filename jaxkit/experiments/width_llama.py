"""Transfer across width in a LLaMA-style language model (arXiv 2510.15262): the four rules.

A proxy (RMSNorm, rotary positions, SwiGLU, readout of its own) is tuned over learning rate and
weight decay on the embedded prose; each rule hands its best pair to a model four times as wide.
Validation loss and top singular values stand side by side.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxkit import models, plotting, width
from jaxkit.experiments import character_blocks, language_training
from jaxkit.experiments.evidence import (
    Claim,
    Evidence,
    Table,
    claim,
    interval_over_seeds,
    seed_lines,
)
from jaxkit.experiments.width import by_rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULES = ("mup_independent", "robust", "mup_fixed", "standard")
#: The matrices of a block, in the order of the tables.
MATRICES = ("query", "key", "value", "out", "gate", "up", "down")
HEAD_DIM = 32
BATCH_SIZE = 8
CONTEXT = 32


class Sizes(NamedTuple):
    """Widths of the proxy and of the model its rates are handed to, and what is tried at the base.

    A run warms up over a tenth of its steps, then falls by a cosine to a tenth.
    """

    base_width: int = 128
    width: int = 512
    num_layers: int = 2
    num_steps: int = 250
    learning_rates: tuple[float, ...] = (2.0**-9, 2.0**-8, 2.0**-7)
    weight_decays: tuple[float, ...] = (0.1, 0.3, 1.0)


QUICK = Sizes(64, 128, 1, 100, (2.0**-7,), (0.3, 1.0))


class Trained(NamedTuple):
    """What a run ends with: validation loss in nats a character, top singular values [7].

    The values are means over layers, in the order of `MATRICES`.
    """

    loss: Float[Any, ""]
    sigma: Float[Any, " 7"]


def model(d: int, sizes: Sizes, vocab_size: int) -> models.DecoderLM:
    """The model of one width; muP's factor 1/m on its logits."""
    # The model itself divides logits by the root of its width.
    multiplier = width.readout_multiplier(d, sizes.base_width) * (d / sizes.base_width) ** 0.5
    config = models.DecoderConfig(
        vocab_size, d_model=d, num_layers=sizes.num_layers, num_heads=d // HEAD_DIM,
        head_dim=HEAD_DIM, d_ff=43 * d // 16, position="rope", activation="silu", gated_mlp=True,
        embedding_affine=False, tied_readout=False,
        readout_multiplier=multiplier,
    )  # fmt: skip
    return models.DecoderLM(config)


@functools.partial(jax.jit, static_argnames=("d", "sizes", "vocab_size"))
def _fresh(key: Array, *, d: int, sizes: Sizes, vocab_size: int) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return nn.meta.unbox(model(d, sizes, vocab_size).init(key, tokens))


@functools.cache
def _scaling(d: int, rule: str, sizes: Sizes, vocab_size: int) -> width.WidthScaling:
    base, target, delta = (
        jax.eval_shape(
            lambda key, d=d: _fresh(key, d=d, sizes=sizes, vocab_size=vocab_size),
            jax.random.key(0),
        )
        for d in (sizes.base_width, d, 2 * sizes.base_width)
    )
    of_matrices = character_blocks.matrix_rule(rule)
    return width.width_scaling(base, target, delta=delta, rule=of_matrices)


@functools.partial(jax.jit, static_argnames=("d", "rule", "sizes", "vocab_size"))
def _train(
    params: Any,
    texts: tuple[Array, Array],
    key: Array,
    rates: tuple[Array, Array],
    *,
    d: int,
    rule: str,
    sizes: Sizes,
    vocab_size: int,
) -> tuple[Any, Array]:
    """Parameters and validation loss after training."""
    network = model(d, sizes, vocab_size)
    scaling = _scaling(d, rule, sizes, vocab_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        character_blocks.scaled_adamw(*rates, scaling, sizes.num_steps),
    )

    def loss_fn(params: Any, window: Array) -> Array:
        logits: Any = network.apply(params, window[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

    sample = language_training.windows(texts[0], BATCH_SIZE, CONTEXT + 1)
    params, _ = language_training.descend(
        optimizer,
        lambda params, key: loss_fn(params, sample(key)),
        params,
        jax.random.split(key, sizes.num_steps),
    )
    held_out = language_training.spread_windows(texts[1], 512, CONTEXT + 1)
    return params, loss_fn(params, held_out)


def train(
    learning_rate: float, weight_decay: float, *, d: int, rule: str, sizes: Sizes, seed: int
) -> Trained:
    """Train one model of a width, a multiple of `HEAD_DIM`, on the embedded prose.

    Learning rate and decay are those at the base width, the decay coupled to the rate.
    """
    text = character_blocks.prose()
    fixed = {"sizes": sizes, "vocab_size": text.vocab_size}
    init_key, data_key, value_key = jax.random.split(jax.random.key(seed), 3)
    scaling = _scaling(d, rule, **fixed)
    base = _fresh(init_key, d=sizes.base_width, **fixed)
    params = _fresh(init_key, d=d, **fixed)
    params = width.match_initial_scale(params, base, scaling.init_std)
    rates = jnp.float32(learning_rate), jnp.float32(weight_decay)
    texts = text.train, text.validation
    params, loss = _train(params, texts, data_key, rates, d=d, rule=rule, **fixed)
    values = width.top_singular_values(params, key=value_key, scaling=scaling)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value.mean()
        for path, value in jax.tree_util.tree_leaves_with_path(values)
    }
    sigma = [next(v for path, v in found.items() if f"/{name}" in path) for name in MATRICES]
    return Trained(loss, jnp.stack(sigma))


def run(*, quick: bool = False, seed: int = 0) -> Evidence:
    """Tune the proxy, hand its rates to the wide model by each rule, compare.

    Args:
        quick: widths 64 and 128, one block, 100 steps, one seed; otherwise 128 and 512, two blocks,
            250 steps, three seeds.
        seed: the first seed.
    """
    sizes = QUICK if quick else Sizes()
    seeds = (seed,) if quick else (seed, seed + 1, seed + 2)
    rates, tuning = _tune(sizes, seed)
    found = by_rule(
        lambda d, rule, seed: train(*rates, d=d, rule=rule, sizes=sizes, seed=seed),
        RULES,
        (sizes.base_width, sizes.width),
        seeds,
    )
    # Over the proxy's: ratios of top singular values [seeds, 7].
    ratios = {rule: one.sigma[:, 1] / one.sigma[:, 0] for rule, one in found.items()}
    return Evidence(
        "Four rules for learning rate and weight decay across width, LLaMA-style",
        _claims(sizes, rates, found, ratios),
        [tuning, _table(sizes, rates, found, ratios)],
        {"width_llama": _figure(sizes, ratios)},
    )


def _tune(sizes: Sizes, seed: int) -> tuple[tuple[float, float], Table]:
    """Return the pair of lowest validation loss at the base, and the losses of all."""
    base = {"d": sizes.base_width, "rule": RULES[0], "sizes": sizes, "seed": seed}
    losses = {
        pair: float(train(*pair, **base).loss)
        for pair in itertools.product(sizes.learning_rates, sizes.weight_decays)
    }
    rows = [
        (f"2^{np.log2(rate):g}", *(f"{losses[rate, decay]:.3f}" for decay in sizes.weight_decays))
        for rate in sizes.learning_rates
    ]
    title = f"Proxy of width {sizes.base_width}: validation loss (nats), one seed"
    columns = ("learning rate", *(f"decay {decay:g}" for decay in sizes.weight_decays))
    return min(losses, key=lambda pair: losses[pair]), Table(title, columns, rows)


def _claims(
    sizes: Sizes,
    rates: tuple[float, float],
    found: dict[str, Trained],
    ratios: dict[str, np.ndarray],
) -> list[Claim]:
    m, seeds = sizes.width // sizes.base_width, len(ratios["robust"])
    mean = {rule: float(values.mean()) for rule, values in ratios.items()}
    closest = min(RULES, key=lambda rule: abs(np.log(mean[rule])))
    gap = found["robust"].loss[:, 1] - found["mup_fixed"].loss[:, 1]
    interval = interval_over_seeds(gap)
    transferred = f"learning rate 2^{np.log2(rates[0]):g} and decay {rates[1]:g} tuned"
    return [
        claim(
            f"LLaMA-style: at {m} times the width the top singular values stand in the order "
            f"{' < '.join(RULES)}",
            "1 under robust, m^-0.25 and m^0.25 under mup_independent and mup_fixed",
            f"{transferred}; over the proxy's: "
            + ", ".join(f"{rule} {mean[rule]:.3f}" for rule in RULES)
            + f" over {seeds} seed(s); closest to 1 is {closest}",
            all(mean[a] < mean[b] for a, b in itertools.pairwise(RULES)),
            ratios["robust"].mean(1),
        ),
        claim(
            "LLaMA-style: robust reaches a lower validation loss than mup_fixed (not expected of "
            f"{sizes.num_steps} steps: decay needs several times 1 / (rate x decay) of them)",
            "transfer of the optimum",
            f"robust minus mup_fixed at d = {sizes.width}: {gap.mean():+.4f} nats a character "
            f"over {seeds} seed(s)",
            interval is not None and interval[1] < 0,
            absent="null result",
            interval=interval,
        ),
    ]


def _table(
    sizes: Sizes,
    rates: tuple[float, float],
    found: dict[str, Trained],
    ratios: dict[str, np.ndarray],
) -> Table:
    rows = []
    for name, rule, at in [("(proxy)", "robust", 0), *((rule, rule, 1) for rule in RULES)]:
        loss, sigma = found[rule].loss[:, at], found[rule].sigma[:, at]
        spread = f" ± {loss.std(ddof=1):.3f}" if len(loss) > 1 else ""
        cells = (f"{value:.2f}" for value in sigma.mean(0))
        ratio = ratios[rule].mean() if at else 1.0
        width_of = (sizes.base_width, sizes.width)[at]
        rows.append((name, width_of, f"{loss.mean():.3f}{spread}", *cells, f"{ratio:.2f}"))
    columns = ("rule", "d", "validation loss (nats)", *MATRICES, "mean ratio to the proxy")
    title = (
        f"Top singular values after {sizes.num_steps} steps, learning rate {rates[0]:g}, decay "
        f"{rates[1]:g}: mean over layers and {len(ratios['robust'])} seed(s)"
    )
    return Table(title, columns, rows)


def _figure(sizes: Sizes, ratios: dict[str, np.ndarray]) -> Figure:
    figure, panel = plotting.axes()
    title = f"Width {sizes.base_width} to {sizes.width}"
    label = "top singular value, over the proxy's"
    seed_lines(panel, range(len(MATRICES)), ratios, ylabel=label, title=title)
    panel.axhline(1.0, color="0.5", lw=1, ls=":")
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_xticks(range(len(MATRICES)), MATRICES)
    return figure
