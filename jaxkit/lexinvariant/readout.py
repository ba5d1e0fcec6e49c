"""From hidden states to scores of tokens, whole or by pieces of the vocabulary."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation
from jaxkit.lexinvariant import embeddings, products


def scores(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"] | Float[Array, "B V D"]
) -> Float[Array, "B T V"]:
    r"""Score hidden states against the rows of a table.

    .. math:: s_{b,t,v} = \langle h_{b,t}, E_b[v] \rangle / \sqrt{D}

    Args:
        hidden: hidden states ``[B, T, D]``; the table is cast to their type.
        table: one table ``[V, D]``, or one a sequence ``[B, V, D]``.

    Returns:
        Float32 scores ``[B, T, V]``.

    Example:
        >>> scores(jnp.ones((1, 2, 4)), jnp.ones((3, 4)))[0, 0].tolist()
        [2.0, 2.0, 2.0]

    Source: arXiv 2305.16349 §2.3; the factor is not in the paper: with :math:`|h| \approx \sqrt{D}`
    a matching row scores :math:`\sqrt{D}` against noise of variance 1.
    """
    table = table.astype(hidden.dtype)
    if table.ndim == 2:
        product = products.project(hidden, table.T, preferred_element_type=jnp.float32)
    else:
        product = jnp.einsum("btd,bvd->btv", hidden, table, preferred_element_type=jnp.float32)
    return product * hidden.shape[-1] ** -0.5


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    embedding: Float[Array, "V D"] | Key[Array, " B"],
    vocab_size: int,
    chunk_size: int,
    kind: embeddings.Kind = "gaussian",
) -> Float[Array, "B T"]:
    r"""Cross-entropy of `scores` against a table that never exists whole.

    .. math:: -s_{t, y_t} + \log \sum_{\text{chunks}} \sum_{v \in \text{chunk}} \exp s_{t,v}

    The sum runs over pieces of the vocabulary; rows given as keys are drawn piece by piece and
    drawn again in the backward pass, so that memory holds ``[B, C, D]`` rows and ``[B, T, C]``
    scores instead of ``[B, V, D]`` and ``[B, T, V]``.

    Args:
        hidden: hidden states ``[B, T, D]``, as `DecoderLM.hidden_states` gives them.
        targets: ids ``[B, T]`` of the correct tokens.
        embedding: the table ``[V, D]`` of all sequences, or one typed key a sequence, ``[B]``.
        vocab_size: number of ids ``V``.
        chunk_size: ids a piece ``C``; need not divide ``V``.
        kind: law of the random rows, `"gaussian"` or `"rademacher"`.

    Returns:
        Cross-entropy in nats, ``[B, T]``.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if `chunk_size` is not positive, the table does not have `vocab_size` rows, or
            `kind` is `"orthogonal"`, whose rows cannot be drawn apart.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> hidden, targets = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)
        >>> losses = chunked_cross_entropy(hidden, targets, keys, 8, chunk_size=3)
        >>> round(float(losses[0, 0]), 4)
        2.0794
    """
    validation.integer("chunk_size", chunk_size, minimum=1)
    num_chunks = -(-vocab_size // chunk_size)
    starts = chunk_size * jnp.arange(num_chunks)
    drawn = embeddings.is_keys(embedding)
    pieces: Any = None
    if drawn:
        validation.choice("kind", kind, ("gaussian", "rademacher"))
        embeddings.check_keys(embedding, hidden.shape[0])
    else:
        if embedding.shape != (vocab_size, hidden.shape[-1]):
            raise ValueError(
                f"embedding must have shape {(vocab_size, hidden.shape[-1])}, got {embedding.shape}"
            )
        padding = ((0, num_chunks * chunk_size - vocab_size), (0, 0))
        pieces = jnp.pad(embedding, padding).reshape(num_chunks, chunk_size, -1)

    @jax.checkpoint
    def add_chunk(carry: tuple[Array, Array], chunk: tuple[Array, Array | None]):
        log_total, target_score = carry
        start, rows = chunk
        ids = start + jnp.arange(chunk_size)
        if rows is None:
            everywhere = jnp.broadcast_to(ids, (hidden.shape[0], chunk_size))
            rows = embeddings.embedding_rows(embedding, everywhere, hidden.shape[-1], kind)  # type: ignore
        piece = jnp.where(ids < vocab_size, scores(hidden, rows), -jnp.inf)
        log_total = jnp.logaddexp(log_total, jax.nn.logsumexp(piece, axis=-1))
        inside = (targets >= start) & (targets < start + chunk_size)
        where = jnp.where(inside, targets - start, 0)[..., None]
        found = jnp.take_along_axis(piece, where, axis=-1)[..., 0]
        return (log_total, jnp.where(inside, found, target_score)), None

    nothing = jnp.full(targets.shape, -jnp.inf, jnp.float32)
    (log_total, target_score), _ = jax.lax.scan(
        add_chunk, (nothing, jnp.zeros_like(nothing)), (starts, pieces)
    )
    return log_total - target_score
