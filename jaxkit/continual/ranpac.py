"""RanPAC: ridge regression on random projections of frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxkit import models, validation
from jaxkit.continual.picture_images import Images
from jaxkit.continual.prototypes import FrozenFeatures
from jaxkit.continual.stream_runs import Phase, Phases
from jaxkit.continual.streams import Stream

#: Candidates for the ridge, as in the released program.
RIDGES = 10.0 ** np.arange(-8, 9)


class RandomRidge(NamedTuple):
    r"""Sums over all examples seen, and the classifier they give.

    Attributes:
        projection: drawn once, `[d, M]`.
        gram: $H^\top H$, of 48 bits as the sum of two, `[2, M, M]`.
        totals: $H^\top Y$, likewise, `[2, M, C]`.
        weights: of the classifier, `[M, C]`.
    """

    projection: Float[Array, "d M"]
    gram: Float[Array, "2 M M"]
    totals: Float[Array, "2 M C"]
    weights: Float[Array, "M C"]


class RanPAC:
    r"""Random projections and a ridge (arXiv 2307.02251), without its adapters.

    Features of the frozen backbone are projected and rectified, $h = \mathrm{relu}(f W)$; scores
    are $h (H^\top H + \lambda I)^{-1} H^\top Y$ over all examples seen, of which only sums are
    kept, and solved in float64 on the host. With each task $\lambda$ is the one that, fitted to
    four fifths of the task's examples, predicts the rest best.

    Args:
        model: the backbone.
        backbone: its variables.
        num_classes: classes of the whole stream.
        num_projections: M; the gram matrix is `[M, M]`.
        batch_size: images of a forward pass.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> RanPAC(models.VisionTransformer(), {}, 10, num_projections=50).init(0).weights.shape
        (50, 10)
    """

    def __init__(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        num_classes: int,
        *,
        num_projections: int = 10_000,
        batch_size: int = 128,
    ):
        self.name, self._width = "RanPAC", model.width
        self._classes = validation.integer("num_classes", num_classes, minimum=1)
        self._projections = validation.integer("num_projections", num_projections, minimum=1)
        self._features = FrozenFeatures(model, backbone, batch_size)

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share."""
        return {
            "learner": self.name, "num_classes": self._classes,
            "num_projections": self._projections, **self._features.description(),
        }  # fmt: skip

    def init(self, seed: int) -> RandomRidge:
        """Draw the projection, standard normal."""
        m, c = self._projections, self._classes
        drawn = jax.random.normal(jax.random.key(seed), (self._width, m))
        return RandomRidge(drawn, jnp.zeros((2, m, m)), jnp.zeros((2, m, c)), jnp.zeros((m, c)))

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The task's examples are added to the sums, and the ridge is solved."""
        stream.require_room(self._classes)
        task = stream.tasks[task_index]

        def fit(state: RandomRidge, *_: int) -> tuple[RandomRidge, int, dict[str, Any]]:
            h = np.asarray(self._project(state, task.train_images), np.float64)
            y = np.eye(self._classes)[task.train_labels]
            rows = np.random.default_rng([seed, task_index]).permutation(len(h))
            ridge = choose_ridge(h[rows], y[rows])
            gram, totals = _whole(state.gram) + h.T @ h, _whole(state.totals) + h.T @ y
            halves = _halves(gram), _halves(totals)
            gram[np.diag_indices_from(gram)] += ridge
            weights = scipy.linalg.solve(gram, totals, assume_a="pos", overwrite_a=True)
            state = RandomRidge(state.projection, *halves, jnp.asarray(weights, jnp.float32))
            return state, 0, {"ridge": ridge}

        yield Phase("ridge", fit)

    def predict(self, state: RandomRidge, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        projected = self._project(state, images)
        return np.asarray(jnp.matmul(projected, state.weights, precision=lax.Precision.HIGHEST))

    def _project(self, state: RandomRidge, images: Images) -> Float[Array, "n M"]:
        # Large weights cancel: bfloat16 products, an accelerator's default, would be felt.
        highest = lax.Precision.HIGHEST
        return jax.nn.relu(jnp.matmul(self._features(images), state.projection, precision=highest))


def _whole(halves: Array) -> np.ndarray:
    return np.asarray(halves, np.float64).sum(0)


def _halves(whole: np.ndarray) -> Array:
    high = whole.astype(np.float32)
    return jnp.stack([high, (whole - high).astype(np.float32)])


def choose_ridge(h: Float[np.ndarray, "n M"], y: Float[np.ndarray, "n C"]) -> float:
    """The ridge of `RIDGES` that predicts the last fifth best when fitted to the rest."""
    split = max(1, len(h) * 4 // 5)
    train, held = h[:split], h[split:]
    if not len(held):
        return 1.0
    # One decomposition serves all ridges: (H'H + r)^-1 H'Y = V s / (s^2 + r) U'Y.
    u, s, vt = np.linalg.svd(train, full_matrices=False)
    uy, hv = u.T @ y[:split], held @ vt.T
    errors = [np.mean((hv * (s / (s**2 + r)) @ uy - y[split:]) ** 2) for r in RIDGES]
    return float(RIDGES[int(np.argmin(errors))])
