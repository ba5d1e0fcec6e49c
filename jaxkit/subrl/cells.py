"""Coverage of cells by lists: a state costs one bit a cell, a gain a few look-ups."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxkit import pytrees, submodular, validation

Items = Any


class CellState(NamedTuple):
    """State: one bit a cell, 32 to a word, `[m // 32 + 1]`, and F."""

    covered: UInt32[Array, " words"]
    value: Float[Array, ""]


@pytrees.dataclass
class CellCoverage:
    """Coverage where item i covers `cells[i]`, padded with m of weight 0; by `cell_coverage`."""

    cells: Int[Array, "n k"]
    weights: Float[Array, " m1"]
    monotone = True

    @property
    def num_items(self) -> int:
        return self.cells.shape[0]

    def init(self) -> CellState:
        words = (self.weights.shape[0] - 1) // 32 + 1
        return CellState(jnp.zeros(words, jnp.uint32), jnp.zeros(()))

    def _missing(self, state: CellState, cells: Int[Array, "*c"]) -> Bool[Array, "*c"]:
        bits = state.covered[cells >> 5] >> (cells & 31).astype(jnp.uint32)
        return (bits & 1) == 0

    def gains(self, state: CellState, candidates: Items | None = None) -> Float[Array, "*c"]:
        cells = self.cells if candidates is None else self.cells[candidates]
        return jnp.where(self._missing(state, cells), self.weights[cells], 0).sum(-1)

    def add(self, state: CellState, element: Items) -> CellState:
        cells = self.cells[element]
        # Bits that are missing are added; those of the padding, which has no weight, never are.
        new = self._missing(state, cells) & (cells < self.weights.shape[0] - 1)
        bits = jnp.where(new, jnp.uint32(1) << (cells & 31).astype(jnp.uint32), 0)
        return CellState(
            state.covered.at[cells >> 5].add(bits), state.value + self.gains(state, element)
        )

    def value(self, state: CellState) -> Float[Array, ""]:
        return state.value


def cell_coverage(cover: Sequence[Sequence[int]], weights: ArrayLike | None = None) -> CellCoverage:
    r"""Make $F(S) = \sum_{c \in \cup_{s \in S} C(s)} w_c$ from the cells C(s) of each item.

    The same function as `submodular.weighted_coverage`, for items that cover few cells each: a gain
    reads k cells where the dense form reads a row of all m. Repeated cells count once; by default
    there are as many cells as items, of weight 1. `weights` may be traced.

    Raises:
        ValueError: if a cell does not exist or a weight is negative or not finite.

    Source: arXiv 2307.13372, coverage rewards.
    """
    n = len(cover)
    if n == 0:
        raise ValueError("cover must list the cells of at least one item, got none")
    array: Any = jnp.ones(n) if weights is None else weights
    if np.ndim(array) != 1:
        raise ValueError(f"weights must be a vector [m], got shape {np.shape(array)}")
    validation.number("weights", array, minimum=0)
    m = array.shape[0] if hasattr(array, "shape") else len(array)
    lists = [sorted(set(cells)) for cells in cover]
    for item, cells in enumerate(lists):
        if cells and not (0 <= cells[0] and cells[-1] < m):
            wrong = cells[0] if cells[0] < 0 else cells[-1]
            raise ValueError(f"cover must hold cells 0 .. {m - 1}, got {wrong} for item {item}")
    width = max(1, *map(len, lists)) if n > 1 else max(1, len(lists[0]))
    table = np.full((n, width), m, np.int32)
    for item, cells in enumerate(lists):
        table[item, : len(cells)] = cells
    padded = jnp.concatenate([jnp.asarray(array, jnp.float32), jnp.zeros(1)])
    return CellCoverage(jnp.asarray(table), padded)


def item_collection(
    groups: Sequence[Sequence[int]],
    caps: ArrayLike,
    num_states: int,
    *,
    shared: bool = False,
) -> submodular.SetFunction:
    r"""Make $F(S) = \sum_k \min(|S \cap G_k|, d_k)$: collect items until each group has enough.

    It is `submodular.feature_based` with $\varphi(x) = \min(x, 1)$, features $1/d_k$ and weights
    $d_k$. A state may hold items of two groups only if they are `shared`.

    Raises:
        ValueError: if a state does not exist or is named twice, caps are negative or not one for
            each group.

    Source: arXiv 2307.13372, item collection ("Steiner covering").
    """
    validation.integer("num_states", num_states, minimum=1)
    if len(groups) == 0 or np.shape(caps) != (len(groups),):
        raise ValueError(
            f"caps must be one number for each of the {len(groups)} groups, got shape "
            f"{np.shape(caps)}"
        )
    validation.number("caps", caps, minimum=0)
    member = np.zeros((num_states, len(groups)), np.float32)
    for k, states in enumerate(groups):
        for state in states:
            if not 0 <= state < num_states:
                raise ValueError(
                    f"groups must hold states 0 .. {num_states - 1}, got {state} in group {k}"
                )
            if member[state, k]:
                raise ValueError(f"groups must name a state once, got {state} twice in group {k}")
            if member[state].any() and not shared:
                raise ValueError(
                    f"groups must be disjoint unless shared=True, got state {state} in groups "
                    f"{int(member[state].argmax())} and {k}"
                )
            member[state, k] = 1
    limits = jnp.asarray(caps, jnp.float32)
    scaled = jnp.where(limits > 0, member / jnp.where(limits > 0, limits, 1), 0)
    return submodular.feature_based(scaled, "min", limits)
