"""The command line: arguments in, one call, an error as one line.

Every command is a dataclass of options or a function with typed arguments; `tyro` makes the parser.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from jaxkit.jobs.config import TrainConfig

Positional = tyro.conf.Positional


def train(config: Annotated[TrainConfig, tyro.conf.arg(name="")]) -> None:
    """Train a language model on real text; run it again to resume."""
    from jaxkit import jobs, training

    with training.distributed_run():
        jobs.train(config)


def sample(
    run: Positional[str],
    prompt: str = "\n",
    num_tokens: int = 400,
    temperature: float = 0.8,
    seed: int = 0,
) -> None:
    """Let a trained run write text.

    Args:
        run: folder of the run, runs/NAME.
        prompt: text to continue.
        num_tokens: tokens to add.
        temperature: 1 samples from the model, 0 takes the most probable token.
        seed: seed of the draw.
    """
    from jaxkit import jobs

    opened = jobs.open_run(run, _say)
    print(
        prompt
        + jobs.sample_run(opened, prompt, num_tokens=num_tokens, temperature=temperature, seed=seed)
    )


def evaluate(run: Positional[str], text: str) -> None:
    """Score a text with a trained run.

    Args:
        run: folder of the run, runs/NAME.
        text: UTF-8 text file, or folder of them.
    """
    import numpy as np

    from jaxkit import datasets, jobs

    opened = jobs.open_run(run, _say)
    corpus = datasets.load_text(
        text, validation_fraction=0, minimum_length=opened.config.sequence_length + 1
    ).train
    result = jobs.evaluate_run(opened, corpus)
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


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2.

    Set `JAXKIT_TRACEBACK=1` to see where an error came from.

    Args:
        arguments: the words after `jaxkit`; the process's own if None.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxkit",
            description="A functional JAX toolkit: ten published methods that compose.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        )
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if os.environ.get("JAXKIT_TRACEBACK") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"jaxkit: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
