"""Representation descriptors: what an adapter's input was, and how strange new input is."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import validation


class Descriptor(NamedTuple):
    """Parameters of one descriptor, or of many stacked along leading axes."""

    encoder_kernel: Float[Array, "*stack d m"]
    encoder_bias: Float[Array, "*stack m"]
    decoder_kernel: Float[Array, "*stack m d"]
    decoder_bias: Float[Array, "*stack d"]


def init_descriptor(key: Key[Array, ""], width: int, descriptor_dim: int = 128) -> Descriptor:
    r"""Draw a fresh descriptor: weights $U(\pm 1/\sqrt{\text{inputs}})$, biases 0."""
    encoder, decoder = jax.random.split(key)
    low, high = width**-0.5, descriptor_dim**-0.5
    return Descriptor(
        jax.random.uniform(encoder, (width, descriptor_dim), minval=-low, maxval=low),
        jnp.zeros(descriptor_dim),
        jax.random.uniform(decoder, (descriptor_dim, width), minval=-high, maxval=high),
        jnp.zeros(width),
    )


def representation_error(
    descriptor: Descriptor, pooled: Float[Array, "*batch d"]
) -> Float[Array, "*batch"]:
    r"""How badly one descriptor reconstructs: $r(p) = \frac1d \|p - ((pE + e)D + c)\|^2$.

    `pooled` is the residual stream after attention, averaged over all tokens.

    Source: the official program; arXiv 2403.18886 eq. (2) prints a sum over the width and does not
    say that tokens are pooled.
    """
    code = pooled @ descriptor.encoder_kernel + descriptor.encoder_bias
    rest = pooled - (code @ descriptor.decoder_kernel + descriptor.decoder_bias)
    return jnp.mean(rest**2, axis=-1)


#: How a batch of z-scores becomes one score.
SHIFT_RULES = ("batch_mean_abs", "signed_any_sample")

#: With this many errors or fewer there is no deviation worth the name, and every z-score is 0.
FEWEST = 2


class ErrorRecords(NamedTuple):
    """Errors on record, oldest first, of which `count` mean something; may be stacked."""

    values: Float[Array, "*stack buffer"]
    count: Int[Array, "*stack"]


def empty_records(buffer_size: int = 500, stack: tuple[int, ...] = ()) -> ErrorRecords:
    """Make records without an error; fewer than 3 could never signal a shift."""
    if validation.integer("buffer_size", buffer_size) <= FEWEST:
        raise ValueError(
            f"buffer_size must be an integer >= {FEWEST + 1}, for fewer errors have no deviation "
            f"to compare with, got {buffer_size}"
        )
    return ErrorRecords(jnp.zeros((*stack, buffer_size)), jnp.zeros(stack, jnp.int32))


def record_errors(
    records: ErrorRecords, errors: Float[Array, " B"], num_valid: Int[Array, ""] | int
) -> ErrorRecords:
    """Append the first `num_valid` errors of a batch to one record.

    A full record forgets as many of the oldest as it takes. While it fills, what does not fit is
    dropped (the official program's rule).
    """
    values, count = records
    size = values.shape[-1]
    full = count == size
    taken = jnp.where(full, num_valid, jnp.minimum(num_valid, size - count))
    evicted = jnp.where(full, num_valid, 0)
    source = jnp.arange(size) + evicted
    kept = values[jnp.minimum(source, size - 1)]
    fresh = errors[jnp.clip(source - count, 0, len(errors) - 1)]
    new_count = count - evicted + taken
    merged = jnp.where(source < count, kept, fresh)
    return ErrorRecords(jnp.where(jnp.arange(size) < new_count, merged, 0.0), new_count)


def record_statistics(
    records: ErrorRecords,
) -> tuple[Float[Array, "*stack"], Float[Array, "*stack"]]:
    r"""Mean $\mu$ and unbiased deviation $\sigma$ of the errors on record; 0 without any."""
    values, count = records
    held = jnp.arange(values.shape[-1]) < count[..., None]
    mean = jnp.sum(jnp.where(held, values, 0), -1) / jnp.maximum(count, 1)
    # Two passes: errors of a good descriptor differ by far less than their mean.
    squares = jnp.sum(jnp.where(held, (values - mean[..., None]) ** 2, 0), -1)
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def z_scores(records: ErrorRecords, errors: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    r"""Signed deviation of errors from one record: $z = (r - \mu) / \sigma$.

    0 while the record holds at most two errors. Where all errors on record are equal, 0 for the
    same error and infinite for another.

    Source: arXiv 2403.18886 section 3.6; the rule for two errors is the official program's.
    """
    mean, deviation = record_statistics(records)
    distance = errors - mean
    constant = jnp.where(distance == 0, 0.0, jnp.sign(distance) * jnp.inf)
    scores = jnp.where(deviation > 0, distance / jnp.where(deviation > 0, deviation, 1), constant)
    return jnp.where(records.count <= FEWEST, 0.0, scores)


def shift_score(
    scores: Float[Array, "K B"],
    active: Bool[Array, " K"],
    num_valid: Int[Array, ""] | int,
    rule: str = "batch_mean_abs",
) -> Float[Array, ""]:
    r"""Score of a batch in one block, to be compared with the threshold, from signed z.

    `"batch_mean_abs"` (official program): $\min_k \frac1B \sum_b |z_{kb}|$, about
    $\sqrt{2/\pi} = 0.8$ on familiar data. `"signed_any_sample"` (the paper's wording):
    $\max_b \min_k z_{kb}$, some sample that every descriptor finds unusual.

    Source: arXiv 2403.18886 section 3.6.
    """
    validation.choice("rule", rule, SHIFT_RULES)
    valid = jnp.arange(scores.shape[-1]) < num_valid
    if rule == "batch_mean_abs":
        mean = jnp.sum(jnp.where(valid, jnp.abs(scores), 0), -1) / num_valid
        return jnp.min(jnp.where(active, mean, jnp.inf))
    least = jnp.min(jnp.where(active[:, None], scores, jnp.inf), 0)
    return jnp.max(jnp.where(valid, least, -jnp.inf))
