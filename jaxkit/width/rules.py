"""How learning rate and weight decay change with width: the rules and what they give a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from jaxkit import validation
from jaxkit.width import paths, roles

#: Growth of the top singular value with width at fixed learning rate over weight decay:
#: `sigma_1 ~ sqrt(learning_rate / weight_decay) d^0.75` (arXiv 2510.15262, abstract).
SINGULAR_VALUE_EXPONENT = 0.75


def weight_decay_exponent(
    learning_rate_exponent: float = -1.0, singular_value_exponent: float = SINGULAR_VALUE_EXPONENT
) -> float:
    r"""Return the exponent q of width in the weight decay that keeps sublayer gains fixed.

    With :math:`\sigma_1 = C \sqrt{\eta/\lambda}\, d^a`, :math:`\eta \sim d^p` and
    :math:`\lambda \sim d^q`, the width cancels if :math:`q = p + 2a`.

    Args:
        learning_rate_exponent: p, the exponent of width in a matrix's learning rate.
        singular_value_exponent: a; measure it with `fit_singular_value_exponent`.

    Raises:
        ValueError: if an exponent is not finite.

    Source: arXiv 2510.15262, abstract (p = -1, a = 3/4 give q = 1/2; the square root is often
    lost in copies of it).

    Example:
        >>> weight_decay_exponent()
        0.5
    """
    p = validation.number("learning_rate_exponent", learning_rate_exponent)
    a = validation.number("singular_value_exponent", singular_value_exponent)
    return p + 2 * a


@dataclasses.dataclass(frozen=True)
class WidthRule:
    r"""Powers of the width multiplier m: a matrix trains with `(lr m^p, decay m^q)`.

    Weight decay is the coupled kind of `optax.adamw` and `torch.optim.AdamW`: a step subtracts
    `lr * decay * W`. A decay that is not multiplied by the learning rate ("independent", lambda')
    is the same thing under another name at the base, `decay = lambda' / peak_lr`.

    Attributes:
        learning_rate_exponent: p, for matrices. Vectors and scalars keep the base learning rate.
        weight_decay_exponent: q, for matrices.
        vector_weight_decay: factor on the weight decay of vectors and scalars; 0 switches it off.

    Raises:
        ValueError: if an exponent is not finite or the factor is negative.

    Source: arXiv 2510.15262; arXiv 2203.03466 (the muP baselines).

    Example:
        >>> WidthRule(weight_decay_exponent=0.7)
        WidthRule(learning_rate_exponent=-1.0, weight_decay_exponent=0.7, vector_weight_decay=0.0)
    """

    learning_rate_exponent: float = -1.0
    weight_decay_exponent: float = 0.5
    vector_weight_decay: float = 0.0

    def __post_init__(self) -> None:
        validation.number("learning_rate_exponent", self.learning_rate_exponent)
        validation.number("weight_decay_exponent", self.weight_decay_exponent)
        validation.number("vector_weight_decay", self.vector_weight_decay, minimum=0)


#: The rules by name. `robust` is the paper's; `mup_fixed` and `mup_independent` are muP with a
#: decay that the width leaves alone, before and after multiplication by the learning rate;
#: `standard` changes nothing with width.
RULES: Mapping[str, WidthRule] = {
    "robust": WidthRule(-1.0, weight_decay_exponent(), 0.0),
    "mup_fixed": WidthRule(-1.0, 0.0, 1.0),
    "mup_independent": WidthRule(-1.0, 1.0, 1.0),
    "standard": WidthRule(0.0, 0.0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class WidthScaling:
    """Every multiplier of a model at its target width.

    Static configuration, not a pytree of arrays: close over it, do not pass it into `jit`.

    Attributes:
        rule: the rule that made it.
        info: tree of `WidthInfo` with the structure of the target's parameters.
        learning_rate: tree of floats, factor on the base learning rate.
        weight_decay: tree of floats, factor on the base weight decay (before it is multiplied by
            the learning rate).
        init_std: tree of floats, factor on the standard deviation that the initialiser has at the
            base width (see `match_initial_scale`).
        role: tree of `"matrix"`, `"vector"` or `"scalar"`.

    Example:
        >>> shape = lambda d: {"up": jax.ShapeDtypeStruct((d, 4 * d), "float32")}
        >>> scaling = width_scaling(shape(64), shape(256))
        >>> scaling.role["up"], scaling.learning_rate["up"], scaling.weight_decay["up"]
        ('matrix', 0.25, 2.0)
    """

    rule: WidthRule
    info: Any
    learning_rate: Any
    weight_decay: Any
    init_std: Any
    role: Any


def width_scaling(
    base: Any,
    target: Any,
    *,
    delta: Any = None,
    rule: str | WidthRule = "robust",
    fan: Literal["in", "out"] = "in",
    fan_in_axes: Mapping[str, Sequence[int]] | None = None,
    overrides: Mapping[str, roles.Role] | None = None,
) -> WidthScaling:
    r"""Work out each parameter's learning-rate, weight-decay and initial-scale multiplier.

    For matrices :math:`(m^p, m^q)`, for all others :math:`(1, v)`, with the rule's exponents; the
    `robust` rule is :math:`(m^{-1}, m^{1/2})` and :math:`(1, 0)`.

    Args:
        base: parameters at the width where learning rate and weight decay were tuned: any pytree of
            arrays or `jax.ShapeDtypeStruct` (`jax.eval_shape` of the model's `init` costs no
            memory), boxed or not, or an nnx state.
        target: the same tree at the width to train.
        delta: the same tree at any other width. Needed where `target` may equal `base`, and where
            something else than the width (vocabulary, depth) also differs: with it, only axes that
            `delta` changes are width axes.
        rule: a name in `RULES`, or a `WidthRule` with free exponents.
        fan: whether m counts the growth of a matrix's input or its output side; they differ only
            where the two sides grow by different factors.
        fan_in_axes: path pattern -> axes of the input side, for kernels in another layout.
        overrides: path pattern -> role; wins over what the shapes say.

    Raises:
        TypeError: if a leaf is no array or shape, such as a function of an Equinox module.
        ValueError: for an unknown rule; if a tree is empty, the trees differ in structure or a leaf
            in rank, an axis is empty, no width axis can be seen, the input side of a kernel is
            unclear, or a pattern matches nothing.

    Source: arXiv 2510.15262, abstract.

    Example:
        >>> shape = lambda d: {"embed": jax.ShapeDtypeStruct((96, d), "float32"),
        ...                    "up": jax.ShapeDtypeStruct((d, 4 * d), "float32")}
        >>> scaling = width_scaling(shape(64), shape(256))
        >>> scaling.learning_rate, scaling.weight_decay
        ({'embed': 1.0, 'up': 0.25}, {'embed': 0.0, 'up': 2.0})
    """
    if not isinstance(rule, WidthRule):
        rule = RULES[validation.choice("rule", rule, RULES)]
    validation.choice("fan", fan, ("in", "out"))
    info = roles.infer_width_roles(
        base, target, delta=delta, fan_in_axes=fan_in_axes, overrides=overrides
    )
    trained = {path: roles.is_trained(leaf) for path, leaf in paths.named_leaves(target).items()}

    def learning_rate(leaf: roles.WidthInfo) -> float:
        return (
            _multiplier(leaf, fan) ** rule.learning_rate_exponent if leaf.role == "matrix" else 1.0
        )

    def weight_decay(leaf: roles.WidthInfo) -> float:
        if leaf.role == "matrix":
            return _multiplier(leaf, fan) ** rule.weight_decay_exponent
        return float(rule.vector_weight_decay) if trained[leaf.path] else 0.0

    return WidthScaling(
        rule,
        info,
        learning_rate=jax.tree.map(learning_rate, info),
        weight_decay=jax.tree.map(weight_decay, info),
        # Standard muP: 1/sqrt(fan-in), arXiv 2203.03466 Table 8.
        init_std=jax.tree.map(
            lambda leaf: leaf.width_mult**-0.5 if leaf.role == "matrix" else 1.0, info
        ),
        role=jax.tree.map(lambda leaf: leaf.role, info),
    )


def _multiplier(leaf: roles.WidthInfo, fan: str) -> float:
    return leaf.width_mult if fan == "in" else leaf.fan_out_mult


def width_report(
    scaling: WidthScaling, *, learning_rate: float = 1.0, weight_decay: float = 1.0
) -> str:
    """Explain what each parameter trains with and why, one line a parameter.

    Args:
        scaling: the multipliers.
        learning_rate: base learning rate (of a schedule, its peak).
        weight_decay: base weight decay.

    Returns:
        A table: path, role, axes of the input and of the output side, m, learning rate, weight
        decay, their product (the fraction of a weight that one step at the peak removes), and what
        told the role; a question mark says that a convention was trusted.

    Raises:
        ValueError: if a base value is negative or not finite.

    Example:
        >>> shape = lambda d: {"embed": jax.ShapeDtypeStruct((96, d), "float32"),
        ...                    "up": jax.ShapeDtypeStruct((d, 4 * d), "float32")}
        >>> print(width_report(width_scaling(shape(64), shape(256)), learning_rate=0.01,
        ...                    weight_decay=0.1))
        path   role    in  out  m  learning rate  weight decay  product  why
        embed  vector           4  0.01           0             0        grows along 1 alone
        up     matrix  0   1    4  0.0025         0.2           0.0005   in before out
    """
    validation.number("learning_rate", learning_rate, minimum=0)
    validation.number("weight_decay", weight_decay, minimum=0)
    header = ["path", "role", "in", "out", "m", "learning rate", "weight decay", "product", "why"]
    rows = [header]
    for leaf, lr_multiplier, decay_multiplier in zip(
        jax.tree.leaves(scaling.info),
        jax.tree.leaves(scaling.learning_rate),
        jax.tree.leaves(scaling.weight_decay),
        strict=True,
    ):
        lr, decay = learning_rate * lr_multiplier, weight_decay * decay_multiplier
        numbers = [f"{number:.6g}" for number in (leaf.width_mult, lr, decay, lr * decay)]
        sides = [",".join(map(str, axes)) for axes in (leaf.fan_in_axes, leaf.fan_out_axes)]
        rows.append([leaf.path, leaf.role, *sides, *numbers, leaf.why])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
