"""The main job under differential privacy: batches, gradient, noise and what they cost."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import files, privacy
from jaxkit.datasets import mapped
from jaxkit.jobs.config import FREE_FIELDS, PrivacyConfig, TrainConfig

#: Folder, inside a run's, of what is not to be given away with it.
PRIVATE = "private"

#: Names of the epsilon spent, with secret noise and with noise that anyone can recompute.
EPSILONS = ("epsilon", "epsilon_if_secret")

#: Parts of a run after which the epsilon spent is worked out anew.
_PARTS = 20


@dataclasses.dataclass(frozen=True)
class PrivateTraining:
    """What a budget allows for a text.

    Attributes:
        plan: gradient, sampling, noise and their cost.
        config: the run.
    """

    plan: privacy.PrivacyPlan
    config: TrainConfig

    def gradient(self) -> Callable[..., tuple[Any, Any]]:
        """`gradient(params, batch, key) -> (mean loss, noisy mean of clipped gradients)`.

        The noise of a step is drawn from the key in its batch, which `PrivateBatches` makes.
        """
        release = self.plan.optimizer(optax.identity())

        def gradient(params: Any, batch: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
            rows = {name: batch[name] for name in batch if name not in ("mask", "noise")}
            found = self.plan.gradient(params, rows, key, batch["mask"])
            noise_key = jax.random.wrap_key_data(batch["noise"][0], impl="threefry2x32")
            mean, _ = release.update(found, release.init(params), params, key=noise_key)
            mean = jax.tree.map(lambda update, leaf: update.astype(leaf.dtype), mean, params)
            return found.loss / jnp.maximum(found.count - found.non_finite, 1), mean

        return gradient

    def check(self, params: Any, vocab_size: int) -> None:
        """Raise if the loss joins windows, or cannot be trained privately: on made-up ones."""
        length = min(self.config.sequence_length, 16) + 1
        tokens = np.random.default_rng(0).integers(0, vocab_size, (3, length), np.int32)
        batch = {"tokens": jnp.asarray(tokens), "index": jnp.arange(3)}
        loss = self.config.loss(self.config.model(vocab_size, "cpu"))
        found = privacy.check_private(loss, params, batch, jax.random.key(0), gradients=False)
        if not found.passed:
            raise ValueError("no private run: " + "; ".join(found.problems))

    def statement(self, source: privacy.NoiseSource) -> str:
        """The guarantee of the whole run, in words."""
        unit = f"window of {self.config.sequence_length + 1} tokens"
        text = f"{self.plan.statement(source, unit=unit)}\nNoise and batches: {source!r}."
        if self.config.tokenizer == "char":
            text += (
                "\nNot covered either: which characters occur in the text, which the tokenizer "
                "tells; --tokenizer byte tells nothing."
            )
        return text


@functools.cache
def _epsilon(plan: privacy.PrivacyPlan, steps: int) -> float:
    return plan.epsilon(steps)


def budget_row(
    plan: privacy.PrivacyPlan, step: int, source: privacy.NoiseSource
) -> dict[str, float]:
    """Epsilon spent, named by what it is: a guarantee, or what one would be with secret noise."""
    part = -(-plan.num_steps // _PARTS)
    spent = _epsilon(plan, min(plan.num_steps, -(-step // part) * part)) if step else 0.0
    return {EPSILONS[not source.is_secret]: spent}


def noise_source(
    options: PrivacyConfig, folder: pathlib.Path, data: Any, *, fresh: bool
) -> privacy.NoiseSource:
    """The run's own secret, made where it begins and kept for a resume; or a public seed."""
    if options.public_noise_seed is not None:
        return privacy.NoiseSource.public(options.public_noise_seed)
    path = folder / PRIVATE / "noise.secret"
    return privacy.NoiseSource.stored(path, data=data, fresh=fresh)


def plan_within(
    options: PrivacyConfig,
    gradient: privacy.ClippedGradient,
    num_examples: int,
    batch_size: int,
    num_steps: int,
    *,
    multiple: int = 1,
    folder: pathlib.Path | None = None,
) -> privacy.PrivacyPlan:
    """Choose the noise with which a run stays within its budget."""
    epsilon, delta = options.epsilon, options.delta
    if epsilon is None:
        raise ValueError("privacy.epsilon must be given, got None")
    sampling = privacy.poisson_sampling(
        num_examples, batch_size / num_examples, num_steps=num_steps, delta=delta,
        epsilon=epsilon, multiple=multiple,
    )  # fmt: skip
    asked = {"epsilon": epsilon, "delta": delta, "steps": num_steps, "sampling": list(sampling)}
    kept = None if folder is None else folder / PRIVATE / "plan.json"
    budget: dict[str, Any] = {"epsilon": epsilon}
    if kept is not None and kept.exists():
        stored = files.read_record(kept, _Kept)
        if stored.asked == asked:
            budget = {"noise_multiplier": stored.noise_multiplier}
    plan = privacy.dp_sgd(gradient, sampling, num_steps, delta=delta, **budget)
    if kept is not None and "epsilon" in budget and jax.process_index() == 0:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(
            kept, json.dumps({"asked": asked, "noise_multiplier": plan.noise_multiplier})
        )
    return plan


def plan_private_training(
    config: TrainConfig,
    vocab_size: int,
    num_windows: int,
    mesh: jax.sharding.Mesh | None = None,
    folder: pathlib.Path | None = None,
) -> PrivateTraining:
    """Choose batches and noise so that a run stays within its budget."""
    if config.batch_size > num_windows:
        raise ValueError(
            f"batch_size must be at most the {num_windows} windows of the text, got "
            f"{config.batch_size}"
        )
    platform = None if mesh is None else mesh.devices.flat[0].platform
    loss = config.loss(config.model(vocab_size, platform))
    split = mesh if mesh is not None and mesh.size > 1 else None
    plan = plan_within(
        config.privacy,
        privacy.clipped_grad_sum(loss, config.privacy.clip_norm, mesh=split),
        num_windows,
        config.batch_size,
        config.steps,
        multiple=1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"],
        folder=folder,
    )
    return PrivateTraining(plan, config)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The noise that was calibrated, and for what."""

    asked: dict[str, Any]
    noise_multiplier: float


class PrivateBatches:
    """Windows drawn at random for each step, padded to one size.

    Windows follow each other without overlap, so that a token is in one window only. What is drawn
    depends on the secret, the run and the number of the step alone.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        training: PrivateTraining,
        source: privacy.NoiseSource,
        process_index: int = 0,
        process_count: int = 1,
    ):
        length = training.config.sequence_length + 1
        count = num_private_windows(tokens, training.config.sequence_length)
        self._windows = np.asarray(tokens[: count * length]).reshape(count, length)
        self._training, self._source, self._step = training, source, 0
        size = training.plan.sampling.padded_size // process_count
        self._rows = slice(process_index * size, (process_index + 1) * size)
        # What is run is part of every key: with another setting or text no draw is the same, as it
        # would be with `PrivacyPlan.draw`, whose plan knows neither.
        run = {**dataclasses.asdict(training.config), **dict.fromkeys(FREE_FIELDS)}
        text = json.dumps([run, training.plan.fingerprint], sort_keys=True).encode()
        digest = hashlib.sha256(text)
        for piece in mapped.pieces(self._windows):  # a mapped text may be larger than memory
            digest.update(piece.tobytes())
        self._run = digest.hexdigest()
        self._draw = jax.jit(training.plan.sampling.draw)

    def __iter__(self) -> PrivateBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        key = self._source.key("batches", self._run, self._step)
        drawn = jax.device_get(self._draw(key))
        noise = self._source.key_data("noise", self._run, self._step)
        first = self._step * len(self._windows)
        indices, mask = drawn.indices[self._rows], drawn.mask[self._rows]
        self._step += 1
        return {
            "tokens": self._windows[indices].astype(np.int32),
            # What a window draws depends on this number; it may begin anew, but must fit 32 bits.
            "index": (first + indices.astype(np.int64)) % 2**31,
            "mask": mask,
            # The same in every row, because batches are split by rows.
            "noise": np.broadcast_to(noise, (len(indices), 2)),
        }

    def get_state(self) -> dict[str, Any]:
        """Draws made, what defines them, and the epsilon spent on them."""
        return {
            "step": self._step,
            **budget_row(self._training.plan, self._step, self._source),
            "stream": self._stream(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the draws of a state."""
        if state.get("stream") != self._stream():
            raise ValueError(
                f"the run so far was private under {state.get('stream')}, not {self._stream()}: "
                "going on would not be what its epsilon says"
            )
        self._step = int(state["step"])

    def _stream(self) -> dict[str, Any]:
        plan, privately = self._training.plan, self._training.config.privacy
        return {
            "num_windows": len(self._windows),
            "expected_size": plan.sampling.expected_size,
            "noise_multiplier": round(plan.noise_multiplier, 9),
            "clip_norm": privately.clip_norm,
            "source": self._source.fingerprint,
        }


def num_private_windows(tokens: np.ndarray, sequence_length: int) -> int:
    """How many windows without overlap a text has."""
    return math.floor(len(tokens) / (sequence_length + 1))
