"""What a stream that was learnt shows: progress, figures, a page, tables."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import table

from jaxkit import continual, training
from jaxkit.jobs import pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxkit.jobs.continual import ContinualConfig


def show_piece(
    bar: training.Console, stream: continual.Stream, index: int, piece: continual.Advance
) -> None:
    """A piece of work on a bar over tasks; growth as a line of its own."""
    name, phase, event = stream.tasks[index].name, piece.phase, piece.event
    where = phase.about.get("blocks", "")
    doing = f"{name}: {phase.kind} {'head' if where == [] else where} {piece.share:.0%}"
    bar.step({"step": index + piece.learnt, "doing": doing})
    if event is not None and event["kind"] == "expand":
        score = "" if event["score"] is None else f", score {event['score']:.2f}"
        training.say(f"task {index + 1} ({name}): block {event['block']} grows{score}")
    if piece.learnt:
        training.say(f"task {index + 1} ({name}) learnt")


def write_report(
    config: ContinualConfig,
    folder: pathlib.Path,
    learner: continual.Learner,
    stream: continual.Stream,
    result: continual.StreamResult,
) -> pathlib.Path:
    """Write `report.html`, and print its numbers."""
    names = [task.name for task in stream.tasks]
    summary = summarise(learner, result)
    figures: dict[str, Figure] = {
        "accuracy": continual.accuracy_matrix_figure(result.accuracy, names, title=learner.name)
    }
    if isinstance(learner, continual.SEMALearner):
        if config.method == "sema":
            figures["expansion"] = continual.expansion_figure(result, learner.config, names)
        if any(event["kind"] == "expand" and event["rows"] for event in result.events):
            figures["growth"] = continual.growth_pictures_figure(result, stream)
        figures["router"] = continual.router_weights_figure(learner, result.state, stream)
    about = {**summary, **settings(config, learner)}
    path = pages.write_run(folder / "report.html", about, figures)
    _print(stream, result, summary, path)
    return path


def settings(config: ContinualConfig, learner: continual.Learner) -> dict[str, Any]:
    """What was asked for, and what the learner made of it: its rates, its sizes, its backbone."""
    told = learner.description()
    given = {f: x for f, x in dataclasses.asdict(config).items() if x is not None}
    for field in (
        "threshold", "train_epochs", "describe_epochs", "train_learning_rate",
        "describe_learning_rate", "batch_size", "scan_batch_size",
    ):  # fmt: skip
        given.pop(field, None)  # the learner tells them, where it has them
    if config.class_order != "shuffled":
        del given["class_seed"]
    return {**given, **told}


def summarise(learner: continual.Learner, result: continual.StreamResult) -> dict[str, str]:
    """The numbers of a finished run, as text."""
    accuracy = result.accuracy
    pooled = continual.pooled_accuracies(accuracy, result.num_tests)
    summary = {
        "final accuracy, mean over tasks": f"{continual.average_accuracy(accuracy):.2%}",
        "final accuracy, all samples": f"{pooled[-1]:.2%}",
        "mean over stages": f"{continual.average_incremental_accuracy(accuracy):.2%}",
        "mean over stages, all samples": f"{pooled.mean():.2%}",
        "forgetting": f"{continual.forgetting(accuracy):.2%}",
        "backward transfer": f"{continual.backward_transfer(accuracy):.2%}",
    }
    ridges = [f"{event['ridge']:g}" for event in result.events if "ridge" in event]
    if ridges:
        summary["ridge of each task"] = ", ".join(ridges)
    if isinstance(learner, continual.SEMALearner):
        config, added = learner.config, len(result.expansions)
        every = config.num_expandable * (len(result.num_tests) - 1)
        ours = continual.parameter_counts(config, added)
        linear = continual.parameter_counts(config, every)
        grown = [
            f"task {event['task'] + 1} block {event['block']}"
            + ("" if event["score"] is None else f" ({event['score']:.2f})")
            for event in result.events
            if event["kind"] == "expand"
        ]
        summary |= {
            "blocks grown (score)": ", ".join(grown) or "none",
            "threshold": f"{learner.config.threshold:g}",
            "adapters added": f"{added}, every task would add {every}",
            "parameters at inference": f"{ours.inference:,} (adapters and head; routers "
            f"{ours.routers:,} more), every task {linear.inference:,}",
            "parameters of descriptors": f"{ours.descriptors:,}",
        }
    return summary


def _print(
    stream: continual.Stream,
    result: continual.StreamResult,
    summary: dict[str, str],
    path: pathlib.Path,
) -> None:
    terminal = training.terminal()
    columns = ["accuracy on", *(f"after {i + 1}" for i in range(len(stream.tasks)))]
    matrix = table.Table(*columns)
    for task, row in zip(stream.tasks, result.accuracy, strict=True):
        matrix.add_row(task.name, *("" if np.isnan(a) else f"{100 * a:.1f}" for a in row))
    terminal.print(matrix)
    for name, text in {**summary, "report": os.fspath(path)}.items():
        training.say(f"{name:32s} {text}", out=True)
