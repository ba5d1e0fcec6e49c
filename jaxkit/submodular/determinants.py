"""Log-determinants of kernels: diversity (DPP) and information gain, by incremental Cholesky."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkit import pytrees, validation
from jaxkit.submodular import operands
from jaxkit.submodular.operands import Item, Items, take


class LogDetState(NamedTuple):
    """The Cholesky rows for all items, zero where unused, and each item's squared pivot."""

    rows: Float[Array, "s n"]
    pivots: Float[Array, " n"]
    chosen: Bool[Array, " n"]
    size: Int[Array, ""]
    value: Float[Array, ""]


@pytrees.dataclass
class LogDet:
    """`scale * logdet(ridge I + K_S)`; make it with `log_det` or `information_gain`.

    A state holds `max_size` items.
    """

    kernel: jax.Array
    ridge: jax.Array
    scale: jax.Array
    max_size: int = flax.struct.field(pytree_node=False)
    monotone: bool = flax.struct.field(pytree_node=False)

    @property
    def num_items(self) -> int:
        return self.kernel.shape[0]

    def init(self) -> LogDetState:
        n = self.num_items
        return LogDetState(
            jnp.zeros((self.max_size, n)),
            (jnp.diagonal(self.kernel) + self.ridge).astype(float),  # as the rows
            jnp.zeros(n, bool),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
        )

    def gains(self, state: LogDetState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`; `-inf` where the pivot is not positive."""
        possible = (state.pivots > 0) & (state.size < self.max_size)
        logs = jnp.log(jnp.where(possible, state.pivots, 1))
        gains = jnp.where(possible, self.scale * logs, -jnp.inf)
        gains = jnp.where(state.chosen, 0, gains)
        return gains if candidates is None else take(gains, candidates)

    def add(self, state: LogDetState, element: Item) -> LogDetState:
        """State with one more item; unchanged where its gain is `-inf`."""
        gain = self.gains(state, element)
        # One matrix-vector product in full precision: the pivots are differences of near numbers.
        known = jnp.matmul(take(state.rows.T, element), state.rows, precision="highest")
        row = (take(self.kernel, element) - known) / jnp.sqrt(
            jnp.maximum(take(state.pivots, element), 1e-30)
        )
        added = LogDetState(
            state.rows.at[state.size].set(row, mode="drop"),
            state.pivots - row**2,
            state.chosen | (jnp.arange(self.num_items) == element),
            state.size + 1,
            state.value + gain,
        )
        skip = take(state.chosen, element) | (gain == -jnp.inf)
        return jax.tree.map(lambda old, new: jnp.where(skip, old, new), state, added)

    def value(self, state: LogDetState) -> Float[Array, ""]:
        return state.value


def log_det(kernel: ArrayLike, ridge: ArrayLike = 0.0, *, max_size: int | None = None) -> LogDet:
    r"""Make $F(S) = \log \det(\rho I + K_S)$; with ridge 0, the log-likelihood of a DPP.

    Choosing j appends the row $e = (K_j - C^\top C_j) / \sqrt{d_j}$ to the Cholesky rows C and
    lowers all squared pivots by $e^2$; the gain of every item is the logarithm of its pivot.

    Args:
        kernel: K, `[n, n]`, symmetric and positive semi-definite.
        ridge: rho >= 0.
        max_size: largest set a state can hold: a state takes `4 max_size n` bytes, so name your k.
            n by default. A full state gives gains of `-inf`.

    Returns:
        A submodular `SetFunction` of n items, monotone if `ridge >= 1` (a traced ridge counts as
        not monotone). Gains below 0 are real: `greedy(..., min_gain=-jnp.inf)` takes k items
        nevertheless. Items whose pivot is not positive have gain `-inf` and are never taken.

    Raises:
        TypeError: if an argument is not numeric.
        ValueError: if K is not square, symmetric and finite, `ridge I + K` has an eigenvalue below
            minus 1e-4 of the largest, or `ridge` is negative.

    Source: Chen, Zhang and Zhou, NeurIPS 2018, Algorithm 1.

    Example:
        >>> f = log_det(jnp.diag(jnp.array([2.0, 3.0])))
        >>> [round(float(g), 4) for g in f.gains(f.add(f.init(), 0))]
        [0.0, 1.0986]
    """
    matrix = operands.symmetric("kernel", kernel)
    validation.number("ridge", ridge, minimum=0)
    monotone = not validation.is_traced(ridge) and float(np.asarray(ridge)) >= 1
    if not validation.is_traced(matrix) and not validation.is_traced(ridge):
        with jax.ensure_compile_time_eval():
            values = np.asarray(jnp.linalg.eigvalsh(matrix))
        if values[0] + float(np.asarray(ridge)) < -1e-4 * max(float(np.abs(values).max()), 1e-30):
            raise ValueError(
                "kernel must be positive semi-definite, got smallest eigenvalue "
                f"{values[0]:g} (ridge {float(np.asarray(ridge)):g})"
            )
    return LogDet(
        matrix,
        jnp.asarray(ridge, jnp.float32),
        jnp.asarray(1.0),
        operands.size_limit(max_size, matrix.shape[0]),
        monotone,
    )


def information_gain(
    kernel: ArrayLike, noise_variance: ArrayLike, *, max_size: int | None = None
) -> LogDet:
    r"""Make $F(S) = \frac12 \log \det(I + K_S / \sigma^2)$, nats: what S tells of a Gaussian field.

    A monotone submodular `SetFunction` of n items; errors as `log_det`.

    Args:
        kernel: K, `[n, n]`, covariance of the field at the n places, symmetric, positive
            semi-definite.
        noise_variance: sigma^2 > 0, variance of the measurement noise, in units of K.
        max_size: as `log_det`.

    Source: Krause, Singh and Guestrin, JMLR 2008; Srinivas et al., ICML 2010.

    Example:
        >>> f = information_gain(jnp.eye(2), 1.0)
        >>> round(float(f.gains(f.init())[0]), 4)
        0.3466
    """
    validation.number("noise_variance", noise_variance, minimum=0, open_minimum=True)
    matrix = operands.symmetric("kernel", kernel)
    function = log_det(matrix / jnp.asarray(noise_variance), 1.0, max_size=max_size)
    return dataclasses.replace(function, scale=jnp.asarray(0.5))
