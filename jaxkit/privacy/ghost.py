"""Ghost clipping of Flax models: per-example norms and clipped sums without per-example gradients.

One forward and one backward pass over the batch record, for every layer, its input a and the
derivative delta of each example's loss by its output. The gradient of a kernel is the outer product
of the two, so that norms and clipped sums follow from them without a gradient for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Key, PyTree

from jaxkit.privacy import clipping
from jaxkit.privacy.clipped_gradients import ClippedGradient, counted_sum
from jaxkit.privacy.factors import Factors, Lookups, OuterProducts, Rows

_INPUT, _DELTA = "ghost_input", "ghost_delta"
#: Losses of a batch ``[B]`` from `apply(*args, **kwargs)`, the model with its parameters bound.
PerExampleLosses = Callable[[Callable[..., Any], Any, Any], Float[Array, " B"]]


def ghost_clipped_grad_sum(
    model: nn.Module,
    losses_fn: PerExampleLosses,
    clip_norm: Any,
    *,
    mode: clipping.Mode = "flat",
) -> ClippedGradient:
    r"""Clip the gradient of each example of a Flax model, at about the cost of a plain gradient.

    .. math::
        \|g_i\|^2 = \sum_{layers}\Big(\sum_{t,s}(a_t\cdot a_s)(\delta_t\cdot\delta_s) +
        \|\textstyle\sum_t\delta_t\|^2\Big), \qquad
        \sum_i c_i g_i = \sum_{i,t} a_{it}\,(c_i\delta_{it})^\top

    The model may hold `Dense`, `DenseGeneral` (hence `MultiHeadDotProductAttention`), `Embed`,
    `LayerNorm` and `RMSNorm`, each called once, and nothing else with parameters. Layers inside
    `nn.scan` are not seen; use `clipped_grad_sum` for such models. Differences of gradients cost
    two such passes.

    Args:
        model: a Linen module; parameters are its `"params"` collection.
        losses_fn: `losses_fn(apply, batch, key)`, losses of the rows ``[B]``; the loss of a row
            must depend on that row alone (`check_ghost` looks). `apply` stands for `model.apply`
            with the variables given, and is called once.
        clip_norm: C > 0; may be traced.
        mode: see `clip_per_example`.

    Returns:
        The function, which knows its sensitivity; it gives what `clipped_grad_sum` gives.

    Raises:
        ValueError: if the clip norm or mode is not allowed; at the first call, if a parameter
            belongs to a layer without a rule or a layer is used twice.

    Source: Goodfellow 2015; Li et al. 2022 (sequences); Bu et al. 2023 (sums from the factors); the
        extension to differences is this project's.

    Example:
        >>> model = nn.Dense(1)
        >>> losses = lambda apply, batch, key: jnp.sum(apply(batch) ** 2, axis=-1)
        >>> gradient = ghost_clipped_grad_sum(model, losses, clip_norm=1.0)
        >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
        >>> gradient(params, jnp.ones((1, 3))).total["bias"].tolist()
        [0.5]
    """
    clipping.check_clip_norm(clip_norm, mode)

    def losses_and_factors(params, batch, key):
        return _losses_and_factors(model, losses_fn, params, batch, key)

    def clipped_sum(losses, factors, params, count, bound, mode):
        squares = {path: factor.norms_squared() for path, factor in factors.items()}
        norms = jnp.sqrt(sum(squares.values()))
        finite = jnp.isfinite(norms)
        if mode == "per_layer":
            limit = bound / len(factors) ** 0.5
            scales = {p: clipping.clip_scales(jnp.sqrt(s), limit) for p, s in squares.items()}
        else:
            scales = dict.fromkeys(factors, clipping.clip_scales(norms, bound, mode))
        weights = {path: jnp.where(finite, scale * count, 0) for path, scale in scales.items()}
        flat_params: Any = traverse_util.flatten_dict(params)
        total = {
            path: factor.weighted_sum(weights[path]).reshape(flat_params[path].shape)
            for path, factor in factors.items()
        }
        total = traverse_util.unflatten_dict(total)
        scaled = finite & jnp.any(jnp.stack([scale < 1 for scale in scales.values()]), axis=0)
        return counted_sum(total, losses, scaled, ~finite, count)

    def sum_fn(params, batch, key, count, bound):
        losses, factors = losses_and_factors(params, batch, key)
        return clipped_sum(losses, factors, params, count, bound, mode)

    def difference_fn(params, prev_params, batch, key, count, bound):
        losses, factors = losses_and_factors(params, batch, key)
        prev_factors: dict[Any, Any]
        _, prev_factors = losses_and_factors(prev_params, batch, key)
        differences = {path: factors[path].minus(prev_factors[path]) for path in factors}
        return clipped_sum(losses, differences, params, count, bound, "flat")

    return ClippedGradient(clip_norm, mode, sum_fn, difference_fn)


def check_ghost(
    model: nn.Module,
    losses_fn: PerExampleLosses,
    params: PyTree,
    batch: PyTree,
    key: Key[Array, ""] | None = None,
    *,
    tolerance: float = 1e-3,
) -> None:
    """Check on a real batch that each example's ghost gradient is its own gradient.

    Catches losses that mix rows (batch normalisation, in-batch negatives) and parameters used
    outside their layer (tied weights): their guarantee would be wrong without any other sign. A
    loss that draws random numbers must draw the same for a row in whatever batch it stands.

    Args:
        model: the module.
        losses_fn: losses of the rows.
        params: parameters.
        batch: tree of arrays ``[B, ...]``, B >= 2; the first two rows are checked.
        key: for a random loss.
        tolerance: largest relative error of a gradient.

    Raises:
        ValueError: if a gradient differs, or the model cannot be ghost clipped.

    Example:
        >>> model = nn.Dense(1)
        >>> losses = lambda apply, batch, key: jnp.sum(apply(batch) ** 2, axis=-1)
        >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
        >>> check_ghost(model, losses, params, jnp.ones((2, 3)))
    """
    rows = clipping.batch_size("batch", batch)
    if rows < 2:
        raise ValueError(f"batch must have at least 2 rows to compare, got {rows}")

    def gradients(params, batch, row):
        """The gradient of one row, by its factors in the batch and by the row alone."""

        def loss(params):
            def apply(*args, **kwargs):
                return model.apply({"params": params}, *args, **kwargs)

            one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), batch)
            return jnp.sum(losses_fn(apply, one, key))

        _, factors = _losses_and_factors(model, losses_fn, params, batch, key)
        weights = jnp.zeros(rows).at[row].set(1)
        alone: Any = traverse_util.flatten_dict(jax.grad(loss)(params))
        ghost = {p: f.weighted_sum(weights).reshape(alone[p].shape) for p, f in factors.items()}
        return ghost, alone

    compiled = jax.jit(gradients)
    for row in range(2):
        ghost, alone = jax.device_get(compiled(params, batch, row))
        scale = max(float(np.max(np.abs(leaf))) for leaf in alone.values())
        for path, gradient in alone.items():
            error = float(np.max(np.abs(ghost[path] - gradient))) / max(scale, 1e-30)
            if not error <= tolerance:
                raise ValueError(
                    f"losses_fn must give row {row} a loss of its own, and each layer its own "
                    f"parameters: the gradient of {'/'.join(path)} in a batch differs from that of "
                    f"the row alone by {error:.1e} of the largest entry; use clipped_grad_sum"
                )


def _losses_and_factors(
    model, losses_fn, params, batch, key
) -> tuple[Float[Array, " B"], dict[tuple[str, ...], Factors]]:
    layers: dict[tuple[str, ...], nn.Module] = {}

    def record(call, args, kwargs, context):
        layer = context.module
        if type(layer) not in _RULES or context.method_name == "setup":
            return call(*args, **kwargs)
        if context.method_name != "__call__":
            raise ValueError(
                f"ghost clipping knows only calls of {'/'.join(layer.path)}, not its method "
                f"{context.method_name!r} (tied weights): use clipped_grad_sum"
            )
        # A module without a parent has no name of its own to keep records under.
        layers[layer.path] = layer.clone(parent=None, name=None)
        layer.sow(_INPUT, "x", args[0])
        return layer.perturb("y", call(*args, **kwargs), _DELTA)

    def forward(deltas, collections):
        inputs: list[Mapping[str, Any]] = []

        def apply(*args, **kwargs):
            variables = {"params": params}
            if deltas is not None:
                variables[_DELTA] = deltas
            with nn.intercept_methods(record):
                output, state = model.apply(variables, *args, mutable=collections, **kwargs)
            inputs.append(state)
            return output

        losses = losses_fn(apply, batch, key)
        rows = clipping.batch_size("batch", batch)
        if losses.shape != (rows,):
            raise ValueError(f"losses_fn must return one loss a row, ({rows},), got {losses.shape}")
        if len(inputs) != 1:
            raise ValueError(f"losses_fn must call apply once, it did {len(inputs)} times")
        return losses, inputs[0]

    # A first, abstract pass finds the shapes of the layers' outputs.
    _, shapes = jax.eval_shape(lambda: forward(None, [_INPUT, _DELTA]))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.get(_DELTA, {}))
    losses, backward, state = jax.vjp(lambda z: forward(z, [_INPUT]), zeros, has_aux=True)
    (deltas,) = backward(jnp.ones_like(losses))
    return losses, _factors(layers, params, state.get(_INPUT, {}), deltas)


def _factors(layers, params, input_tree, delta_tree) -> dict[tuple[str, ...], Factors]:
    inputs: Any = traverse_util.flatten_dict(input_tree)
    deltas: Any = traverse_util.flatten_dict(delta_tree)
    flat_params: Any = traverse_util.flatten_dict(params)
    factors: dict[tuple[str, ...], Factors] = {}
    for path, layer in layers.items():
        calls = inputs[(*path, "x")]
        if len(calls) != 1:
            raise ValueError(
                f"ghost clipping needs each layer called once, {'/'.join(path)} is called "
                f"{len(calls)} times: use clipped_grad_sum"
            )
        delta = deltas[(*path, "y")].astype(jnp.float32)
        own = {p[-1]: flat_params[p] for p in flat_params if p[:-1] == path}
        for name, factor in _RULES[type(layer)](layer, calls[0], delta, own).items():
            if name in own:
                factors[*path, name] = factor
    missing = sorted("/".join(path) for path in flat_params.keys() - factors.keys())
    if missing:
        known = ", ".join(sorted(rule.__name__ for rule in _RULES))
        raise ValueError(
            f"ghost clipping has rules for {known}, not for the layer of {', '.join(missing)}: "
            "use clipped_grad_sum"
        )
    return {path: factors[path] for path in flat_params}


def _sum_over_positions(x: Float[Array, "B ..."], trailing: int) -> Float[Array, "B ..."]:
    return jnp.sum(x, tuple(range(1, x.ndim - trailing)))


def _dense(layer, x, delta, own):
    return _dense_general(layer, x, delta, own, axes=1)


def _dense_general(layer, x, delta, own, axes=None):
    if axes is None:
        axis = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
        axes = len(axis)
        if layer.batch_dims or sorted(a % x.ndim for a in axis) != list(
            range(x.ndim - axes, x.ndim)
        ):
            raise ValueError(
                f"ghost clipping knows DenseGeneral over trailing axes without batch_dims, got "
                f"axis={layer.axis}, batch_dims={layer.batch_dims}: use clipped_grad_sum"
            )
    rows = x.shape[0]
    kernel = own["kernel"].shape
    fan_in = int(np.prod(kernel[:axes]))
    x = x.astype(jnp.float32).reshape(rows, -1, fan_in)
    bias = Rows(_sum_over_positions(delta, len(kernel) - axes))
    return {"kernel": OuterProducts(x, delta.reshape(rows, x.shape[1], -1)), "bias": bias}


def _embed(layer, tokens, delta, own):
    del layer
    rows, features = tokens.shape[0], delta.shape[-1]
    lookups = Lookups(
        tokens.reshape(rows, -1), delta.reshape(rows, -1, features), own["embedding"].shape[0]
    )
    return {"embedding": lookups}


def _norm(layer, x, delta, own):
    del own
    without: dict[str, Any] = {"use_scale": False}
    if isinstance(layer, nn.LayerNorm):
        without["use_bias"] = False
    normalised: Any = layer.clone(**without).apply({}, x)
    normalised = normalised.astype(jnp.float32)
    return {
        "scale": Rows(_sum_over_positions(normalised * delta, 1)),
        "bias": Rows(_sum_over_positions(delta, 1)),
    }


_RULES: dict[type, Callable[..., Mapping[str, Factors]]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense_general,
    nn.Embed: _embed,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
}
