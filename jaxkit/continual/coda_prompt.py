"""CODA-Prompt: prefixes assembled from components by attention, more of them with every task."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import models, validation
from jaxkit.continual.prompts import check_blocks, directions, prefixed_features, query


class Components(NamedTuple):
    """Components of E blocks; the first half of a prompt's L tokens are keys, the second values.

    `attention` is what of a query each component looks at.
    """

    prompts: Float[Array, "E M L d"]
    keys: Float[Array, "E M d"]
    attention: Float[Array, "E M d"]


@dataclasses.dataclass(frozen=True)
class CODAPrompt:
    r"""A prefix is a weighted sum of components, $p = \sum_m \alpha_m P_m$ (arXiv 2211.13218).

    $\alpha_m = \cos(q \odot A_m, K_m)$ with the image's feature $q$ by the bare backbone. Each task
    trains M / T components of its own, begun orthogonal to those before, which stay as they are;
    $\lambda \sum_{X \in P, K, A} \overline{(X X^\top - I)^2}$ keeps them orthogonal.

    Attributes:
        num_tasks: T, tasks of the stream.
        num_components: M, a multiple of T.
        prompt_length: L, even: half are keys, half values.
        blocks: blocks that get a prefix.
        orthogonality: $\lambda$.

    Raises:
        ValueError: if a number is out of range, or M is no multiple of T.

    Example:
        >>> CODAPrompt(10).init(jax.random.key(0), models.VisionTransformer()).prompts.shape
        (5, 100, 8, 768)
    """

    num_tasks: int
    num_components: int = 100
    prompt_length: int = 8
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4)
    orthogonality: float = 0.1

    def __post_init__(self):
        for field in ("num_tasks", "num_components", "prompt_length"):
            validation.integer(field, getattr(self, field), minimum=1)
        for field, of in (("num_components", self.num_tasks), ("prompt_length", 2)):
            if getattr(self, field) % of:
                raise ValueError(f"{field} must be a multiple of {of}, got {getattr(self, field)}")
        validation.number("orthogonality", self.orthogonality, minimum=0)

    def init(self, key: Key[Array, ""], model: models.VisionTransformer) -> Components:
        """Draw components; `begin` makes those of a task orthogonal."""
        check_blocks(model, self.blocks)
        if self.num_components > model.width:
            raise ValueError(
                f"num_components must be at most the model's width {model.width}, so that they "
                f"can be orthogonal, got {self.num_components}"
            )
        shape = (len(self.blocks), self.num_components, model.width)
        longer = (*shape[:2], self.prompt_length, model.width)
        keys = jax.random.split(key, 3)
        return Components(
            *(jax.random.normal(k, s) for k, s in zip(keys, (longer, shape, shape), strict=True))
        )

    def begin(self, components: Components, task_index: int) -> Components:
        """Make the components of a task orthonormal, and orthogonal to those before (QR)."""
        if task_index >= self.num_tasks:
            raise ValueError(f"num_tasks must be at least the stream's, got {self.num_tasks}")
        each = self.num_components // self.num_tasks
        old, new = each * task_index, each * (task_index + 1)

        def orthogonal(leaf: Array) -> Array:
            rows = np.asarray(leaf, np.float64).reshape(*leaf.shape[:2], -1)
            for block in rows:
                block[old:new] = np.linalg.qr(block[:new].T)[0].T[old:]
            return jnp.asarray(rows.reshape(leaf.shape), leaf.dtype)

        return jax.tree.map(orthogonal, components)

    def features(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        components: Components,
        images: Float[Array, "B H W C"],
        num_tasks: Int[Array, ""],
        training: bool,
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """The class token, and how far from orthogonal the components are."""
        tokens, queries = query(model, backbone, images)
        number, each = jnp.arange(self.num_components), self.num_components // self.num_tasks
        used, old = number < each * num_tasks, number < each * (num_tasks - 1)

        def present(leaf: Array) -> Array:
            """Older components do not change, later ones are not there yet."""
            past, there = (x.reshape(-1, *(1,) * (leaf.ndim - 2)) for x in (old, used))
            return jnp.where(there, jnp.where(past, lax.stop_gradient(leaf), leaf), 0)

        p, k, a = (present(leaf) for leaf in components)
        looked_at = directions(queries[:, None, None, :] * a)  # [B, E, M, d]
        alpha = jnp.einsum("bemd,emd->bem", looked_at, directions(k))
        prompts = jnp.einsum("bem,emld->beld", alpha, p)
        half = self.prompt_length // 2
        prefixes = {
            block: (prompts[:, e, :half], prompts[:, e, half:])
            for e, block in enumerate(self.blocks)
        }
        features = prefixed_features(model, backbone, tokens, prefixes)
        penalty = self.orthogonality * sum(_skew(x, used) for x in (p, k, a))
        return features, jnp.broadcast_to(penalty, len(images))


def _skew(rows: Float[Array, "E M ..."], used: Array) -> Float[Array, ""]:
    """Mean square of X X' - I over the components in use, summed over blocks."""
    flat = rows.reshape(*rows.shape[:2], -1)
    gap = jnp.einsum("emx,enx->emn", flat, flat) - jnp.diag(used.astype(flat.dtype))
    return jnp.sum(gap**2) / jnp.sum(used) ** 2
