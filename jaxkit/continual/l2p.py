"""L2P: prompts chosen from a pool by what an image looks like."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import models, validation
from jaxkit.continual.prompts import cosines, drawn, query


class PromptPool(NamedTuple):
    """M prompts of L tokens and the keys that they are found by."""

    prompts: Float[Array, "M L d"]
    keys: Float[Array, "M d"]


@dataclasses.dataclass(frozen=True)
class L2P:
    r"""Learning to prompt: prompts from a pool go before the tokens (arXiv 2112.08654).

    The image's feature by the bare backbone finds the nearest keys; what their prompts become is
    classified. $-\lambda \sum_n \cos(q, k_n)$ draws the keys that were chosen to their images.
    Prompts are chosen for each image, in training too (the released program lets a batch vote).

    Attributes:
        pool_size: M, prompts in the pool.
        prompt_length: L, tokens of a prompt.
        num_chosen: N, prompts an image, at most `pool_size`.
        pull: $\lambda$.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax
        >>> L2P().init(jax.random.key(0), models.VisionTransformer()).prompts.shape
        (10, 5, 768)
    """

    pool_size: int = 10
    prompt_length: int = 5
    num_chosen: int = 5
    pull: float = 0.5

    def __post_init__(self):
        for field in ("pool_size", "prompt_length", "num_chosen"):
            validation.integer(field, getattr(self, field), minimum=1)
        if self.num_chosen > self.pool_size:
            raise ValueError(
                f"num_chosen must be at most pool_size={self.pool_size}, got {self.num_chosen}"
            )
        validation.number("pull", self.pull, minimum=0)

    def init(self, key: Key[Array, ""], model: models.VisionTransformer) -> PromptPool:
        r"""Draw prompts and keys, $U(\pm 1)$."""
        m, d = self.pool_size, model.width
        return PromptPool(*drawn(key, (m, self.prompt_length, d), (m, d)))

    def begin(self, pool: PromptPool, task_index: int) -> PromptPool:
        """The pool at the start of a task."""
        return pool

    def features(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        pool: PromptPool,
        images: Float[Array, "B H W C"],
        num_tasks: Int[Array, ""],
        training: bool,
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """What the chosen prompts become on average, and the penalty of their keys."""
        tokens, queries = query(model, backbone, images)
        near, chosen = lax.top_k(cosines(queries, pool.keys), self.num_chosen)
        prompts = pool.prompts[chosen].reshape(len(images), -1, model.width)
        tokens = jnp.concatenate([prompts.astype(tokens.dtype), tokens], axis=1)
        stream, _ = model.apply(backbone, tokens, method="encode")
        finished: Any = model.apply(backbone, stream, method="finish")
        became = finished[:, : prompts.shape[1]]
        wide = became.astype(jnp.promote_types(became.dtype, jnp.float32))
        return jnp.mean(wide, axis=1), -self.pull * jnp.sum(near, axis=1)
