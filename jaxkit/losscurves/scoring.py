"""How good a prediction is, and laws side by side on the same curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxkit import validation
from jaxkit.losscurves import curves, fitting


class PredictionScore(NamedTuple):
    """Errors of a predicted curve, each over the last axis, `[*batch]`.

    Attributes:
        r2: share of the variance of the losses explained.
        mae: mean absolute error, nats.
        rmse: root mean squared error, nats.
        mean_relative: mean of |predicted - observed| / observed (PredE).
        worst_relative: largest of them (WorstE).
    """

    r2: Any
    mae: Any
    rmse: Any
    mean_relative: Any
    worst_relative: Any


def score(
    predicted: Float[ArrayLike, "*batch n"], observed: Float[ArrayLike, "*batch n"]
) -> PredictionScore:
    """Score predicted losses against observed ones.

    Args:
        predicted: `[*batch, n]`, nats.
        observed: `[*batch, n]`, nats, > 0.

    Returns:
        The scores, `[*batch]`; `r2` is minus infinity or NaN for a constant observed curve. NumPy
        in float64 where both arguments are NumPy, else JAX.

    Raises:
        ValueError: if the shapes differ or are empty.

    Source: arXiv 2503.12811 (metrics of its evaluation code).

    Example:
        >>> round(float(score(np.array([2.0, 1.1]), np.array([2.0, 1.0])).mean_relative), 6)
        0.05
    """
    predicted = validation.array("predicted", predicted)
    observed = validation.array("observed", observed)
    if np.shape(predicted) != np.shape(observed) or not np.size(observed):
        raise ValueError(
            "predicted and observed must have one shape and a point, got "
            f"{np.shape(predicted)} and {np.shape(observed)}"
        )
    traced = isinstance(predicted, jax.Array) or isinstance(observed, jax.Array)
    xp: Any = jnp if traced else np
    true = xp.asarray(observed)
    error = xp.asarray(predicted) - true
    relative = xp.abs(error) / true
    spread = true - true.mean(axis=-1, keepdims=True)
    return PredictionScore(
        1 - xp.sum(error**2, axis=-1) / xp.sum(spread**2, axis=-1),
        xp.mean(xp.abs(error), axis=-1),
        xp.sqrt(xp.mean(error**2, axis=-1)),
        xp.mean(relative, axis=-1),
        xp.max(relative, axis=-1),
    )


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
    """A table of plain cells: `columns` names them, `rows` holds them; `str` prints it.

    Example:
        >>> print(ComparisonTable(("law", "error"), (("annealing", 0.5), ("steps", 2.0))))
        law         error
        annealing  0.5000
        steps      2.0000
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __str__(self) -> str:
        cells = [self.columns, *(tuple(map(_cell, row)) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )


def comparison_table(
    fits: Mapping[str, fitting.Law],
    observed: Mapping[str, Any],
    *,
    warmup_steps: float | None = None,
    held_out: Sequence[str] = (),
) -> ComparisonTable:
    """Put laws side by side on measured curves.

    Args:
        fits: fitted laws by name.
        observed: measured curves by name, in any form that `fit` takes.
        warmup_steps: last warm-up index of the curves, if they and the fits do not say it.
        held_out: names of the curves that no fit saw, marked in the table: only they tell which
            law predicts better.

    Returns:
        One row for each law and curve: mean and worst relative error and the error of the last
        point in per cent, R2, the last loss predicted and observed.

    Raises:
        ValueError: as `predict`, or if `held_out` names no curve.

    Example:
        >>> rates, at = np.full(101, 0.1), np.arange(10, 101, 10)
        >>> run = curves.loss_curve(rates, at, 2 + np.cumsum(rates)[at] ** -0.5)
        >>> from jaxkit.losscurves import forms
        >>> table = comparison_table({"steps": fitting.fit(forms.StepPower(), [run])}, {"a": run})
        >>> table.columns[:4]
        ('law', 'curve', 'held out', 'mean error %')
    """
    unknown = sorted(set(held_out) - set(observed))
    if unknown:
        raise ValueError(f"held_out must name curves of {sorted(observed)}, got {unknown}")
    columns = (
        "law", "curve", "held out", "mean error %", "worst error %", "final error %", "R2",
        "final predicted", "final observed",
    )  # fmt: skip
    rows = []
    known = {name: curves.as_curve(one, name, warmup_steps) for name, one in observed.items()}
    for law, fitted in fits.items():
        for name, curve in known.items():
            predicted = np.asarray(
                fitting.predict(fitted, curve, warmup_steps=warmup_steps), np.float64
            )
            found = score(predicted, curve.losses)
            last, true = float(predicted[-1]), float(curve.losses[-1])
            rows.append(
                (
                    law, name, "yes" if name in held_out else "no",
                    float(100 * found.mean_relative), float(100 * found.worst_relative),
                    100 * (last - true) / true, float(found.r2), last, true,
                )
            )  # fmt: skip
    return ComparisonTable(columns, tuple(rows))


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
