"""Facility location, how well a set represents all clients: dense, sparse, and from features."""

# ruff: noqa: D102 - methods do what `SetFunction` says, where nothing else is said

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxkit import pytrees, validation
from jaxkit.submodular import kernels, operands
from jaxkit.submodular.operands import Item, Items, take


class FacilityState(NamedTuple):
    """State: the similarity of each client to its best item in the set, 0 for the empty set."""

    best: Float[Array, " m"]


@pytrees.dataclass
class FacilityLocation:
    """Facility location over a stored matrix; make it with `facility_location`.

    Items are the contiguous `rows`, because lazy algorithms read a few items at a time.
    """

    rows: jax.Array
    monotone = True

    @property
    def num_items(self) -> int:
        return self.rows.shape[0]

    def init(self) -> FacilityState:
        return FacilityState(jnp.zeros(self.rows.shape[1]))

    def gains(self, state: FacilityState, candidates: Items | None = None) -> Float[Array, "*c"]:
        rows = self.rows if candidates is None else take(self.rows, candidates)
        return jnp.maximum(rows - state.best, 0).sum(-1)

    def add(self, state: FacilityState, element: Item) -> FacilityState:
        return FacilityState(jnp.maximum(state.best, take(self.rows, element)))

    def value(self, state: FacilityState) -> Float[Array, ""]:
        return state.best.sum()


def facility_location(similarity: ArrayLike) -> FacilityLocation:
    r"""Make $F(S) = \sum_i \max_{j \in S} W_{ij}$.

    Args:
        similarity: W, `[m, n]` clients x items, non-negative (so that the empty set is worth 0).

    Returns:
        A monotone submodular `SetFunction` of n items. It keeps W, `4 m n` bytes; all gains cost
        one pass over it. From 20 000 items on prefer `facility_location_from_features` or
        `facility_location_from_neighbors`.

    Raises:
        TypeError: if `similarity` is not numeric.
        ValueError: if an entry is negative or not finite, or the rank not 2.

    Example:
        >>> f = facility_location(jnp.array([[1.0, 0.5], [0.0, 2.0]]))
        >>> f.gains(f.add(f.init(), 0)).tolist()
        [0.0, 2.0]
    """
    return FacilityLocation(operands.operand("similarity", similarity, rank=2, minimum=0).T)


@pytrees.dataclass
class FacilityLocationFromFeatures:
    """Facility location that computes similarities in blocks and keeps none of them.

    `rows` are prepared for the kernel, `clients` in blocks of which the last is padded, `present`
    being 0 there. Make it with `facility_location_from_features`.
    """

    rows: jax.Array
    clients: jax.Array
    present: jax.Array
    gamma: jax.Array
    kernel: str = flax.struct.field(pytree_node=False)
    monotone = True

    @property
    def num_items(self) -> int:
        return self.rows.shape[0]

    def init(self) -> FacilityState:
        """State of the empty set, `[blocks * block]` clients."""
        return FacilityState(jnp.zeros(self.present.size))

    def gains(self, state: FacilityState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`, a block of items by a block of clients a time."""
        rows = self.rows if candidates is None else take(self.rows, candidates)
        flat, block = rows.reshape(-1, rows.shape[-1]), self.clients.shape[1]
        best = state.best.reshape(-1, block)

        def of_tile(tile):
            def over_clients(total, part):
                clients, present, best = part
                similarity = kernels.similarity(self.kernel, tile, clients, self.gamma) * present
                return total + jnp.maximum(similarity - best, 0).sum(-1), None

            start = jnp.zeros(tile.shape[0])
            return jax.lax.scan(over_clients, start, (self.clients, self.present, best))[0]

        # A tile takes every s-th item, so that a run of items stays on its device: where items are
        # spread, all devices work on each tile, and none needs another's items.
        height, padding = _tile_height(flat.shape[0], block)
        runs = jnp.pad(flat, ((0, padding), (0, 0))) if padding else flat
        runs = runs.reshape(height, -1, flat.shape[-1])
        tiles = jnp.arange(runs.shape[1])
        gains = jax.lax.map(
            lambda s: of_tile(jax.lax.dynamic_index_in_dim(runs, s, 1, False)), tiles
        )
        return gains.T.reshape(-1)[: flat.shape[0]].reshape(rows.shape[:-1])

    def add(self, state: FacilityState, element: Item) -> FacilityState:
        row = take(self.rows, element)[None]

        def of_block(part):
            clients, present = part
            return kernels.similarity(self.kernel, row, clients, self.gamma)[0] * present

        row = jax.lax.map(of_block, (self.clients, self.present)).reshape(-1)
        return FacilityState(jnp.maximum(state.best, row))

    def value(self, state: FacilityState) -> Float[Array, ""]:
        return state.best.sum()


def _tile_height(count: int, block: int) -> tuple[int, int]:
    """Items of a tile, at most `block`, and what must be added to `count` to divide by them.

    No padding where a divisor of nearly that size holds all factors 2 of the count: padding moves
    items from device to device.
    """
    even = min(count & -count, 1 << (block.bit_length() - 1))
    fitting = (q * even for q in range(block // even, 0, -1) if count % (q * even) == 0)
    height = next(fitting, 1)
    if 4 * height < min(block, count):
        height = min(block, count)
    return height, -count % height


def facility_location_from_features(
    features: ArrayLike,
    clients: ArrayLike | None = None,
    *,
    kernel: str = "cosine",
    gamma: ArrayLike = 1.0,
    block: int = 2048,
) -> FacilityLocationFromFeatures:
    r"""Make $F(S) = \sum_i \max_{j \in S} \kappa(y_i, x_j)$ without an n x m matrix.

    Args:
        features: x, `[n, d]`, one row an item.
        clients: y, `[m, d]`; the items themselves by default.
        kernel: `"cosine"` (max(0, cos)), `"shifted_cosine"` (max(0, 2 cos - 1)) or `"rbf"`
            (exp(-gamma |x - y|^2)).
        gamma: of `"rbf"`, per squared unit of the features, positive.
        block: clients and items in one tile; a tile takes `4 block^2` bytes.

    Returns:
        A monotone submodular `SetFunction` of n items. Memory `4 d (n + m)` bytes and a tile. All
        gains cost `2 n m d` operations: use it with `lazy_greedy` or `stochastic_greedy`.

    Raises:
        TypeError: if an array is not numeric or `block` not an integer.
        ValueError: if an entry is not finite, a shape wrong, a number out of range or the kernel
            unknown.

    Example:
        >>> f = facility_location_from_features(jnp.eye(3), kernel="cosine")
        >>> f.gains(f.add(f.init(), 1)).tolist()
        [1.0, 0.0, 1.0]
    """
    validation.integer("block", block, minimum=1)
    rows = kernels.prepare("features", features, kernel, gamma)
    targets = rows if clients is None else kernels.prepare("clients", clients, kernel)
    if targets.shape[1] != rows.shape[1]:
        raise ValueError(
            f"clients must have {rows.shape[1]} features as items do, got {targets.shape[1]}"
        )
    count = targets.shape[0]
    block = min(block, count)
    padding = -count % block
    present = (jnp.arange(count + padding) < count).astype(jnp.float32).reshape(-1, block)
    targets = jnp.pad(targets, ((0, padding), (0, 0))).reshape(-1, block, rows.shape[1])
    return FacilityLocationFromFeatures(
        rows, targets, present, jnp.asarray(gamma, jnp.float32), kernel
    )


@pytrees.dataclass
class FacilityLocationFromNeighbors:
    """Facility location over each client's nearest items only; everything else counts as 0.

    Make it with `facility_location_from_neighbors`.
    """

    neighbors: jax.Array
    similarity: jax.Array
    num_items: int = flax.struct.field(pytree_node=False)
    monotone = True

    def init(self) -> FacilityState:
        return FacilityState(jnp.zeros(self.neighbors.shape[0]))

    def gains(self, state: FacilityState, candidates: Items | None = None) -> Float[Array, "*c"]:
        """Gains of all items or of `candidates`; both cost `m q`."""
        rise = jnp.maximum(self.similarity - state.best[:, None], 0)
        gains = jnp.zeros(self.num_items).at[self.neighbors].add(rise)
        return gains if candidates is None else take(gains, candidates)

    def add(self, state: FacilityState, element: Item) -> FacilityState:
        row = jnp.where(self.neighbors == element, self.similarity, 0).max(-1)
        return FacilityState(jnp.maximum(state.best, row))

    def value(self, state: FacilityState) -> Float[Array, ""]:
        return state.best.sum()


def facility_location_from_neighbors(
    neighbors: ArrayLike, similarity: ArrayLike, num_items: int
) -> FacilityLocationFromNeighbors:
    r"""Make facility location over a sparse W: $F(S) = \sum_i \max_{j \in S \cap N(i)} W_{ij}$.

    Args:
        neighbors: N, `[m, q]`, the q items nearest to each client, as `nearest_neighbors` gives
            them; an item may stand only once in a row.
        similarity: their similarity, `[m, q]`, non-negative.
        num_items: n.

    Returns:
        A monotone submodular `SetFunction` of n items; memory `8 m q` bytes. With `q = n` it
        equals `facility_location`.

    Raises:
        TypeError: if `neighbors` are not integers or `similarity` not numeric.
        ValueError: if shapes differ, an item is out of range or twice in a row, or a similarity
            negative or not finite.

    Example:
        >>> f = facility_location_from_neighbors(jnp.array([[0], [1], [1]]), jnp.ones((3, 1)), 3)
        >>> f.gains(f.init()).tolist()
        [1.0, 2.0, 0.0]
    """
    validation.integer("num_items", num_items, minimum=1)
    weights = operands.operand("similarity", similarity, rank=2, minimum=0)
    ids = operands.indices("neighbors", neighbors, num_items)
    if not validation.is_traced(ids):
        ordered = np.sort(np.asarray(ids), axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise ValueError("neighbors must not repeat within a row, got a row with one twice")
    ids = operands.matches("neighbors", ids, weights.shape)
    return FacilityLocationFromNeighbors(ids, weights, num_items)


def facility_location_mutual_information(
    similarity: ArrayLike, query_similarity: ArrayLike, eta: ArrayLike = 1.0
) -> FacilityLocation:
    r"""Make $F(S) = \sum_i \min(\max_{j \in S} W_{ij}, \eta \max_q Q_{iq})$: relevant exemplars.

    A monotone submodular `SetFunction` of n items; errors as `facility_location`.

    Args:
        similarity: W, `[m, n]` clients x items, non-negative.
        query_similarity: Q, `[m, q]` clients x queries, non-negative.
        eta: how much relevance to the queries counts against representation, >= 0.

    Source: Iyer et al., ALT 2021 (the variant whose clients are the whole ground set).

    Example:
        >>> f = facility_location_mutual_information(jnp.eye(2), jnp.array([[1.0], [0.0]]))
        >>> f.gains(f.init()).tolist()
        [1.0, 0.0]
    """
    items = operands.operand("similarity", similarity, rank=2, minimum=0)
    queries = operands.operand("query_similarity", query_similarity, rank=2, minimum=0)
    validation.number("eta", eta, minimum=0)
    if queries.shape[0] != items.shape[0]:
        raise ValueError(
            f"query_similarity must have {items.shape[0]} rows as similarity has, "
            f"got {queries.shape[0]}"
        )
    return FacilityLocation(jnp.minimum(items.T, jnp.asarray(eta) * queries.max(1)))
