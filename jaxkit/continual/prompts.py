"""Prompts chosen from a pool by what an image looks like: L2P."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import models, training, validation
from jaxkit.continual.batches import StepBatches, padded_batches, run_steps
from jaxkit.continual.expandable_state import Head
from jaxkit.continual.forward_pass import class_features, class_logits
from jaxkit.continual.sema_programs import local_cross_entropy
from jaxkit.continual.stream_runs import Phases, training_phase
from jaxkit.continual.streams import Stream


class PromptPool(NamedTuple):
    """What is learnt: prompts, the keys that they are found by, and the classifier.

    Attributes:
        prompts: M prompts of L tokens, `[M, L, d]`.
        keys: `[M, d]`.
        head: the linear classifier over all classes.
    """

    prompts: Float[Array, "M L d"]
    keys: Float[Array, "M d"]
    head: Head


class PromptLearning(NamedTuple):
    """A pool and the state of its optimizer."""

    pool: PromptPool
    opt_state: PyTree


def init_prompt_pool(
    key: Key[Array, ""], pool_size: int, prompt_length: int, width: int, num_classes: int
) -> PromptPool:
    r"""Draw a pool: prompts and keys $U(\pm 1)$, the head $U(\pm 1/\sqrt d)$ with bias 0.

    Args:
        key: typed key.
        pool_size: `M`.
        prompt_length: `L`, tokens of a prompt.
        width: `d`.
        num_classes: `C`.

    Returns:
        The pool.

    Example:
        >>> init_prompt_pool(jax.random.key(0), 4, 2, 8, 3).keys.shape
        (4, 8)
    """
    prompt_key, key_key, head_key = jax.random.split(key, 3)
    uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    kernel = uniform(head_key, (width, num_classes)) * width**-0.5
    return PromptPool(
        uniform(prompt_key, (pool_size, prompt_length, width)),
        uniform(key_key, (pool_size, width)),
        Head(kernel, jnp.zeros(num_classes)),
    )


def choose_prompts(
    keys: Float[Array, "M d"], queries: Float[Array, "B d"], num_chosen: int
) -> tuple[Int[Array, "B N"], Float[Array, "B N"]]:
    r"""Find the N keys nearest to each query by cosine.

    Args:
        keys: of the prompts.
        queries: features of images by the frozen backbone.
        num_chosen: `N`.

    Returns:
        Which prompts, nearest first, and their cosines, each `[B, N]`.

    Source: arXiv 2112.08654 eq. (3).

    Example:
        >>> chosen, cosines = choose_prompts(jnp.eye(3), jnp.array([[0.0, 3.0, 4.0]]), 2)
        >>> chosen.tolist()
        [[2, 1]]
    """
    cosines, chosen = lax.top_k(_directions(queries) @ _directions(keys).T, num_chosen)
    return chosen, cosines


def prompted_features(
    model: models.VisionTransformer,
    backbone: PyTree,
    images: Float[Array, "B H W C"],
    prompts: Float[Array, "B P d"],
) -> Float[Array, "B d"]:
    """Run the frozen backbone with prompts before its tokens.

    Args:
        model: the backbone.
        backbone: its variables.
        images: in [0, 1].
        prompts: P tokens for each image; they get no position embedding.

    Returns:
        The mean over the P tokens that the prompts became, after the final norm.

    Source: arXiv 2112.08654 section 4.1.

    Example:
        >>> model = models.VisionTransformer(4, 4, 1, width=4, depth=1, num_heads=1, mlp_dim=4)
        >>> images, prompts = jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 6, 4))
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> run = lambda b: prompted_features(model, b, images, prompts)
        >>> jax.eval_shape(run, shapes).shape
        (2, 4)
    """
    tokens: Any = model.apply(backbone, images, method="embed")
    tokens = jnp.concatenate([prompts.astype(tokens.dtype), tokens], axis=1)
    stream, _ = model.apply(backbone, tokens, method="encode")
    finished: Any = model.apply(backbone, stream, method="finish")
    wide = finished[:, : prompts.shape[1]].astype(jnp.promote_types(finished.dtype, jnp.float32))
    return jnp.mean(wide, axis=1)


def prompt_logits(
    model: models.VisionTransformer,
    num_chosen: int,
    backbone: PyTree,
    pool: PromptPool,
    images: Float[Array, "B H W C"],
) -> tuple[Float[Array, "B classes"], Float[Array, "B N"]]:
    """Choose prompts for each image, and classify it with them.

    Args:
        model: the backbone.
        num_chosen: prompts an image.
        backbone: its variables.
        pool: what is learnt.
        images: in [0, 1].

    Returns:
        Scores of all classes `[B, C]`, and the cosines of the prompts chosen `[B, N]`.

    Example:
        >>> model = models.VisionTransformer(4, 4, 1, width=4, depth=1, num_heads=1, mlp_dim=4)
        >>> images, pool = jnp.zeros((2, 4, 4, 1)), init_prompt_pool(jax.random.key(0), 4, 3, 4, 5)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> run = lambda b: prompt_logits(model, 2, b, pool, images)
        >>> [x.shape for x in jax.eval_shape(run, shapes)]
        [(2, 5), (2, 2)]
    """
    tokens: Any = model.apply(backbone, images, method="embed")
    stream, _ = model.apply(backbone, tokens, method="encode")
    queries = class_features(model.apply(backbone, stream, method="finish"))  # type: ignore[arg-type]
    chosen, cosines = choose_prompts(pool.keys, queries, num_chosen)
    prompts = pool.prompts[chosen].reshape(len(images), -1, pool.prompts.shape[-1])
    features = prompted_features(model, backbone, images, prompts)
    return class_logits(pool.head, features), cosines


def _directions(rows: Float[Array, "n f"]) -> Float[Array, "n f"]:
    # Inside the root, so that the gradient of a zero row is finite.
    return rows * lax.rsqrt(jnp.sum(rows**2, axis=-1, keepdims=True) + 1e-12)


class L2P:
    r"""Learning to prompt: a pool of prompts beside the frozen backbone (arXiv 2112.08654).

    The image's feature by the bare backbone finds the nearest keys; their prompts go before its
    tokens, and what these become is classified. Training minimises, over the classes of the task,
    $CE - \lambda \sum_n \cos(q, k_n)$: it draws the keys that were chosen to their images. Prompts
    are chosen for each image, in training too (the released program lets a batch vote).

    Args:
        model: the backbone.
        backbone: its variables.
        num_classes: classes of the whole stream.
        pool_size: prompts in the pool.
        prompt_length: tokens of a prompt.
        num_chosen: prompts an image, at most `pool_size`.
        pull: $\lambda$.
        learning_rate: of Adam, constant, gradients clipped to a norm of 1; each task starts it
            afresh. The released program scales 0.03 with the batch over 256.
        num_epochs: passes over a task.
        batch_size: images of a step.
        scan_batch_size: images of a forward pass in tests.
        steps_per_call: steps in one call of a compiled program.
        name: shown in reports.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> L2P(model, {}, 3).init(0).pool.prompts.shape
        (10, 5, 8)
    """

    def __init__(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        num_classes: int,
        *,
        pool_size: int = 10,
        prompt_length: int = 5,
        num_chosen: int = 5,
        pull: float = 0.5,
        learning_rate: float = 0.03 * 32 / 256,
        num_epochs: int = 5,
        batch_size: int = 32,
        scan_batch_size: int = 128,
        steps_per_call: int = 32,
        name: str = "L2P",
    ):
        integers = {
            "num_classes": num_classes, "pool_size": pool_size, "prompt_length": prompt_length,
            "num_chosen": num_chosen, "num_epochs": num_epochs, "batch_size": batch_size,
            "scan_batch_size": scan_batch_size, "steps_per_call": steps_per_call,
        }  # fmt: skip
        for field, value in integers.items():
            validation.integer(field, value, minimum=1)
        if num_chosen > pool_size:
            raise ValueError(f"num_chosen must be at most pool_size={pool_size}, got {num_chosen}")
        for field, value in (("pull", pull), ("learning_rate", learning_rate)):
            validation.number(field, value, minimum=0)
        self.name, self._model, self._backbone = name, model, backbone
        self._settings = {**integers, "pull": pull, "learning_rate": learning_rate}
        self._optimizer, self._train, self._predict = _programs(model, num_chosen, pull)  # type: ignore[arg-type]

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share."""
        return {
            "learner": self.name,
            **self._settings,
            "model": repr(self._model),
            "backbone": training.fingerprint(self._backbone),
        }

    def init(self, seed: int) -> PromptLearning:
        """Make the state before the first task."""
        s = self._settings
        pool = init_prompt_pool(
            jax.random.key(seed), s["pool_size"], s["prompt_length"], self._model.width,
            s["num_classes"],
        )  # fmt: skip
        return PromptLearning(pool, self._optimizer.init(pool))

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The pool and the head are trained, by Adam begun afresh.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        s, task = self._settings, stream.tasks[task_index]
        classes = np.isin(np.arange(s["num_classes"]), task.classes)
        yield training_phase(
            "prompts", task,
            lambda state, batches: self._train(self._backbone, state, classes, batches),
            inputs=lambda state: task.train_images,
            begin=lambda state: PromptLearning(state.pool, self._optimizer.init(state.pool)),
            order=(seed, task_index),
            learning_rates=np.full(s["num_epochs"], s["learning_rate"]),
            batch_size=s["batch_size"], steps_per_call=s["steps_per_call"],
        )  # fmt: skip

    def predict(
        self, state: PromptLearning, images: Float[np.ndarray, "B H W C"]
    ) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        size, parts = self._settings["scan_batch_size"], []
        for padded, count in padded_batches(images, size):
            parts.append(np.asarray(self._predict(self._backbone, state.pool, padded))[:count])
        return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _programs(
    model: models.VisionTransformer, num_chosen: int, pull: float
) -> tuple[optax.GradientTransformation, Any, Any]:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    classify = functools.partial(prompt_logits, model, num_chosen)

    def train(
        backbone: PyTree, learning: PromptLearning, classes: Bool[Array, " C"], batches: StepBatches
    ) -> tuple[PromptLearning, Float[Array, " S"]]:
        def step(learning: PromptLearning, batch: StepBatches) -> tuple[PromptLearning, Array]:
            def loss_fn(pool: PromptPool) -> Array:
                logits, cosines = classify(backbone, pool, batch.inputs)
                loss = local_cross_entropy(logits, batch.labels, classes, batch.num_valid)
                counts = jnp.arange(len(cosines)) < batch.num_valid
                pulled = jnp.sum(jnp.where(counts[:, None], cosines, 0)) / batch.num_valid
                return loss - pull * pulled

            loss, gradient = jax.value_and_grad(loss_fn)(learning.pool)
            updates, opt_state = optimizer.update(gradient, learning.opt_state, learning.pool)
            updates = optax.tree.scale(-batch.learning_rate, updates)
            return PromptLearning(optax.apply_updates(learning.pool, updates), opt_state), loss  # type: ignore[arg-type]

        return run_steps(step, learning, batches)

    def predict(backbone: PyTree, pool: PromptPool, images: Array) -> Array:
        return classify(backbone, pool, images)[0]

    return optimizer, jax.jit(train), jax.jit(predict)
