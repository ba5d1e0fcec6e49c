"""Per-example gradients of one parameter, kept as factors: their norms and sums without themselves.

All reductions are float32. `minus` gives the difference of the gradients at two points in a form
without cancellation: a d' - a0 d0' = a (d - d0)' + (a - a0) d0'.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class OuterProducts(NamedTuple):
    r"""Gradients :math:`g_i = \sum_t a_{it}\delta_{it}^\top` of the kernel of a dense layer.

    Attributes:
        inputs: a ``[B, T, I]``.
        deltas: delta ``[B, T, O]``.

    Example:
        >>> factors = OuterProducts(jnp.full((1, 1, 2), 3.0), jnp.full((1, 1, 2), 2.0))
        >>> factors.norms_squared().tolist()
        [144.0]
    """

    inputs: Float[Array, "B T I"]
    deltas: Float[Array, "B T O"]

    def norms_squared(self) -> Float[Array, " B"]:
        """Squared norms ``[B]``, by whichever of two ways costs less arithmetic."""
        a, delta = self.inputs, self.deltas
        length, rows, columns = a.shape[1], a.shape[2], delta.shape[2]
        if length == 1:
            return jnp.sum(jnp.square(a), (1, 2)) * jnp.sum(jnp.square(delta), (1, 2))
        if length * (rows + columns) <= rows * columns:
            inner = jnp.einsum("bti,bsi->bts", a, a) * jnp.einsum("bto,bso->bts", delta, delta)
            # Rounding can leave a sum of squares slightly below 0.
            return jnp.maximum(jnp.sum(inner, (1, 2)), 0)
        return jnp.sum(jnp.square(jnp.einsum("bti,bto->bio", a, delta)), (1, 2))

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "I O"]:
        """The sum over examples; an example of weight 0 contributes 0 whatever it holds."""
        keep = (weights != 0)[:, None, None]
        a = jnp.where(keep, self.inputs, 0)
        delta = jnp.where(keep, self.deltas * weights[:, None, None], 0)
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        return flat(a).T @ flat(delta)

    def minus(self, other: OuterProducts) -> OuterProducts:
        """The factors of the difference."""
        return OuterProducts(
            jnp.concatenate([self.inputs, self.inputs - other.inputs], 1),
            jnp.concatenate([self.deltas - other.deltas, other.deltas], 1),
        )


class Lookups(NamedTuple):
    r"""Gradients of an embedding table: row v of :math:`g_i` sums delta where the token is v.

    Attributes:
        tokens: ``[B, T]``, the same at both points of a difference.
        deltas: ``[B, T, O]``.
        num_rows: rows of the table.

    Example:
        >>> factors = Lookups(jnp.array([[1, 1]]), jnp.ones((1, 2, 1)), 3)
        >>> factors.norms_squared().tolist()
        [4.0]
    """

    tokens: Int[Array, "B T"]
    deltas: Float[Array, "B T O"]
    num_rows: int

    def norms_squared(self) -> Float[Array, " B"]:
        """Squared norms ``[B]``."""
        same = self.tokens[:, :, None] == self.tokens[:, None, :]
        inner = jnp.einsum("bto,bso->bts", self.deltas, self.deltas)
        return jnp.maximum(jnp.sum(jnp.where(same, inner, 0), (1, 2)), 0)

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "V O"]:
        """The sum over examples."""
        keep = (weights != 0)[:, None, None]
        scaled = jnp.where(keep, self.deltas * weights[:, None, None], 0)
        table = jnp.zeros((self.num_rows, scaled.shape[-1]), scaled.dtype)
        return table.at[self.tokens].add(scaled)

    def minus(self, other: Lookups) -> Lookups:
        """The factors of the difference; both must have looked up the same tokens."""
        return self._replace(deltas=self.deltas - other.deltas)


class Rows(NamedTuple):
    """Gradients small enough to keep: those of biases and scales.

    Attributes:
        gradients: ``[B, ...]``.

    Example:
        >>> Rows(jnp.array([[3.0, 4.0]])).norms_squared().tolist()
        [25.0]
    """

    gradients: Float[Array, "B ..."]

    def norms_squared(self) -> Float[Array, " B"]:
        """Squared norms ``[B]``."""
        return jnp.sum(jnp.square(self.gradients), tuple(range(1, self.gradients.ndim)))

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, " ..."]:
        """The sum over examples."""
        shape = (-1, *(1,) * (self.gradients.ndim - 1))
        scaled = self.gradients * weights.reshape(shape)
        return jnp.sum(jnp.where((weights != 0).reshape(shape), scaled, 0), 0)

    def minus(self, other: Rows) -> Rows:
        """The difference."""
        return Rows(self.gradients - other.gradients)


Factors = OuterProducts | Lookups | Rows
