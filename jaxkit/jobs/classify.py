"""Train picture classifiers: schedules, budgets, learning rates and seeds in one run folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from jaxkit import files, schedules, training, validation, width
from jaxkit.jobs import classifiers, options, pages, picture_problem
from jaxkit.jobs import config as configs
from jaxkit.schedules import profiles


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(picture_problem.PictureConfig):
    """Train picture classifiers and compare schedules by budget; run it again to resume.

    Every schedule is trained at every budget, learning rate and seed; those of one budget run
    together in one program. Everything goes to RUNS/NAME.

    Pictures and network are those of PictureConfig.

    Attributes:
        epochs: passes over the training pictures of a whole budget.
        budgets: parts of those epochs that are trained, each with a schedule of its own length.
        schedules: rex, linear, cosine, step, onecycle, wsd, constant, ...
        learning_rates: peak learning rates that are tried; the report takes the best of each
            schedule, budget and optimizer.
        base_width: width at which learning rate and decay were tuned; the width rule of AdamW
            then carries them over.
        warmup: part of a budget's updates with linear warm-up.
        optimizer: sgdm (momentum, decay added to the gradient) or adamw.
        momentum: of sgdm.
        weight_decay: of all parameters (sgdm) or decoupled (adamw).
        batch_size: pictures in a batch, over all devices; on average, where training is private.
        privacy: budget of a private training, which is one: it ends a search.
        augmentations: times that a private training mirrors and shifts each picture of a batch; the
            mean of their gradients is what is clipped.
        num_workers: processes that decode pictures; 0 decodes in threads.
        mesh: devices as axis=size pairs; default: all on data.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
    """

    epochs: float = 50.0
    budgets: tuple[float, ...] = (1.0,)
    schedules: tuple[str, ...] = ("rex",)
    learning_rates: tuple[float, ...] = (0.1,)
    base_width: float | None = None
    warmup: float = 0.0
    optimizer: Literal["sgdm", "adamw"] = "sgdm"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    privacy: configs.PrivacyConfig = dataclasses.field(default_factory=configs.PrivacyConfig)
    augmentations: int = 1
    num_workers: int = 0
    mesh: str = ""
    checkpoint_every: int = 1000
    log_every: int = 50
    name: str = "classify"

    def __post_init__(self):
        super().__post_init__()
        validation.choice("optimizer", self.optimizer, ["sgdm", "adamw"])
        options.at_least_one(self, "batch_size", "augmentations", "checkpoint_every", "log_every")
        validation.integer("num_workers", self.num_workers, minimum=0)
        options.within(self, options.POSITIVE, "epochs")
        options.within(self, options.DECAY, "warmup", "momentum")
        options.within(self, {"minimum": 0}, "weight_decay")
        for field in ("budgets", "schedules", "learning_rates"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field} must be different values, at least one, got {values}")
        for budget in self.budgets:
            validation.number("budgets", budget, **options.SHARE)
        for rate in self.learning_rates:
            validation.number("learning_rates", rate, minimum=0)
        for name in self.schedules:
            validation.choice("schedules", name, profiles.PROFILES)
        if self.base_width is not None:
            if self.optimizer != "adamw":
                raise ValueError(f"base_width is for adamw, got {self.base_width} with sgdm")
            self.network(2, 32, 3, self.base_width)
            self.network(2, 32, 3, 2 * self.base_width)
        self.privacy.validate()
        if not self.private:
            if self.augmentations > 1:
                raise ValueError(
                    f"augmentations is for private training, got {self.augmentations} without "
                    "privacy.epsilon"
                )
            return
        trained = len(self.budgets) * len(self.variants) * self.seeds
        if trained > 1:
            raise ValueError(
                f"privacy.epsilon is the budget of one training, got {trained}: each would spend it"
            )

    @property
    def private(self) -> bool:
        """Whether the run has a privacy budget."""
        return self.privacy.epsilon is not None

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

    def direction(self, scaling: width.WidthScaling | None = None) -> optax.GradientTransformation:
        """The update before it is scaled by the negative learning rate."""
        if scaling is not None:
            scaled = width.adamw_width_scaled(1.0, self.weight_decay, scaling, b2=0.999)
            return optax.chain(scaled, optax.scale(-1.0))
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.optimizer == "sgdm":
            return optax.chain(decay, optax.trace(self.momentum))
        return optax.chain(optax.scale_by_adam(), decay)


def classify(config: ClassifyConfig) -> picture_problem.Compared:
    """Train the classifiers of a configuration, or resume where the last checkpoint stands."""
    split = config.pictures(config.seed)
    mesh = training.make_mesh(config.mesh)
    steps = config.num_steps(len(split.train))
    bounds = np.cumsum([0, *steps]).tolist()
    with training.Run(pathlib.Path(config.runs) / config.name) as run:
        fresh = not (run.folder / "config.json").exists()
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
        recipe = config.transform(split.train)
        program = classifiers.Program(config, split, recipe, mesh, run.folder, fresh=fresh)
        private = program.private
        notes = (*split.notes, *(private.statement.splitlines() if private else ()))
        for note in notes:
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

        def advance(state: classifiers.Classifiers, step: int, most: int | None) -> training.Lap:
            number = int(np.searchsorted(bounds, step, "right")) - 1
            local, end = step - bounds[number], steps[number]
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
                row |= private.budget_row(step + 1) if private else {}
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
            return picture_problem.Compared(run.folder, None, accuracies)
        return picture_problem.Compared(
            run.folder, _report(config, run.folder, notes, accuracies), accuracies
        )


def mean_ranks(accuracies: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Rank the schedules at each budget by their best learning rate, and average the ranks.

    Source: arXiv 2107.04197 §5 ranks schedules so.
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
    notes: Sequence[str],
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
    found = {str(budget): values.tolist() for budget, values in accuracies.items()}
    files.write_atomically(folder / "accuracies.json", json.dumps(found))
    return pages.write_comparison(
        folder / "report.html", f"Classifiers of {config.data}", notes, columns, rows,
        caption=caption, options=dataclasses.asdict(config),
    )  # fmt: skip
