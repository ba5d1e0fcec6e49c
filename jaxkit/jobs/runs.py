"""The folder of a language-model run: what lies where, and how to open it again."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxkit import datasets, files, models, training
from jaxkit.jobs import refinement, texts
from jaxkit.jobs.config import TrainConfig


class RunFiles(NamedTuple):
    """Where the files of a run are."""

    folder: pathlib.Path
    config: pathlib.Path
    metrics: pathlib.Path
    evaluations: pathlib.Path
    checkpoints: pathlib.Path
    gradient_norms: pathlib.Path
    report: pathlib.Path

    @classmethod
    def of(cls, runs: str | os.PathLike[str], name: str) -> RunFiles:
        """The files of run `name` in folder `runs`."""
        return cls.at(pathlib.Path(runs) / name)

    @classmethod
    def at(cls, folder: str | os.PathLike[str]) -> RunFiles:
        """The files of the run in `folder`."""
        folder = pathlib.Path(folder)
        return cls(
            folder,
            folder / "config.json",
            folder / "metrics.jsonl",
            folder / "evaluations.jsonl",
            folder / "checkpoints",
            folder / refinement.GRADIENT_NORMS,
            folder / "report.html",
        )


@dataclasses.dataclass(frozen=True)
class Description:
    """What `config.json` says of a run.

    Attributes:
        config: how it is trained.
        tokenizer: what `datasets.tokenizer_from_config` reads.
        data: fingerprints of the training and validation text, and of the pilot if there is one.
    """

    config: TrainConfig
    tokenizer: dict[str, Any]
    data: dict[str, str | None]


def read_description(run: RunFiles) -> Description | None:
    """Read a run's description, None if there is no run."""
    return files.read_record(run.config, Description) if run.config.exists() else None


class Run(NamedTuple):
    """A trained model with what it needs to read and write text.

    Attributes:
        config: how it was trained.
        tokenizer: between text and token ids.
        model: the language model.
        params: its variables.
        step: updates made.
        files: where the run lies.
    """

    config: TrainConfig
    tokenizer: datasets.Tokenizer
    model: models.DecoderLM
    params: Any
    step: int
    files: RunFiles


def open_run(
    folder: str | os.PathLike[str],
    report: Callable[[str], None] = training.say,
    *,
    step: int | None = None,
    unknown: datasets.Unknown | None = None,
) -> Run:
    """Load a checkpoint of a run, which may be training: nothing is written.

    Args:
        folder: the run's folder, `runs/NAME`.
        report: called with a line of text for each checkpoint that is damaged.
        step: which checkpoint; by default the newest whole one.
        unknown: what its tokenizer of characters does with others (`datasets.CharTokenizer`); None
            for what it did in training.

    Raises:
        ValueError: if there is no run there, or no checkpoint yet.
        OSError: if no checkpoint can be read.

    Example:
        >>> open_run("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run: it does not exist
    """
    run = RunFiles.at(folder)
    description = read_description(run)
    if description is None:
        lacks = "is a file" if os.path.exists(folder) else "does not exist"
        lacks = "holds no config.json" if os.path.isdir(folder) else lacks
        raise ValueError(f"{folder} is not a run: it {lacks}")
    config = description.config
    try:
        tokenizer = texts.stored_tokenizer(description.tokenizer, unknown)
    except ValueError as error:
        raise ValueError(f"{run.config}: tokenizer: {error}") from None
    model = config.model(tokenizer.vocab_size)
    # The state has the same shapes under any schedule; a refined one would need its pilot here.
    plain = (
        config
        if config.schedule_source is None
        else dataclasses.replace(config, schedule="constant")
    )

    def like(record: dict[str, Any]) -> training.TrainState:
        # The recorder of gradient norms has the length that the run had then.
        then = dataclasses.replace(plain, steps=record["steps"])
        return training.abstract_state(
            models.initializer(model),
            then.optimizer(tokenizer.vocab_size),
            jax.random.key(config.seed),
            training.make_mesh("data=-1"),
        )

    restored = training.read_run(folder, like, step=step, report=report)
    return Run(config, tokenizer, model, restored.state.params, restored.step, run)
