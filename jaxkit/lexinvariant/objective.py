"""The training objective: next-token cross-entropy, with fresh names for the tokens if asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxkit import models, validation
from jaxkit.lexinvariant import embeddings, relabelling

Batch = Mapping[str, Array]
#: How the identity of tokens is hidden in training; see `anonymised`.
Method = Literal["fixed", "lexinvariant", "relabel", "mixed"]
#: The values of `Method`.
METHODS = ("fixed", "lexinvariant", "relabel", "mixed")
Probability = float | Float[Array, ""] | Float[Array, " B"]


#: Methods with a probability of hiding.
_READS_P = ("relabel", "mixed")
_UNREAD = "p needs method='relabel' or 'mixed', got p={!r} with {!r}"


def anonymised(
    model: models.DecoderLM,
    params: Any,
    tokens: Int[Array, "B T"],
    keys: Key[Array, " B"],
    method: Method,
    p: Probability = 1.0,
    *,
    per: Literal["type", "position"] = "type",
    closed: bool = False,
    kind: embeddings.Kind = "gaussian",
) -> tuple[Int[Array, "B T"], Any, Int[Array, "B V"] | None]:
    """Hide the identity of the tokens of each sequence as `method` says.

    Args:
        model: the language model.
        params: its variables.
        tokens: ids ``[B, T]``.
        keys: one typed key a sequence, shape ``[B]``.
        method: `"fixed"` hides nothing; `"lexinvariant"` gives each sequence a random table;
            `"relabel"` renames ids (`permute_tokens`); `"mixed"` makes some rows random.
        p: probability of renaming a type or of making its row random (the last two methods).
        per: see `permute_tokens`.
        closed: see `permute_tokens`.
        kind: law of random rows, see `RandomTable` (`"lexinvariant"` and `"mixed"`).

    Returns:
        The ids to read, the table to read them with (None for the learned one), and the mapping
        from old ids to new ``[B, V]`` where ids were renamed.

    Raises:
        ValueError: if `method` is unknown or does not fit `model.config.embedding`, or `p` is
            outside [0, 1], or given to a method that does not read it.

    Example:
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=8, num_layers=1))
        >>> keys, tokens = jax.random.split(jax.random.key(0), 1), jnp.array([[1, 1]])
        >>> renamed, table, mapping = anonymised(model, {}, tokens, keys, "relabel")
        >>> bool(renamed[0, 0] == renamed[0, 1] == mapping[0, 1]), table
        (True, None)
    """
    config = model.config
    validation.choice("method", method, METHODS)
    needed = "given" if method == "lexinvariant" else "fixed"
    if config.embedding != needed:
        raise ValueError(
            f"method={method!r} needs a model with config.embedding={needed!r}, got "
            f"{config.embedding!r}"
        )
    if method not in _READS_P and not validation.is_traced(p) and np.any(np.asarray(p) != 1):
        raise ValueError(_UNREAD.format(p, method))
    random = embeddings.RandomTable(keys, config.vocab_size, config.d_model, kind)
    if method == "lexinvariant":
        return tokens, random, None
    if method == "relabel":
        tokens, mapping = relabelling.permute_tokens(
            keys, tokens, config.vocab_size, p, per, closed
        )
        return tokens, None, mapping
    if method == "mixed":
        row_keys, mask_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        learned: Any = model.apply(params, method="token_table")
        mask = embeddings.random_rows(mask_keys, config.vocab_size, p)
        drawn = dataclasses.replace(random, keys=row_keys).whole()
        return tokens, embeddings.mix_embedding(mask, learned, drawn), None
    return tokens, None, None


def token_losses(
    model: models.DecoderLM,
    params: Any,
    batch: Batch,
    key: Key[Array, ""],
    *,
    method: Method | None = None,
    p: Probability = 1.0,
    per: Literal["type", "position"] = "type",
    closed: bool = False,
    kind: embeddings.Kind = "gaussian",
    chunk_size: int | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T"]:
    """Cross-entropy of every next token, in nats.

    Args:
        model: the language model.
        params: its variables.
        batch: `"tokens"`, ids ``[B, T + 1]``, and `"index"`, the global index of each sequence,
            which fixes its random table or its permutation.
        key: typed key of this step; used where something is random.
        method: how the identity of tokens is hidden, see `anonymised`; None for what
            `model.config.embedding` says.
        p: probability of hiding a type, for `"relabel"` and `"mixed"`; may be traced.
        per: see `permute_tokens`.
        closed: see `permute_tokens`.
        kind: see `anonymised`.
        chunk_size: score the vocabulary in pieces of this size
            (`models.chunked_cross_entropy`); None scores it at once.
        dropout_key: typed key of the model's dropout; None leaves nothing out.

    Returns:
        ``-log p(token[t + 1] | token[: t + 1])``, shape ``[B, T]``.

    Raises:
        ValueError: as `anonymised` and `models.chunked_cross_entropy`; chunks do not go with
            `"mixed"` nor with orthogonal rows.

    Example:
        >>> model = models.DecoderLM(models.DecoderConfig(vocab_size=8, num_layers=1))
        >>> batch = {"tokens": jnp.zeros((2, 5), int), "index": jnp.arange(2)}
        >>> params = jax.eval_shape(models.initializer(model), jax.random.key(0))
        >>> losses = lambda p: token_losses(model, p, batch, jax.random.key(1))
        >>> jax.eval_shape(losses, params).shape
        (2, 4)

    Source: arXiv 2305.16349 §2.3: one draw a training sequence, no gradient to random tables.
    """
    method = _method(model, method)
    keys = embeddings.sequence_keys(key, _index(batch))
    tokens, table, _ = anonymised(
        model, params, batch["tokens"], keys, method, p, per=per, closed=closed, kind=kind
    )
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    if chunk_size is None:
        if isinstance(table, embeddings.RandomTable):
            table = table.whole()
        logits: Any = model.apply(params, inputs, table, rngs=rngs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
    if method == "mixed":
        raise ValueError("chunk_size must be None with method='mixed', got a number")
    validation.choice("kind with chunk_size", kind, ("gaussian", "rademacher"))
    hidden: Any = model.apply(params, inputs, table, method="hidden_states", rngs=rngs)
    if table is None:
        table: Any = model.apply(params, method="readout_table")
    return models.chunked_cross_entropy(hidden, targets, table, chunk_size)


def _index(batch: Batch) -> Array:
    if not isinstance(batch, Mapping) or not {"tokens", "index"} <= batch.keys():
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch must hold 'tokens' and 'index', got {got}")
    return batch["index"]


def next_token_loss(
    model: models.DecoderLM,
    *,
    method: Method | None = None,
    p: Probability | optax.Schedule = 1.0,
    batch_size: int | None = None,
    per: Literal["type", "position"] = "type",
    closed: bool = False,
    kind: embeddings.Kind = "gaussian",
    chunk_size: int | None = None,
) -> Callable[[Any, Batch, Key[Array, ""]], Float[Array, ""]]:
    """Make the loss function `loss(params, batch, key)`: mean nats a token over the batch.

    Args:
        model: the language model.
        method: how the identity of tokens is hidden, see `anonymised`; None for what
            `model.config.embedding` says.
        p: probability of hiding a type, a number (may be traced), or a schedule of the step such
            as `relabelling_schedule`. The step of a sequence is `index // batch_size`, so that a
            resumed run goes on where it stopped.
        batch_size: sequences a step over all devices; needed if `p` is a schedule.
        per: see `permute_tokens`.
        closed: see `permute_tokens`.
        kind: see `anonymised`.
        chunk_size: see `token_losses`.

    Returns:
        A pure function for `jax.value_and_grad`; see `token_losses` for its arguments.

    Raises:
        ValueError: if `method` is unknown, `p` outside [0, 1] or given to a method that does not
            read it, or a schedule comes without `batch_size`.

    Example:
        >>> loss = next_token_loss(models.DecoderLM(models.DecoderConfig(vocab_size=8)))
    """
    if method is not None:
        validation.choice("method", method, METHODS)
    if callable(p):
        if batch_size is None:
            raise ValueError("batch_size must be given where p is a schedule, got None")
        validation.integer("batch_size", batch_size, minimum=1)
    else:
        validation.number("p", p, minimum=0, maximum=1)
    given = callable(p) or validation.is_traced(p) or p != 1
    if given and _method(model, method) not in _READS_P:
        raise ValueError(_UNREAD.format(p, _method(model, method)))

    def loss(params: Any, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        chance: Any = p
        if callable(p):
            chance = jax.vmap(p)(_index(batch) // batch_size)  # type: ignore[operator]
        losses = token_losses(
            model,
            params,
            batch,
            key,
            method=method,
            p=chance,
            per=per,
            closed=closed,
            kind=kind,
            chunk_size=chunk_size,
            dropout_key=jax.random.fold_in(key, 1) if model.config.dropout else None,
        )
        return jnp.mean(losses)

    return loss


def _method(model: models.DecoderLM, method: Method | None) -> Method:
    if method is None:
        return "lexinvariant" if model.config.embedding == "given" else "fixed"
    return method
