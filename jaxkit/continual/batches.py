"""Batches of constant shapes, drawn so that any step of a phase can be drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxkit.continual.picture_images import PictureImages
from jaxkit.datasets.mapped import forget_pages


class StepBatches(NamedTuple):
    """Up to S steps of a phase; arrays of NumPy or JAX.

    Attributes:
        inputs: `[S, B, ...]`.
        labels: `[S, B]`.
        num_valid: rows that count in each batch; the rest is padding, int32 `[S]`.
        learning_rate: `[S]`.
        step: number of each step within the phase, for random routings and augmentation, `[S]`.
        num_steps: steps to run, at most S.
    """

    inputs: Any
    labels: Any
    num_valid: Any
    learning_rate: Any
    step: Any
    num_steps: Any


def draw_batches(
    inputs: Any,
    labels: Int[np.ndarray, " n"],
    order: Sequence[int],
    learning_rates: Float[np.ndarray, " epochs"],
    first: int,
    count: int,
    *,
    batch_size: int,
    capacity: int,
) -> StepBatches:
    """Draw steps `first` to `first + count` of a phase; beyond `count` the arrays hold padding.

    Each pass has an order of its own, which the numbers of `order` seed, and its last batch may be
    smaller. Pictures on disk are decoded now. `capacity` is `S`.
    """
    per_epoch = -(-len(labels) // batch_size)
    rows = np.zeros((capacity, batch_size), np.int64)
    valid = np.ones(capacity, np.int32)
    rates, steps = np.zeros(capacity, np.float32), np.zeros(capacity, np.int32)
    for i, step in enumerate(range(first, first + count)):
        epoch, batch = divmod(step, per_epoch)
        shuffled = draw_order((*order, epoch), len(labels))
        drawn = shuffled[batch * batch_size : (batch + 1) * batch_size]
        rows[i, : len(drawn)], valid[i] = drawn, len(drawn)
        rates[i], steps[i] = learning_rates[epoch], step
    if isinstance(inputs, PictureImages):
        seed = int(np.random.SeedSequence(list(order)).generate_state(1)[0])
        chosen = np.zeros((*rows.shape, *inputs.shape[1:]), np.float32)
        for i in range(count):
            part = rows[i, : valid[i]]
            epoch = int(steps[i]) // per_epoch
            chosen[i, : valid[i]] = (
                inputs.drawn(part, seed, epoch) if inputs.augmented else inputs[part]
            )
    else:
        chosen = np.asarray(inputs[rows.reshape(-1)], np.float32)
        chosen = chosen.reshape(*rows.shape, *inputs.shape[1:])
        forget_pages(inputs)
    return StepBatches(
        chosen, labels[rows].astype(np.int32), valid, rates, steps, np.asarray(count, np.int32)
    )


def draw_order(order: Sequence[int], length: int) -> Int[np.ndarray, " n"]:
    """A permutation that the numbers determine."""
    return np.random.default_rng(list(order)).permutation(length)


def cosine_rates(learning_rate: float, num_epochs: int) -> Float[np.ndarray, " num_epochs"]:
    r"""Rate of each pass: $\eta_e = \eta_0 (1 + \cos(\pi e/E))/2$."""
    return learning_rate * (1 + np.cos(np.pi * np.arange(num_epochs) / num_epochs)) / 2


def pad_rows(rows: Any, size: int) -> Float[np.ndarray, "size ..."]:
    """Float32 rows, with zeros after them up to `size`."""
    found, missing = np.asarray(rows, np.float32), size - len(rows)
    return np.pad(found, [(0, missing)] + [(0, 0)] * (rows.ndim - 1)) if missing else found


def padded_batches(rows: Any, size: int) -> Iterator[tuple[Float[np.ndarray, "size ..."], int]]:
    """Batches of `size` rows in order, each with the number of its rows that are real."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield pad_rows(part, size), len(part)
        forget_pages(rows)


_SUM, _ROWS = optax.microbatching.AccumulationType.SUM, optax.microbatching.AccumulationType.CONCAT


def in_parts(run: Callable[[Any, Array], PyTree], inputs: Any, size: int) -> PyTree:
    """Rows that `run` makes of inputs and their numbers, `size` rows at a time."""
    rows = jnp.arange(len(inputs))
    whole = size == len(rows)
    return optax.microbatching.microbatch(run, (0, 1), None if whole else size, _ROWS,
                                          in_axes=(0, 0))(inputs, rows)  # fmt: skip


def gradient_in_parts(
    loss_fn: Callable[[Any, Any, Array, Array], tuple[Float[Array, " b"], PyTree]],
    params: Any,
    batch: StepBatches,
    size: int,
) -> tuple[Float[Array, ""], PyTree, Any]:
    """Mean loss over the rows that count, what else `loss_fn` makes of rows, and the gradient.

    Only the activations of `size` rows, which divides the batch, are in memory at once. `loss_fn`
    takes parameters, inputs, labels and the numbers of the rows.
    """

    def part(params: Any, inputs: Any, labels: Array, rows: Array) -> Any:
        def share(params: Any) -> tuple[Array, PyTree]:
            losses, seen = loss_fn(params, inputs, labels, rows)
            return jnp.sum(jnp.where(rows < batch.num_valid, losses, 0)) / batch.num_valid, seen

        return jax.value_and_grad(share, has_aux=True)(params)

    whole = size == len(batch.labels)
    (loss, seen), gradient = optax.microbatching.microbatch(
        part, (1, 2, 3), None if whole else size, ((_SUM, _ROWS), _SUM), in_axes=(0, 0, 0)
    )(params, batch.inputs, batch.labels, jnp.arange(len(batch.labels)))
    return loss, seen, gradient


def run_steps(
    step: Callable[[Any, StepBatches], tuple[Any, Array]], learning: Any, batches: StepBatches
) -> tuple[Any, Float[Array, " S"]]:
    """Advance by `num_steps` steps inside one program; losses of steps not run are 0."""
    per_step = batches._replace(num_steps=batches.step)

    def body(index: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        learning, losses = carry
        learning, loss = step(learning, jax.tree.map(lambda leaf: leaf[index], per_step))
        return learning, losses.at[index].set(loss)

    losses = jnp.zeros(batches.learning_rate.shape, batches.learning_rate.dtype)
    return lax.fori_loop(0, batches.num_steps, body, (learning, losses))
