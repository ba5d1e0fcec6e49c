"""SEMA steps beside a PyTorch program of the same arithmetic, and a whole stream."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import timing

from jaxkit import continual, models, training
from jaxkit.continual import batches, forward_pass, sema_programs
from jaxkit.experiments.evidence import Table

# The experiment's sizes: 30 classes; the first of the last two blocks grows its second adapter.
BATCH, CLASSES, BOTTLENECK, CODE = 32, 30, 8, 12
SLOT = 1


def run() -> list[Table]:
    """Time of a step against PyTorch, and CPU-seconds of a whole stream."""
    return [against_torch(), whole_stream()]


def against_torch(
    repetitions: int = 9, model: Literal["digits", "tiny"] = "digits", steps: int = 32
) -> Table:
    """Median CPU-milliseconds a step of each phase, both sides interleaved in one process.

    Args:
        repetitions: pairs of measurements.
        model: the experiment's network for 8 x 8 digits, or ViT-Ti/16 at 224 pixels.
        steps: of a measurement.
    """
    import torch

    torch.set_num_threads(1)
    problem = _problem(model, steps)
    ours, theirs = _jax_phases(problem), _torch_phases(problem)
    rows = []
    for phase in ("classification", "description"):
        mine, yours = ours[phase](), theirs[phase]()
        # The same numbers first: a faster program of other arithmetic would prove nothing.
        np.testing.assert_allclose(mine, yours, rtol=2e-3, atol=1e-4)
        pairs = [
            (timing.cpu_seconds(theirs[phase]) / steps, timing.cpu_seconds(ours[phase]) / steps)
            for _ in range(repetitions)
        ]
        ratios = [b / a for a, b in pairs]
        rows.append(
            (
                phase,
                f"{1e3 * statistics.median(a for a, _ in pairs):.2f}",
                f"{1e3 * statistics.median(b for _, b in pairs):.2f}",
                f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
            )
        )
    kept = ours["classification, prefix kept"]
    kept()
    pairs = [
        (timing.cpu_seconds(theirs["classification"]) / steps, timing.cpu_seconds(kept) / steps)
        for _ in range(repetitions)
    ]
    ratios = [b / a for a, b in pairs]
    rows.append(
        (
            "classification, frozen prefix computed once",
            f"{1e3 * statistics.median(a for a, _ in pairs):.2f}",
            f"{1e3 * statistics.median(b for _, b in pairs):.2f}",
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        )
    )
    columns = ("phase", "PyTorch, ms", "jaxkit, ms", "jaxkit / PyTorch [range]")
    return Table(
        f"CPU-milliseconds a step, one thread, batch {BATCH}, "
        f"ViT {problem['model'].width} x {problem['model'].depth} blocks",
        columns,
        rows,
    )


def whole_stream() -> Table:
    """CPU-seconds of the six digit tasks, cold and warm, with the compilations made."""
    from jaxkit.experiments import sema

    start = time.process_time()
    problem = sema.make_problem(0)
    rows = [("pre-training of the backbone", f"{time.process_time() - start:.1f}", "", "")]
    for name in ("SEMA", "SEMA", *list(sema.GROWING)[1:]):
        learner = sema.make_learner(name, problem)
        before, start = _compilations(), time.process_time()
        result = continual.run_stream(learner, problem.stream)
        seconds = time.process_time() - start
        cold = " (cold)" if len(rows) == 1 else ""
        made = _compilations() - before
        rows.append((name + cold, f"{seconds:.1f}", result.num_steps, made))
    columns = ("stream of six tasks", "CPU-seconds", "steps", "compilations")
    return Table("a whole stream of digits", columns, rows)


def pictures(batch_size: int = 32, scan_batch_size: int = 128) -> Table:
    """Peak memory: 3,000 JPEGs of 300 x 300 in ImageNet-R's layout at 224 pixels, then ViT-B/16.

    Args:
        batch_size: images of a training step.
        scan_batch_size: images that are scored together.
    """
    training.share_freed_memory()  # as `jaxkit continual` does
    model = models.VisionTransformer(num_classes=0)
    rows, start = [], time.time()

    def row(stage: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append((stage, f"{time.time() - start:.0f}", f"{peak:.2f}"))
        print(*rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        _write_jpegs(pathlib.Path(folder))
        row("3,000 JPEGs written")
        for task in continual.folder_stream(folder, benchmark="imagenet-r", augment=True).tasks:
            for first in range(0, len(task.train_labels), 32):
                images = np.arange(first, min(first + 32, len(task.train_labels)))
                task.train_images.drawn(images, 0, 0)
        row("2,400 decoded to train on")
        stream = continual.folder_stream(folder, benchmark="imagenet-r", classes_per_task=2)
        stream = dataclasses.replace(stream, tasks=stream.tasks[:2])
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        draw = np.random.default_rng(0).standard_normal
        backbone = jax.tree.map(
            lambda x: jnp.asarray(0.02 * draw(x.shape, np.float32)), nn.meta.unbox(shapes)
        )
        row("ViT-B/16 drawn")
        config = continual.SEMAConfig(
            model, 200, train_epochs=1, describe_epochs=1, steps_per_call=2,
            batch_size=batch_size, scan_batch_size=scan_batch_size,
        )  # fmt: skip
        learner = continual.SEMALearner(config, backbone)
        del backbone
        result = continual.run_stream(
            learner, stream,
            on_advance=lambda i, piece: piece.event and row(f"task {i + 1}: {piece.phase.kind}"),
        )  # fmt: skip
        row(f"two tasks learnt in {result.num_steps} steps")
    return Table("memory of pictures", ("stage", "seconds", "peak RSS, GiB"), rows)


def _write_jpegs(folder: pathlib.Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, each in (("train", 12), ("test", 3)):
        for number in range(200):
            place = folder / part / f"n{number:08d}"
            place.mkdir(parents=True)
            for i in range(each):
                coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8))
                coarse.resize((300, 300), Image.Resampling.BICUBIC).save(place / f"{i}.jpg")


def _compilations() -> int:
    programs = (sema_programs.train_steps, sema_programs.describe_steps)
    return sum(program._cache_size() for program in programs)


def _problem(name: str, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tiny = name == "tiny"
    picture = (224, 224, 3) if tiny else (8, 8, 1)
    model = continual.tiny_vision_transformer()
    if tiny:
        model = models.VisionTransformer(width=192, num_heads=3, num_classes=0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *picture)))
    shapes = nn.meta.unbox(shapes)
    scale = lambda x: 1 / np.sqrt(x.shape[0]) if x.ndim > 1 else 0.1  # noqa: E731
    backbone = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * scale(x)).astype(np.float32), shapes
    )
    first = model.depth - 2
    config = continual.SEMAConfig(model, CLASSES, BOTTLENECK, CODE, first, first + 1, capacity=2)
    state = continual.init_sema(jax.random.key(0), config)
    state = continual.add_adapter(jax.random.key(1), config, state, first)
    noise = lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    state = state._replace(params=jax.tree.map(noise, state.params))
    images = rng.random((steps, BATCH, *picture)).astype(np.float32)
    labels = rng.integers(10, 20, (steps, BATCH)).astype(np.int32)
    return {"model": model, "backbone": backbone, "config": config, "state": state,
            "images": images, "labels": labels}  # fmt: skip


def _jax_phases(problem: dict[str, Any]) -> dict[str, Callable[[], np.ndarray]]:
    config, state, backbone = problem["config"], problem["state"], problem["backbone"]
    grown, classes = np.arange(2) == 0, (np.arange(CLASSES) // 10) == 1
    trainable = sema_programs.Trainable(np.array(False), grown)
    learning, key = sema_programs.begin_phase(config, state), jax.random.key(0)
    backbone = jax.tree.map(jnp.asarray, backbone)

    count = len(problem["labels"])

    def steps(inputs: np.ndarray, rate: float) -> batches.StepBatches:
        return batches.StepBatches(
            inputs, problem["labels"], np.full(count, BATCH, np.int32),
            np.full(count, rate, np.float32), np.arange(count, dtype=np.int32), np.int32(count),
        )  # fmt: skip

    prefix = jax.vmap(lambda x: forward_pass.frozen_prefix(config, backbone, state, x))
    tokens = np.asarray(jax.jit(prefix)(problem["images"]))

    def train(source: sema_programs.Source, inputs: np.ndarray) -> np.ndarray:
        _, losses = sema_programs.train_steps(
            config, source, backbone, learning, trainable, classes, steps(inputs, 0.05), key
        )
        return np.asarray(losses)

    return {
        # PyTorch's gradient too ends where the first trainable adapter begins.
        "classification": lambda: train("images_above", problem["images"]),
        "classification, prefix kept": lambda: train("tokens", tokens),
        "description": lambda: np.asarray(
            sema_programs.describe_steps(
                config,
                "images",
                backbone,
                learning,
                grown,
                steps(problem["images"], 0.01),
                key,
            )[1]
        ),
    }


def _torch_phases(problem: dict[str, Any]) -> dict[str, Callable[[], np.ndarray]]:
    """The same steps as an ordinary PyTorch program: frozen parts take no gradient."""
    import torch
    from torch.nn import functional as F

    params = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), problem["backbone"]["params"])
    model, state = problem["model"], problem["state"]
    grown = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), state.params)
    images = torch.from_numpy(problem["images"])
    labels = torch.from_numpy(problem["labels"].astype(np.int64))
    heads, width = model.num_heads, model.width
    descriptors = jax.tree.map(
        lambda x: torch.from_numpy(np.array(x[0, SLOT])), tuple(state.descriptors)
    )

    def norm(x: Any, p: Any) -> Any:
        return F.layer_norm(x, (width,), p["scale"], p["bias"], model.epsilon)

    def attention(x: Any, p: Any) -> Any:
        split = lambda n: (  # noqa: E731
            F.linear(x, p[n]["kernel"].reshape(width, width).T, p[n]["bias"].reshape(-1))
            .reshape(len(x), -1, heads, width // heads)
            .transpose(1, 2)
        )
        mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"))
        mixed = mixed.transpose(1, 2).reshape(len(x), -1, width)
        return F.linear(mixed, p["out"]["kernel"].reshape(width, width).T, p["out"]["bias"])

    def adapter(x: Any, a: Any) -> Any:
        return torch.relu(x @ a[0] + a[1]) @ a[2] + a[3]

    def forward(x: Any, new: Any, column: Any) -> tuple[Any, Any]:
        patch = model.patch_size
        kernel = params["patch_embed"]["kernel"].permute(3, 2, 0, 1)
        tokens = F.conv2d(x.permute(0, 3, 1, 2), kernel, params["patch_embed"]["bias"], patch)
        tokens = tokens.flatten(2).transpose(1, 2)
        tokens = torch.cat([params["cls_token"].expand(len(x), -1, -1), tokens], 1)
        h, pooled = tokens + params["pos_embed"], None
        for i in range(model.depth):
            p = params[f"block_{i}"]
            h = h + attention(norm(h, p["norm1"]), p["attn"])
            if i < model.depth - 2:
                added = adapter(h, [leaf[i] for leaf in grown.single])
            elif i == model.depth - 2:
                pooled = h.mean(1)
                old = pooled @ grown.router.kernel[0, :, :1] + grown.router.bias[0, :1]
                logits = torch.cat([old, (pooled @ column[0] + column[1])[:, None]], 1)
                weights = logits.softmax(1)[:, :, None, None]
                first = adapter(h, [leaf[0, 0] for leaf in grown.adapters])
                added = weights[:, 0] * first + weights[:, 1] * adapter(h, new)
            else:
                added = adapter(h, [leaf[1, 0] for leaf in grown.adapters])
            z = norm(h, p["norm2"])
            z = F.gelu(z @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"])
            h = h + z @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"] + added
        return norm(h, params["norm"])[:, 0], pooled

    def fresh(tensors: Any) -> list[Any]:
        return [t.clone().requires_grad_() for t in tensors]

    def column_of() -> list[Any]:
        return [grown.router.kernel[0, :, SLOT], grown.router.bias[0, SLOT]]

    def record(buffer: list[float], pooled: Any, descriptor: Any) -> Any:
        code = pooled @ descriptor[0] + descriptor[1]
        errors = ((pooled - (code @ descriptor[2] + descriptor[3])) ** 2).mean(1)
        buffer.extend(errors.detach().tolist())
        del buffer[:-500]
        return errors.mean()

    def classification() -> np.ndarray:
        new, column = fresh(leaf[0, SLOT] for leaf in grown.adapters), fresh(column_of())
        head = fresh(grown.head)
        optimizer = torch.optim.SGD([*new, *column, *head], 0.05, 0.9, weight_decay=5e-4)
        buffer, losses = [], []
        for x, y in zip(images, labels, strict=True):
            features, pooled = forward(x, new, column)
            logits = features @ head[0] + head[1]
            loss = F.cross_entropy(logits[:, 10:20], y - 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                record(buffer, pooled, descriptors)
            losses.append(loss.item())
        return np.array(losses)

    def description() -> np.ndarray:
        descriptor, buffer, losses = fresh(descriptors), [], []
        optimizer = torch.optim.SGD(descriptor, 0.01, 0.9, weight_decay=5e-4)
        new = [leaf[0, SLOT] for leaf in grown.adapters]
        for x in images:
            with torch.no_grad():
                _, pooled = forward(x, new, column_of())
            loss = record(buffer, pooled, descriptor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    return {"classification": classification, "description": description}
