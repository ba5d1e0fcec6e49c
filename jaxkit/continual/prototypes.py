"""Class prototypes and a cosine classifier: SimpleCIL, and the same beside a once-adapted model."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxkit import models, training, validation
from jaxkit.continual.batches import in_parts, padded_batches
from jaxkit.continual.picture_images import Images, PictureImages
from jaxkit.continual.prompts import cosines
from jaxkit.continual.sema import SEMALearner
from jaxkit.continual.sema_programs import Learning
from jaxkit.continual.stream_runs import Phase, Phases
from jaxkit.continual.streams import Stream


class Prototypes(NamedTuple):
    """Sums of features of each class, and how many examples they are of."""

    totals: Float[Array, "C f"]
    counts: Int[Array, " C"]


def no_prototypes(num_classes: int, num_features: int) -> Prototypes:
    """Prototypes before any example."""
    return Prototypes(jnp.zeros((num_classes, num_features)), jnp.zeros(num_classes, jnp.int32))


def add_to_prototypes(
    prototypes: Prototypes, features: Float[Array, "B f"], labels: Int[Array, " B"]
) -> Prototypes:
    """Add examples to their classes."""
    return Prototypes(
        prototypes.totals.at[labels].add(features), prototypes.counts.at[labels].add(1)
    )


def cosine_scores(prototypes: Prototypes, features: Float[Array, "B f"]) -> Float[Array, "B C"]:
    r"""Score classes by the cosine to their mean feature: $\cos(f, \bar f_c)$.

    Minus infinity for a class without examples.

    Source: SimpleCIL, arXiv 2303.07338.
    """
    means = prototypes.totals / jnp.maximum(prototypes.counts, 1)[:, None]
    return jnp.where(prototypes.counts > 0, cosines(features, means), -jnp.inf)


class SimpleCIL:
    """No training: the frozen backbone and a prototype of each class (arXiv 2303.07338).

    Args:
        model: the backbone.
        backbone: its variables.
        num_classes: classes of the whole stream.
        batch_size: images of a forward pass.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> SimpleCIL(models.VisionTransformer(), {}, 10).init(0).totals.shape
        (10, 768)
    """

    def __init__(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        num_classes: int,
        *,
        batch_size: int = 128,
    ):
        self.name, self._width = "SimpleCIL", model.width
        self._classes = validation.integer("num_classes", num_classes, minimum=1)
        self._features = FrozenFeatures(model, backbone, batch_size)

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share."""
        return {"learner": self.name, "num_classes": self._classes, **self._features.description()}

    def init(self, seed: int) -> Prototypes:
        """Make the state before the first task."""
        return no_prototypes(self._classes, self._width)

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The features of the task's classes are averaged."""
        stream.require_room(self._classes)
        task = stream.tasks[task_index]

        def average(state: Prototypes, *_: int) -> tuple[Prototypes, int, dict[str, Any]]:
            features = jnp.asarray(self._features(task.train_images))
            return add_to_prototypes(state, features, jnp.asarray(task.train_labels)), 0, {}

        yield Phase("prototypes", average)

    def predict(self, state: Prototypes, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        return np.asarray(cosine_scores(state, jnp.asarray(self._features(images))))


class FrozenFeatures:
    """Class tokens of the frozen backbone, float32, kept for pictures on disk that are in use."""

    def __init__(self, model: models.VisionTransformer, backbone: PyTree, batch_size: int):
        self._model, self._backbone = model, backbone
        self._batch_size = validation.integer("batch_size", batch_size, minimum=1)
        self._kept: weakref.WeakKeyDictionary[PictureImages, Any] = weakref.WeakKeyDictionary()

    def description(self) -> dict[str, Any]:
        """Whose features they are."""
        return {"model": repr(self._model), "backbone": training.fingerprint(self._backbone)}

    def __call__(self, images: Images) -> Float[np.ndarray, "n d"]:
        """One compilation serves any number of images."""
        if isinstance(images, PictureImages) and images in self._kept:
            return self._kept[images]
        features = np.concatenate([
            np.asarray(_frozen_features(self._model, self._backbone, padded))[:count]
            for padded, count in padded_batches(images, self._batch_size)
        ])  # fmt: skip
        if isinstance(images, PictureImages):
            self._kept[images] = features
        return features


@functools.partial(jax.jit, static_argnums=0)
def _frozen_features(model: Any, backbone: PyTree, images: Array) -> Float[Array, "B d"]:
    def run(part: Array, rows: Array) -> Array:
        return model.apply(backbone, part)["features"].astype(jnp.float32)

    return in_parts(run, images, model.images_at_once(len(images), 1))


class AdaptedPrototypesState(NamedTuple):
    """Adapters of the first task, and prototypes of frozen and adapted features side by side."""

    learning: Learning
    prototypes: Prototypes


class AdaptedPrototypes:
    """Adapt once, then prototypes: APER with adapters, formerly ADAM (arXiv 2303.07338).

    One adapter a block is trained on the first task and frozen; features are those of the frozen
    and of the adapted backbone side by side.

    Args:
        adapted: learner of the first task; `never_grow` spares it descriptors that nothing reads.

    Example:
        >>> from jaxkit.continual import SEMAConfig, never_grow
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learner = SEMALearner(config, {}, never_grow)
        >>> AdaptedPrototypes(learner).init(0).prototypes.totals.shape
        (3, 16)
    """

    def __init__(self, adapted: SEMALearner):
        self.name, self._adapted, config = "adapter + prototypes", adapted, adapted.config
        self._frozen = FrozenFeatures(config.model, adapted.backbone, config.scan_batch_size)

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share."""
        return {**self._adapted.description(), "learner": self.name}

    def init(self, seed: int) -> AdaptedPrototypesState:
        """Make the state before the first task."""
        config = self._adapted.config
        empty = no_prototypes(config.num_classes, 2 * config.model.width)
        return AdaptedPrototypesState(self._adapted.init(seed), empty)

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """Adapters learn the first task; on every task features are averaged."""
        if task_index == 0:
            yield from self._adapting(stream, seed)
        task = stream.tasks[task_index]

        def average(
            state: AdaptedPrototypesState, *_: int
        ) -> tuple[AdaptedPrototypesState, int, dict[str, Any]]:
            features = jnp.asarray(self._features(state.learning, task.train_images))
            labels = jnp.asarray(task.train_labels)
            added = add_to_prototypes(state.prototypes, features, labels)
            return state._replace(prototypes=added), 0, {}

        yield Phase("prototypes", average)

    def _adapting(self, stream: Stream, seed: int) -> Phases:
        phases: Any = self._adapted.phases(stream, 0, seed)
        event = None
        with contextlib.suppress(StopIteration):
            while True:
                phase = phases.send(event)

                def run(
                    state: AdaptedPrototypesState, first: int, most: int, phase: Phase = phase
                ) -> tuple[AdaptedPrototypesState, int, Any]:
                    learning, count, facts = phase.run(state.learning, first, most)
                    return state._replace(learning=learning), count, facts

                event = yield phase._replace(run=run)

    def predict(
        self, state: AdaptedPrototypesState, images: Images
    ) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        features = jnp.asarray(self._features(state.learning, images))
        return np.asarray(cosine_scores(state.prototypes, features))

    def _features(self, learning: Learning, images: Any) -> Float[np.ndarray, "n f"]:
        adapted, *_ = self._adapted.inspect(learning, images)
        return np.concatenate([self._frozen(images), adapted], axis=1)
