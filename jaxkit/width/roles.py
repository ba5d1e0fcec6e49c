"""Which axes of a parameter grow with the model's width, and what that makes the parameter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import validation
from jaxkit.width import paths

Role = Literal["matrix", "vector", "scalar"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "scalar")

# A leaf with one of these names has no input side: every axis of it is an output axis.
_OUTPUT_ONLY = ("bias", "scale")
# Attention kernels of Flax, (d, heads, head_dim) and (heads, head_dim, d), by their number of input
# axes among the last three. Only consulted when three or more axes grow.
_ATTENTION_INPUT_AXES = {"query": 1, "key": 1, "value": 1, "out": 2}


@dataclasses.dataclass(frozen=True)
class WidthInfo:
    """What a change of width means for one parameter.

    Attributes:
        path: the parameter's path, `"layers/up/kernel"`.
        role: `"matrix"` (width on the input and the output side), `"vector"` (on one side: also
            embeddings and the readout) or `"scalar"` (none).
        width_mult: m, the product of target / base size over the input axes that grow; for a
            vector over all axes that grow; 1 for a scalar.
        fan_out_mult: the same product over the output axes that grow; equal to `width_mult` for a
            vector.
        fan_in_axes: of a matrix, the axes of its input side, in order; otherwise empty.
        fan_out_axes: of a matrix, the axes of its output side, in order; otherwise empty. What is
            in neither (a stack of layers, the window of a convolution) is a batch of matrices.
        why: what told the role; it ends in a question mark where that was a guess by convention.

    Example:
        >>> shape = lambda d: {"up": jax.ShapeDtypeStruct((d, 4 * d), "float32")}
        >>> info = infer_width_roles(shape(64), shape(256))["up"]
        >>> info.role, info.width_mult, info.fan_in_axes, info.fan_out_axes
        ('matrix', 4.0, (0,), (1,))
    """

    path: str
    role: Role
    width_mult: float = 1.0
    fan_out_mult: float = 1.0
    fan_in_axes: tuple[int, ...] = ()
    fan_out_axes: tuple[int, ...] = ()
    why: str = ""


def infer_width_roles(
    base: Any,
    target: Any,
    *,
    delta: Any = None,
    fan_in_axes: Mapping[str, Sequence[int]] | None = None,
    overrides: Mapping[str, Role] | None = None,
) -> Any:
    r"""Find the role and the width multiplier of every parameter from shapes alone.

    An axis is a *width axis* if its length differs between `base` and `delta` (without `delta`:
    between `base` and `target`). With :math:`F` the width axes on a matrix's input side,

    .. math:: m = \prod_{i \in F} \text{target}_i / \text{base}_i .

    The input side is, in this order: what `fan_in_axes` says; nothing for a leaf called `bias` or
    `scale`; the second of two axes of a leaf called `weight` (Equinox, PyTorch), the first of any
    other; with two width axes side by side, the first of them (`(layers, in, out)`,
    `(d, heads, head_dim)`, `(height, width, in, out)`); with an axis between them or with three,
    Flax's attention names `query`, `key`, `value`, `out`. Otherwise, as for a fused `(d, 2, 4d)`,
    an error asks for `fan_in_axes`. Integer and key leaves are scalars.

    Source: arXiv 2510.15262, abstract (classes of parameters); the notion of one and of two
    infinite dimensions is that of arXiv 2203.03466.
    """
    base_leaves, target_leaves = _arrays("base", base), _arrays("target", target)
    delta_leaves = target_leaves if delta is None else _arrays("delta", delta)
    _check_same_shapes("base", base_leaves, target_leaves)
    _check_same_shapes("delta", delta_leaves, target_leaves)
    axes_by_path = paths.expand_patterns("fan_in_axes", fan_in_axes, target_leaves)
    role_by_path = paths.expand_patterns("overrides", overrides, target_leaves)
    for path, role in role_by_path.items():
        validation.choice(f"overrides for {path!r}", role, ROLES)

    infos = {
        path: _classify(
            path,
            np.shape(base_leaves[path]),
            np.shape(delta_leaves[path]),
            np.shape(leaf),
            axes_by_path.get(path),
            role_by_path.get(path),
        )
        if is_trained(leaf)
        else WidthInfo(path, "scalar", why="integers or keys are not trained")
        for path, leaf in target_leaves.items()
    }
    sees_width = any(np.shape(base_leaves[p]) != np.shape(delta_leaves[p]) for p in base_leaves)
    if not sees_width and all(info.role != "matrix" for info in infos.values()):
        raise ValueError(
            f"{'target' if delta is None else 'delta'} has the same shapes as base, so no width "
            "axis can be seen and every matrix would silently train without weight decay: pass "
            "delta, the same model at any other width, or name the matrices in overrides"
        )
    return jax.tree_util.tree_map_with_path(lambda path, _: infos[paths.path_name(path)], target)


def is_trained(leaf: Any) -> bool:
    """Whether a leaf holds real (or complex) numbers, rather than integers or keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", None) or np.result_type(leaf), jnp.inexact)


def _arrays(name: str, tree: Any) -> dict[str, Any]:
    leaves = paths.named_leaves(tree)
    if not leaves:
        raise ValueError(f"{name} must hold parameters, got a tree without leaves: {tree!r}")
    for path, leaf in leaves.items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"{name} must hold arrays or their shapes, got {leaf!r} at {path or 'its root'!r}: "
                "take the parameters alone, as by equinox.filter(model, equinox.is_array) or "
                "nnx.state(model, nnx.Param)"
            )
    return leaves


def _check_same_shapes(name: str, leaves: dict[str, Any], target: dict[str, Any]) -> None:
    for path in [*target, *leaves]:
        if path not in leaves or path not in target:
            where = f"target but not in {name}" if path in target else f"{name} but not in target"
            raise ValueError(f"{name} and target differ in structure: {path!r} is in {where}")
        shape, target_shape = np.shape(leaves[path]), np.shape(target[path])
        if len(shape) != len(target_shape):
            raise ValueError(
                f"{name} and target differ in rank at {path!r}: {shape} and {target_shape}"
            )
        if 0 in shape + target_shape:
            raise ValueError(f"{path!r} has an empty axis: {shape} in {name}, {target_shape}")


def _classify(
    path: str,
    base: tuple[int, ...],
    delta: tuple[int, ...],
    target: tuple[int, ...],
    explicit_axes: Sequence[int] | None,
    override: Role | None,
) -> WidthInfo:
    width_axes = [axis for axis in range(len(base)) if base[axis] != delta[axis]]

    def growth(axes: Sequence[int]) -> float:
        return math.prod(target[a] for a in axes) / math.prod(base[a] for a in axes)

    if override in ("vector", "scalar"):
        multiplier = growth(width_axes) if override == "vector" else 1.0
        return WidthInfo(path, override, multiplier, multiplier, why="overrides")
    if explicit_axes is not None:
        fan_in, why = _normalise_axes(path, explicit_axes, len(base)), "fan_in_axes"
    else:
        fan_in, why = _infer_fan_in_axes(path, base, width_axes, is_matrix=override == "matrix")
    fan_in_width = [axis for axis in width_axes if axis in fan_in]
    fan_out_width = [axis for axis in width_axes if axis not in fan_in]

    if override == "matrix" or (fan_in_width and fan_out_width):
        last = max(fan_in, default=-1)
        fan_out = [
            axis
            for axis in range(len(base))
            if axis not in fan_in and (axis in fan_out_width or axis > last)
        ]
        multiplier = growth(fan_in_width or fan_out_width)
        return WidthInfo(
            path,
            "matrix",
            multiplier,
            growth(fan_out_width or fan_in_width),
            tuple(fan_in),
            tuple(fan_out),
            why if override is None else f"overrides; {why}",
        )
    if width_axes:
        reason = f"grows along {', '.join(map(str, width_axes))} alone"
        return WidthInfo(path, "vector", growth(width_axes), growth(width_axes), why=reason)
    return WidthInfo(path, "scalar", why="no axis grows")


def _infer_fan_in_axes(
    path: str, shape: tuple[int, ...], width_axes: Sequence[int], *, is_matrix: bool
) -> tuple[list[int], str]:
    rank, names = len(shape), path.split("/")
    if names[-1] in _OUTPUT_ONLY and not is_matrix:
        return [], f"called {names[-1]}"
    if rank == 2 and names[-1] == "weight":
        return [1], "called weight: (out, in)?"
    if len(width_axes) <= 1:
        return ([rank - 2], "the last two axes: (in, out)?") if rank >= 2 else ([], "one axis")
    if len(width_axes) == 2 and width_axes[1] == width_axes[0] + 1:
        return [width_axes[0]], "in before out" if rank == 2 else "in before out?"
    known = [name for name in names[-2:] if name in _ATTENTION_INPUT_AXES]
    if known and len(width_axes) == 2:
        # What lies between them, as the size of a head, belongs to the side of the heads.
        many = _ATTENTION_INPUT_AXES[known[-1]] == 2
        end = width_axes[1] if many else width_axes[0] + 1
        return list(range(width_axes[0], end)), f"called {known[-1]}?"
    if known and len(width_axes) == 3:
        return list(width_axes[: _ATTENTION_INPUT_AXES[known[-1]]]), f"called {known[-1]}?"
    raise ValueError(
        f"the parameter {path!r} of shape {shape} grows along the axes {tuple(width_axes)} and its "
        f"input side cannot be told: pass fan_in_axes={{{path!r}: (...)}}"
    )


def _normalise_axes(path: str, axes: Sequence[int], rank: int) -> list[int]:
    axes = [validation.integer(f"fan_in_axes for {path!r}", axis) for axis in axes]
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(
            f"fan_in_axes for {path!r} must be axes of a rank-{rank} array, got {axes}"
        )
    return sorted({axis % rank for axis in axes})
