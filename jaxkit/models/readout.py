"""From hidden states to scores of tokens, whole or by pieces of the vocabulary."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkit import training, validation
from jaxkit.models import products


@runtime_checkable
class TokenTable(Protocol):
    """A token table, one a sequence, that is computed where it is read: a pytree with two methods.

    Attributes:
        shape: ``(B, V, D)``.

    Example:
        >>> from jaxkit import lexinvariant
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> isinstance(lexinvariant.RandomTable(keys, 8, 4), TokenTable)
        True
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, V, D)``."""
        ...

    def rows(self, tokens: Int[Array, "B T"], /) -> Float[Array, "B T D"]:
        """Rows of ids in ``[0, V)``."""
        ...

    def whole(self) -> Float[Array, "B V D"]:
        """All rows."""
        ...


def scores(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"] | Float[Array, "B V D"]
) -> Float[Array, "B T V"]:
    r"""Score hidden states against the rows of a table.

    .. math:: s_{b,t,v} = \langle h_{b,t}, E_b[v] \rangle / \sqrt{D}

    The table, one or one a sequence, is cast to the type of the hidden states; scores are float32.

    Source: arXiv 2305.16349 §2.3; the factor is not in the paper: with :math:`|h| \approx \sqrt{D}`
    a matching row scores :math:`\sqrt{D}` against noise of variance 1.
    """
    if table.ndim == 2:
        product = products.score_rows(hidden, table)
    else:
        table = training.constrain(table.astype(hidden.dtype), "batch", "vocab", None)
        product = jnp.einsum("btd,bvd->btv", hidden, table, preferred_element_type=jnp.float32)
        product = training.constrain(product, "batch", None, "vocab")
    return product * hidden.shape[-1] ** -0.5


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    embedding: Float[Array, "V D"] | TokenTable,
    chunk_size: int,
) -> Float[Array, "B T"]:
    r"""Cross-entropy of `scores` against a table that never exists whole.

    .. math:: -s_{t, y_t} + \log \sum_{\text{chunks}} \sum_{v \in \text{chunk}} \exp s_{t,v}

    The sum runs over pieces of the vocabulary; the rows of a `TokenTable` are computed piece by
    piece, and again in the backward pass, so that memory holds ``[B, C, D]`` rows and ``[B, T, C]``
    scores instead of ``[B, V, D]`` and ``[B, T, V]``.

    Args:
        hidden: hidden states ``[B, T, D]``, as `DecoderLM.hidden_states` gives them.
        targets: ids ``[B, T]`` of the correct tokens.
        embedding: the table ``[V, D]`` of all sequences, or a `TokenTable`.
        chunk_size: ids a piece ``C``; need not divide ``V``.

    Returns:
        Cross-entropy in nats, ``[B, T]``.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if `chunk_size` is not positive, or the table does not fit the hidden states.

    Example:
        >>> hidden, targets = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)
        >>> losses = chunked_cross_entropy(hidden, targets, jnp.ones((8, 4)), chunk_size=3)
        >>> round(float(losses[0, 0]), 4)
        2.0794
    """
    validation.integer("chunk_size", chunk_size, minimum=1)
    if targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets must be {list(hidden.shape[:2])} like hidden, got {targets.shape}"
        )
    batch, _, width = hidden.shape
    vocab_size = embedding.shape[-2]
    computed = embedding if isinstance(embedding, TokenTable) else None
    pieces = None
    if embedding.shape != ((batch, vocab_size, width) if computed else (vocab_size, width)):
        raise ValueError(
            f"embedding must have shape [V, {width}], or [{batch}, V, {width}] if it is a "
            f"TokenTable, got {embedding.shape}"
        )
    num_chunks = -(-vocab_size // chunk_size)
    starts = chunk_size * jnp.arange(num_chunks)
    if computed is None:
        padding = ((0, num_chunks * chunk_size - vocab_size), (0, 0))
        padded = jnp.pad(embedding, padding)  # type: ignore[arg-type]
        pieces = padded.reshape(num_chunks, chunk_size, -1)

    @jax.checkpoint
    def add_chunk(carry: tuple[Array, Array], chunk: tuple[Array, Any]):
        log_total, target_score = carry
        start, rows = chunk
        ids = start + jnp.arange(chunk_size)
        if computed is not None:
            rows = computed.rows(
                jnp.broadcast_to(jnp.minimum(ids, vocab_size - 1), (batch, chunk_size))
            )
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
