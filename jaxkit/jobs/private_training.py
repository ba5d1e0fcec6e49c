"""The main job under differential privacy: batches, gradient, noise and what they cost."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import privacy
from jaxkit.jobs.config import TrainConfig

#: Parts of a run after which the epsilon spent is worked out anew.
_PARTS = 20


@dataclasses.dataclass(frozen=True)
class PrivateTraining:
    """What a budget allows for a text.

    Attributes:
        sampling: how windows are drawn for a step.
        noise_multiplier: standard deviation of the noise on a sum over `clip_norm`.
        config: the run.

    Example:
        >>> from jaxkit.jobs.config import PrivacyConfig
        >>> config = TrainConfig(steps=4, batch_size=8, privacy=PrivacyConfig(8.0, 1e-3))
        >>> plan = plan_private_training(config, num_windows=8)
        >>> plan.sampling.kind, plan.spent(4) <= 8
        ('all', True)
    """

    sampling: privacy.Sampling
    noise_multiplier: float
    config: TrainConfig

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on the mean gradient."""
        scale = self.config.privacy.clip_norm / self.sampling.expected_size
        return self.noise_multiplier * scale

    def gradient(self, loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
        """`gradient(params, batch, key) -> (mean loss, clipped mean gradient)`, without noise."""
        clipped_sum = privacy.clipped_grad_sum(loss, self.config.privacy.clip_norm)
        expected = self.sampling.expected_size

        def gradient(params: Any, batch: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
            rows = {name: rows for name, rows in batch.items() if name != "mask"}
            found = clipped_sum(params, rows, key, batch["mask"])
            mean = jax.tree.map(
                lambda total, leaf: (total / expected).astype(leaf.dtype), found.total, params
            )
            return found.loss / jnp.maximum(found.count - found.non_finite, 1), mean

        return gradient

    def mechanism(self, steps: int) -> privacy.Mechanism:
        """What that many steps release."""
        return privacy.dp_sgd_mechanism(self.sampling, self.noise_multiplier, steps)

    def spent(self, step: int) -> float:
        """Epsilon spent by the end of the twentieth of the run that this step is in."""
        part = -(-self.config.steps // _PARTS)
        return _epsilon(self, min(self.config.steps, -(-step // part) * part)) if step else 0.0

    def statement(self) -> str:
        """The guarantee of the whole run, in words."""
        text = privacy.privacy_statement(
            self.mechanism(self.config.steps),
            self.config.privacy.delta,
            unit=f"window of {self.config.sequence_length + 1} tokens",
        )
        if self.config.tokenizer == "char":
            text += (
                "\nNot covered either: which characters occur in the text, which the tokenizer "
                "tells; --tokenizer byte tells nothing."
            )
        return text


@functools.cache
def _epsilon(plan: PrivateTraining, steps: int) -> float:
    return privacy.epsilon_spent(plan.mechanism(steps), plan.config.privacy.delta)


def plan_private_training(
    config: TrainConfig, num_windows: int, multiple: int = 1
) -> PrivateTraining:
    """Choose batches and noise so that a run stays within its budget.

    Args:
        config: the run, with `privacy.epsilon`.
        num_windows: windows of text that may be drawn.
        multiple: the rows of a batch are padded to a multiple of this.

    Returns:
        The plan.

    Raises:
        ValueError: if `batch_size` is more than the text has windows, or the budget needs more
            noise than any training survives.
        ImportError: without the `privacy` extra.
    """
    epsilon, delta = config.privacy.epsilon, config.privacy.delta
    if epsilon is None:
        raise ValueError("privacy.epsilon must be given, got None")
    if config.batch_size > num_windows:
        raise ValueError(
            f"batch_size must be at most the {num_windows} windows of the text, got "
            f"{config.batch_size}"
        )
    sampling = privacy.poisson_sampling(
        num_windows,
        config.batch_size / num_windows,
        num_steps=config.steps,
        delta=delta,
        epsilon=epsilon,
        multiple=multiple,
    )
    noise = privacy.calibrate_dp_sgd(sampling, config.steps, epsilon=epsilon, delta=delta)
    return PrivateTraining(sampling, noise, config)


class PrivateBatches:
    """Windows drawn at random for each step, padded to one size.

    Windows follow each other without overlap, so that a token is in one window only. The draw
    depends on the seed and the number of the step alone.

    Args:
        tokens: the text, `[tokens]`.
        plan: how windows are drawn.
        process_index: which of `process_count` equal parts of a batch this process takes.
        process_count: parts.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        plan: PrivateTraining,
        process_index: int = 0,
        process_count: int = 1,
    ):
        length = plan.config.sequence_length + 1
        count = num_private_windows(tokens, plan.config.sequence_length)
        self._windows = np.asarray(tokens[: count * length]).reshape(count, length)
        self._plan, self._step = plan, 0
        size = plan.sampling.padded_size // process_count
        self._rows = slice(process_index * size, (process_index + 1) * size)
        key = jax.random.fold_in(jax.random.key(plan.config.seed), 2)
        self._draw = jax.jit(lambda step: plan.sampling.draw(jax.random.fold_in(key, step)))

    def __iter__(self) -> PrivateBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        drawn = jax.device_get(self._draw(self._step))
        first = self._step * len(self._windows)
        indices, mask = drawn.indices[self._rows], drawn.mask[self._rows]
        self._step += 1
        return {
            "tokens": self._windows[indices].astype(np.int32),
            # What a window draws depends on this number; it may begin anew, but must fit 32 bits.
            "index": (first + indices.astype(np.int64)) % 2**31,
            "mask": mask,
        }

    def get_state(self) -> dict[str, Any]:
        """Draws made, what defines them, and the epsilon spent on them."""
        return {
            "step": self._step,
            "epsilon": self._plan.spent(self._step),
            "stream": self._stream(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the draws of a state.

        Raises:
            ValueError: if its windows, sampling or noise were others: the budget would be wrong.
        """
        if state.get("stream") != self._stream():
            raise ValueError(
                f"the run so far was private under {state.get('stream')}, not {self._stream()}: "
                "going on would not be what its epsilon says"
            )
        self._step = int(state["step"])

    def _stream(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "num_windows": len(self._windows),
            "expected_size": plan.sampling.expected_size,
            "noise_multiplier": round(plan.noise_multiplier, 9),
            "clip_norm": plan.config.privacy.clip_norm,
        }


def num_private_windows(tokens: np.ndarray, sequence_length: int) -> int:
    """How many windows without overlap a text has.

    Example:
        >>> num_private_windows(np.zeros(20), 4)
        4
    """
    return math.floor(len(tokens) / (sequence_length + 1))
