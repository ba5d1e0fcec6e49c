"""Lexinvariant language models in miniature: theory, prose, symbols never seen, ciphers.

Paper: arXiv 2305.16349. (A) On a Markov language of six symbols the exact lexinvariant predictor
is known, and trained models are held against it. (B) On 27-symbol English the gap to a standard
model shrinks along the context; the annealing of the renaming that makes this small model get
there is an extension of ours, and the plain run is reported beside it. (C) Tasks on symbols that
training never showed. (D) Substitution ciphers read in context, beside classical solvers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkit import lexinvariant, plotting
from jaxkit.experiments import symbol_chain, symbol_prose, symbol_tasks
from jaxkit.experiments.evidence import Claim, Evidence, Table, verdict

#: Updates of each run: (full, quick).
CHAIN_STEPS: dict[lexinvariant.Method, tuple[int, int]] = {
    "fixed": (300, 120),
    "relabel": (1000, 500),
    "lexinvariant": (2000, 0),
}
TASK_STEPS: dict[lexinvariant.Method, int] = {"fixed": 1500, "relabel": 1500, "lexinvariant": 3000}
PROSE_STEPS, STANDARD_STEPS, PROBE_STEPS = 2500, 800, 400
#: Excess over the true chain at positions 32-48 that each method may have, in nats.
LIMITS: dict[lexinvariant.Method, float] = {"fixed": 0.01, "relabel": 0.22, "lexinvariant": 0.35}
QUICK_LIMITS: dict[lexinvariant.Method, float] = {"fixed": 0.03, "relabel": 0.40}
#: Accuracy of one who answers with any value of the table, or any symbol of the last line.
GUESSING = {"LookUp": 1 / 5 + 4 / 5 / len(symbol_tasks.SEEN), "Permutation": 1 / 3}
CHAIN_RANGES = ((0, 2), (2, 4), (4, 8), (8, 16), (16, 24), (24, 32), (32, 48))
NAMES: dict[lexinvariant.Method, str] = {
    "fixed": "standard",
    "relabel": "renamed ids",
    "lexinvariant": "random rows",
}


def run(*, quick: bool = False, seed: int = 0) -> Evidence:
    """Measure what lexinvariant models learn, and how far they stay from the optimum.

    Args:
        quick: part A alone, with fewer steps and one seed; in full about 20 minutes on two cores.
        seed: base of the seeds.
    """
    parts = [_chain(quick, seed)]
    if not quick:
        parts += [_tasks(seed), _prose(seed)]
    claims, tables, figures = [], [], {}
    for part_claims, part_tables, part_figures in parts:
        claims += part_claims
        tables += part_tables
        figures |= part_figures
    return Evidence("Language models without token embeddings", claims, tables, figures)


def _chain(quick: bool, seed: int):
    steps: dict[lexinvariant.Method, int] = {
        method: pair[quick] for method, pair in CHAIN_STEPS.items() if pair[quick]
    }
    seeds = 1 if quick else 2
    found = symbol_chain.measure(steps, seeds, seed)
    late: dict[lexinvariant.Method, np.ndarray] = {
        method: symbol_chain.excess(found, method, 32, 48) for method in steps
    }
    claims = []
    limits = QUICK_LIMITS if quick else LIMITS
    for method, values in late.items():
        limit = limits[method]
        claims.append(
            Claim(
                statement=f"A: {NAMES[method]}, positions 32-48: at most {limit} nats above the "
                "true chain",
                paper="the prediction error goes to 0 with the length of the context",
                measured=f"{', '.join(f'{v:.3f}' for v in values)} nats ({seeds} seeds, "
                f"{steps[method]} updates)",
                verdict=verdict(np.all(values <= limit)),
            )
        )
    for method in steps:
        if method == "fixed":
            continue
        fall = symbol_chain.excess(found, method, 0, 2) - late[method]
        needed = 0.25 if quick else 0.35
        claims.append(
            Claim(
                statement=f"A: {NAMES[method]}: excess at positions 0-2 minus that at 32-48 is at "
                f"least {needed} nats",
                paper="in-context learning of the alphabet",
                measured=f"{', '.join(f'{v:.3f}' for v in fall)} nats",
                verdict=verdict(np.all(fall >= needed)),
            )
        )
    optimum = (found.oracle - found.truth)[32:48].mean()
    total = (found.oracle - found.truth).sum()
    bound = lexinvariant.regret_bound(symbol_chain.VOCAB_SIZE)
    claims.append(
        Claim(
            statement="A: the exact predictor pays at most log d! nats a text for not knowing the "
            "alphabet",
            paper="theorem 2.1 (with other constants)",
            measured=f"{total:.3f} nats after the first symbol, bound {bound:.3f}; "
            f"{optimum:.4f} nats a symbol at positions 32-48",
            verdict=verdict(total <= bound),
        )
    )
    curves = {"true chain": found.truth, "exact lexinvariant": found.oracle}
    curves |= {NAMES[method]: found.models[method].mean(axis=0) for method in steps}
    table = Table(
        f"A: loss by position, nats ({seeds} seeds)",
        ("model", *(f"{a}-{b}" for a, b in CHAIN_RANGES)),
        [
            (name, *(f"{values[a:b].mean():.3f}" for a, b in CHAIN_RANGES))
            for name, values in curves.items()
        ],
    )
    figure, panels = plotting.axes(1, 2)
    positions = np.arange(1, symbol_chain.LENGTH + 1)
    plotting.lines(
        panels[0],
        {name: (positions, values) for name, values in curves.items()},
        xlabel="symbols read",
        ylabel="loss (nats)",
        title="Markov language of six symbols",
    )
    accuracy = {"exact posterior": (np.arange(len(found.decipher)), found.decipher)}
    if not quick:
        read = symbol_chain.decipher_accuracy(found, "relabel", PROBE_STEPS, seed)
        accuracy["probe on renamed ids"] = (np.arange(len(read)), read)
    plotting.lines(
        panels[1],
        accuracy,
        xlabel="position",
        ylabel="symbols read right",
        title="Deciphering",
    )
    return claims, [table], {"lexinvariant_chain": figure}


def _tasks(seed: int):
    accuracies = symbol_tasks.measure(TASK_STEPS, seed)
    claims = []
    for method, found in accuracies.items():
        if method == "fixed":
            continue
        for task in symbol_tasks.TASKS:
            standard = accuracies["fixed"][task]["unseen"]
            value = found[task]["unseen"]
            # Three times nothing is no achievement: a guess among the symbols of the question
            # beats a model that never writes them.
            above = value >= 3 * standard
            learned = value > GUESSING[task] + 0.05
            claims.append(
                Claim(
                    statement=f"C: {task} on symbols never seen: {NAMES[method]} at least 3 times "
                    "the accuracy of the standard model, and more than guessing among the symbols "
                    "of the question",
                    paper="4 times on average over data and tasks, 48 -> 92 % and 28 -> 59 % "
                    "(Pile, characters)",
                    measured=f"{100 * value:.1f} % against {100 * standard:.1f} %, guessing "
                    f"{100 * GUESSING[task]:.1f} % ({TASK_STEPS[method]} updates)",
                    verdict="null result" if above and not learned else verdict(above),
                )
            )
    rows = [
        (
            NAMES[method],
            task,
            *(f"{100 * accuracies[method][task][half]:.1f} %" for half in ("seen", "unseen")),
        )
        for method in TASK_STEPS
        for task in symbol_tasks.TASKS
    ]
    columns = ("model", "task", "seen symbols", "unseen symbols")
    return claims, [Table("C: answer tokens right, 1000 tasks each", columns, rows)], {}


def _prose(seed: int):
    text = symbol_prose.load()
    decoder = symbol_prose.model()
    runs = {
        "standard": symbol_prose.fit(decoder, text, STANDARD_STEPS, seed, None),
        "renaming annealed": symbol_prose.fit(
            decoder, text, PROSE_STEPS, seed, lexinvariant.relabelling_schedule(PROSE_STEPS)
        ),
        "renaming from the start": symbol_prose.fit(decoder, text, PROSE_STEPS, seed, 1.0),
    }
    losses = {name: result.losses for name, result in runs.items()}
    for order in (0, 2):
        losses[f"counting, order {order}"] = np.asarray(
            lexinvariant.adaptive_ngram_losses(
                jnp.asarray(text.held_out), symbol_prose.VOCAB_SIZE, order
            )
        )
    perplexity = {name: symbol_prose.perplexities(values) for name, values in losses.items()}
    standard, annealed = perplexity["standard"], perplexity["renaming annealed"]
    counted, plain = perplexity["counting, order 2"], perplexity["renaming from the start"]
    gap = (annealed - standard) / standard
    early, late = symbol_prose.RANGES.index((8, 16)), symbol_prose.RANGES.index((128, 192))
    seconds = runs["renaming annealed"].seconds
    claims = [
        Claim(
            statement="B: perplexity at positions 128-192 at most 11.5 and below counting "
            "(renaming annealed from 0 to 1, an extension)",
            paper="(no such run)",
            measured=f"{annealed[late]:.2f}, counting {counted[late]:.2f}, "
            f"{PROSE_STEPS} updates in {seconds:.0f} s",
            verdict=verdict(annealed[late] <= min(11.5, counted[late])),
        ),
        Claim(
            statement="B: the relative gap to the standard model at positions 128-192 is at most "
            "half of that at 8-16",
            paper="from 9 times to less than 1 time along 512 characters",
            measured=f"{gap[early]:.2f} -> {gap[late]:.2f}",
            verdict=verdict(gap[late] <= gap[early] / 2),
        ),
        Claim(
            statement="B: renaming everything from the start (the paper's training) beats "
            "counting as well at this size",
            paper="at 150M parameters and 8 billion tokens: perplexity 3.38",
            measured=f"{plain[late]:.2f}, counting {counted[late]:.2f}",
            verdict="shown" if plain[late] <= counted[late] else "null result",
        ),
    ]
    tables = [
        Table(
            "B: perplexity by position, 64 windows of held-out prose",
            ("model", *(f"{a}-{b}" for a, b in symbol_prose.RANGES)),
            [(name, *(f"{v:.2f}" for v in values)) for name, values in perplexity.items()],
        )
    ]
    found = symbol_prose.decipher(
        decoder, runs["renaming annealed"].params, text, PROBE_STEPS, seed
    )
    chance = 1 / symbol_prose.VOCAB_SIZE
    claims.append(
        Claim(
            statement="D: the precision of keys read in context rises along the context and is "
            "at least twice chance in the end",
            paper="63 % in the first 100 characters, 99.6 % after 400",
            measured=f"{100 * found.precision[0]:.1f} -> {100 * found.precision[-1]:.1f} % in "
            f"windows of {symbol_prose.LENGTH // 3} by the paper's vote, "
            f"{100 * found.assigned[0]:.1f} -> {100 * found.assigned[-1]:.1f} % by a one-to-one "
            f"key (chance {100 * chance:.1f} %)",
            verdict=verdict(
                found.precision[-1] > found.precision[0] and found.precision[-1] >= 2 * chance
            ),
        )
    )
    rows = [
        (
            f"probe, from position {start}",
            *(f"{100 * share:.1f} %" for share in (1 - right, voted, assigned)),
        )
        for start, right, voted, assigned in zip(
            found.starts, found.accuracy, found.precision, found.assigned, strict=True
        )
    ]
    rows += [(name, f"{100 * error:.1f} %", "", "") for name, error in found.solvers.items()]
    tables.append(
        Table(
            "D: ciphers of 192 characters",
            ("reader", "wrong symbols", "right in the key voted", "right in the one-to-one key"),
            rows,
        )
    )
    return claims, tables, {"lexinvariant_prose": prose_figure(losses, found)}


def prose_figure(
    losses: Mapping[str, np.ndarray], found: symbol_prose.Deciphering, window: int = 32
) -> Any:
    """Smoothed perplexity by position, and key precision by window start."""
    figure, panels = plotting.axes(1, 2)
    smoothed = {
        name: np.asarray(lexinvariant.smoothed_perplexity(jnp.asarray(values), window))
        for name, values in losses.items()
    }
    plotting.lines(
        panels[0],
        {name: (np.arange(v.shape[1]), v.mean(axis=0)) for name, v in smoothed.items()},
        xlabel=f"first of {window} positions",
        ylabel="perplexity",
        title="27-symbol English",
    )
    panels[0].set_yscale("log")
    panels[0].set_ylim(bottom=1)
    plotting.lines(
        panels[1],
        {
            "key, one-to-one": (found.starts, found.assigned),
            "key, voted": (found.starts, found.precision),
            "symbols right": (found.starts, found.accuracy),
            "chance": (found.starts, np.full(len(found.starts), 1 / symbol_prose.VOCAB_SIZE)),
        },
        xlabel="first position of the window",
        title="Reading a cipher in context",
    )
    panels[1].set_ylim(bottom=0)
    return figure
