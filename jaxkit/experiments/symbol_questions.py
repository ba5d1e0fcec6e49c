"""Reasoning about symbols that mean nothing: LookUp and Permutation (arXiv 2305.16349 §3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import lexinvariant, models, validation

Ids = Sequence[int] | Int[Array, " n"] | np.ndarray


class Task(NamedTuple):
    """One question with its answer, the last ``A`` of its ``T`` tokens.

    The mask is True on the answer, and on those to earlier questions of the same task.
    """

    tokens: Int[Array, " T"]
    answer: Int[Array, " A"]
    mask: Bool[Array, " T"]


def _task(given: list[Any], asked: list[tuple[list[Any], Array]], separator: Ids) -> Task:
    """Lay out what is given, then questions with their answers, a separator between them."""
    pieces = [(ids, False) for ids in given]
    for question, answer in asked:
        pieces += [*((ids, False) for ids in question), (answer, True), (separator, False)]
    arrays = [jnp.atleast_1d(jnp.asarray(ids, jnp.int32)) for ids, _ in pieces[:-1]]
    marks = [np.full(a.size, mark) for a, (_, mark) in zip(arrays, pieces, strict=False)]
    return Task(jnp.concatenate(arrays), arrays[-1], jnp.asarray(np.concatenate(marks)))


def _different(symbols: Ids, needed: int) -> Int[Array, " n"]:
    ids = np.asarray(symbols)
    if len(np.unique(ids)) < max(len(ids), needed):
        raise ValueError(
            f"symbols must be at least {needed} different ids, got {len(ids)}, of which "
            f"{len(np.unique(ids))} differ"
        )
    return jnp.asarray(ids)


def lookup_task(
    key: Key[Array, ""],
    symbols: Ids,
    *,
    arrow: Ids,
    separator: Ids,
    num_pairs: int = 5,
    num_queries: int = 1,
) -> Task:
    """Draw a table of `key arrow value` lines and ask for the value of one of its keys.

    Keys are different, values drawn with replacement; the paper does not say how many pairs. The
    answer is one token, the value of the last of `num_queries` different keys asked for: more than
    one makes richer training text.
    """
    if validation.integer("num_queries", num_queries, minimum=1) > num_pairs:
        raise ValueError(f"num_queries must be at most num_pairs={num_pairs}, got {num_queries}")
    ids = _different(symbols, num_pairs)
    key_key, value_key, query_key = jax.random.split(key, 3)
    keys = jax.random.permutation(key_key, ids)[:num_pairs]
    values = jax.random.choice(value_key, ids, (num_pairs,))
    table: list[Any] = []
    for i in range(num_pairs):
        table += [keys[i], arrow, values[i], separator]
    queries = jax.random.permutation(query_key, num_pairs)[:num_queries]
    asked = [([keys[q], arrow], values[q]) for q in queries]
    return _task(table, asked, separator)


def permutation_task(
    key: Key[Array, ""],
    symbols: Ids,
    *,
    arrow: Ids,
    separator: Ids,
    num_demonstrations: int = 3,
    length: int = 3,
    num_selected: int = 2,
) -> Task:
    """Show one rule "take these positions in this order" on examples and ask for one more.

    A line draws `length` different symbols, of which the rule takes `num_selected`; the paper does
    not say how many demonstrations.
    """
    if validation.integer("num_selected", num_selected, minimum=1) > length:
        raise ValueError(f"num_selected must be at most length={length}, got {num_selected}")
    ids = _different(symbols, length)
    rule_key, *line_keys = jax.random.split(key, num_demonstrations + 2)
    rule = jax.random.permutation(rule_key, length)[:num_selected]
    lines = [jax.random.permutation(k, ids)[:length] for k in line_keys]
    first, *others = lines
    asked = [([line, arrow], line[rule]) for line in others]
    return _task([first, arrow, first[rule], separator], asked, separator)


def task_accuracy(
    model: models.DecoderLM,
    params: Any,
    tasks: Task,
    key: Key[Array, ""],
    *,
    method: lexinvariant.Method,
) -> Float[Array, ""]:
    """Share of the answer tokens of tasks ``[B, T]`` that greedy generation gets right."""
    size = tasks.answer.shape[-1]
    keys = lexinvariant.sequence_keys(key, jnp.arange(tasks.tokens.shape[0]))
    tokens, table, _ = lexinvariant.anonymised(model, params, tasks.tokens, keys, method)
    answer = models.generate(
        model, params, tokens[:, :-size], size, key, temperature=0.0, embedding=table
    )
    return jnp.mean(answer == tokens[:, -size:])
