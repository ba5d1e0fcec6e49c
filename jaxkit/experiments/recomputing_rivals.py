"""Simple methods that keep a set by computing parts of it anew, with their queries counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkit import submodular


class Coverage:
    """Plain coverage in NumPy, one row an item, with a counter of queries."""

    def __init__(self, rows: np.ndarray):
        self.rows, self.num_queries = rows.astype(np.float32), 0

    def gains(self, items: np.ndarray, missed: np.ndarray) -> np.ndarray:
        """Gains of some items where `missed` marks the concepts not covered yet."""
        self.num_queries += len(items)
        # Above a few items, gains of all cost less than a copy of some rows.
        if len(items) > 64:
            return (self.rows @ missed)[items]
        return self.rows[items] @ missed

    def left(self, missed: np.ndarray, item: int) -> np.ndarray:
        """Mark what is still missed once the item is taken."""
        return missed * (1 - self.rows[item])


class PrefixGreedy:
    """Static greedy, kept up to date by redoing it from the first step that changes."""

    def __init__(self, coverage: Coverage, k: int):
        self.coverage, self.k = coverage, k
        self.live: set[int] = set()
        self.chosen: list[int] = []
        self.gains: list[float] = []
        self.missed = [np.ones(coverage.rows.shape[1], np.float32)]

    def insert(self, item: int) -> None:
        """Ask every prefix whether the item beats its next choice; redo the rest where it does."""
        self.live.add(item)
        for i in range(self.k):
            gain = float(self.coverage.gains(np.array([item]), self.missed[i])[0])
            if i >= len(self.chosen) or gain > self.gains[i]:
                self._keep(i)
                self._take(item, gain)
                self._complete()
                return

    def delete(self, item: int) -> None:
        """Redo greedy from the step that chose the item, if one did."""
        self.live.remove(item)
        if item in self.chosen:
            self._keep(self.chosen.index(item))
            self._complete()

    def target(self) -> int:
        """What an adversary deletes: the first choice."""
        return self.chosen[0]

    def _keep(self, count: int) -> None:
        del self.chosen[count:], self.gains[count:], self.missed[count + 1 :]

    def _take(self, item: int, gain: float) -> None:
        self.chosen.append(item)
        self.gains.append(gain)
        self.missed.append(self.coverage.left(self.missed[-1], item))

    def _complete(self) -> None:
        while len(self.chosen) < self.k:
            rest = np.array(sorted(self.live - set(self.chosen)), int)
            if not rest.size:
                return
            gains = self.coverage.gains(rest, self.missed[-1])
            self._take(int(rest[gains.argmax()]), float(gains.max()))


class SieveRestart:
    """Threshold sieves; one that loses a chosen item reads the live stream again."""

    def __init__(self, coverage: Coverage, k: int, eps: float, value_range: tuple[float, float]):
        self.coverage, self.k = coverage, k
        low, high = value_range
        exponents = submodular.levels.grid_exponents(low, 2 * k * high, eps)
        self.thresholds = (1 + eps) ** exponents / (2 * k)
        self.live: dict[int, None] = {}
        self.sets: list[list[int]] = [[] for _ in exponents]
        self.missed = [np.ones(coverage.rows.shape[1], np.float32) for _ in exponents]

    def insert(self, item: int) -> None:
        """Offer the item to every sieve that is not full."""
        self.live[item] = None
        for sieve in range(len(self.sets)):
            self._offer(sieve, np.array([item]))

    def delete(self, item: int) -> None:
        """Start every sieve anew that had chosen the item."""
        del self.live[item]
        for sieve, chosen in enumerate(self.sets):
            if item in chosen:
                self.sets[sieve] = []
                self.missed[sieve] = np.ones_like(self.missed[sieve])
                self._offer(sieve, np.fromiter(self.live, int))

    def target(self) -> int:
        """What an adversary deletes: a member of the best set."""
        best = min(range(len(self.sets)), key=lambda sieve: self.missed[sieve].sum())
        return self.sets[best][0]

    def _offer(self, sieve: int, items: np.ndarray) -> None:
        """Read items in order; a query for each that is read before the sieve is full."""
        chosen = self.sets[sieve]
        while items.size and len(chosen) < self.k:
            before, block = self.coverage.num_queries, items[:32]
            passing = self.coverage.gains(block, self.missed[sieve]) >= self.thresholds[sieve]
            read = int(passing.argmax()) + 1 if passing.any() else block.size
            # Gains are computed a block at a time; only those read count.
            self.coverage.num_queries = before + read
            if passing.any():
                item = int(items[read - 1])
                chosen.append(item)
                self.missed[sieve] = self.coverage.left(self.missed[sieve], item)
            items = items[read:]


class _Facility(Coverage):
    """Facility location in the place of coverage: `missed` holds minus the best similarity."""

    def gains(self, items: np.ndarray, missed: np.ndarray) -> np.ndarray:
        self.num_queries += len(items)
        return np.maximum(self.rows[items] + missed, 0).sum(1)

    def left(self, missed: np.ndarray, item: int) -> np.ndarray:
        return np.minimum(missed, -self.rows[item])


def facility_prefix_queries(
    matrix: np.ndarray, operations: Sequence[tuple[bool, int]], k: int
) -> float:
    """Queries an update of prefix greedy for facility location on a stream."""
    greedy = PrefixGreedy(_Facility(matrix), k)
    greedy.missed = [np.zeros(matrix.shape[1], np.float32)]
    for insert, item in operations:
        (greedy.insert if insert else greedy.delete)(item)
    return greedy.coverage.num_queries / len(operations)
