"""Refinement beside SciPy's filter and a step-by-step loop, and what recording norms costs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.ndimage
import timing

from jaxkit import datasets, jobs, lexinvariant, models, schedules
from jaxkit.experiments.evidence import Table

ROUNDS = 15


def run() -> list[Table]:
    """Time the pieces beside their peers, interleaved."""
    return [refinement(), recorder()]


def scipy_median(x: np.ndarray, width: int) -> np.ndarray:
    """The same filter by SciPy's C code, with the same edges."""
    padded = np.pad(x, (0, 2 * width), mode="reflect")
    return scipy.ndimage.median_filter(padded, size=width, mode="nearest")[: len(x)]


def closed_form_loop(norms: np.ndarray) -> np.ndarray:
    """The recursion one update at a time over NumPy arrays, as a script writes it."""
    weights, n = norms**-2.0, len(norms)
    tails, steps = np.zeros(n), np.zeros(n)
    for t in range(n - 2, -1, -1):
        tails[t] = tails[t + 1] + weights[t + 1]
    for t in range(n):
        steps[t] = weights[t] * tails[t]
    return steps / steps.max()


def refinement() -> Table:
    """Refine 10,000 and 100,000 norms."""
    rows = []
    refine = jax.jit(schedules.refine_schedule)
    closed = jax.jit(functools.partial(schedules.refine_schedule, smoothing=None))
    for n in (10_000, 100_000):
        norms = np.random.default_rng(0).lognormal(size=n).astype(np.float32)
        double, device, width = (
            norms.astype(np.float64),
            jnp.asarray(norms),
            n // 10 // 2 * 2 + 1,
        )
        seconds = timing.interleaved(
            {
                "refine_schedule, smoothing 0.1": functools.partial(refine, device),
                "SciPy median filter": functools.partial(scipy_median, norms, width),
                "refine_schedule, no smoothing": functools.partial(closed, device),
                "Python loop, no smoothing": functools.partial(closed_form_loop, double),
            },
            ROUNDS,
        )
        ours, scipy_filter, ours_closed, loop = seconds.values()
        rows += [
            [f"{name}, n = {n:,}", *spread(values * 1e3, "ms")] for name, values in seconds.items()
        ]
        rows.append([f"refine / SciPy's filter, n = {n:,}", *spread(ours / scipy_filter, "x")])
        rows.append([f"loop / refine, no smoothing, n = {n:,}", *spread(loop / ours_closed, "x")])
    return Table("Refinement of gradient norms", ["", "median", "range"], rows)


def recorder() -> Table:
    """Record the gradient norms of the main job's model."""
    config = jobs.TrainConfig()
    corpus = datasets.embedded_prose().train
    tokenizer = datasets.CharTokenizer.from_corpus(corpus)
    batches = datasets.token_batches(
        datasets.tokenize(corpus, tokenizer),
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    batch = jax.tree.map(jnp.asarray, next(batches))
    model = config.model(tokenizer.vocab_size)
    loss, key = lexinvariant.next_token_loss(model), jax.random.key(0)
    params = models.initializer(model)(key)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    recording = schedules.record_gradient_norms(config.steps, norm="l1")

    def step(optimizer, params, state):
        gradient = jax.grad(loss)(params, batch, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    sides, states = {}, {}
    for name, optimizer in (("plain", plain), ("recording", optax.chain(recording, plain))):
        states[name] = optimizer.init(params)
        compiled = jax.jit(functools.partial(step, optimizer))
        sides[f"step, {name}"] = functools.partial(compiled, params, states[name])
    alone = jax.jit(lambda gradient, state: recording.update(gradient, state)[1])
    sides["recorder alone"] = functools.partial(alone, params, recording.init(params))
    seconds = timing.interleaved(sides, ROUNDS)
    without, with_recorder, only = seconds.values()
    rows = [[name, *spread(values * 1e3, "ms")] for name, values in seconds.items()]
    rows.append(["recorder alone / step", *spread(100 * only / without, "%")])
    rows.append(["step, recording / plain", *spread(with_recorder / without, "x")])
    return Table("Recording gradient norms in the main job", ["", "median", "range"], rows)


def spread(values: np.ndarray, unit: str) -> tuple[str, str]:
    """Median and range, printable."""
    return f"{np.median(values):.3g} {unit}", f"{values.min():.3g} to {values.max():.3g}"
