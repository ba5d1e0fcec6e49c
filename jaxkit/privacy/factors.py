r"""Per-example gradients of one parameter, kept as factors: norms and sums without the gradients.

A norm is never below that of the vector that `weighted_sum` adds for the example: to the computed
value comes what rounding can have moved the norm and the vector,
:math:`2\gamma_{T+2}\sum_t\|a_t\|\|\delta_t\|` for a sum over T positions. `minus` gives the
difference of the gradients at two points without cancellation:
a d' - a0 d0' = a (d - d0)' + (a - a0) d0'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit.privacy import clipping
from jaxkit.privacy.clipping import norm_bound, rounding, unit_norm_bound

_EXACT = jax.lax.Precision.HIGHEST
#: Bytes of dense gradients above which a norm may take the form that needs none.
DENSE_BYTES = 2**28
#: Positions from which a matrix's own gradient costs no more than its factors, if it fits memory.
MANY_POSITIONS = 8


class OuterProducts(NamedTuple):
    r"""Gradients :math:`g_i = \sum_t a_{it}\delta_{it}^\top` of a matrix that inputs meet.

    Attributes:
        inputs: a ``[B, T, I]``, the largest entry of a position 1; from `outer_products`.
        deltas: delta ``[B, T, O]``.
    """

    inputs: Float[Array, "B T I"]
    deltas: Float[Array, "B T O"]

    def norms(self, direct: bool = False) -> Float[Array, " B"]:
        """Bounds on the norms ``[B]``; `direct` never takes the form that cancels."""
        (rows, length, fan_in), fan_out = self.inputs.shape, self.deltas.shape[2]
        if length == 1:
            slack = 1 + rounding(4, self.deltas.dtype)
            return _unit_lengths(self.inputs) * _lengths(self.deltas) * slack
        few = length * (fan_in + fan_out) <= fan_in * fan_out
        dense = rows * fan_in * fan_out * self.deltas.dtype.itemsize > DENSE_BYTES
        return jax.vmap(_gram_norm if few and dense and not direct else _direct_norm)(*self)

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "I O"]:
        """The sum over examples; an example of weight 0 contributes 0 whatever it holds."""
        a = clipping.finite_entries(self.inputs)
        delta = clipping.finite_entries(self.deltas) * weights[:, None, None]
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        return jnp.matmul(flat(a).T, flat(delta), precision=_EXACT)

    @property
    def num_positions(self) -> int:
        """T, how many outer products each gradient is the sum of."""
        return self.inputs.shape[-2]

    def products(self) -> Products:
        """The gradients themselves."""
        return Products(jnp.einsum("bti,bto->bio", *self, precision=_EXACT))

    def minus(self, other: OuterProducts) -> OuterProducts:
        """The factors of the difference."""
        return outer_products(
            jnp.concatenate([self.inputs, self.inputs - other.inputs], 1),
            jnp.concatenate([self.deltas - other.deltas, other.deltas], 1),
        )


def outer_products(inputs: Float[Array, "B T I"], deltas: Float[Array, "B T O"]) -> OuterProducts:
    """Factors whose scale stands in the deltas, so that no product overflows or vanishes alone."""
    dtype = jnp.promote_types(clipping.wide(inputs.dtype), clipping.wide(deltas.dtype))
    inputs, deltas = inputs.astype(dtype), deltas.astype(dtype)
    largest = jnp.max(jnp.abs(inputs), axis=2, keepdims=True, initial=0)
    # A position whose inputs vanish adds nothing, however large its deltas.
    unit = jnp.where(largest < jnp.finfo(dtype).tiny, 0, clipping.divisor(largest))
    unit = jnp.where(jnp.isfinite(largest), unit, largest)
    return OuterProducts(inputs / jnp.where(unit == 0, 1, unit), deltas * unit)


class Products(NamedTuple):
    """Gradients of a matrix whose outer products are added up, once for the norm and the sum.

    Attributes:
        gradients: ``[B, I, O]``.
    """

    gradients: Float[Array, "B I O"]

    def norms(self, direct: bool = False) -> Float[Array, " B"]:
        """Bounds on the norms ``[B]``."""
        del direct
        return _lengths(self.gradients)

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "I O"]:
        """The sum over examples."""
        finite = clipping.finite_entries(self.gradients)
        return jnp.einsum("b,bio->io", weights, finite, precision=_EXACT)


class Lookups(NamedTuple):
    r"""Gradients of a table: row v of :math:`g_i` sums delta where the position reads v.

    Attributes:
        rows: which row each position reads ``[B, T]``.
        deltas: ``[B, T, O]``.
        num_rows: rows of the table; a position that reads none has this number and delta 0.
    """

    rows: Int[Array, "B T"]
    deltas: Float[Array, "B T O"]
    num_rows: int

    def norms(self, direct: bool = False) -> Float[Array, " B"]:
        """Bounds on the norms ``[B]``."""
        del direct
        return jax.vmap(_lookup_norm)(self.rows, self.deltas)

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "V O"]:
        """The sum over examples."""
        scaled = clipping.finite_entries(self.deltas) * weights[:, None, None]
        table = jnp.zeros((self.num_rows, scaled.shape[-1]), scaled.dtype)
        return table.at[self.rows].add(scaled, mode="drop")

    def minus(self, other: Lookups) -> Lookups:
        """The factors of the difference; the two may have read different rows."""
        same = (self.rows == other.rows)[:, :, None]
        deltas = [
            jnp.where(same, self.deltas - other.deltas, self.deltas),
            jnp.where(same, 0, -other.deltas),
        ]
        rows = jnp.concatenate([self.rows, other.rows], 1)
        return Lookups(rows, jnp.concatenate(deltas, 1), self.num_rows)


class Tied(NamedTuple):
    r"""Gradients of a table that is looked up and also multiplies: an embedding tied to the output.

    .. math::
        \|L + P\|^2 = \|L\|^2 + \|P\|^2 + 2\sum_{t,s}\langle\delta_t, a_s\rangle q_s[v_t]

    Attributes:
        lookups: delta and v.
        products: q ``[B, S, V]`` as inputs and a ``[B, S, O]`` as deltas.
    """

    lookups: Lookups
    products: OuterProducts

    def norms(self, direct: bool = False) -> Float[Array, " B"]:
        """Bounds on the norms ``[B]``."""
        del direct
        return jax.vmap(_tied_norm, (0, 0, 0, 0, None))(
            *self.lookups[:2], *self.products, self.lookups.num_rows
        )

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "V O"]:
        """The sum over examples."""
        return self.lookups.weighted_sum(weights) + self.products.weighted_sum(weights)

    def minus(self, other: Tied) -> Tied:
        """The factors of the difference."""
        return Tied(self.lookups.minus(other.lookups), self.products.minus(other.products))


class Stacked(NamedTuple):
    """Gradients of the slices of a parameter that a loop runs over.

    Attributes:
        layers: `OuterProducts` or `Products` of each slice, arrays ``[L, B, ...]``.
    """

    layers: Any

    @property
    def num_positions(self) -> int:
        """Of each slice."""
        return self.layers.num_positions

    def products(self) -> Stacked:
        """The gradients themselves."""
        return Stacked(jax.vmap(OuterProducts.products)(self.layers))

    def norms(self, direct: bool = False) -> Float[Array, " B"]:
        """Bounds on the norms ``[B]``."""
        return clipping.joint_norm(list(jax.vmap(lambda layer: layer.norms(direct))(self.layers)))

    def weighted_sum(self, weights: Float[Array, " B"]) -> Float[Array, "L I O"]:
        """The sum over examples."""
        return jax.vmap(lambda layer: layer.weighted_sum(weights))(self.layers)

    def minus(self, other: Stacked) -> Stacked:
        """The factors of the difference."""
        return Stacked(jax.vmap(OuterProducts.minus)(self.layers, other.layers))


Factors = OuterProducts | Products | Lookups | Tied | Stacked


def added_up(gradients: list[Any]) -> list[Any]:
    """The same gradients, with matrices' own where that is less work and all of them fit memory.

    Their norms need them anyway, and a sum of them costs less than one of factors.
    """
    many = [
        isinstance(each, OuterProducts | Stacked) and each.num_positions >= MANY_POSITIONS
        for each in gradients
    ]
    made = lambda: [g.products() if m else g for g, m in zip(gradients, many, strict=True)]  # noqa: E731
    sizes = jax.eval_shape(lambda: [g for g, m in zip(made(), many, strict=True) if m])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sizes))
    return made() if size <= DENSE_BYTES else gradients


_lengths = jax.vmap(norm_bound)
#: Of the inputs of `OuterProducts`, whose scale is in the deltas.
_unit_lengths = jax.vmap(unit_norm_bound)


def _scaled(deltas):
    """Deltas divided by their largest entry, and that entry, NaN if one is not finite."""
    largest = jnp.max(jnp.abs(deltas), initial=0)
    unit = clipping.divisor(largest)
    return deltas / unit, jnp.where(jnp.isfinite(largest), unit, jnp.nan)


def _direct_norm(a: Float[Array, "T I"], delta: Float[Array, "T O"]) -> Float[Array, ""]:
    delta, unit = _scaled(delta)
    dense = norm_bound(jnp.einsum("ti,to->io", a, delta, precision=_EXACT))
    reach = jnp.sum(_unit_lengths(a) * _lengths(delta))
    return (dense + 2 * rounding(len(a) + 4, a.dtype) * reach) * unit


def _gram_norm(a: Float[Array, "T I"], delta: Float[Array, "T O"]) -> Float[Array, ""]:
    delta, unit = _scaled(delta)
    return _gram(a, delta) * unit


def _gram(a, delta):
    length, reach = len(a), jnp.sum(_unit_lengths(a) * _lengths(delta))
    square = lambda x: jnp.einsum("ti,si->ts", x, x, precision=_EXACT)  # noqa: E731
    inner = jnp.maximum(jnp.sum(jnp.sum(square(a) * square(delta), 1)), 0)
    error = rounding(a.shape[1] + delta.shape[1] + 2 * length + 8, a.dtype)
    slack = rounding(8, a.dtype)
    norm = jnp.sqrt(inner + error * reach**2) * (1 + slack)
    return norm + rounding(length + 4, a.dtype) * reach


def _lookup_norm(rows: Int[Array, " T"], delta: Float[Array, "T O"]) -> Float[Array, ""]:
    delta, unit = _scaled(delta)
    length = len(rows)
    order = jnp.argsort(rows)
    ordered = rows[order]
    slot = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(ordered[1:] != ordered[:-1])])
    sums = jax.ops.segment_sum(delta[order], slot, length, indices_are_sorted=True)
    reach = jnp.sum(_lengths(delta))
    return (norm_bound(sums) + 2 * rounding(length + 4, delta.dtype) * reach) * unit


def _tied_norm(rows, delta, q, a, num_rows):
    together, unit = _scaled(jnp.concatenate([delta, a]))
    delta, a = together[: len(delta)], together[len(delta) :]
    read = q[:, jnp.minimum(rows, num_rows - 1)]
    inner = jnp.einsum("so,to->st", a, delta, precision=_EXACT)
    cross = jnp.sum(jnp.sum(read * inner, 1))
    looked = _lookup_norm(rows, delta)
    multiplied = _gram(q, a) if _gram_is_smaller(q, a) else _direct_norm(q, a)
    reach = jnp.sum(_lengths(delta)) + jnp.sum(_unit_lengths(q) * _lengths(a))
    error = rounding(a.shape[1] + len(q) + len(delta) + 16, a.dtype)
    square = looked**2 + multiplied**2 + 2 * cross + error * reach**2
    norm = jnp.sqrt(jnp.maximum(square, 0)) * (1 + rounding(8, a.dtype))
    return (norm + rounding(len(q) + len(delta) + 4, a.dtype) * reach) * unit


def _gram_is_smaller(q, a):
    return len(q) * (q.shape[1] + a.shape[1]) <= q.shape[1] * a.shape[1]
