"""SEMA and its ablations as a learner of streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxkit import training, validation
from jaxkit.continual import phases
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState, init_sema
from jaxkit.continual.freezing import Trainable, newest_slots
from jaxkit.continual.learners import Advance
from jaxkit.continual.padded_batches import pad_rows, padded_batches
from jaxkit.continual.phases import Augment, Learning
from jaxkit.continual.sema_programs import sema_programs
from jaxkit.continual.sema_settings import SEMASettings, cosine_rates
from jaxkit.continual.shift_detection import first_trigger, require_finite_statistics
from jaxkit.continual.step_batches import StepBatches, draw_batches, draw_order
from jaxkit.continual.streams import Stream, Task

# Numbers for the orders of batches, so that no two phases share one.
_STAGES = {"scan": 0, "train": 1, "describe": 2}


class SEMALearner:
    """Grows a mixture of adapters beside a frozen backbone (arXiv 2403.18886).

    A stateful convenience around `sema_programs`: it draws the orders of batches, runs the phases
    and keeps what a frozen prefix computed for the present task. All that is learnt is in the
    `Learning` that it passes on.

    Args:
        config: shapes and modes.
        backbone: variables of `config.model`.
        settings: how it trains and when it grows.
        augment: of training images; without one, whatever is frozen is computed once a phase.
        mesh: devices to split each batch over, on its axis `data`.
        name: shown in reports.

    Raises:
        ValueError: if the mesh does not divide the batches.

    Example:
        >>> from jaxkit import models
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> learner = SEMALearner(config, {}, SEMASettings(policy="never"))
        >>> learner.begin(1)["stage"]
        'train'
    """

    def __init__(
        self,
        config: SEMAConfig,
        backbone: PyTree,
        settings: SEMASettings | None = None,
        *,
        augment: Augment | None = None,
        mesh: Mesh | None = None,
        name: str = "SEMA",
    ):
        self.config, self.settings = config, settings or SEMASettings()
        self.name, self._augment, self._mesh = name, augment, mesh
        rule = phases.sgd(self.settings.momentum, self.settings.weight_decay)
        self._rule = rule
        self.programs = sema_programs(config, rule, augment)
        self._kept: dict[str, tuple[Any, np.ndarray]] = {}
        if mesh is not None:
            for field in ("batch_size", "scan_batch_size"):
                size = getattr(self.settings, field)
                if size % mesh.shape["data"]:
                    raise ValueError(
                        f"{field} must be divisible by data={mesh.shape['data']} of the mesh, got "
                        f"{size}"
                    )
        self.backbone = self._everywhere(backbone)

    def description(self) -> dict[str, Any]:
        """Settings that a resumed run must share."""
        facts = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        model = facts.pop("model")
        names = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        facts |= {f"model.{name}": str(getattr(model, name)) for name in names}
        settings = dataclasses.asdict(self.settings)
        settings["threshold"] = str(settings["threshold"])
        return {
            "learner": self.name,
            **facts,
            **settings,
            "augmented": self._augment is not None,
            "backbone": training.fingerprint(self.backbone),
        }

    def init(self, seed: int) -> Learning:
        """Make the state before the first task."""
        self._kept.clear()
        learning = phases.init_learning(init_sema(jax.random.key(seed), self.config), self._rule)
        return self._everywhere(learning)

    def begin(self, task_index: int) -> dict[str, Any]:
        """The position at the start of a task; what was kept for another task is dropped."""
        self._kept.clear()
        policy, blocks = self.settings.policy, list(self.config.expandable)
        start = {"step": 0, "phase": 0, "pass": 0, "batch": 0, "grew": False, "added": []}
        if task_index == 0:
            return {**start, "stage": "train", "blocks": blocks}
        if policy == "on_shift":
            return {**start, "stage": "scan", "blocks": []}
        if policy == "every_task":
            return {**start, "stage": "grow", "blocks": blocks}
        return {**start, "stage": "train", "blocks": blocks if policy == "finetune" else []}

    def advance(
        self,
        state: Learning,
        position: Mapping[str, Any],
        stream: Stream,
        task_index: int,
        *,
        seed: int,
        max_steps: int,
    ) -> Advance:
        """Learn a piece of a task: one pass of scanning, or at most `max_steps` steps.

        Raises:
            ValueError: if a block is full, or the stream has more classes than the head.
            FloatingPointError: if a loss or a descriptor's statistics are not finite.
        """
        validation.integer("max_steps", max_steps, minimum=1)
        if stream.num_classes > self.config.num_classes:
            raise ValueError(
                f"num_classes must be at least the stream's {stream.num_classes}, got "
                f"{self.config.num_classes}"
            )
        stage = {"scan": self._scan, "grow": self._grow}.get(position["stage"], self._train)
        arguments = (state, dict(position), stream.tasks[task_index], task_index, seed)
        return stage(*arguments, min(max_steps, self.settings.steps_per_call))

    def predict(
        self, state: Learning, images: Float[np.ndarray, "B H W C"]
    ) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        return self.inspect(state, images)[1]

    def inspect(
        self, state: Learning, images: Float[np.ndarray, "B H W C"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features `[B, d]`, scores `[B, C]` and router weights `[B, E, K]` of images."""
        key = jax.random.key(0)

        def run(part: Any) -> tuple[Any, ...]:
            return self.programs.predict(self.backbone, state.sema, part, key)

        return tuple(self._in_batches(run, images))  # type: ignore[return-value]

    def _scan(
        self, state: Learning, at: dict[str, Any], task: Task, index: int, seed: int, _: int
    ) -> Advance:
        size, tokens = self.settings.scan_batch_size, self._tokens(state, task, index)
        order = draw_order((seed, index, _STAGES["scan"], at["pass"], 0), len(tokens))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        scores = np.array(
            [self._score(state.sema, tokens[rows], seed, index) for rows in batches[at["batch"] :]]
        ).reshape(-1, self.config.num_expandable)
        closed = np.isin(self.config.expandable, at["added"])
        found = first_trigger(scores, closed, self.settings.threshold)
        until = len(scores) if found is None else found.batch + 1
        event = {"kind": "scan", "task": index, "pass": at["pass"], "batch": at["batch"],
                 "scores": scores[:until].tolist()}  # fmt: skip
        if found is not None:
            block = self.config.expand_from + found.block
            batch = at["batch"] + found.batch
            grown = self._add(state, block, seed, index)
            events = (event, {"kind": "expand", "task": index, "block": block, "pass": at["pass"],
                              "batch": batch, "score": found.score})  # fmt: skip
            at |= {"stage": "train", "step": 0, "blocks": [block], "batch": batch + 1,
                   "grew": True, "added": [*at["added"], block]}  # fmt: skip
            return Advance(grown, at, 0, events, f"block {block} grows", 1.0)
        if at["grew"] and len(at["added"]) < self.config.num_expandable:
            at |= {"pass": at["pass"] + 1, "batch": 0, "grew": False}
        elif at["added"]:
            at = None  # type: ignore[assignment]
        else:
            at |= {"stage": "train", "step": 0, "blocks": []}
        return Advance(state, at, 0, (event,), "scan", 1.0)

    def _grow(
        self, state: Learning, at: dict[str, Any], task: Task, index: int, seed: int, _: int
    ) -> Advance:
        for block in at["blocks"]:
            state = self._add(state, block, seed, index)
        events = tuple(
            {"kind": "expand", "task": index, "block": block, "pass": 0, "batch": 0, "score": None}
            for block in at["blocks"]
        )
        at |= {"stage": "train", "added": at["blocks"]}
        return Advance(state, at, 0, events, "every block grows", 1.0)

    def _train(
        self, state: Learning, at: dict[str, Any], task: Task, index: int, seed: int, steps: int
    ) -> Advance:
        stage, setting = at["stage"], self.settings
        epochs, rate = (
            (setting.train_epochs, setting.train_learning_rate)
            if stage == "train"
            else (setting.describe_epochs, setting.describe_learning_rate)
        )
        if at["step"] == 0:
            state = self._everywhere(phases.init_learning(state.sema, self._rule))
        total = epochs * -(-len(task.train_images) // setting.batch_size)
        count = min(steps, total - at["step"])
        run, inputs = self._program(state, at, task, index, seed)
        batches = draw_batches(
            inputs, task.train_labels, (seed, index, _STAGES[stage], at["phase"]),
            cosine_rates(rate, epochs), at["step"], count,
            batch_size=setting.batch_size, capacity=setting.steps_per_call,
        )  # fmt: skip
        state, losses = run(self._everywhere(state), self._placed(batches))
        losses = np.asarray(losses)[:count]
        if not np.isfinite(losses).all():
            raise FloatingPointError(
                f"the {stage} phase of task {index} ({task.name}) diverged, "
                f"{stage}_learning_rate={rate} must be lower: losses {losses.tolist()}"
            )
        at["step"] += count
        done = at["step"] == total
        event = {"kind": stage, "task": index, "blocks": at["blocks"], "step": at["step"],
                 "loss": float(losses[-1])}  # fmt: skip
        doing, share = f"{stage} {at['blocks'] or 'head'}", at["step"] / total
        return Advance(
            state, self._after(state, at, task, index) if done else at, count,
            (event,) if done else (), doing, share,
        )  # fmt: skip

    def _after(
        self, state: Learning, at: dict[str, Any], task: Task, index: int
    ) -> dict[str, Any] | None:
        if self.settings.policy != "on_shift" or not at["blocks"]:
            return None
        if at["stage"] == "train":
            return at | {"stage": "describe", "step": 0}
        require_finite_statistics(self.config, state.sema, task.name)
        if index == 0:
            return None
        return at | {"stage": "scan", "step": 0, "phase": at["phase"] + 1, "blocks": []}

    def _program(
        self, state: Learning, at: dict[str, Any], task: Task, index: int, seed: int
    ) -> tuple[Callable[[Learning, StepBatches], tuple[Learning, Array]], np.ndarray]:
        """The program of a phase without its constant arguments, and the inputs it reads."""
        programs, backbone = self.programs, self.backbone
        key = jax.random.fold_in(jax.random.key(seed), index * 1000 + at["phase"] + 1)
        wanted = np.isin(self.config.expandable, at["blocks"])
        slots = self._everywhere(newest_slots(state.sema, jnp.asarray(wanted)))
        # Slots whose features are frozen: one pass over the data serves the whole phase.
        when = (index, at["stage"], at["phase"])
        if at["stage"] == "describe":
            if self._augment is not None:
                run = programs.describe_images
                return lambda learning, batches: run(backbone, learning, slots, batches, key), (
                    task.train_images
                )
            pooled = self._kept_for("pooled", when, lambda: self._observe(state, task, index)[1])
            return lambda learning, batches: programs.describe(learning, slots, batches), pooled
        everything = index == 0 or self.settings.policy == "finetune"
        trainable = Trainable(np.asarray(everything), slots, np.asarray(True))  # type: ignore[arg-type]
        classes = np.isin(np.arange(self.config.num_classes), task.classes)
        if everything:
            run, inputs = programs.train_images, task.train_images
        elif self._augment is not None:
            run, inputs = programs.train_images_above, task.train_images
        elif at["blocks"]:
            run, inputs = programs.train_tokens, self._tokens(state, task, index)
        else:
            run = programs.train_head
            inputs = self._kept_for("features", when, lambda: self._observe(state, task, index)[0])
        return lambda learning, batches: run(
            backbone, learning, trainable, classes, batches, key
        ), inputs

    def _placed(self, batches: StepBatches) -> StepBatches:
        if self._mesh is None:
            return batches
        split = NamedSharding(self._mesh, PartitionSpec(None, "data"))
        placed = jax.device_put((batches.inputs, batches.labels), split)
        rest = self._everywhere(tuple(batches)[2:])
        return StepBatches(*placed, *rest)

    def _tokens(self, state: Learning, task: Task, index: int) -> np.ndarray:
        def compute() -> np.ndarray:
            run = lambda part: (self.programs.prefix(self.backbone, state.sema, part),)  # noqa: E731
            return self._in_batches(run, task.train_images)[0]

        return self._kept_for("tokens", index, compute)

    def _observe(self, state: Learning, task: Task, index: int) -> list[np.ndarray]:
        def run(part: Any) -> Any:
            return self.programs.observe(self.backbone, state.sema, part, key=jax.random.key(index))

        return self._in_batches(run, self._tokens(state, task, index))

    def _score(self, sema: SEMAState, tokens: np.ndarray, seed: int, index: int) -> np.ndarray:
        padded = self._placed_rows(pad_rows(tokens, self.settings.scan_batch_size))
        key = jax.random.fold_in(jax.random.key(seed), index)
        scores = self.programs.score(self.backbone, sema, padded, np.int32(len(tokens)), key)
        return self._on_host(scores)

    def _in_batches(self, run: Callable[[Any], Any], inputs: np.ndarray) -> list[np.ndarray]:
        parts = []
        for padded, count in padded_batches(inputs, self.settings.scan_batch_size):
            parts.append([self._on_host(x)[:count] for x in run(self._placed_rows(padded))])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _placed_rows(self, rows: np.ndarray) -> Any:
        if self._mesh is None:
            return rows
        return jax.device_put(rows, NamedSharding(self._mesh, PartitionSpec("data")))

    def _kept_for(self, kind: str, when: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if kind not in self._kept or self._kept[kind][0] != when:
            self._kept[kind] = (when, compute())
        return self._kept[kind][1]

    def _add(self, state: Learning, block: int, seed: int, index: int) -> Learning:
        used = int(state.sema.num_active[block - self.config.expand_from])
        if used >= self.config.capacity:
            raise ValueError(
                f"capacity {self.config.capacity} exhausted in block {block} at task {index}: "
                "grow_capacity makes room"
            )
        key = jax.random.fold_in(
            jax.random.key(seed), (index + 1) * self.config.model.depth + block
        )
        grown = self.programs.add(key, state.sema, np.int32(block))
        return self._everywhere(state._replace(sema=grown))

    def _everywhere(self, tree: PyTree) -> PyTree:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _on_host(self, x: Array) -> np.ndarray:
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
