"""DualPrompt: one prefix for all tasks in the first blocks, one for each task in those above."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import models, validation
from jaxkit.continual.prompts import check_blocks, cosines, drawn, prefixed_features, query


class DualPrompts(NamedTuple):
    """Keys and values that tokens attend to (axis of size 2), of all tasks and of each task.

    `keys` are what tasks are found by.
    """

    general: Float[Array, "G 2 L d"]
    expert: Float[Array, "T E 2 P d"]
    keys: Float[Array, "T d"]


@dataclasses.dataclass(frozen=True)
class DualPrompt:
    r"""Complementary prompts as prefixes of keys and values (arXiv 2204.04799).

    Training uses the present task's prefix and draws its key to the images,
    $-\lambda \cos(q, k_t)$; tests use that of the nearest key, $\arg\max_t \cos(q, k_t)$.

    Attributes:
        num_tasks: T, tasks of the stream.
        general_length: L, keys and values of a prefix of all tasks.
        expert_length: L', those of a prefix of one task.
        general_blocks: blocks with the prefixes of all tasks.
        expert_blocks: blocks with those of one.
        pull: $\lambda$.

    Raises:
        ValueError: if a number is out of range, or a block has two prefixes.

    Example:
        >>> import jax
        >>> prompts = DualPrompt(10).init(jax.random.key(0), models.VisionTransformer())
        >>> prompts.general.shape, prompts.expert.shape
        ((2, 2, 5, 768), (10, 3, 2, 20, 768))
    """

    num_tasks: int
    general_length: int = 5
    expert_length: int = 20
    general_blocks: tuple[int, ...] = (0, 1)
    expert_blocks: tuple[int, ...] = (2, 3, 4)
    pull: float = 1.0

    def __post_init__(self):
        for field in ("num_tasks", "general_length", "expert_length"):
            validation.integer(field, getattr(self, field), minimum=1)
        validation.number("pull", self.pull, minimum=0)

    def init(self, key: Key[Array, ""], model: models.VisionTransformer) -> DualPrompts:
        r"""Draw prompts and keys, $U(\pm 1)$."""
        check_blocks(model, (*self.general_blocks, *self.expert_blocks))
        d, tasks = model.width, self.num_tasks
        general = (len(self.general_blocks), 2, self.general_length, d)
        expert = (tasks, len(self.expert_blocks), 2, self.expert_length, d)
        return DualPrompts(*drawn(key, general, expert, (tasks, d)))

    def begin(self, prompts: DualPrompts, task_index: int) -> DualPrompts:
        """The prompts at the start of a task."""
        if task_index >= self.num_tasks:
            raise ValueError(f"num_tasks must be at least the stream's, got {self.num_tasks}")
        return prompts

    def features(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        prompts: DualPrompts,
        images: Float[Array, "B H W C"],
        num_tasks: Int[Array, ""],
        training: bool,
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """The class token, and the penalty of the task's key."""
        tokens, queries = query(model, backbone, images)
        near = cosines(queries, prompts.keys)
        near = jnp.where(jnp.arange(self.num_tasks) < num_tasks, near, -jnp.inf)
        best = jnp.argmax(near, axis=1)
        task = jnp.full_like(best, num_tasks - 1) if training else best
        expert = prompts.expert[task]
        prefixes = {
            block: tuple(jnp.broadcast_to(half, (len(images), *half.shape)) for half in pair)
            for block, pair in zip(self.general_blocks, prompts.general, strict=True)
        }
        prefixes |= {
            b: (expert[:, e, 0], expert[:, e, 1]) for e, b in enumerate(self.expert_blocks)
        }
        features = prefixed_features(model, backbone, tokens, prefixes)
        return features, -self.pull * jnp.take_along_axis(near, task[:, None], axis=1)[:, 0]
