"""The coordinate check: does the size of activations stay put as the model gets wider?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxkit import plotting, validation
from jaxkit.width import paths, rules, spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Probe(NamedTuple):
    """A model at one width, ready for `coordinate_check`.

    Attributes:
        params: fresh parameters.
        optimizer: an optax transformation.
        loss_fn: `(params, batch, key) -> f32[]`.
        activations_fn: `(params, batch) -> dict` of named activations, any shape.
    """

    params: Any
    optimizer: optax.GradientTransformation
    loss_fn: Callable[[Any, Any, jax.Array], Array]
    activations_fn: Callable[[Any, Any], dict[str, Array]]


class CoordinateCheck(NamedTuple):
    """Sizes of activations over W widths and T steps, on the first batch.

    Attributes:
        widths: f32[W].
        rms: name -> f32[W, T+1], root mean square before training and after each step.
        change: name -> f32[W, T+1], root mean square of the difference to before training.
        rms_slope: name -> f32[T+1], slope of log rms on log width; NaN where an rms is zero.
        change_slope: name -> f32[T+1], the same of `change` (NaN at step 0).
        singular_values: path of a matrix -> f32[W], its top singular value after training, the
            mean over a stack.
        gain_ratio: path of a matrix -> f32[W], that value over the first width's, times the root of
            the growth of its input over its output side: 1 where gains transfer.
    """

    widths: Float[Array, " W"]
    rms: dict[str, Array]
    change: dict[str, Array]
    rms_slope: dict[str, Array]
    change_slope: dict[str, Array]
    singular_values: dict[str, Array]
    gain_ratio: dict[str, Array]


def coordinate_check(
    widths: Sequence[int], build: Callable[[int], Probe], batches: PyTree, *, key: jax.Array
) -> CoordinateCheck:
    r"""Train a model at several widths; record its activations and its top singular values.

    Two diagnostics in one call, drawn by `coordinate_figure`. In a parametrisation that transfers,
    the slope of log rms on log width is about 0 for every activation at every step; above 0 the
    activation blows up with width (standard parametrisation), below 0 it, or at `change` its
    learning, dies out. In long runs weight decay
    sets the scale: a `gain_ratio` that leaves 1 says by how much the rule missed
    (`corrected_weight_decay`).

    Args:
        widths: W >= 2 different widths.
        build: width -> `Probe`.
        batches: tree of arrays with leading axis T: one batch a step, the same at all widths.
        key: for the loss; every width sees the same keys.

    Returns:
        Sizes, slopes and top singular values; matrices are found as by `width_scaling`.

    Raises:
        ValueError: if there are fewer than two different widths.

    Source: arXiv 2203.03466, Appendix D.1 (coordinate checking); arXiv 2510.15262, abstract (top
    singular values as the diagnostic).

    Example:
        >>> def build(d):
        ...     return Probe({"w": jnp.ones((4, d)) / d}, optax.sgd(0.1),
        ...                  lambda p, x, key: jnp.mean((x @ p["w"]) ** 2),
        ...                  lambda p, x: {"hidden": x @ p["w"]})
        >>> check = coordinate_check([2, 8], build, jnp.ones((3, 5, 4)), key=jax.random.key(0))
        >>> round(float(check.rms_slope["hidden"][0]), 3)
        -1.0
    """
    widths = [validation.integer("widths", width, minimum=1) for width in widths]
    if len(set(widths)) < 2:
        raise ValueError(f"widths must hold at least two different widths, got {widths}")
    rms, change, trained = [], [], []
    for width in widths:
        sizes, params = _record(build(width), batches, key)
        rms.append(sizes[0])
        change.append(sizes[1])
        trained.append(params)
    values, ratios = _spectra(widths, trained, key)
    log_width = jnp.log(jnp.asarray(widths, jnp.float32))

    def slope(sizes: Float[Array, "W T"]) -> Float[Array, " T"]:
        x = log_width - log_width.mean()
        y = jnp.log(jnp.where(sizes > 0, sizes, jnp.nan))
        return x @ (y - y.mean(0)) / (x @ x)

    stacked_rms, stacked_change = (
        jax.tree.map(lambda *rows: jnp.stack(rows), *records) for records in (rms, change)
    )
    return CoordinateCheck(
        jnp.asarray(widths, jnp.float32),
        stacked_rms,
        stacked_change,
        jax.tree.map(slope, stacked_rms),
        jax.tree.map(slope, stacked_change),
        values,
        ratios,
    )


def _spectra(
    widths: Sequence[int], trained: Sequence[Any], key: jax.Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Top singular values of every matrix at each width, and the gains relative to the first."""
    other = next(i for i, width in enumerate(widths) if width != widths[0])
    found: list[dict[str, Array]] = []
    gains: list[dict[str, Array]] = []
    for params in trained:
        scaling = rules.width_scaling(trained[0], params, delta=trained[other])
        values = spectra.top_singular_values(params, key=key, scaling=scaling)
        found.append({p: v[..., 0].mean() for p, v in paths.named_leaves(values).items()})
        growth = {
            info.path: (info.width_mult / info.fan_out_mult) ** 0.5
            for info in jax.tree.leaves(scaling.info)
        }
        first = found[0]
        gains.append({p: v / first[p] * growth[p] for p, v in found[-1].items()})
    stacked = [{p: jnp.stack([row[p] for row in rows]) for p in rows[0]} for rows in (found, gains)]
    return stacked[0], stacked[1]


def coordinate_figure(check: CoordinateCheck, title: str = "") -> Figure:
    """Draw a coordinate check: activations and top singular values against the width.

    Args:
        check: from `coordinate_check`.
        title: title of the figure.

    Returns:
        A figure of three panels: size of each activation after the last step, its change in
        training, and the top singular value of each matrix over what the first width predicts; all
        should be flat.

    Example:
        >>> def build(d):
        ...     return Probe({"w": jnp.ones((d, d)) / d}, optax.sgd(0.1),
        ...                  lambda p, x, key: jnp.mean((x[:, :1] @ p["w"][:1]) ** 2),
        ...                  lambda p, x: {"hidden": x[:, :1] @ p["w"][:1]})
        >>> check = coordinate_check([2, 8], build, jnp.ones((1, 5, 4)), key=jax.random.key(0))
        >>> len(coordinate_figure(check).axes)
        3
    """
    figure, panels = plotting.axes(1, 3, width=4.2, height=3.4)
    drawn = (
        ("activations, root mean square", {n: v[:, -1] for n, v in check.rms.items()}),
        ("their change in training", {n: v[:, -1] for n, v in check.change.items()}),
        ("gain of each matrix / first width's", check.gain_ratio),
    )
    for panel, (label, lines) in zip(panels, drawn, strict=True):
        for name, sizes in lines.items():
            panel.plot(check.widths, sizes, "o-", label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(check.widths, [f"{int(width)}" for width in check.widths])
        panel.minorticks_off()
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, high / 4), max(high, low * 4))
        panel.set(xlabel="width", ylabel=label)
        panel.legend(fontsize=7)
    panels[0].set_title(title, loc="left")
    return figure


def _record(
    probe: Probe, batches: PyTree, key: jax.Array
) -> tuple[tuple[dict[str, Array], dict[str, Array]], Any]:
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    num_steps = len(jax.tree.leaves(batches)[0])

    def rms(activation: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(activation.astype(jnp.float32))))

    @jax.jit
    def train(params: Any) -> Any:
        before = probe.activations_fn(params, first)

        def sizes(params: Any) -> Any:
            now = probe.activations_fn(params, first)
            change = jax.tree.map(lambda a, b: rms(a - b), now, before)
            return jax.tree.map(rms, now), change

        def step(carry: Any, inputs: Any) -> Any:
            params, state = carry
            gradient = jax.grad(probe.loss_fn)(params, *inputs)
            updates, state = probe.optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), sizes(params)

        inputs = (batches, jax.random.split(key, num_steps))
        (last, _), records = jax.lax.scan(step, (params, probe.optimizer.init(params)), inputs)
        return jax.tree.map(lambda a, b: jnp.append(a[None], b), sizes(params), records), last

    return train(probe.params)
