"""Counts of oracle queries that do not overflow: two 32-bit limbs, since 64 bits are off in JAX."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, UInt32


class QueryCount(NamedTuple):
    """A number of oracle queries, below 2^64; `int(count)` reads it.

    One marginal gain, or one value that no state holds, is one query; F of the empty set and of a
    set whose state is at hand are free. Padding and masked items are not counted.

    Attributes:
        high: queries / 2^32.
        low: the rest.
    """

    high: UInt32[Array, "*b"]
    low: UInt32[Array, "*b"]

    @classmethod
    def zero(cls) -> QueryCount:
        """No queries.

        Example:
            >>> int(QueryCount.zero())
            0
        """
        return cls(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))

    def plus(self, number: ArrayLike) -> QueryCount:
        """Count `number` more, an integer in `[0, 2^32)`.

        Example:
            >>> int(QueryCount.zero().plus(3))
            3
        """
        low = self.low + jnp.asarray(number, jnp.uint32)
        return QueryCount(self.high + (low < self.low).astype(jnp.uint32), low)

    def __int__(self) -> int:
        return (int(self.high) << 32) + int(self.low)
