"""A selector of rows as a scikit-learn estimator, for tables and for streams of rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxkit.submodular import concave, exemplars, facilities, kernels, operands, streaming

try:
    from sklearn import base
    from sklearn.utils import validation as checks
except ImportError as error:
    raise ImportError(
        "SubsetSelector needs scikit-learn: pip install 'jaxkit[datasets]'"
    ) from error

_CHUNK = 256


@dataclasses.dataclass
class _Stream:
    """What `partial_fit` keeps: rows that some set of the sieve still needs, and no others."""

    sieve: streaming.Sieve
    raw: np.ndarray
    rows: np.ndarray
    position: np.ndarray
    free: np.ndarray
    state: streaming.SieveState
    function: Any
    seen: int = 0


class SubsetSelector(
    base.ClassNamePrefixFeaturesOutMixin, base.TransformerMixin, base.BaseEstimator
):
    """Picks rows, as an estimator of scikit-learn: a stateful convenience over `select`.

    `fit_resample` returns the rows picked. `transform` describes any rows by their similarity to
    the exemplars, one column each, so that the selector also stands inside a `Pipeline`. Rows may
    be arrays, data frames of numbers or SciPy's sparse matrices (made dense, in float32).

    Args:
        k: number of rows to pick.
        objective: as `select`; `partial_fit` knows `"facility_location"` and `"feature_based"`.
        maximiser, gamma, num_neighbors, key: as `select`.
        kernel: as `select`, and that of `transform`.
        eps: as `select`, and of the sieve behind `partial_fit`.
        reference: rows `[m, d]` that a stream is to represent (facility location); the first batch
            given to `partial_fit` by default.

    Attributes:
        ranking_: rows picked, best first (in the order they came, after `partial_fit`), `[<= k]`;
            positions in the table, or in the whole stream.
        gains_: gain of each, `[<= k]`.
        exemplars_: the rows themselves, as they were given, `[<= k, d]`.
        n_features_in_: d.

    Raises:
        ImportError: if scikit-learn is missing.

    Example:
        >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1], [0.0, 1.0]])
        >>> selector = SubsetSelector(2).fit(points)
        >>> selector.ranking_.tolist(), selector.transform(points).shape
        ([2, 3], (4, 2))
    """

    ranking_: Int[np.ndarray, " s"]
    gains_: Float[np.ndarray, " s"]
    exemplars_: Any

    def __init__(
        self,
        k: int = 10,
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
        self.k = k
        self.objective = objective
        self.maximiser = maximiser
        self.kernel = kernel
        self.gamma = gamma
        self.num_neighbors = num_neighbors
        self.eps = eps
        self.key = key
        self.reference = reference

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = self.objective == "feature_based"
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.ranking_)

    def fit(self, X: Any, y: Any = None) -> SubsetSelector:
        """Pick rows of a table.

        Args:
            X: `[n, d]`.
            y: not used.

        Raises:
            TypeError, ValueError: as `select`.
        """
        rows = self._checked(X, reset=True)
        result = exemplars.select(
            rows,
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
        self.ranking_ = np.asarray(result.indices)[valid]
        self.gains_ = np.asarray(result.gains)[valid]
        self.exemplars_ = rows[self.ranking_]
        self._stream = None
        return self

    def fit_resample(self, X: Any, y: Any = None) -> Any:
        """Pick rows of a table and return them, with their labels where `y` is given.

        Args:
            X: `[n, d]`; a data frame or sparse matrix gives rows of its own kind.
            y: labels `[n]`, or None.

        Returns:
            The rows `[<= k, d]`, or the rows and their labels.

        Raises:
            TypeError, ValueError: as `fit`.
        """
        rows = self.fit(X).ranking_

        def taken(table: Any) -> Any:
            if hasattr(table, "iloc"):
                return table.iloc[rows]
            return table[rows] if hasattr(table, "shape") else np.asarray(table)[rows]

        return taken(X) if y is None else (taken(X), taken(y))

    def transform(self, X: Any) -> Float[np.ndarray, "n s"]:
        """Describe rows by their similarity to each exemplar.

        Args:
            X: `[n, d]`.

        Returns:
            Similarities `[n, <= k]` under `kernel`, float32.

        Raises:
            sklearn.exceptions.NotFittedError: if nothing was fitted yet.
            ValueError: if the rows do not fit those of `fit`.
        """
        checks.check_is_fitted(self)
        rows = kernels.prepare("X", self._checked(X, reset=False), self.kernel)
        best = kernels.prepare("exemplars", self.exemplars_, self.kernel)
        return np.asarray(kernels.similarity(self.kernel, rows, best, self.gamma))

    def partial_fit(self, X: Any, y: Any = None) -> SubsetSelector:
        """Offer more rows of a stream; only rows that a sieve keeps stay in memory.

        Args:
            X: the next rows, `[b, d]`.
            y: not used.

        Returns:
            Itself, with the best set so far: worth at least `1/2 - eps` of the best set of the
            stream.

        Raises:
            TypeError: if `X` is not numeric.
            ValueError: if the objective has no streaming form, a shape changes, or an entry is
                not finite (or negative, for `"feature_based"`); nothing changed then.
        """
        if self.objective not in ("facility_location", "feature_based"):
            raise ValueError(
                "partial_fit needs objective 'facility_location' or 'feature_based', "
                f"got {self.objective!r}"
            )
        stream = getattr(self, "_stream", None)
        raw = self._checked(X, reset=stream is None)
        rows = self._prepared("X", raw)
        if stream is None:
            reference = rows
            if self.reference is not None:
                reference = self._prepared("reference", operands.table(self.reference))
            stream = self._stream = self._new_stream(raw, reference)
        for start in range(0, len(rows), _CHUNK):
            self._offer(stream, raw[start : start + _CHUNK], rows[start : start + _CHUNK])
        self._read(stream)
        return self

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        operands.refuse_table("X", X)
        rows: Any = checks.validate_data(self, X, accept_sparse="csr", reset=reset)
        return rows.toarray() if hasattr(rows, "toarray") else rows

    def _prepared(self, name: str, rows: Any) -> np.ndarray:
        if self.objective == "feature_based":
            return np.asarray(operands.operand(name, rows, rank=2, minimum=0))
        return np.asarray(kernels.prepare(name, rows, self.kernel))

    def _new_stream(self, raw: np.ndarray, reference: np.ndarray) -> _Stream:
        sieve = streaming.sieve_streaming_pp(self.k, eps=self.eps)
        capacity = sieve.num_sets * self.k + _CHUNK
        buffer = np.zeros((capacity, reference.shape[1]), np.float32)
        if self.objective == "feature_based":
            function = concave.feature_based(buffer)
        else:
            function = facilities.facility_location_from_features(
                np.ones_like(buffer), reference, kernel=self.kernel, gamma=self.gamma
            )
        return _Stream(
            sieve,
            np.zeros(buffer.shape, raw.dtype),
            buffer,
            np.full(capacity, -1, np.int64),
            np.ones(capacity, bool),
            sieve.init(function),
            function,
        )

    def _offer(self, stream: _Stream, raw: np.ndarray, rows: np.ndarray) -> None:
        slots = np.flatnonzero(stream.free)[:_CHUNK]
        used = slots[: len(rows)]
        stream.raw[used], stream.rows[used] = raw, rows
        stream.position[used] = stream.seen + np.arange(len(rows))
        stream.seen += len(rows)
        stream.function = dataclasses.replace(stream.function, rows=jnp.array(stream.rows))
        valid = np.arange(_CHUNK) < len(rows)
        stream.state = stream.sieve.run(stream.function, stream.state, slots, valid)
        kept = np.asarray(stream.state.sets)
        stream.free[:] = True
        stream.free[kept[kept >= 0]] = False

    def _read(self, stream: _Stream) -> None:
        best = stream.sieve.solution(stream.function, stream.state)
        valid = np.asarray(best.valid)
        slots = np.asarray(best.indices)[valid]
        self.ranking_ = stream.position[slots]
        self.gains_ = np.asarray(best.gains)[valid]
        self.exemplars_ = stream.raw[slots]
