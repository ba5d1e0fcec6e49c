"""What the phases of SEMA do to a task: scan, grow, train, describe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxkit.continual import sema_programs as programs
from jaxkit.continual.batches import (
    StepBatches,
    cosine_rates,
    draw_order,
    pad_rows,
)
from jaxkit.continual.descriptors import record_statistics
from jaxkit.continual.expandable_state import SEMAConfig, SEMAState, add_adapter
from jaxkit.continual.sema_programs import Learning, Source, Trainable
from jaxkit.continual.stream_runs import Phase, training_phase
from jaxkit.continual.streams import Task
from jaxkit.datasets.mapped import forget_pages, write_mapped

if TYPE_CHECKING:
    from jaxkit.continual.sema import SEMALearner

#: Images kept on record of the batch that made a block grow.
_PICTURES = 8


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
        self._config, self._static = learner.config, learner.static
        self._key, self._part = jax.random.key(seed), -1
        self._is_fresh = task.is_augmented
        self._tokens_kept: np.ndarray | None = None

    def scan(self, number: int, batch: int, closed: Collection[int]) -> Phase:
        """Score batches of pass `number` until the first in which a block asks to grow.

        `closed` blocks have grown for this task already. The event tells `"scores"`, and `"block"`,
        `"batch"`, `"score"` of the growth asked for with the `"rows"` of the strangest images; the
        block is None if there is none.
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
                forget_pages(tokens)
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
        """Add an adapter, a descriptor and a router column, as the scan `found` asked for."""

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

        `everything`: also the adapters of blocks that never grow, as in every first task.
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
                self._static, source, learner.backbone, state, trainable, classes, batches, key
            )  # fmt: skip

        rates = cosine_rates(config.train_learning_rate, config.train_epochs)
        return self._training("train", 1, blocks, run, inputs, rates)

    def describe(self, blocks: Collection[int]) -> Phase:
        """Description: the newest descriptors of some blocks learn what adapters are given."""
        config, learner, images = self._config, self._learner, self._task.train_images
        chosen, key = np.isin(config.expandable, list(blocks)), self._phase_key()

        def run(state: Learning, batches: StepBatches) -> tuple[Learning, Array]:
            return programs.describe_steps(
                self._static, "images" if self._is_fresh else "pooled", learner.backbone, state,
                chosen, batches, key,
            )  # fmt: skip

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
            learner, static, model = self._learner, self._static, self._config.model
            made = learner.each_batch(
                lambda part: [programs.prefix_tokens(static, learner.backbone, state.sema, part)],
                self._task.train_images,
            )
            # On disk: of ViT-B/16 they are 0.6 MB an image.
            kept = write_mapped((tokens.ravel() for (tokens,) in made), np.float32)
            self._tokens_kept = kept.reshape(-1, model.num_tokens, model.width)
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
