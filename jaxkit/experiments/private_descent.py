"""The problems of the privacy experiment, and private descent on them for many seeds at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxkit import privacy


class Problem(NamedTuple):
    """A logistic model with the nonconvex, coercive regulariser `strength * sum(w^2 / (1 + w^2))`.

    Of the distinct rows, of norm at most 1: features `[m, r]`, labels in {-1, 1} and how many
    examples each stands for `[m]`. The rows proper are `x @ basis.T`, with orthonormal columns `[d,
    r]`, kept apart as products with them then cost r instead of d.
    """

    x: Float[Array, "m r"]
    y: Float[Array, " m"]
    counts: Int[Array, " m"]
    basis: Float[Array, "d r"]
    strength: Any = 1e-4

    @property
    def num_examples(self) -> int:
        """The number n of examples."""
        return int(np.sum(self.counts))


#: Smoothness of the loss of one row of norm 1, and of the whole objective.
LOSS_SMOOTHNESS = 0.25
SMOOTHNESS = LOSS_SMOOTHNESS + 2e-4
#: Of the guarantee on the prose.
DELTA = 1e-6


class Noise(NamedTuple):
    """Noise multipliers of the two kinds of release; plain descent has only the first."""

    anchor: Any
    variation: Any = 1.0


def vowel_problem() -> Problem:
    """Predict from a letter whether a vowel follows, over the prose embedded in Python.

    Letters a to z and one symbol for all else: 54 distinct rows with their counts stand for the
    half million examples.
    """
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics)).lower()
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8)
    letters = np.where((codes >= ord("a")) & (codes <= ord("z")), codes - ord("a"), 26)
    vowels = np.isin(letters[1:], [0, 4, 8, 14, 20]).astype(int)
    counts = np.bincount(2 * letters[:-1] + vowels, minlength=54)
    x = np.concatenate([np.repeat(np.eye(27), 2, axis=0), np.ones((54, 1))], axis=1)
    return Problem(
        jnp.asarray(x / np.sqrt(2), jnp.float32),
        jnp.tile(jnp.array([-1.0, 1.0]), 27),
        jnp.asarray(counts, jnp.int32),
        jnp.eye(28),
    )


def low_rank_problem(dimension: int, rank: int = 5, num_examples: int = 2000) -> Problem:
    """Rows of norm at most 1 in a random subspace; labels by a hidden direction of it."""
    random = np.random.default_rng(7)
    latent = random.normal(size=(num_examples, rank))
    latent /= np.maximum(1, np.linalg.norm(latent, axis=1, keepdims=True))
    labels = np.where(
        random.random(num_examples) < 1 / (1 + np.exp(-4 * latent @ random.normal(size=rank))),
        1,
        -1,
    )
    basis = np.linalg.qr(random.normal(size=(dimension, rank)))[0]
    return Problem(
        jnp.asarray(latent, jnp.float32),
        jnp.asarray(labels, jnp.float32),
        jnp.ones(num_examples, jnp.int32),
        jnp.asarray(basis, jnp.float32),
    )


def regulariser_gradient(strength: Any, w: Float[Array, " d"]) -> Float[Array, " d"]:
    """Gradient of `strength * sum(w^2 / (1 + w^2))`."""
    return strength * 2 * w / jnp.square(1 + jnp.square(w))


def gradient_norm(problem: Problem, w: Float[Array, " d"]) -> Float[Array, ""]:
    """Norm of the gradient of the whole objective: what stationarity is measured by."""
    scores = problem.x @ (w @ problem.basis)
    slopes = jax.vmap(jax.grad(privacy.logistic_loss))(scores, problem.y)
    mean = problem.basis @ ((problem.counts * slopes) @ problem.x) / jnp.sum(problem.counts)
    return jnp.linalg.norm(mean + regulariser_gradient(problem.strength, w))


def clipped_gradient(basis: Float[Array, "d r"]) -> privacy.ClippedGradient:
    """Clipped gradient sums of the logistic loss over rows `x @ basis.T`, from `(x, y)`.

    An isometry changes no norm, hence no clip and no sensitivity.
    """
    inner = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)

    def lifted(sums):
        return dataclasses.replace(sums, total=basis @ sums.total)

    return dataclasses.replace(
        inner,
        sum_fn=lambda w, *rest: lifted(inner.sum_fn(w @ basis, *rest)),
        difference_fn=lambda w, v, *rest: lifted(inner.difference_fn(w @ basis, v @ basis, *rest)),
    )


def _late_norm(problem: Problem, iterates: Array, lift: Any = lambda w: w) -> Float[Array, ""]:
    """Mean gradient norm over the last tenth of the iterates."""
    last = iterates[-max(1, len(iterates) // 10) :]
    return jnp.mean(jax.lax.map(lambda w: gradient_norm(problem, lift(w)), last))


def _descend(problem: Problem, privatize: Any, total: Any, learning_rate: Any, batches: Array):
    """Descend along private means of `total(w, batch)`; the late gradient norm."""

    def step(carry, batch):
        w, state = carry
        mean, state = privatize.update(total(w, batch), state)
        direction = optax.tree.add(mean, regulariser_gradient(problem.strength, w))
        w = optax.tree.add_scale(w, -learning_rate, direction)
        return (w, state), w

    start = jnp.zeros(problem.basis.shape[0])
    _, iterates = jax.lax.scan(step, (start, privatize.init(start)), batches)
    return _late_norm(problem, iterates)


@functools.partial(
    jax.jit, static_argnames=("num_steps", "phase_length", "poisson", "target_dimension")
)
def spiderboost_norms(
    problem: Problem,
    keys: Key[Array, " seeds"],
    noise: Noise,
    learning_rates: Float[Array, " rates"],
    *,
    num_steps: int,
    phase_length: int,
    poisson: bool = False,
    variation_rate: Any = 1.0,
    target_dimension: int | None = None,
) -> Float[Array, "rates seeds"]:
    """Mean gradient norm over the last tenth of SpiderBoost's iterates.

    With a `target_dimension` the rows are projected first and the iterates lifted back.
    """
    n: Any = jnp.sum(problem.counts)

    def run(learning_rate, key):
        run_key, projection_key = jax.random.split(key)
        x, basis, lift = problem.x, problem.basis, lambda w: w
        if target_dimension is not None:
            phi = privacy.projection(projection_key, basis.shape[0], target_dimension)
            x, lift = privacy.jl_embed(x, phi @ basis), lambda w: privacy.jl_lift(w, phi)
            basis = jnp.eye(target_dimension)
        plan = privacy.spiderboost(
            clipped_gradient(basis),
            privacy.Sampling("all", n, n, 0),
            privacy.Sampling("poisson" if poisson else "all", n, n * variation_rate, 0),
            num_steps=num_steps,
            phase_length=phase_length,
            difference_clip=LOSS_SMOOTHNESS,
            noise_multipliers=(noise.anchor, noise.variation),
            delta=DELTA,
        )
        iterates = privacy.run_spiderboost(
            plan,
            optax.sgd(learning_rate),
            jnp.zeros(basis.shape[0]),
            (x, problem.y),
            run_key,
            counts=problem.counts,
            regulariser_gradient=functools.partial(regulariser_gradient, problem.strength),
            probe=lambda w: w,
        ).record.probe
        return _late_norm(problem, iterates, lift)

    return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(learning_rates, keys)


@functools.partial(jax.jit, static_argnames=("num_steps", "poisson"))
def descent_norms(
    problem: Problem,
    keys: Key[Array, " seeds"],
    noise: Noise,
    learning_rates: Float[Array, " rates"],
    *,
    num_steps: int,
    poisson: bool = False,
    rate: Any = 1.0,
) -> Float[Array, "rates seeds"]:
    """Mean gradient norm over the last tenth of the iterates of DP-GD or DP-SGD."""
    n = jnp.sum(problem.counts)
    gradient = clipped_gradient(problem.basis)

    def run(learning_rate, key):
        noise_key, batch_key = jax.random.split(key)
        privatize = privacy.privatize_sum(noise.anchor, n * rate, noise_key)

        def total(w, index):
            counts = problem.counts
            if poisson:
                # Poisson sampling of identical rows: the number that take part is binomial.
                draw_key = jax.random.fold_in(batch_key, index)
                counts = jax.random.binomial(draw_key, problem.counts, rate).astype(jnp.int32)
            return gradient(w, (problem.x, problem.y), None, counts)

        return _descend(problem, privatize, total, learning_rate, jnp.arange(num_steps))

    return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(learning_rates, keys)


def shuffled(problem: Problem, key: Key[Array, ""]) -> Int[Array, " n"]:
    """Give every example as the index of its row, in random order."""
    rows = jnp.repeat(
        jnp.arange(problem.x.shape[0]), problem.counts, total_repeat_length=problem.num_examples
    )
    return jax.random.permutation(key, rows)


@functools.partial(jax.jit, static_argnames=("depth", "root_size", "num_rounds"))
def tree_norms(
    problem: Problem,
    stream: Int[Array, " n"],
    keys: Key[Array, " seeds"],
    noise_multiplier: Any,
    betas: Float[Array, " betas"],
    *,
    depth: int,
    root_size: int,
    num_rounds: int,
) -> Float[Array, "betas seeds"]:
    """Gradient norm at the leaf of tree SPIDER whose estimate is the shortest."""
    data = problem.x[stream], problem.y[stream]

    def run(beta, key):
        # lax.map, not vmap: under vmap every level's batch would be evaluated at every leaf.
        gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
        found = privacy.tree_spider(
            privacy.one_pass(gradient, noise_multiplier=noise_multiplier, delta=1e-5),
            jnp.zeros(problem.x.shape[1]),
            data,
            key,
            depth=depth,
            root_size=root_size,
            num_rounds=num_rounds,
            smoothness=LOSS_SMOOTHNESS,
            beta=beta,
            regulariser_gradient=functools.partial(regulariser_gradient, problem.strength),
        )
        return gradient_norm(problem, found.best_params)

    return jax.lax.map(lambda beta: jax.lax.map(functools.partial(run, beta), keys), betas)


@functools.partial(jax.jit, static_argnames="num_steps")
def one_pass_descent_norms(
    problem: Problem,
    stream: Int[Array, " n"],
    keys: Key[Array, " seeds"],
    noise_multiplier: Any,
    learning_rates: Float[Array, " rates"],
    *,
    num_steps: int,
) -> Float[Array, "rates seeds"]:
    """Gradient norm of one-pass DP-SGD with disjoint batches, averaged over its last tenth."""
    size = stream.shape[0] // num_steps
    batches = stream[: size * num_steps].reshape(num_steps, size)
    gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)

    def run(learning_rate, key):
        privatize = privacy.privatize_sum(noise_multiplier, size, key)

        def total(w, rows):
            return gradient(w, (problem.x[rows], problem.y[rows]))

        return _descend(problem, privatize, total, learning_rate, batches)

    return jax.lax.map(lambda rate: jax.vmap(functools.partial(run, rate))(keys), learning_rates)
