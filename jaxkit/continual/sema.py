"""SEMA, a mixture of adapters that grows where a task looks new, and what it is compared with.

`grow_on_shift` is the method; `never_grow`, `grow_every_task` and `finetune_adapters` are its
baselines. Each says in which phases a task is learnt; `SEMATask` knows what a phase does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxkit import training
from jaxkit.continual import sema_programs as programs
from jaxkit.continual.batches import (
    StepBatches,
    cosine_rates,
    draw_order,
    pad_rows,
    padded_batches,
)
from jaxkit.continual.descriptors import record_statistics
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState, add_adapter, init_sema
from jaxkit.continual.picture_images import Images
from jaxkit.continual.sema_programs import Augment, Learning, Source, Trainable
from jaxkit.continual.stream_runs import Phase, Phases, training_phase
from jaxkit.continual.streams import Stream, Task

#: Images kept on record of the batch that made a block grow.
_PICTURES = 8


def grow_on_shift(task: SEMATask) -> Phases:
    """SEMA: where every descriptor of a block finds a batch unusual, the block grows.

    The data are passed over until a pass adds nothing; a block grows at most once a task.

    Source: arXiv 2403.18886 section 3.6 and the official program.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import digits_stream
        >>> stream, _ = digits_stream()
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> next(SEMALearner(config, {}, grow_on_shift).phases(stream, 1, seed=0)).kind
        'scan'
    """
    if task.is_first:
        yield task.train(task.blocks)
        yield task.describe(task.blocks)
        return
    grown: list[int] = []
    for number in itertools.count():
        before, batch = len(grown), 0
        while (found := (yield task.scan(number, batch, closed=grown)))["block"] is not None:
            yield task.grow(found["block"], found)
            yield task.train([found["block"]])
            yield task.describe([found["block"]])
            grown.append(found["block"])
            batch = found["batch"] + 1
        if len(grown) in (before, len(task.blocks)):
            break
    if not grown:
        yield task.train([])  # new classes need a head


def never_grow(task: SEMATask) -> Phases:
    """The adapters of the first task stay as they are; later tasks train the head.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import digits_stream
        >>> stream, _ = digits_stream()
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> learner = SEMALearner(config, {}, never_grow)
        >>> [phase.kind for phase in learner.phases(stream, 1, seed=0)]
        ['train']
    """
    yield task.train(task.blocks if task.is_first else [])


def grow_every_task(task: SEMATask) -> Phases:
    """One adapter more in every expandable block for every task, whatever the data look like.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import digits_stream
        >>> stream, _ = digits_stream()
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> learner = SEMALearner(config, {}, grow_every_task)
        >>> [phase.kind for phase in learner.phases(stream, 1, seed=0)]
        ['expand', 'expand', 'expand', 'train']
    """
    if not task.is_first:
        for block in task.blocks:
            yield task.grow(block)
    yield task.train(task.blocks)


def finetune_adapters(task: SEMATask) -> Phases:
    """Sequential fine-tuning: the first adapters of all blocks go on training.

    Example:
        >>> from jaxkit import models
        >>> from jaxkit.continual import digits_stream
        >>> stream, _ = digits_stream()
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> learner = SEMALearner(config, {}, finetune_adapters)
        >>> [phase.kind for phase in learner.phases(stream, 1, seed=0)]
        ['train']
    """
    yield task.train(task.blocks, everything=True)


class SEMALearner:
    """Adapters beside a frozen backbone, learnt in the phases of SEMA or a baseline.

    Args:
        config: shapes, and how it trains.
        backbone: variables of `config.model`.
        phases: the method: the phases of a task.
        augment: of training images; without one, whatever is frozen is computed once a phase.
        mesh: devices to split each batch over, on its axis `data`.
        name: shown in reports.

    Raises:
        ValueError: if the mesh does not divide the batches.

    Source: arXiv 2403.18886.

    Example:
        >>> from jaxkit import models
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> SEMALearner(config, {}).init(0).sema.num_active.tolist()
        [1]
    """

    def __init__(
        self,
        config: SEMAConfig,
        backbone: PyTree,
        phases: Callable[[SEMATask], Phases] = grow_on_shift,
        *,
        augment: Augment | None = None,
        mesh: Mesh | None = None,
        name: str = "SEMA",
    ):
        self.config, self.name = config, name
        self.augment, self._phases, self.devices = augment, phases, _Devices(mesh)
        for field in ("batch_size", "scan_batch_size"):
            size = getattr(config, field)
            if mesh is not None and size % mesh.shape["data"]:
                raise ValueError(
                    f"{field} must be divisible by data={mesh.shape['data']} of the mesh, got "
                    f"{size}"
                )
        self.backbone = self.devices.everywhere(backbone)

    def description(self) -> dict[str, Any]:
        """Settings that a resumed run must share."""
        facts = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        model = facts.pop("model")
        names = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        facts |= {f"model.{name}": str(getattr(model, name)) for name in names}
        return {
            "learner": self.name,
            "phases": self._phases.__name__,
            **facts,
            "threshold": str(self.config.threshold),
            "augmented": self.augment is not None,
            "backbone": training.fingerprint(self.backbone),
        }

    def init(self, seed: int) -> Learning:
        """Make the state before the first task."""
        static = self.config.static
        sema = init_sema(jax.random.key(seed), static)
        return self.devices.everywhere(programs.begin_phase(static, sema))

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The phases of a task.

        Raises:
            ValueError: if a block is full, or the stream has more classes than the head.
            FloatingPointError: if a loss, a score or a descriptor's statistics are not finite.
        """
        if stream.num_classes > self.config.num_classes:
            raise ValueError(
                f"num_classes must be at least the stream's {stream.num_classes}, got "
                f"{self.config.num_classes}"
            )
        return self._phases(SEMATask(self, stream.tasks[task_index], task_index, seed))

    def predict(self, state: Learning, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        return self.inspect(state, images)[1]

    def inspect(self, state: Learning, images: Images) -> list[np.ndarray]:
        """Features `[B, d]`, scores `[B, C]` and router weights `[B, E, K]` of images."""
        static, key = self.config.static, jax.random.key(0)
        return self.in_batches(
            lambda part: programs.predict_images(static, self.backbone, state.sema, part, key),
            images,
        )

    def in_batches(self, run: Callable[[Any], Sequence[Any]], inputs: Any) -> list[np.ndarray]:
        """What a program makes of any number of rows."""
        parts, host = [], self.devices.host
        for padded, count in padded_batches(inputs, self.config.scan_batch_size):
            parts.append([host(x)[:count] for x in run(self.devices.rows(padded))])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


class SEMATask:
    """A task as SEMA works on it: what each of its phases does.

    What blocks below the first expandable one make of the task's images is computed once, and kept
    as long as the task lasts.

    Attributes:
        is_first: whether nothing is frozen yet.
        blocks: the expandable blocks.
    """

    def __init__(self, learner: SEMALearner, task: Task, index: int, seed: int):
        self.is_first, self.blocks = index == 0, list(learner.config.expandable)
        self._learner, self._task, self._index, self._seed = learner, task, index, seed
        self._config, self._static = learner.config, learner.config.static
        self._key, self._part = jax.random.key(seed), -1
        self._is_fresh = learner.augment is not None or task.is_augmented
        self._tokens_kept: np.ndarray | None = None

    def scan(self, number: int, batch: int, closed: Collection[int]) -> Phase:
        """Score batches of a pass, up to the first in which a block asks to grow.

        Args:
            number: of the pass.
            batch: where to begin.
            closed: blocks that have grown for this task already.

        Returns:
            A phase whose event tells `"scores"`, and `"block"`, `"batch"`, `"score"` of the growth
            asked for with the `"rows"` of the strangest images; the block is None if there is none.
        """
        config, devices = self._config, self._learner.devices
        key = jax.random.fold_in(self._key, self._index)

        def run(state: Learning, *_: int) -> tuple[Learning, int, dict[str, Any]]:
            tokens, scores = self._tokens(state), []
            found: dict[str, Any] = {"block": None}
            order = draw_order((self._seed, self._index, 0, number, 0), len(tokens))
            for start in range(batch * config.scan_batch_size, len(order), config.scan_batch_size):
                rows = order[start : start + config.scan_batch_size]
                padded = devices.rows(pad_rows(tokens[rows], config.scan_batch_size))
                score, of_samples = programs.score_tokens(
                    self._static, self._learner.backbone, state.sema, padded,
                    np.int32(len(rows)), key,
                )  # fmt: skip
                scores.append(devices.host(score).tolist())
                block = growing_block(config, scores[-1], closed)
                if block is not None:
                    e = block - config.expand_from
                    strangest = np.argsort(-devices.host(of_samples)[: len(rows), e], kind="stable")
                    found = {"block": block, "batch": start // config.scan_batch_size,
                             "score": scores[-1][e],
                             "rows": rows[strangest[:_PICTURES]].tolist()}  # fmt: skip
                    break
            return state, 0, {"scores": scores, **found}

        return Phase("scan", run, about={"pass": number, "from": batch})

    def grow(self, block: int, found: Mapping[str, Any] | None = None) -> Phase:
        """Add an adapter, a descriptor and a column of the router to a block.

        Args:
            block: which.
            found: the event of the scan that asked for it.

        Returns:
            The phase.
        """

        def run(state: Learning, *_: int) -> tuple[Learning, int, dict[str, Any]]:
            capacity = self._config.capacity
            if int(state.sema.num_active[block - self._config.expand_from]) >= capacity:
                raise ValueError(
                    f"capacity {capacity} exhausted in block {block} at task {self._index}: it "
                    "must be larger"
                )
            number = (self._index + 1) * self._config.model.depth + block
            key = jax.random.fold_in(self._key, number)
            grown = add_adapter(key, self._static, state.sema, block)
            return self._learner.devices.everywhere(state._replace(sema=grown)), 0, {}

        about = {"block": block, "pass": 0, "batch": 0, "score": None, "rows": []}
        return Phase("expand", run, about=about | {k: (found or about)[k] for k in about})

    def train(self, blocks: Collection[int], *, everything: bool = False) -> Phase:
        """Classification: the newest adapters and router columns of some blocks, and the head.

        Args:
            blocks: which expandable blocks; without one only the head trains.
            everything: also the adapters of blocks that never grow, as in every first task.

        Returns:
            The phase.
        """
        self._part += 1
        config, learner, images = self._config, self._learner, self._task.train_images
        everything = everything or self.is_first
        source: Source
        if everything or self._is_fresh:
            source, inputs = "images" if everything else "images_above", lambda state: images
        elif blocks:
            source, inputs = "tokens", self._tokens
        else:
            source, inputs = "features", lambda state: self._observe(state)[0]
        trainable = Trainable(np.asarray(everything), np.isin(config.expandable, list(blocks)))
        classes = np.isin(np.arange(config.num_classes), self._task.classes)
        key = self._phase_key()

        def run(state: Learning, batches: StepBatches) -> tuple[Learning, Array]:
            return programs.train_steps(
                self._static, source, learner.augment, learner.backbone, state, trainable,
                classes, batches, key,
            )  # fmt: skip

        rates = cosine_rates(config.train_learning_rate, config.train_epochs)
        return self._training("train", 1, blocks, run, inputs, rates)

    def describe(self, blocks: Collection[int]) -> Phase:
        """Description: the newest descriptors of some blocks learn what their adapters are given.

        Args:
            blocks: which expandable blocks.

        Returns:
            The phase.
        """
        config, learner, images = self._config, self._learner, self._task.train_images
        chosen, key = np.isin(config.expandable, list(blocks)), self._phase_key()

        def run(state: Learning, batches: StepBatches) -> tuple[Learning, Array]:
            if not self._is_fresh:
                return programs.describe_steps(self._static, state, chosen, batches)
            return programs.describe_image_steps(
                self._static, learner.augment, learner.backbone, state, chosen, batches, key
            )

        def inputs(state: Learning) -> Any:
            return images if self._is_fresh else self._observe(state)[1]

        rates = cosine_rates(config.describe_learning_rate, config.describe_epochs)
        phase = self._training("describe", 2, blocks, run, inputs, rates)

        def checked(state: Learning, first: int, most: int) -> tuple[Learning, int, Any]:
            state, count, facts = phase.run(state, first, most)
            if first + count == phase.num_steps:
                require_finite_statistics(config, state.sema, self._task.name)
            return state, count, facts

        return phase._replace(run=checked)

    def _training(
        self,
        kind: str,
        stage: int,
        blocks: Collection[int],
        run: Callable[[Learning, StepBatches], tuple[Learning, Array]],
        inputs: Callable[[Learning], Any],
        rates: Float[np.ndarray, " epochs"],
    ) -> Phase:
        devices = self._learner.devices
        return training_phase(
            kind, self._task,
            lambda state, batches: run(devices.everywhere(state), devices.batches(batches)),
            inputs=inputs,
            begin=lambda state: programs.begin_phase(self._static, state.sema),
            order=(self._seed, self._index, stage, self._part),
            learning_rates=rates, batch_size=self._config.batch_size,
            steps_per_call=self._config.steps_per_call, about={"blocks": list(blocks)},
            rate_name=f"{kind}_learning_rate",
        )  # fmt: skip

    def _phase_key(self) -> Array:
        return jax.random.fold_in(self._key, self._index * 1000 + self._part + 1)

    def _tokens(self, state: Learning) -> np.ndarray:
        if self._tokens_kept is None:
            learner, static = self._learner, self._static
            (self._tokens_kept,) = learner.in_batches(
                lambda part: (programs.prefix_tokens(static, learner.backbone, state.sema, part),),
                self._task.train_images,
            )
        return self._tokens_kept

    def _observe(self, state: Learning) -> list[np.ndarray]:
        learner, static, key = self._learner, self._static, jax.random.key(self._index)
        return learner.in_batches(
            lambda part: programs.observe(
                static, learner.backbone, state.sema, part, from_tokens=True, key=key
            ),
            self._tokens(state),
        )


def growing_block(
    config: SEMAConfig, scores: Sequence[float], closed: Collection[int]
) -> int | None:
    """The shallowest block whose score of a batch is above the threshold, `closed` ones left out.

    Raises:
        FloatingPointError: if a score is NaN: it would be below every threshold, and the model
            would never grow again without a word.

    Source: the official program; arXiv 2403.18886 section 3.6.
    """
    if np.isnan(scores).any():
        raise FloatingPointError(f"scores of shifts must be numbers, got {list(scores)}")
    above = (
        block
        for block, score in zip(config.expandable, scores, strict=True)
        if score > config.threshold and block not in closed
    )
    return next(above, None)


def require_finite_statistics(config: SEMAConfig, sema: SEMAState, task_name: str) -> None:
    """Refuse descriptors whose statistics are not finite: they would never speak again."""
    mean, deviation = record_statistics(sema.records)
    active = np.arange(config.capacity) < np.asarray(sema.num_active)[:, None]
    broken = active & ~(np.isfinite(mean) & np.isfinite(deviation))
    if broken.any():
        blocks = [config.expand_from + int(e) for e in np.flatnonzero(broken.any(1))]
        raise FloatingPointError(
            f"descriptors of blocks {blocks} have statistics that are not finite after task "
            f"{task_name!r}: lower describe_learning_rate"
        )


class _Devices:
    """Where arrays live: batches split over an axis `data`, all else on every device."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh

    def _put(self, tree: Any, *axes: str | None) -> Any:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(*axes)))

    def everywhere(self, tree: Any) -> Any:
        return self._put(tree)

    def rows(self, rows: Any) -> Any:
        return self._put(rows, "data")

    def batches(self, batches: StepBatches) -> StepBatches:
        split = self._put((batches.inputs, batches.labels), None, "data")
        return StepBatches(*split, *self.everywhere(tuple(batches)[2:]))

    def host(self, x: Array) -> np.ndarray:
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
