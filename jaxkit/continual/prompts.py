"""Prompts for a frozen transformer: the loop that L2P, DualPrompt and CODA-Prompt share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import models, training, validation
from jaxkit.continual.batches import (
    StepBatches,
    gradient_in_parts,
    in_parts,
    padded_batches,
    run_steps,
)
from jaxkit.continual.expandable_state import Head
from jaxkit.continual.forward_pass import class_features, class_logits
from jaxkit.continual.picture_images import Images
from jaxkit.continual.sema_programs import local_cross_entropy
from jaxkit.continual.stream_runs import Phases, training_phase
from jaxkit.continual.streams import Stream


@runtime_checkable
class Prompting(Protocol):
    """A method: which prompts an image gets. Hashable settings; what is learnt is a pytree."""

    def init(self, key: Key[Array, ""], model: models.VisionTransformer) -> Any:
        """Draw the prompts."""
        ...

    def begin(self, prompts: Any, task_index: int) -> Any:
        """The prompts at the start of a task."""
        ...

    def features(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        prompts: Any,
        images: Float[Array, "B H W C"],
        num_tasks: Int[Array, ""],
        training: bool,
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """Features with prompts, after `num_tasks` tasks or in the last of them; a penalty each."""
        ...


class PromptLearning(NamedTuple):
    """The prompts with the classifier over all classes, tasks begun, and Adam's state."""

    params: tuple[Any, Head]
    num_tasks: Int[Array, ""]
    opt_state: PyTree


class PromptLearner:
    r"""Prompts beside a frozen backbone, by Adam on the cross-entropy over a task's classes.

    Args:
        model: the backbone.
        backbone: its variables.
        num_classes: classes of the whole stream.
        prompting: the method: `L2P`, `DualPrompt` or `CODAPrompt`.
        learning_rate: constant, gradients clipped to a norm of 1; each task starts Adam afresh.
            The released program of L2P scales 0.03 with the batch over 256.
        num_epochs: passes over a task.
        batch_size: images of a step.
        scan_batch_size: images of a forward pass in tests.
        steps_per_call: steps in one call of a compiled program.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from jaxkit.continual import L2P
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> PromptLearner(model, {}, 3, L2P()).init(0).params[0].prompts.shape
        (10, 5, 8)
    """

    def __init__(
        self,
        model: models.VisionTransformer,
        backbone: PyTree,
        num_classes: int,
        prompting: Prompting,
        *,
        learning_rate: float = 0.03 * 32 / 256,
        num_epochs: int = 5,
        batch_size: int = 32,
        scan_batch_size: int = 128,
        steps_per_call: int = 32,
    ):
        self._settings = {
            "num_classes": num_classes, "num_epochs": num_epochs, "batch_size": batch_size,
            "scan_batch_size": scan_batch_size, "steps_per_call": steps_per_call,
        }  # fmt: skip
        for field, value in self._settings.items():
            validation.integer(field, value, minimum=1)
        self._rate = validation.number("learning_rate", learning_rate, minimum=0)
        self.name = type(prompting).__name__
        self._model, self._backbone, self._prompting = model, backbone, prompting

    def description(self) -> Mapping[str, Any]:
        """Settings that a resumed run must share."""
        return {
            "learner": self.name, **self._settings, "learning_rate": self._rate,
            "prompting": repr(self._prompting), "model": repr(self._model),
            "backbone": training.fingerprint(self._backbone),
        }  # fmt: skip

    def init(self, seed: int) -> PromptLearning:
        r"""Draw the prompts, and the head $U(\pm 1/\sqrt d)$ with bias 0."""
        key = jax.random.key(seed)
        *_, head_key = jax.random.split(key, 3)
        width, classes = self._model.width, self._settings["num_classes"]
        kernel = jax.random.uniform(head_key, (width, classes), minval=-1, maxval=1) * width**-0.5
        prompts = self._prompting.init(key, self._model)
        return _begin((prompts, Head(kernel, jnp.zeros(classes))), 0)

    def phases(self, stream: Stream, task_index: int, seed: int) -> Phases:
        """The prompts and the head are trained.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        s, task = self._settings, stream.tasks[task_index]
        stream.require_room(s["num_classes"])
        classes = np.isin(np.arange(s["num_classes"]), task.classes)

        def begin(state: PromptLearning) -> PromptLearning:
            prompts, head = state.params
            return _begin((self._prompting.begin(prompts, task_index), head), task_index + 1)

        yield training_phase(
            "prompts", task,
            lambda state, batches: _train(
                self._model, self._prompting, self._backbone, state, classes, batches
            ),
            inputs=lambda state: task.train_images,
            begin=begin,
            order=(seed, task_index),
            learning_rates=np.full(s["num_epochs"], self._rate),
            batch_size=s["batch_size"], steps_per_call=s["steps_per_call"],
        )  # fmt: skip

    def predict(self, state: PromptLearning, images: Images) -> Float[np.ndarray, "B classes"]:
        """Scores of all classes."""
        run = functools.partial(_predict, self._model, self._prompting, self._backbone, state)
        batches = padded_batches(images, self._settings["scan_batch_size"])
        return np.concatenate([np.asarray(run(padded))[:count] for padded, count in batches])


_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def _begin(params: tuple[Any, Head], num_tasks: int) -> PromptLearning:
    return PromptLearning(params, jnp.asarray(num_tasks, jnp.int32), _ADAM.init(params))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    model: Any,
    prompting: Any,
    backbone: PyTree,
    learning: PromptLearning,
    classes: Bool[Array, " C"],
    batches: StepBatches,
) -> tuple[PromptLearning, Float[Array, " S"]]:
    def step(learning: PromptLearning, batch: StepBatches) -> tuple[PromptLearning, Array]:
        def loss_fn(params: tuple[Any, Head], images: Array, labels: Array, rows: Array) -> Any:
            prompts, head = params
            features, penalty = prompting.features(
                model, backbone, prompts, images, learning.num_tasks, True
            )
            logits = class_logits(head, features)
            return local_cross_entropy(logits, labels, classes) + penalty, None

        size = model.images_at_once(len(batch.labels))
        loss, _, gradient = gradient_in_parts(loss_fn, learning.params, batch, size)
        updates, opt_state = _ADAM.update(gradient, learning.opt_state, learning.params)
        updates = optax.tree.scale(-batch.learning_rate, updates)
        params: Any = optax.apply_updates(learning.params, updates)
        return learning._replace(params=params, opt_state=opt_state), loss

    return run_steps(step, learning, batches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    model: Any, prompting: Any, backbone: PyTree, learning: PromptLearning, images: Array
) -> Float[Array, "B C"]:
    prompts, head = learning.params

    def run(part: Array, rows: Array) -> Array:
        features, _ = prompting.features(model, backbone, prompts, part, learning.num_tasks, False)
        return class_logits(head, features)

    return in_parts(run, images, model.images_at_once(len(images), 1))


# What methods share.


def drawn(key: Key[Array, ""], *shapes: tuple[int, ...]) -> list[Array]:
    r"""Prompts and keys of up to three shapes, $U(\pm 1)$."""
    keys = jax.random.split(key, 3)[: len(shapes)]
    of_shapes = zip(keys, shapes, strict=True)
    return [jax.random.uniform(k, shape, minval=-1, maxval=1) for k, shape in of_shapes]


def query(
    model: models.VisionTransformer, backbone: PyTree, images: Float[Array, "B H W C"]
) -> tuple[Any, Float[Array, "B d"]]:
    """Tokens of images, and what the bare backbone makes of their class token."""
    tokens: Any = model.apply(backbone, images, method="embed")
    return tokens, prefixed_features(model, backbone, tokens, {})


def prefixed_features(
    model: models.VisionTransformer,
    backbone: PyTree,
    tokens: Any,
    prefixes: Mapping[int, Any],
) -> Float[Array, "B d"]:
    """The class token where blocks also attend to prefixes of keys and values."""
    stream, _ = model.apply(backbone, tokens, prefixes=prefixes, method="encode")
    return class_features(model.apply(backbone, stream, method="finish"))  # type: ignore[arg-type]


def directions(rows: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Rows of length 1."""
    # Inside the root, so that the gradient of a zero row is finite.
    return rows * lax.rsqrt(jnp.sum(rows**2, axis=-1, keepdims=True) + 1e-12)


def cosines(queries: Float[Array, "B d"], keys: Float[Array, "M d"]) -> Float[Array, "B M"]:
    """The cosine of each query to each key."""
    return directions(queries) @ directions(keys).T


def check_blocks(model: models.VisionTransformer, blocks: Sequence[int]) -> None:
    """Refuse blocks that the model lacks, or that are named twice."""
    if len(set(blocks)) < len(blocks) or not all(0 <= b < model.depth for b in blocks):
        raise ValueError(
            f"blocks must be different ones of 0 to {model.depth - 1}, got {list(blocks)}"
        )
