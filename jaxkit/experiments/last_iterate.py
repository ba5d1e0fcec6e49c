"""A convex problem for the refinement experiment: least absolute deviations, one sample a step.

f(x) = mean_i |a_i . x - b_i| with heavy-tailed noise in b: convex, Lipschitz and noisy to the end,
which is what the theory of linear decay is about. The whole grid of schedules, rates and seeds is
one program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, Key

SAMPLES, DIMENSION = 4000, 20


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw A [samples, dimension] and b; solve for the smallest f by linear programming."""
    from scipy import optimize, sparse

    rng = np.random.default_rng(seed)
    a = rng.normal(size=(SAMPLES, DIMENSION))
    b = a @ rng.normal(size=DIMENSION) + rng.standard_t(2, size=SAMPLES)
    # min sum(t) subject to -t <= A x - b <= t.
    identity = sparse.eye_array(SAMPLES)
    constraints = sparse.block_array([[a, -identity], [-a, -identity]], format="csc")
    cost = np.concatenate([np.zeros(DIMENSION), np.ones(SAMPLES) / SAMPLES])
    bounds = [(None, None)] * DIMENSION + [(0, None)] * SAMPLES
    solution = optimize.linprog(
        cost, A_ub=constraints, b_ub=np.concatenate([b, -b]), bounds=bounds, method="highs"
    )
    if not solution.success:
        raise RuntimeError(f"the reference optimum was not found: {solution.message}")
    return a.astype(np.float32), b.astype(np.float32), float(solution.fun)


@functools.partial(jax.jit, static_argnames="largest_batch")
def excess_losses(
    keys: Key[Array, " seeds"],
    peaks: Float[Array, "schedules peaks"],
    shapes: Float[Array, "schedules steps"],
    batches: Int[Array, " steps"],
    a: Float[Array, "samples dimension"],
    b: Float[Array, " samples"],
    minimum: Float[Array, ""],
    *,
    largest_batch: int = 1,
) -> tuple[Float[Array, "2 schedules peaks seeds"], Float[Array, "schedules peaks seeds steps"]]:
    """Subgradient descent for every schedule, peak and seed.

    The seeds of the sample order are shared by all schedules; an update averages as many samples as
    `batches` says. Returns f - minimum at the last iterate and at the mean of all, and the
    gradient norms.
    """

    def one(shape, peak, key):
        def update(carry, inputs):
            x, total = carry
            step, rate, batch = inputs
            rows = jax.random.randint(jax.random.fold_in(key, step), (largest_batch,), 0, len(a))
            signs = jnp.sign(a[rows] @ x - b[rows]) * (jnp.arange(largest_batch) < batch)
            gradient = signs @ a[rows] / batch
            x = x - peak * rate * gradient
            return (x, total + x), jnp.linalg.norm(gradient)

        start = jnp.zeros(a.shape[1])
        inputs = (jnp.arange(len(shape)), shape, batches)
        (x, total), norms = lax.scan(update, (start, start), inputs)
        mean = total / len(shape)
        return jnp.stack([jnp.abs(a @ p - b).mean() - minimum for p in (x, mean)]), norms

    over_seeds = jax.vmap(one, in_axes=(None, None, 0))
    over_peaks = jax.vmap(over_seeds, in_axes=(None, 0, None))
    losses, norms = jax.vmap(over_peaks, in_axes=(0, 0, None))(shapes, peaks, keys)
    return jnp.moveaxis(losses, -1, 0), norms
