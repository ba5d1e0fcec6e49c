"""Learn a stream of tasks with SEMA: progress, resumption, a report."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxkit import continual, datasets, files, models, training, validation
from jaxkit.datasets.extras import require
from jaxkit.jobs import options, stream_report


@dataclasses.dataclass(frozen=True)
class ContinualConfig:
    """Learn a stream of tasks with a frozen vision transformer that grows adapters.

    Attributes:
        stream: digits, or pictures in any layout of datasets.find_pictures: folders of classes,
            split into train and test or not, folders of tasks, CIFAR, STL-10, IDX, NPZ.
        weights: a published vision transformer: safetensors, Google's .npz or PyTorch's .pth of
            timm, Hugging Face, DeiT, DINO or MAE; without one a small backbone is pre-trained, for
            digits on other digits, for a folder on its first task.
        num_heads: attention heads of the weights, where neither file nor size tells.
        normalization: of pictures for the weights: none (as SEMA's published numbers), half,
            imagenet, clip, or numbers m/s or m,m,m/s,s,s; by default as the weights were trained.
        method: sema, or what it is compared with: no-expansion, every-task and finetune (adapters),
            l2p, dual-prompt and coda-prompt (prompts), simple-cil, adapter-prototypes and ranpac
            (no training after the first task).
        threshold: score above which a block grows; familiar data score about 0.8.
        layout: the layout of the pictures, where more than one fits.
        benchmark: cifar100, imagenet-r, imagenet-a or vtab: their published order of classes, and
            how many come with a task.
        classes_per_task: classes of a task, for a folder of classes; 10 if no benchmark says more.
        class_order: sorted, shuffled (as published for class_seed 1993), or a file of names in
            their order, one a line; by default the benchmark's, or sorted.
        class_seed: of the shuffled order.
        augment: train on random crops and mirrored pictures, drawn anew in every pass, as
            published; without, what is frozen is computed once a phase.
        image_size: pixels that pictures of a folder get; 224 with weights, 32 without.
        train_epochs: passes of a classification phase.
        describe_epochs: passes of a description phase.
        train_learning_rate: of adapters, routers and head; by default 0.005, or 0.05 for a backbone
            trained here; of prompts, keys and head, 0.00375 or 0.03.
        describe_learning_rate: of descriptors; by default 0.01, or 0.05 likewise.
        batch_size: images of a training step; those whose activations do not fit 256 MiB (8 GiB
            on an accelerator) go through the model in parts.
        scan_batch_size: images that are scored or tested together.
        checkpoint_every: optimizer steps between checkpoints.
        seed: of everything drawn.
        runs: folder of runs.
        name: folder of this run in it.
    """

    stream: str = "digits"
    weights: str | None = None
    num_heads: int | None = None
    normalization: str | None = None
    method: Literal[
        "sema", "no-expansion", "every-task", "finetune", "l2p", "dual-prompt", "coda-prompt",
        "simple-cil", "adapter-prototypes", "ranpac",
    ] = "sema"  # fmt: skip
    threshold: float = 2.0
    layout: str | None = None
    benchmark: Literal["cifar100", "imagenet-r", "imagenet-a", "vtab"] | None = None
    classes_per_task: int | None = None
    class_order: str | None = None
    class_seed: int = 1993
    augment: bool = False
    image_size: int | None = None
    train_epochs: int = 20
    describe_epochs: int = 30
    train_learning_rate: float | None = None
    describe_learning_rate: float | None = None
    batch_size: int = 32
    scan_batch_size: int = 128
    checkpoint_every: int = 100
    seed: int = 0
    runs: str = "runs"
    name: str = "continual"

    def __post_init__(self):
        options.folder_name("name", self.name)
        validation.seed("seed", self.seed)
        options.at_least_one(self, "image_size")
        for field in ("image_size", "layout", "benchmark", "classes_per_task", "class_order"):
            if self.stream == "digits" and getattr(self, field) is not None:
                raise ValueError(
                    f"{field} must be left out for stream='digits', six tasks of 8 x 8 images, got "
                    f"{getattr(self, field)!r}"
                )
        if self.stream == "digits" and self.augment:
            raise ValueError("augment must be left out for stream='digits'")
        for field in ("num_heads", "normalization"):
            if getattr(self, field) is not None and self.weights is None:
                raise ValueError(f"{field} is for weights, got {getattr(self, field)!r} without")
        options.at_least_one(self, "classes_per_task")
        validation.seed("class_seed", self.class_seed)
        for field in (
            "train_epochs", "describe_epochs", "batch_size", "scan_batch_size", "checkpoint_every",
        ):  # fmt: skip
            least = int(field != "checkpoint_every")
            validation.integer(field, getattr(self, field), minimum=least)
        validation.choice("method", self.method, [*_PHASES, *_PROMPTS, "simple-cil", "ranpac"])
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be >= 0 (infinity is allowed), got {self.threshold}")
        options.within(self, {"minimum": 0}, "train_learning_rate", "describe_learning_rate")
        options.not_empty(self, "stream", "weights", "runs")


class ContinualFiles(NamedTuple):
    """What a run wrote.

    Attributes:
        folder: of the run.
        report: `report.html`; None if the run was stopped before its end.
        result: the accuracy matrix and what happened.
    """

    folder: pathlib.Path
    report: pathlib.Path | None
    result: continual.StreamResult


_PHASES = {
    "sema": continual.grow_on_shift, "no-expansion": continual.never_grow,
    "every-task": continual.grow_every_task, "finetune": continual.finetune_adapters,
    "adapter-prototypes": continual.never_grow,
}  # fmt: skip
_PROMPTS = ("l2p", "dual-prompt", "coda-prompt")


def learn_stream(config: ContinualConfig) -> ContinualFiles:
    """Run a method through a stream, or resume the run where its last checkpoint stands.

    SIGINT and SIGTERM save the run and end it.
    """
    folder = pathlib.Path(config.runs) / config.name
    # Whatever may be missing, an extra or a file, is so before a folder is made.
    require("matplotlib", "train")
    stream, pretraining = _stream(config)
    loaded = _weights(config, stream)
    training.share_freed_memory()
    with training.Run(folder) as run:
        model, backbone = loaded or _pretrained(
            config, stream, pretraining, folder, described=run.identity is not None
        )
        learner = _learner(config, stream, model, backbone)
        training.say(_memory(config, learner, stream, model, backbone))
        with training.Console(len(stream.tasks)) as bar:
            result = continual.run_stream(
                learner, stream, seed=config.seed, folder=run,
                checkpoint_every=config.checkpoint_every,
                on_advance=functools.partial(stream_report.show_piece, bar, stream),
            )  # fmt: skip
        if not result.finished:
            training.say(f"stopped after {result.num_steps} steps; run the same command to resume")
            return ContinualFiles(folder, None, result)
        report = stream_report.write_report(config, folder, learner, stream, result)
        return ContinualFiles(folder, report, result)


def _stream(config: ContinualConfig) -> tuple[continual.Stream, datasets.ArraySplit | None]:
    """The stream, and what else there is to pre-train a backbone on."""
    if config.stream == "digits":
        if config.weights is not None:
            raise ValueError("weights must be left out for stream='digits', whose images are 8 x 8")
        return continual.digits_stream(config.seed)
    size = _given(config.image_size, 32 if config.weights is None else 224)
    stream = continual.folder_stream(
        config.stream, image_size=size, layout=config.layout, benchmark=config.benchmark,
        classes_per_task=config.classes_per_task, class_order=_class_order(config),
        augment=config.augment, seed=config.seed,
    )  # fmt: skip
    return stream, None


def _weights(
    config: ContinualConfig, stream: continual.Stream
) -> tuple[models.VisionTransformer, Any] | None:
    if config.weights is None:
        return None
    loaded = models.load_vision_transformer(
        config.weights, image_size=stream.tasks[0].image_shape[0],
        num_heads=config.num_heads, normalization=config.normalization,
    )  # fmt: skip
    for note in loaded.notes:
        training.say(note)
    return loaded.model, loaded.variables


def _class_order(config: ContinualConfig) -> int | str | list[str] | None:
    if config.class_order in (None, "sorted"):
        return config.class_order
    if config.class_order == "shuffled":
        return config.class_seed
    return pathlib.Path(config.class_order).read_text("utf-8").splitlines()


def _pretrained(
    config: ContinualConfig,
    stream: continual.Stream,
    pretraining: datasets.ArraySplit | None,
    folder: pathlib.Path,
    described: bool,
) -> tuple[models.VisionTransformer, Any]:
    """Pre-train, or read back what this run pre-trained before it was interrupted."""
    from flax import serialization

    if pretraining is None:
        first = stream.tasks[0]
        images, labels = first.train_images, np.searchsorted(first.classes, first.train_labels)
        images = images if isinstance(images, np.ndarray) else images.mapped()
    else:
        images, labels = pretraining.train_inputs, np.asarray(pretraining.train_labels)
    side, _, channels = stream.tasks[0].image_shape
    model = continual.tiny_vision_transformer(side, channels, int(labels.max()) + 1)
    made_of = training.fingerprint((config.seed, images, labels))[:16]
    path = folder / f"backbone-{made_of}.msgpack"
    if described and not path.exists():
        raise ValueError(
            f"{folder} holds another run: its backbone was trained from another seed than "
            f"{config.seed} or other images, for {path.name} is not there"
        )
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    like = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
    if path.exists():
        try:
            return model, serialization.from_bytes(like, path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not this run's backbone ({error})") from None
    training.say(f"pre-training a backbone on {len(images)} images")
    backbone = continual.pretrain_backbone(
        jax.random.key(config.seed), model, images, labels, batch_size=min(64, len(images))
    )
    files.write_atomically(path, serialization.to_bytes(backbone))
    return model, backbone


def _learner(
    config: ContinualConfig,
    stream: continual.Stream,
    model: models.VisionTransformer,
    backbone: Any,
) -> continual.Learner:
    if config.method == "simple-cil":
        return continual.SimpleCIL(
            model, backbone, stream.num_classes, batch_size=config.scan_batch_size
        )
    tiny = config.weights is None
    if config.method == "ranpac":
        return continual.RanPAC(
            model, backbone, stream.num_classes, num_projections=1000 if tiny else 10_000,
            batch_size=config.scan_batch_size,
        )  # fmt: skip
    if config.method in _PROMPTS:
        return continual.PromptLearner(
            model, backbone, stream.num_classes, _prompting(config.method, stream, model),
            num_epochs=config.train_epochs, steps_per_call=_steps_per_call(config, stream),
            batch_size=config.batch_size, scan_batch_size=config.scan_batch_size,
            learning_rate=_given(config.train_learning_rate, 0.03 if tiny else 0.00375),
        )  # fmt: skip
    rates = (0.05, 0.05) if tiny else (0.005, 0.01)
    settings = continual.SEMAConfig(
        model, stream.num_classes, capacity=len(stream.tasks),
        descriptor_dim=12 if tiny else 128,
        expand_from=max(0, model.depth - (2 if tiny else 3)), expand_to=model.depth - 1,
        steps_per_call=_steps_per_call(config, stream),
        batch_size=config.batch_size, scan_batch_size=config.scan_batch_size,
        threshold=config.threshold,
        train_epochs=config.train_epochs,
        describe_epochs=config.describe_epochs,
        train_learning_rate=_given(config.train_learning_rate, rates[0]),
        describe_learning_rate=_given(config.describe_learning_rate, rates[1]),
    )  # fmt: skip
    learner = continual.SEMALearner(settings, backbone, _PHASES[config.method], name=config.method)
    if config.method == "adapter-prototypes":
        return continual.AdaptedPrototypes(learner)
    return learner


def _prompting(method: str, stream: continual.Stream, model: models.VisionTransformer) -> Any:
    """Prompts as published, or short ones in fewer blocks for a small backbone."""
    tasks, tiny = len(stream.tasks), model.depth < 12
    if method == "l2p":
        return continual.L2P(prompt_length=2 if tiny else 5)
    if method == "dual-prompt":
        if not tiny:
            return continual.DualPrompt(tasks)
        return continual.DualPrompt(
            tasks, general_length=2, expert_length=2, general_blocks=(0,), expert_blocks=(1, 2)
        )
    each = max(1, min(100, model.width) // tasks)
    if not tiny:
        return continual.CODAPrompt(tasks, num_components=each * tasks)
    return continual.CODAPrompt(
        tasks, num_components=each * tasks, prompt_length=4, blocks=(0, 1, 2)
    )


def _steps_per_call(config: ContinualConfig, stream: continual.Stream) -> int:
    """Steps whose images are in memory together: 32, or what 64 MiB hold."""
    return max(1, min(32, 2**24 // (config.batch_size * math.prod(stream.tasks[0].image_shape))))


def _memory(
    config: ContinualConfig,
    learner: continual.Learner,
    stream: continual.Stream,
    model: models.VisionTransformer,
    backbone: Any,
) -> str:
    """What a run will hold, as a line: arithmetic, not a measurement."""

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    steps = _steps_per_call(config, stream)
    parts = {
        "backbone": size(backbone),
        "learner": size(jax.eval_shape(lambda: learner.init(config.seed))),
        "images of a call": 4 * steps * config.batch_size * math.prod(stream.tasks[0].image_shape),
        "a forward pass": model.activation_bytes(
            model.images_at_once(config.scan_batch_size, 1), 1
        ),
    }
    if isinstance(learner, continual.SEMALearner | continual.PromptLearner):
        together = model.images_at_once(config.batch_size)
        parts[f"activations of {together} images"] = model.activation_bytes(together)
    if isinstance(learner, continual.SEMALearner) and not stream.tasks[0].is_augmented:
        rows = max(len(task.train_labels) for task in stream.tasks)
        parts["tokens of a task (on disk)"] = 4 * rows * model.num_tokens * model.width
    shown = (f"{name} {max(x / 2**20, 0.1):,.{int(x < 2**24)}f} MiB" for name, x in parts.items())
    return "memory: " + ", ".join(shown)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
