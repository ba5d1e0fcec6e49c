"""Train picture classifiers: schedules, budgets, learning rates and seeds in one run folder."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, files, models, schedules, training, validation
from jaxkit.jobs import config as configs
from jaxkit.jobs import pages


def _vision_transformer(width: int, classes: int, size: int, channels: int):
    """ViT-Ti, -S or -B: patches of 16 pixels, or of an eighth of a small picture."""
    patch = 16 if size % 16 == 0 and size >= 128 else max(1, size // 8)
    return models.VisionTransformer(
        size, patch, channels, width, num_heads=width // 64, mlp_dim=4 * width, num_classes=classes
    )


#: Networks by name, made for a number of classes, an image size and a number of channels.
NETWORKS = {
    "logistic": lambda classes, size, channels: models.MLP(classes, ()),
    "mlp": lambda classes, size, channels: models.MLP(classes),
    "lenet": lambda classes, size, channels: models.LeNet(classes),
    "vgg11": lambda classes, size, channels: models.VGG11(classes),
    "resnet18": lambda classes, size, channels: models.resnet18(classes),
    "resnet18-cifar": lambda classes, size, channels: models.resnet18(classes, stem="cifar"),
    "resnet20": lambda classes, size, channels: models.resnet20(classes),
    "wrn-16-8": lambda classes, size, channels: models.wide_resnet(classes),
    "vit-tiny": functools.partial(_vision_transformer, 192),
    "vit-small": functools.partial(_vision_transformer, 384),
    "vit-base": functools.partial(_vision_transformer, 768),
}


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """Train picture classifiers and compare schedules by budget; run it again to resume.

    Every schedule is trained at every budget, learning rate and seed; those of one budget run
    together in one program. Everything goes to RUNS/NAME.

    Attributes:
        data: digits, or pictures in any layout of datasets.find_pictures: folders of classes,
            CIFAR, STL-10, Tiny-ImageNet, IDX, NPZ.
        layout: the layout of the pictures, where more than one fits.
        model: the network.
        norm: normalization of a ResNet, group or batch; by default its own.
        recipe: plain, sema, imagenet, cifar10, cifar100, tiny-imagenet or mnist.
        image_size: pixels that pictures get; by default their own, or the recipe's.
        normalization: none, half, imagenet, clip, ..., or numbers m,m,m/s,s,s; by default the
            recipe's.
        epochs: passes over the training pictures of a whole budget.
        budgets: parts of those epochs that are trained, each with a schedule of its own length.
        schedules: rex, linear, cosine, step, onecycle, wsd, constant, ...
        learning_rates: peak learning rates that are tried; the report takes the best of each
            schedule, budget and optimizer.
        warmup: part of a budget's updates with linear warm-up.
        optimizer: sgdm (momentum, decay added to the gradient) or adamw.
        momentum: of sgdm.
        weight_decay: of all parameters (sgdm) or decoupled (adamw).
        batch_size: pictures in a batch, over all devices.
        seeds: independent trainings of each, with their own first weights, order and crops.
        seed: the first seed, and that of a drawn split.
        test_fraction: share of each class to test on, where the data have no split.
        num_workers: processes that decode pictures; 0 decodes in threads.
        mesh: devices as axis=size pairs; default: all on data.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        runs: folder that holds the runs.
        name: folder of this run in it.

    Example:
        >>> ClassifyConfig(budgets=(0.1, 1.0)).num_steps(1000)
        [78, 781]
    """

    data: str = "digits"
    layout: str | None = None
    model: Literal[
        "logistic",
        "mlp",
        "lenet",
        "vgg11",
        "resnet18",
        "resnet18-cifar",
        "resnet20",
        "wrn-16-8",
        "vit-tiny",
        "vit-small",
        "vit-base",
    ] = "mlp"
    norm: Literal["group", "batch"] | None = None
    recipe: str = "plain"
    image_size: int | None = None
    normalization: str | None = None
    epochs: float = 50.0
    budgets: tuple[float, ...] = (1.0,)
    schedules: tuple[str, ...] = ("rex",)
    learning_rates: tuple[float, ...] = (0.1,)
    warmup: float = 0.0
    optimizer: Literal["sgdm", "adamw"] = "sgdm"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    seeds: int = 1
    seed: int = 0
    test_fraction: float = 0.2
    num_workers: int = 0
    mesh: str = ""
    checkpoint_every: int = 1000
    log_every: int = 50
    runs: str = "runs"
    name: str = "classify"

    def __post_init__(self):
        validation.choice("model", self.model, NETWORKS)
        validation.choice("optimizer", self.optimizer, ["sgdm", "adamw"])
        for field in ("batch_size", "seeds", "checkpoint_every", "log_every"):
            validation.integer(field, getattr(self, field), minimum=1)
        validation.integer("num_workers", self.num_workers, minimum=0)
        if self.image_size is not None:
            validation.integer("image_size", self.image_size, minimum=1)
        validation.number(
            "test_fraction", self.test_fraction, minimum=0, maximum=1,
            open_minimum=True, open_maximum=True,
        )  # fmt: skip
        for field in ("data", "runs"):
            if not getattr(self, field):
                raise ValueError(f"{field} must not be empty, got ''")
        validation.seed("seed", self.seed)
        validation.seed("seed + seeds - 1", self.seed + self.seeds - 1)
        validation.number("epochs", self.epochs, minimum=0, open_minimum=True)
        validation.number("warmup", self.warmup, minimum=0, maximum=1, open_maximum=True)
        validation.number("momentum", self.momentum, minimum=0, maximum=1, open_maximum=True)
        validation.number("weight_decay", self.weight_decay, minimum=0)
        for field in ("budgets", "schedules", "learning_rates"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field} must be different values, at least one, got {values}")
        for budget in self.budgets:
            validation.number("budgets", budget, minimum=0, maximum=1, open_minimum=True)
        for rate in self.learning_rates:
            validation.number("learning_rates", rate, minimum=0)
        for name in self.schedules:
            schedules.profile_by_name(name)
        configs.folder_name("name", self.name)

    def num_steps(self, num_examples: int) -> list[int]:
        """Updates of each budget."""
        if num_examples < self.batch_size:
            raise ValueError(
                f"batch_size must be at most the {num_examples} training pictures, got "
                f"{self.batch_size}"
            )
        whole = self.epochs * (num_examples / self.batch_size)
        if whole > configs.LARGEST_STEPS:
            raise ValueError(
                f"epochs must make at most {configs.LARGEST_STEPS:,} steps, got {self.epochs:g} "
                f"epochs of {num_examples / self.batch_size:g}"
            )
        return [max(1, round(budget * whole)) for budget in self.budgets]

    @property
    def variants(self) -> list[tuple[str, float]]:
        """What is trained at each budget and seed: schedule and peak learning rate."""
        return list(itertools.product(self.schedules, self.learning_rates))

    def rates(self, total_steps: int) -> np.ndarray:
        """Learning rates of a budget, float32 `[total_steps, variants]`."""
        steps = np.arange(total_steps)
        warmup = int(self.warmup * total_steps)
        columns = [
            schedules.schedule_from_profile(name, peak, total_steps, warmup_steps=warmup)(steps)
            for name, peak in self.variants
        ]
        return np.stack(columns, 1)

    def direction(self) -> optax.GradientTransformation:
        """The update before it is scaled by the negative learning rate."""
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.optimizer == "sgdm":
            return optax.chain(decay, optax.trace(self.momentum))
        return optax.chain(optax.scale_by_adam(), decay)


class Classifiers(NamedTuple):
    """All classifiers of one budget; every leaf is `[seeds, variants, ...]`.

    Attributes:
        params: of the networks.
        stats: running statistics of their BatchNorm, if they have any.
        opt_state: of the optimizer.
    """

    params: Any
    stats: Any
    opt_state: Any


class Classified(NamedTuple):
    """What a run wrote.

    Attributes:
        folder: of the run.
        report: `report.html`; None if the run was stopped before its end.
        accuracies: test accuracy by budget, `[seeds, schedules, learning_rates]` each.
    """

    folder: pathlib.Path
    report: pathlib.Path | None
    accuracies: dict[float, np.ndarray]


def classify(config: ClassifyConfig) -> Classified:
    """Train the classifiers of a configuration, or resume where the last checkpoint stands.

    Args:
        config: what to train.

    Returns:
        The files and the accuracies.

    Raises:
        ValueError: if an option or the pictures are faulty, or the folder holds another run.
        OSError: if the disk refuses, or another process writes this run.

    Example:
        >>> classify(ClassifyConfig(data="no/such/folder"))
        Traceback (most recent call last):
        ValueError: no/such/folder does not exist
    """
    split = labelled_pictures(config)
    recipe = recipe_of(config, split)
    mesh = training.make_mesh(config.mesh)
    program = _Program(config, split, recipe, mesh)
    bounds = np.cumsum([0, *program.steps]).tolist()
    with training.Run(pathlib.Path(config.runs) / config.name) as run:
        run.identify(
            {
                "config": dataclasses.asdict(config),
                "data": [part.fingerprint() for part in (split.train, split.test)],
                "classes": list(split.class_names),
            },
            may_change=tuple(
                f"config.{field}"
                for field in ("mesh", "runs", "num_workers", "checkpoint_every", "log_every")
            ),
        )
        for note in split.notes:
            training.say(note)
        whole = training.replicated(mesh)
        restored = run.restore(
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
                jax.eval_shape(lambda: program.init(0)),
            )
        )
        first, found = 0, {}
        if restored is not None:
            first, found = restored.step, dict(restored.record["accuracies"])
            training.say(f"resuming {run.folder} at step {first}")
        state = program.init(0) if restored is None else restored.state
        shown = training.Console(bounds[-1], first)

        def advance(state: Classifiers, step: int, most: int | None) -> training.Lap:
            number = int(np.searchsorted(bounds, step, "right")) - 1
            local, end = step - bounds[number], program.steps[number]
            if local == 0:
                state = program.init(number)
            state, losses = program.step(state, number, local)
            last = local + 1 == end
            if last:
                found[str(config.budgets[number])] = program.score(state).tolist()

            def rows(seconds: float | None) -> list[dict[str, float]]:
                loss = np.asarray(losses)
                row = {"step": step + 1, "budget": config.budgets[number]}
                kept = loss[np.isfinite(loss)]
                return [row | ({"loss": float(kept.mean())} if len(kept) else {})]

            return training.Lap(state, rows=rows, checkpoint=last)

        ended = training.drive(
            advance, state, first_step=first, num_steps=bounds[-1], run=run,
            cadence=training.Cadence(
                checkpoint_every=config.checkpoint_every, evaluate_every=None,
                log_every=config.log_every,
            ),
            record=lambda step: {"accuracies": found}, progress=shown,
        )  # fmt: skip
        program.close()
        shape = (config.seeds, len(config.schedules), len(config.learning_rates))
        accuracies = {float(b): np.array(a).reshape(shape) for b, a in found.items()}
        if not ended.finished:
            training.say(f"stopped at step {ended.step}; run the same command to resume")
            return Classified(run.folder, None, accuracies)
        return Classified(run.folder, _report(config, run.folder, split, accuracies), accuracies)


class _Program:
    """The compiled steps of a run and the batches they read."""

    def __init__(
        self,
        config: ClassifyConfig,
        split: datasets.PictureSplit,
        recipe: datasets.PictureRecipe,
        mesh: jax.sharding.Mesh,
    ):
        self._config, self._split, self._recipe, self._mesh = config, split, recipe, mesh
        channels = split.train.channels
        model: Any = NETWORKS[config.model](len(split.class_names), recipe.image_size, channels)
        if config.norm is not None:
            if not isinstance(model, models.ResNet):
                raise ValueError(f"norm is for ResNets, got {config.norm!r} with {config.model!r}")
            model = model.clone(norm=config.norm)
        self._model, self._direction = model, config.direction()
        self._images = jnp.zeros((1, recipe.image_size, recipe.image_size, channels))
        self.steps = config.num_steps(len(split.train))
        self._rates: dict[int, np.ndarray] = {}
        self._streams: list[datasets.BatchIterator] = []
        self._position = (-1, -1)
        self._advance = jax.jit(self._advance_all, donate_argnums=0)
        self._correct = jax.jit(self._correct_all)

    def init(self, budget: int) -> Classifiers:
        """First weights, the same for every variant of a seed."""

        def one(key: jax.Array) -> Classifiers:
            variables = nn.meta.unbox(self._model.init(key, self._images))
            params = variables.pop("params")
            return Classifiers(params, dict(variables), self._direction.init(params))

        config = self._config
        keys = jnp.stack(
            [
                jax.random.fold_in(jax.random.key(config.seed + seed), budget)
                for seed in range(config.seeds)
            ]
        )
        variants = len(config.variants)
        state = jax.vmap(one)(keys)
        state = jax.tree.map(lambda x: jnp.repeat(x[:, None], variants, 1), state)
        if validation.is_traced(jax.tree.leaves(state)[0]):
            return state
        return jax.device_put(state, training.replicated(self._mesh))

    def step(self, state: Classifiers, budget: int, local: int) -> tuple[Classifiers, jax.Array]:
        """Make update `local` of a budget; returns the losses `[seeds, variants]` before it."""
        if budget not in self._rates:
            self._rates = {budget: self._config.rates(self.steps[budget])}
        return self._advance(state, self._batch(budget, local), self._rates[budget][local])

    def score(self, state: Classifiers) -> np.ndarray:
        """Share of the test pictures that each classifier gets right, `[seeds, variants]`."""
        correct, test = 0, self._split.test
        for start in range(0, len(test), 512):
            rows = np.arange(start, min(start + 512, len(test)))
            images = datasets.decode_pictures(test, self._recipe, rows)
            # The last batch is filled up, so that one program serves all.
            room = [(0, 512 - len(rows)), (0, 0), (0, 0), (0, 0)]
            labels = np.pad(test.labels[rows], room[0], constant_values=-1)
            correct = correct + self._correct(state, np.pad(images, room), labels)
        return np.asarray(correct) / len(test)

    def close(self) -> None:
        """End the threads and processes that decode."""
        for stream in self._streams:
            stream.close()

    def _batch(self, budget: int, local: int) -> dict[str, jax.Array]:
        config = self._config
        if self._position != (budget, local):
            self.close()
            index, count = training.local_rows(self._mesh, config.batch_size)
            self._streams = [
                datasets.picture_batches(
                    self._split.train, self._recipe, batch_size=config.batch_size,
                    seed=config.seed + seed, process_index=index, process_count=count,
                    num_workers=config.num_workers,
                )
                for seed in range(config.seeds)
            ]  # fmt: skip
            for stream in self._streams:
                stream.set_state({**stream.get_state(), "step": local})
        self._position = (budget, local + 1)
        parts = [next(stream) for stream in self._streams]
        rows = training.batch_sharding(self._mesh).spec
        sharding = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(None, *rows))
        return {
            name: jax.make_array_from_process_local_data(
                sharding, np.stack([part[name] for part in parts])
            )
            for name in ("images", "labels", "flip", "offset")
        }

    def _advance_all(self, state: Classifiers, batch: Any, rates: Any):
        several = jax.vmap(self._advance_one, (0, None, None, 0))
        images = jax.vmap(self._recipe.prepare)(batch)
        return jax.vmap(several, (0, 0, 0, None))(state, images, batch["labels"], rates)

    def _advance_one(self, state: Classifiers, images: Any, labels: Any, rate: Any):
        def loss_fn(params: Any):
            logits, stats = self._logits(params, state.stats, images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), stats

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = self._direction.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return Classifiers(optax.apply_updates(state.params, updates), stats, opt_state), loss

    def _correct_all(self, state: Classifiers, images: Any, labels: Any) -> jax.Array:
        images = self._recipe.prepare({"images": images})

        def one(params: Any, stats: Any) -> jax.Array:
            logits, _ = self._logits(params, stats, images, train=False)
            return (logits.argmax(-1) == labels).sum()

        return jax.vmap(jax.vmap(one))(state.params, state.stats)

    def _logits(self, params: Any, stats: Any, images: Any, *, train: bool):
        variables = {"params": params, **stats}
        if isinstance(self._model, models.VisionTransformer):
            seen: Any = self._model.apply(variables, images)
            return seen["logits"], stats
        if train and stats:
            return self._model.apply(variables, images, train=True, mutable=list(stats))
        return self._model.apply(variables, images), stats


def labelled_pictures(config: Any) -> datasets.PictureSplit:
    """The pictures of `config.data`; reads `layout`, `test_fraction` and `seed` too."""
    if config.data == "digits" and config.layout is not None:
        raise ValueError(f"layout must be left out for data='digits', got {config.layout!r}")
    if config.data != "digits":
        return datasets.find_pictures(
            config.data, layout=config.layout, test_fraction=config.test_fraction, seed=config.seed
        )
    digits = datasets.load_digits(test_fraction=config.test_fraction, seed=config.seed)
    train, test = (
        datasets.Pictures(np.rint(255 * x).astype(np.uint8), np.asarray(y, np.int32))
        for x, y in (
            (digits.train_inputs, digits.train_labels),
            (digits.test_inputs, digits.test_labels),
        )
    )
    note = f"digits: {len(train):,} train, {len(test):,} test, 10 classes"
    return datasets.PictureSplit(train, test, digits.label_names, "digits", (note,))


def recipe_of(config: Any, split: datasets.PictureSplit) -> datasets.PictureRecipe:
    """The recipe by `config.recipe`, `image_size` and `normalization`, at the pictures' size."""
    size, shape = config.image_size, split.train.shape
    if size is None and config.recipe == "plain" and shape is not None:
        if shape[0] != shape[1]:
            raise ValueError(f"image_size must be given for pictures of {shape[0]} x {shape[1]}")
        size = shape[0]
    return datasets.picture_recipe(
        config.recipe, image_size=size, normalization=config.normalization
    )


def mean_ranks(accuracies: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Rank the schedules at each budget by their best learning rate, and average the ranks.

    Args:
        accuracies: by budget, `[seeds, schedules, learning_rates]`.

    Returns:
        The mean rank of each schedule, `[schedules]`; 1 is the best, equals share their ranks.

    Source: arXiv 2107.04197 §5 ranks schedules so.

    Example:
        >>> mean_ranks({1.0: np.array([[[0.9], [0.8], [0.8]]])}).tolist()
        [1.0, 2.5, 2.5]
    """
    ranks = []
    for found in accuracies.values():
        best = found.mean(0).max(-1)
        above = (best[None] > best[:, None]).sum(1)
        equal = (best[None] == best[:, None]).sum(1)
        ranks.append(above + (equal + 1) / 2)
    return np.mean(ranks, 0)


def _report(
    config: ClassifyConfig,
    folder: pathlib.Path,
    split: datasets.PictureSplit,
    accuracies: Mapping[float, np.ndarray],
) -> pathlib.Path:
    """Accuracy by budget of each schedule at its best learning rate."""
    ranks = mean_ranks(accuracies)
    rows: list[Sequence[str]] = []
    for s in np.argsort(ranks, kind="stable"):
        cells = [config.schedules[s]]
        for found in accuracies.values():
            means = found[:, s].mean(0)
            rate = int(means.argmax())
            spread = found[:, s, rate].std(ddof=1) if config.seeds > 1 else math.nan
            cells.append(
                f"{100 * means[rate]:.2f}"
                + (f" ± {100 * spread:.2f}" if config.seeds > 1 else "")
                + f" ({config.learning_rates[rate]:g})"
            )
        rows.append([*cells, f"{ranks[s]:.2f}"])
    columns = ["schedule", *(f"{100 * budget:g} %" for budget in accuracies), "mean rank"]
    caption = (
        "Test accuracy in percent by budget, ± the deviation of seeds, at the best of the learning "
        "rates (in brackets), which is chosen by that accuracy"
    )
    for row in ([columns], rows):
        for cells in row:
            training.say("  ".join(f"{cell:<22}" for cell in cells).rstrip(), out=True)
    options = {name: value for name, value in dataclasses.asdict(config).items()}
    found = {str(budget): values.tolist() for budget, values in accuracies.items()}
    files.write_atomically(folder / "accuracies.json", json.dumps(found))
    path = files.write_atomically(
        folder / "report.html",
        pages.page(
            f"Classifiers of {config.data}",
            [
                *(f"<p>{pages.text(note)}</p>" for note in split.notes),
                pages.table(columns, rows, caption=caption),
                pages.facts(options),
            ],
        ),
    )
    training.say(f"report  {path}", out=True)
    return path
