"""The coordinate check: does the size of activations stay put as the model gets wider?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxkit import validation


class Probe(NamedTuple):
    """A model at one width, ready for `coordinate_check`.

    Attributes:
        params: fresh parameters.
        optimizer: an optax transformation.
        loss_fn: `(params, batch, key) -> f32[]`.
        activations_fn: `(params, batch) -> dict` of named activations, any shape.

    Example:
        >>> probe = Probe(
        ...     {"w": jnp.ones((4, 8)) / 8},
        ...     optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, key: jnp.mean((batch @ params["w"]) ** 2),
        ...     activations_fn=lambda params, batch: {"hidden": batch @ params["w"]},
        ... )
        >>> probe.activations_fn(probe.params, jnp.ones((5, 4)))["hidden"].shape
        (5, 8)
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

    Example:
        >>> def build(d):
        ...     return Probe({"w": jnp.ones((4, d)) / d}, optax.sgd(0.1),
        ...                  lambda p, x, key: jnp.mean((x @ p["w"]) ** 2),
        ...                  lambda p, x: {"hidden": x @ p["w"]})
        >>> check = coordinate_check([2, 8], build, jnp.ones((1, 5, 4)), key=jax.random.key(0))
        >>> check.rms["hidden"].shape, check.change["hidden"][:, 0].tolist()
        ((2, 2), [0.0, 0.0])
    """

    widths: Float[Array, " W"]
    rms: dict[str, Array]
    change: dict[str, Array]
    rms_slope: dict[str, Array]
    change_slope: dict[str, Array]


def coordinate_check(
    widths: Sequence[int], build: Callable[[int], Probe], batches: PyTree, *, key: jax.Array
) -> CoordinateCheck:
    r"""Train a model at several widths for a few steps and record the size of its activations.

    In a parametrisation that transfers, the slope of log rms on log width is about 0 for every
    activation at every step; above 0 the activation blows up with width (standard
    parametrisation), below 0 it, or at `change` its learning, dies out.

    Args:
        widths: W >= 2 different widths.
        build: width -> `Probe`.
        batches: tree of arrays with leading axis T: one batch a step, the same at all widths.
        key: for the loss; every width sees the same keys.

    Returns:
        Sizes and slopes.

    Raises:
        ValueError: if there are fewer than two different widths.

    Source: arXiv 2203.03466, Appendix D.1 (coordinate checking).

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
    rms, change = [], []
    for width in widths:
        sizes = _record(build(width), batches, key)
        rms.append(sizes[0])
        change.append(sizes[1])
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
    )


def _record(
    probe: Probe, batches: PyTree, key: jax.Array
) -> tuple[dict[str, Array], dict[str, Array]]:
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
        _, records = jax.lax.scan(step, (params, probe.optimizer.init(params)), inputs)
        return jax.tree.map(lambda a, b: jnp.append(a[None], b), sizes(params), records)

    return train(probe.params)
