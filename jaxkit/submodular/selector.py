"""A selector with the methods of scikit-learn, for tables and for streams of rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit import validation
from jaxkit.submodular import concave, exemplars, facilities, kernels, operands, streaming

_CHUNK = 256


@dataclasses.dataclass
class _Stream:
    """What `partial_fit` keeps: rows that some set of the sieve still needs, and no others."""

    rows: np.ndarray
    position: np.ndarray
    free: np.ndarray
    state: streaming.SieveState
    function: Any
    seen: int = 0


class SubsetSelector:
    """Picks rows: `fit`, `transform`, `partial_fit`, as apricot and scikit-learn name them.

    A stateful convenience over `select` and `sieve_streaming_pp`.

    Args:
        k: number of rows to pick.
        objective: as `select`; `partial_fit` knows `"facility_location"` and `"feature_based"`.
        maximiser: as `select`.
        kernel: as `select`.
        gamma: as `select`.
        num_neighbors: as `select`.
        eps: as `select`, and of the sieve behind `partial_fit`.
        key: as `select`.
        reference: rows `[m, d]` that a stream is to represent (facility location); the first batch
            given to `partial_fit` by default.

    Attributes:
        ranking: rows picked, best first (in the order they came, after `partial_fit`), `[<= k]`;
            positions in the table, or in the whole stream.
        gains: gain of each, `[<= k]`.
        exemplars: the rows themselves, `[<= k, d]`.

    Raises:
        TypeError: if k is not an integer.
        ValueError: if a number is out of range or a name unknown.

    Example:
        >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1], [0.0, 1.0]])
        >>> SubsetSelector(2).fit_transform(points).shape
        (2, 2)
    """

    ranking: Int[np.ndarray, " s"]
    gains: Float[np.ndarray, " s"]
    exemplars: Float[np.ndarray, "s d"]

    def __init__(
        self,
        k: int,
        *,
        objective: str = "facility_location",
        maximiser: str = "lazy",
        kernel: str = "cosine",
        gamma: float = 1.0,
        num_neighbors: int | None = None,
        eps: float = 0.1,
        key: jax.Array | None = None,
        reference: ArrayLike | None = None,
    ):
        self.k = validation.integer("k", k, minimum=1)
        self.objective = validation.choice("objective", objective, exemplars.OBJECTIVES)
        self.maximiser = validation.choice("maximiser", maximiser, exemplars.MAXIMISERS)
        self.kernel = validation.choice("kernel", kernel, kernels.NAMES)
        self.gamma = validation.number("gamma", gamma, minimum=0, open_minimum=True)
        self.num_neighbors = num_neighbors
        self.eps = eps
        self.key = key
        self.reference = reference
        self._sieve = streaming.sieve_streaming_pp(k, eps=eps)
        self._stream: _Stream | None = None

    def fit(self, features: ArrayLike, y: Any = None) -> SubsetSelector:
        """Pick rows of a table.

        Args:
            features: `[n, d]`.
            y: not used.

        Returns:
            Itself.

        Raises:
            TypeError: as `select`.
            ValueError: as `select`.
        """
        result = exemplars.select(
            features,
            self.k,
            objective=self.objective,
            maximiser=self.maximiser,
            kernel=self.kernel,
            gamma=self.gamma,
            num_neighbors=self.num_neighbors,
            eps=self.eps,
            key=self.key,
        )
        valid = np.asarray(result.valid)
        self.ranking = np.asarray(result.indices)[valid]
        self.gains = np.asarray(result.gains)[valid]
        self.exemplars = np.asarray(features)[self.ranking]
        self._stream = None
        return self

    def transform(self, features: ArrayLike) -> np.ndarray:
        """Take the rows that were picked out of the table (or of anything as long).

        Args:
            features: `[n, ...]`.

        Returns:
            `[<= k, ...]`.

        Raises:
            ValueError: if nothing was fitted yet, or the table is too short.
        """
        if not hasattr(self, "ranking"):
            raise ValueError("transform needs a call of fit before it, got none")
        table = np.asarray(features)
        if self.ranking.size and self.ranking.max() >= len(table):
            raise ValueError(
                f"features must have more than {self.ranking.max()} rows, got {len(table)}"
            )
        return table[self.ranking]

    def fit_transform(self, features: ArrayLike, y: Any = None) -> np.ndarray:
        """Do `fit` and `transform`.

        Args:
            features: `[n, d]`.
            y: not used.

        Returns:
            The rows picked, `[<= k, d]`.

        Raises:
            TypeError: as `fit`.
            ValueError: as `fit`.
        """
        return self.fit(features, y).transform(features)

    def partial_fit(self, features: ArrayLike, y: Any = None) -> SubsetSelector:
        """Offer more rows of a stream; only rows that a sieve keeps stay in memory.

        Args:
            features: the next rows, `[b, d]`.
            y: not used.

        Returns:
            Itself, with the best set so far: at least `1/2 - eps` of the best set of the stream.

        Raises:
            TypeError: if `features` is not numeric.
            ValueError: if the objective has no streaming form, a shape changes, or an entry is
                not finite (or negative, for `"feature_based"`); nothing changed then.

        Example:
            >>> selector = SubsetSelector(2, objective="feature_based")
            >>> for batch in np.eye(6).reshape(3, 2, 6): chosen = selector.partial_fit(batch)
            >>> selector.exemplars.shape
            (2, 6)
        """
        if self.objective not in ("facility_location", "feature_based"):
            raise ValueError(
                "partial_fit needs objective 'facility_location' or 'feature_based', "
                f"got {self.objective!r}"
            )
        rows = self._rows("features", features)
        if self._stream is None:
            reference = rows if self.reference is None else self._rows("reference", self.reference)
            self._stream = self._new_stream(reference)
        stream = self._stream
        if rows.shape[1] != stream.rows.shape[1]:
            raise ValueError(
                f"features must have {stream.rows.shape[1]} columns as before, got {rows.shape[1]}"
            )
        for start in range(0, len(rows), _CHUNK):
            self._offer(stream, rows[start : start + _CHUNK])
        self._read(stream)
        return self

    def _rows(self, name: str, features: ArrayLike) -> np.ndarray:
        if self.objective == "feature_based":
            return np.asarray(operands.operand(name, features, rank=2, minimum=0))
        return np.asarray(kernels.prepare(name, features, self.kernel))

    def _new_stream(self, reference: np.ndarray) -> _Stream:
        capacity = self._sieve.num_sets * self.k + _CHUNK
        buffer = np.zeros((capacity, reference.shape[1]), np.float32)
        if self.objective == "feature_based":
            function = concave.feature_based(buffer)
        else:
            function = facilities.facility_location_from_features(
                np.ones_like(buffer), reference, kernel=self.kernel, gamma=self.gamma
            )
        return _Stream(
            buffer,
            np.full(capacity, -1, np.int64),
            np.ones(capacity, bool),
            self._sieve.init(function),
            function,
        )

    def _offer(self, stream: _Stream, rows: np.ndarray) -> None:
        slots = np.flatnonzero(stream.free)[:_CHUNK]
        used = slots[: len(rows)]
        stream.rows[used] = rows
        stream.position[used] = stream.seen + np.arange(len(rows))
        stream.seen += len(rows)
        stream.function = dataclasses.replace(stream.function, rows=jnp.array(stream.rows))
        valid = np.arange(_CHUNK) < len(rows)
        stream.state = self._sieve.run(stream.function, stream.state, slots, valid)
        kept = np.asarray(stream.state.sets)
        stream.free[:] = True
        stream.free[kept[kept >= 0]] = False

    def _read(self, stream: _Stream) -> None:
        best = self._sieve.solution(stream.function, stream.state)
        valid = np.asarray(best.valid)
        slots = np.asarray(best.indices)[valid]
        self.ranking = stream.position[slots]
        self.gains = np.asarray(best.gains)[valid]
        self.exemplars = stream.rows[slots]
