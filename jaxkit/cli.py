"""The command line: arguments in, one call, an error as one line.

Every command is a function with typed arguments, or of a dataclass of options; `tyro` makes the
parser. What it returns is shown. JAX is imported by the command that is named, so that the list of
commands costs little.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import tyro

import jaxkit

Positional = tyro.conf.Positional


def sample(
    run: Positional[str],
    prompt: str | None = None,
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
        prompt: text to continue; by default a newline, or the first of an alphabet without one.
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
    from jaxkit.jobs import sampling

    opened = jobs.open_run(run, unknown=unknown, step=step)
    if prompt is None:
        prompt = sampling.usual_prompt(opened.tokenizer)
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


#: Functions of typed options: those above, and of modules of `jaxkit.jobs` with what they do.
COMMANDS: dict[str, Callable[..., Any] | tuple[str, str, str]] = {
    "train": ("train", "train", "Train a language model on real text; run it again to resume."),
    "compile": (
        "compilation", "compile_run",
        "Compile what train would run for devices that need not be here; say what it costs there.",
    ),
    "sample": sample,
    "evaluate": evaluate,
    "decipher": decipher,
    "refine-schedule": (
        "refinement", "refine_run",
        "Refine a learning-rate schedule from the gradient norms of a finished run.",
    ),
    "fit-curve": (
        "curve_fit", "fit_runs",
        "Fit the loss-curve law to runs and predict the loss of other schedules.",
    ),
    "select": (
        "selection", "select_rows", "Pick exemplars or a coreset from a table of features.",
    ),
    "classify": (
        "classify", "classify",
        "Train picture classifiers and compare schedules by budget; run it again to resume.",
    ),
    "continual": (
        "continual", "learn_stream",
        "Learn a stream of tasks with adapters that grow on demand; run it again to resume.",
    ),
    "federated": (
        "federated", "federate",
        "Train one model over simulated clients by FedSpeed or its baselines; run again to resume.",
    ),
    "subrl": (
        "subrl", "train_world",
        "Train a policy whose reward has diminishing returns; run it again to resume.",
    ),
    "reproduce": (
        "reproduction", "reproduce",
        "Show each paper's claim in miniature; the exit code says whether all still show.",
    ),
}  # fmt: skip

#: Commands that several processes may run together.
_JOINED = ("train", "classify", "federated")


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
    found = tyro.cli(_function(name), prog=f"jaxkit {name}", args=words)
    if hasattr(found, "show"):
        found.show()
    if found is False:
        raise SystemExit(1)


def _function(name: str) -> Callable[..., Any]:
    """A command as `tyro` reads it: the fields of a configuration are options by themselves."""
    command = COMMANDS[name]
    if callable(command):
        return command
    module, function, summary = command
    job = getattr(importlib.import_module(f"jaxkit.jobs.{module}"), function)
    hints = get_type_hints(job, include_extras=True)

    def run(*arguments: Any, **options: Any) -> Any:
        from jaxkit import training

        with training.distributed_run() if name in _JOINED else contextlib.nullcontext():
            return job(*arguments, **options)

    if options := hints.get("config"):
        hints["config"] = Annotated[options, tyro.conf.arg(name="")]
    # The tests wrap every function in one that checks its calls, and `tyro` looks through that.
    made: Any = inspect.unwrap(run)
    made.__signature__, made.__annotations__ = inspect.signature(job), hints
    made.__doc__ = summary if len(made.__signature__.parameters) == 1 else job.__doc__
    return made


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
    summaries = {
        name: (command.__doc__ or "").splitlines()[0] if callable(command) else command[-1]
        for name, command in COMMANDS.items()
    }
    lines = [f"  {name:{width}s}  {summary}" for name, summary in summaries.items()]
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
