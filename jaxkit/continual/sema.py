"""SEMA, a mixture of adapters that grows where a task looks new, and what it is compared with.

`grow_on_shift` is the method; `never_grow`, `grow_every_task` and `finetune_adapters` are its
baselines. Each says in which phases a task is learnt; `SEMATask` knows what a phase does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxkit import training
from jaxkit.continual import sema_programs as programs
from jaxkit.continual.batches import StepBatches, padded_batches
from jaxkit.continual.expandable_state import SEMAConfig, init_sema
from jaxkit.continual.picture_images import Images
from jaxkit.continual.sema_programs import Learning
from jaxkit.continual.sema_task import SEMATask
from jaxkit.continual.stream_runs import Phases
from jaxkit.continual.streams import Stream
from jaxkit.models.vision_transformer import activation_limit


def grow_on_shift(task: SEMATask) -> Phases:
    """SEMA: where every descriptor of a block finds a batch unusual, the block grows.

    The data are passed over until a pass adds nothing; a block grows at most once a task.

    Source: arXiv 2403.18886 section 3.6 and the official program.

    Example:
        >>> from jaxkit import continual, models
        >>> stream, _ = continual.digits_stream()
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
        >>> from jaxkit import continual, models
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> phases = SEMALearner(config, {}, never_grow).phases
        >>> [phase.kind for phase in phases(continual.digits_stream()[0], 1, seed=0)]
        ['train']
    """
    yield task.train(task.blocks if task.is_first else [])


def grow_every_task(task: SEMATask) -> Phases:
    """One adapter more in every expandable block for every task, whatever the data look like.

    Example:
        >>> from jaxkit import continual, models
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> phases = SEMALearner(config, {}, grow_every_task).phases
        >>> [phase.kind for phase in phases(continual.digits_stream()[0], 1, seed=0)]
        ['expand', 'expand', 'expand', 'train']
    """
    if not task.is_first:
        for block in task.blocks:
            yield task.grow(block)
    yield task.train(task.blocks)


def finetune_adapters(task: SEMATask) -> Phases:
    """Sequential fine-tuning: the first adapters of all blocks go on training.

    Example:
        >>> from jaxkit import continual, models
        >>> config = SEMAConfig(models.VisionTransformer(), num_classes=30)
        >>> phases = SEMALearner(config, {}, finetune_adapters).phases
        >>> [phase.kind for phase in phases(continual.digits_stream()[0], 1, seed=0)]
        ['train']
    """
    yield task.train(task.blocks, everything=True)


class SEMALearner:
    """Adapters beside a frozen backbone, learnt in the phases of SEMA or a baseline.

    Args:
        config: shapes, and how it trains.
        backbone: variables of `config.model`.
        phases: the method: the phases of a task.
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
        mesh: Mesh | None = None,
        name: str = "SEMA",
    ):
        self.config, self.name = config, name
        self._phases, self.devices = phases, _Devices(mesh)
        for field in ("batch_size", "scan_batch_size"):
            size = getattr(config, field)
            if mesh is not None and size % mesh.shape["data"]:
                raise ValueError(
                    f"{field} must be divisible by data={mesh.shape['data']} of the mesh, got "
                    f"{size}"
                )
        self.static = config.static
        if mesh is not None:
            limit = config.activation_bytes or activation_limit()
            limit *= mesh.shape["data"]
            self.static = dataclasses.replace(self.static, activation_bytes=limit)
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
            "backbone": training.fingerprint(self.backbone),
        }

    def init(self, seed: int) -> Learning:
        """Make the state before the first task."""
        sema = init_sema(jax.random.key(seed), self.static)
        return self.devices.everywhere(programs.begin_phase(self.static, sema))

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The phases of a task.

        Raises:
            ValueError: if a block is full, or the stream has more classes than the head.
            FloatingPointError: if a loss, a score or a descriptor's statistics are not finite.
        """
        stream.require_room(self.config.num_classes)
        return self._phases(SEMATask(self, stream.tasks[task_index], task_index, seed))

    def predict(self, state: Learning, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        return self.inspect(state, images)[1]

    def inspect(self, state: Learning, images: Images) -> list[np.ndarray]:
        """Features `[B, d]`, scores `[B, C]` and router weights `[B, E, K]` of images."""
        static, key = self.static, jax.random.key(0)
        return self.in_batches(
            lambda part: programs.predict_images(static, self.backbone, state.sema, part, key),
            images,
        )

    def in_batches(self, run: Callable[[Any], Sequence[Any]], inputs: Any) -> list[np.ndarray]:
        """What a program makes of any number of rows."""
        parts = self.each_batch(run, inputs)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def each_batch(
        self, run: Callable[[Any], Sequence[Any]], inputs: Any
    ) -> Iterator[list[np.ndarray]]:
        """The same batch by batch."""
        for padded, count in padded_batches(inputs, self.config.scan_batch_size):
            yield [self.devices.host(x)[:count] for x in run(self.devices.rows(padded))]


class _Devices:
    """Where arrays live: batches split over an axis `data`, all else on every device."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh

    def everywhere(self, tree: Any, *axes: str | None) -> Any:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(*axes)))

    def rows(self, rows: Any) -> Any:
        return self.everywhere(rows, "data")

    def batches(self, batches: StepBatches) -> StepBatches:
        split = self.everywhere((batches.inputs, batches.labels), None, "data")
        return StepBatches(*split, *self.everywhere(tuple(batches)[2:]))

    def host(self, x: Array) -> np.ndarray:
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
