"""The command line: arguments in, one call, an error as one line.

Every command is a dataclass of options or a function with typed arguments; `tyro` makes the parser.
JAX is imported by the command that runs, so that help costs little.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import jaxkit

if TYPE_CHECKING:
    from jaxkit.jobs.classify import ClassifyConfig
    from jaxkit.jobs.config import TrainConfig
    from jaxkit.jobs.continual import ContinualConfig
    from jaxkit.jobs.federated import FederatedConfig

Positional = tyro.conf.Positional


def train(config: TrainConfig) -> None:
    """Train a language model on real text; run it again to resume."""
    from jaxkit import jobs, training

    with training.distributed_run():
        jobs.train(config)


def compile(
    config: TrainConfig,
    topology: str,
    vocab_size: int | None = None,
    effort: Literal["default", "low"] = "default",
    out: str = "compiled",
    save: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Compile what train would run for devices that need not be here; say what it costs there.

    Args:
        config: what to train; its mesh divides the devices of the topology.
        topology: v5e:16x16, v5p:4x4x4, v6e:4x4, ...; cpu:8 for simulated devices; local.
        vocab_size: size of the vocabulary; by default that of the text.
        effort: of the compiler: low takes a tenth of the time, and more memory in the program.
        out: folder for the report, as JSON and text.
        save: write the compiled step there too.
    """
    import jax

    if topology != "local" and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from jaxkit.jobs import compilation

    compilation.compile_run(
        config, topology, vocab_size=vocab_size, effort=effort, out=out, save=save
    )


def sample(
    run: Positional[str],
    prompt: str = "\n",
    num_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    unknown: Literal["error", "skip", "replace"] | None = None,
    seed: int = 0,
    step: int | None = None,
) -> None:
    """Let a trained run write text.

    Args:
        run: folder of the run, runs/NAME.
        prompt: text to continue.
        num_tokens: tokens to add.
        temperature: 1 samples from the model, 0 takes the most probable token.
        top_k: draw among this many of the most probable tokens.
        top_p: draw among the most probable tokens that have this probability together.
        stop: end before this text.
        unknown: what happens to characters of the prompt outside the run's alphabet: error, skip or
            replace; by default what happened in training.
        seed: seed of the draw.
        step: read the checkpoint of this step; by default the newest.
    """
    from jaxkit import jobs

    opened = jobs.open_run(run, unknown=unknown, step=step)
    text = jobs.sample_run(
        opened, prompt, num_tokens=num_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        stop=stop, seed=seed,
    )  # fmt: skip
    print(prompt + text)


def evaluate(
    run: Positional[str],
    text: str,
    unknown: Literal["error", "skip", "replace"] | None = None,
    step: int | None = None,
) -> None:
    """Score a text with a trained run.

    Args:
        run: folder of the run, runs/NAME.
        text: UTF-8 text file, or folder of them.
        unknown: what happens to characters outside the run's alphabet: error, skip or replace; by
            default what happened in training.
        step: read the checkpoint of this step; by default the newest.
    """
    import numpy as np

    from jaxkit import datasets, jobs
    from jaxkit.jobs import texts

    opened = jobs.open_run(run, unknown=unknown, step=step)
    corpus = datasets.load_text(
        text, validation_fraction=0, minimum_length=opened.config.sequence_length + 1
    ).train
    result = jobs.evaluate_run(opened, corpus)
    if foreign := texts.count_unknown(corpus, opened.tokenizer):
        print(f"{foreign:,} characters are outside the alphabet: skipped or replaced")
    bits = result.loss * result.tokens / np.log(2) / len(corpus)
    print(
        f"{result.loss:.4f} nats per token over {result.tokens:,} tokens "
        f"(perplexity {np.exp(result.loss):.3f}, {bits:.3f} bits per byte)"
    )
    quarters = np.array_split(result.by_position, 4)
    edges = np.cumsum([0, *map(len, quarters)])
    for start, stop, losses in zip(edges, edges[1:], quarters, strict=False):
        if len(losses):
            print(f"  positions {start + 1:5d} to {stop:5d}: {losses.mean():.4f}")


def decipher(
    run: Positional[str],
    text: str,
    ciphertext: tyro.conf.FlagCreatePairsOff[bool] = False,
    probe_steps: int = 400,
    seed: int = 0,
    step: int | None = None,
) -> None:
    """Let a run that knows no names read a substitution cipher; print the key by context length.

    Args:
        run: folder of a run trained with --embedding lexinvariant or relabel, runs/NAME.
        text: UTF-8 text file or folder of them, enciphered first with a random key.
        ciphertext: take the text as it is: it is enciphered already.
        probe_steps: updates of the probe that is trained on the run's own text.
        seed: seed of the key and of the probe.
        step: read the checkpoint of this step; by default the newest.
    """
    from jaxkit import datasets, jobs
    from jaxkit.jobs import deciphering

    opened = jobs.open_run(run, step=step)
    corpus = datasets.load_text(
        text, validation_fraction=0, minimum_length=opened.config.sequence_length
    ).train
    found = jobs.decipher_run(
        opened, corpus, encipher=not ciphertext, probe_steps=probe_steps, seed=seed
    )
    print(deciphering.decipherment_text(found))


def refine_schedule(
    pilot: Positional[str],
    norm: Literal["l1", "l2"] | None = None,
    smoothing: float = 0.1,
    out: str | None = None,
) -> None:
    """Refine a learning-rate schedule from the gradient norms of a finished run.

    Train with the result by `jaxkit train --schedule refined:PILOT`, and tune the peak again.

    Args:
        pilot: folder of the run, or a CSV or JSONL file with step and gradient_norm.
        norm: the norm in a file: l1 (Adam family) or l2 (SGD); a run says it itself.
        smoothing: width of the median filter as a fraction of the run.
        out: folder to write to; by default that of the run or file.
    """
    from jaxkit.jobs import refinement

    for path in refinement.refine_run(pilot, norm=norm, smoothing=smoothing, out=out):
        print(path)


def fit_curve(
    runs: Positional[tuple[str, ...]],
    predict: tuple[str, ...] = ("constant", "linear", "cosine", "rex", "wsd"),
    decay: float | None = None,
    level: float = 0.9,
    warmup_steps: float | None = None,
    first_step: int = 0,
    step: str = "step",
    units_per_step: float = 1.0,
    learning_rate: str = "learning_rate",
    loss: str = "loss",
    smoothing: float = 0.0,
    out: str = ".",
) -> None:
    """Fit the loss-curve law to runs and predict the loss of other schedules.

    Train with what the law chooses by `jaxkit train --schedule law:OUT`.

    Args:
        runs: run folders, or logs (CSV, JSON lines, TensorBoard event files, W&B exports): one with
            a constant rate and one that decays are what the law needs.
        predict: schedules, each NAME or NAME:STEPS, at the peak of the runs.
        decay: decay of the annealing momentum per update; by default the best of a few.
        level: nominal coverage of the intervals.
        warmup_steps: updates of the warm-up, 0 for none; a run folder says it itself, a log cannot.
        first_step: points before it are left out.
        step: column of the steps, or of tokens or epochs.
        units_per_step: growth of that column in one update: tokens of a batch, for example.
        learning_rate: column of the learning rate.
        loss: column of the loss, in nats, bits per byte or any unit.
        smoothing: weight of the exponential average that the logged loss went through.
        out: folder for the law and the figure.
    """
    from jaxkit.jobs import curve_fit

    found = curve_fit.fit_runs(
        runs, predict, decay=decay, level=level, out=out, warmup_steps=warmup_steps,
        first_step=first_step, step=step, units_per_step=units_per_step,
        learning_rate=learning_rate, loss=loss, smoothing=smoothing,
    )  # fmt: skip
    law = {name: float(value) for name, value in found.law.constants._asdict().items()}
    print("  ".join(f"{name} {value:.6g}" for name, value in law.items()), f" {found.law.form}")
    if found.law.at_bound:
        print(f"at a bound, so not identified: {', '.join(found.law.at_bound)}")
    print(found.fit_table, end="\n\n")
    if found.left_out:
        errors = ", ".join(f"{name} {error:.3f} %" for name, error in found.left_out.items())
        print(f"mean error on a run left out of the fit: {errors}")
    else:
        print(
            "the error on an unseen schedule is not measured, that takes three runs or more: the "
            "intervals take 3 times that of the fit (where they said 90 %, 78 to 98 % of the "
            "points of published curves lay inside)"
        )
    print(found.predictions, end="\n\n")
    for message in found.warnings:
        print(f"warning: {message}")
    print(found.path, found.figure, sep="\n")


def select(
    features: Positional[str],
    k: int,
    objective: Literal[
        "facility_location", "saturated_coverage", "graph_cut", "log_det", "feature_based"
    ] = "facility_location",
    maximiser: Literal["lazy", "greedy", "stochastic", "threshold"] = "lazy",
    kernel: Literal["cosine", "shifted_cosine", "rbf"] = "cosine",
    columns: tuple[str, ...] = (),
    ids: str | None = None,
    header: bool | None = None,
    out: str | None = None,
) -> None:
    """Pick exemplars or a coreset from a table of features.

    Args:
        features: .npy, .npz (sparse), .csv, .tsv, .parquet or .arrow file, one row an item.
        k: rows to pick.
        objective: what makes a set of rows good.
        maximiser: how it is found.
        kernel: similarity of two rows.
        columns: columns to use, by name or number; all by default.
        ids: column that names the rows; it is written instead of row numbers.
        header: whether the first line names the columns; by default, unless it is all numbers.
        out: folder to write to; by default that of the file.
    """
    from jaxkit.jobs import selection

    found = selection.select_rows(
        features,
        k,
        objective=objective,
        maximiser=maximiser,
        kernel=kernel,
        columns=columns,
        ids=ids,
        header=header,
        out=out,
    )
    print(f"value {found.value:.6g} after {found.queries:,} queries, {found.guarantee}")
    print(found.indices, found.figure, sep="\n")


def classify(config: ClassifyConfig) -> None:
    """Train picture classifiers and compare schedules by budget; run it again to resume."""
    from jaxkit import training
    from jaxkit.jobs import classify

    with training.distributed_run():
        classify.classify(config)


def continual(config: ContinualConfig) -> None:
    """Learn a stream of tasks with adapters that grow on demand; run it again to resume."""
    from jaxkit.jobs.continual import learn_stream

    learn_stream(config)


def federated(config: FederatedConfig) -> None:
    """Train one model over simulated clients by FedSpeed or its baselines; run again to resume."""
    from jaxkit import training
    from jaxkit.jobs import federated

    with training.distributed_run():
        federated.federate(config)


def subrl(
    env: Literal[
        "two-rooms", "coverage", "bimodal", "gp", "density", "items", "design"
    ] = "two-rooms",
    memory: bool = True,
    objective: Literal["submodular", "modular"] = "submodular",
    signal: Literal["to_go", "one_step", "prefix"] = "to_go",
    horizon: int = 40,
    slip: float = 0.0,
    num_steps: int = 140,
    batch_size: int = 500,
    learning_rate: float = 0.005,
    entropy_coefficient: float = 0.0,
    seeds: int = 3,
    seed: int = 0,
    out: str = "subrl",
) -> None:
    """Train a policy whose reward has diminishing returns; run it again to resume.

    Args:
        env: the world.
        memory: the policy sees what it has visited.
        objective: submodular is SubPO; modular is ModPO, which adds rewards up.
        signal: what an action is credited with.
        horizon: states of an episode.
        slip: chance that an action is replaced by a random one.
        num_steps: updates.
        batch_size: episodes an update.
        learning_rate: of Adam.
        entropy_coefficient: weight of the entropy bonus at the first update.
        seeds: independent trainings, run together.
        seed: of everything random, the world too.
        out: folder to write to.
    """
    from jaxkit import training
    from jaxkit.jobs.subrl import train_world

    found = train_world(
        env,
        memory=memory,
        objective=objective,
        signal=signal,
        horizon=horizon,
        slip=slip,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        entropy_coefficient=entropy_coefficient,
        seeds=seeds,
        seed=seed,
        out=out,
    )
    if found is not None:
        training.terminal().print(found.table)
        print(*filter(None, (found.curves, found.paths, found.metrics)), sep="\n")


def reproduce(
    papers: Positional[tuple[str, ...]] = ("all",),
    quick: tyro.conf.FlagCreatePairsOff[bool] = False,
    seed: int = 0,
    out: str = "evidence",
    parallel: int | None = None,
) -> None:
    """Show each paper's claim in miniature; the exit code says whether all still show.

    Args:
        papers: experiments by name, or all.
        quick: a smaller version of each, about half a minute.
        seed: first seed.
        out: folder for the page `report.html` and the figures.
        parallel: experiments at a time; by default one a core, up to 4, or one on an accelerator.
    """
    from jaxkit.jobs import reproduction

    if not reproduction.reproduce(list(papers), quick=quick, seed=seed, out=out, parallel=parallel):
        raise SystemExit(1)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "compile": compile,
    "sample": sample,
    "evaluate": evaluate,
    "decipher": decipher,
    "refine-schedule": refine_schedule,
    "fit-curve": fit_curve,
    "select": select,
    "classify": classify,
    "continual": continual,
    "federated": federated,
    "subrl": subrl,
    "reproduce": reproduce,
}


#: The options of commands that take a dataclass, by module and name.
OPTIONS = {
    "train": ("jaxkit.jobs.config", "TrainConfig"),
    "compile": ("jaxkit.jobs.config", "TrainConfig"),
    "classify": ("jaxkit.jobs.classify", "ClassifyConfig"),
    "continual": ("jaxkit.jobs.continual", "ContinualConfig"),
    "federated": ("jaxkit.jobs.federated", "FederatedConfig"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2.

    Set `JAXKIT_TRACEBACK=1` to see where an error came from.

    Args:
        arguments: the words after `jaxkit`; the process's own if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(_overview(), file=sys.stderr)
        raise SystemExit(2)
    with _one_line_errors():
        _run(*words)
        if sys.stdout is not None:  # closed before the process began
            sys.stdout.flush()  # here, where a closed pipe is met


def _run(name: str, *words: str) -> None:
    if name in ("-h", "--help"):
        print(_overview())
        return
    if name == "--version":
        print(f"jaxkit {jaxkit.__version__}")
        return
    if name not in COMMANDS:
        from jaxkit import validation

        validation.choice("command", name, [*COMMANDS, "--help", "--version"])
    split = [
        part for word in words for part in (word.split("=", 1) if word[:2] == "--" else [word])
    ]
    for option, value in itertools.pairwise([name, *split]):
        if not value and option != "--mesh":  # an empty path would be the present folder
            raise ValueError(f"{option} must not be empty, got ''")
    command = COMMANDS[name]
    if name in OPTIONS:
        module, kind = OPTIONS[name]
        options = getattr(importlib.import_module(module), kind)
        command.__annotations__["config"] = Annotated[options, tyro.conf.arg(name="")]
    tyro.cli(command, prog=f"jaxkit {name}", args=words)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 2; what is our fault stays as it is."""
    debugging = os.environ.get("JAXKIT_TRACEBACK") == "1"
    if not debugging:
        # Orbax logs pages of tracebacks for a failure that it raises as well.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of the output has seen enough; nothing is left to flush at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, ImportError, ArithmeticError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if debugging or (isinstance(error, RuntimeError) and not out_of_memory):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if out_of_memory:
            message = f"the memory does not suffice: {message}"
        with contextlib.suppress(OSError):
            print(f"jaxkit: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"  {name:{width}s}  {(command.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: jaxkit [-h] [--version] COMMAND [OPTIONS]",
            "",
            "A functional JAX toolkit: ten published methods that compose.",
            "",
            "commands:",
            *lines,
            "",
            "jaxkit COMMAND --help lists the options of a command.",
        ]
    )
