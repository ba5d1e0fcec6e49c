"""The solver behind every fit: variable projection, then Levenberg-Marquardt."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkit.losscurves import forms, laws

_MAX_STEPS = 400


class Problem(NamedTuple):
    """Arrays of one fit; every leaf may carry a batch axis for `vmap`; padding has weight 0.

    The prior is on log constants, its precision 1 / standard deviation, 0 where there is none.
    """

    features: forms.Features
    log_losses: Float[Any, " n"]
    weights: Float[Any, " n"]
    prior_centre: Float[Any, " c"]
    prior_precision: Float[Any, " c"]


class Solution(NamedTuple):
    """What the solver found.

    Attributes:
        log_constants: logarithms of linear then shape constants, centred, `[p + q]`.
        objective: sum of weighted Huber losses of the log residuals.
        residuals: log predicted - log observed, `[n]`.
        contributions: largest share of the loss that each linear constant makes up, `[p]`.
        converged: whether the solver met its tolerance.
        condition_number: of the Jacobian of the residuals in the log constants.
    """

    log_constants: Float[Any, " c"]
    objective: Float[Any, ""]
    residuals: Float[Any, " n"]
    contributions: Float[Any, " p"]
    converged: Bool[Any, ""]
    condition_number: Float[Any, ""]


@functools.partial(jax.jit, static_argnums=0)
def solve(
    model: forms.Separable,
    problem: Problem,
    starts: Float[Array, "starts q"],
    huber_delta: laws.Scalar,
) -> Solution:
    """Fit from a grid of shape constants: variable projection, then Levenberg-Marquardt.

    Pure; `vmap` over any axis of `problem` (decays, bootstrap samples, folds).
    """

    def project(shape: jax.Array) -> tuple[jax.Array, jax.Array]:
        linear = _project(model, problem, shape)
        theta = jnp.log(jnp.concatenate([linear, shape]))
        residuals = _residuals(model, problem, huber_delta, theta)
        return theta, jnp.sum(residuals**2)

    thetas, objectives = jax.lax.map(project, starts)
    _, best = jax.lax.top_k(-objectives, min(model.polished, starts.shape[0]))
    # One after the other: batched solver loops cost more to compile than they save.
    return _best(
        jax.lax.map(lambda theta: polish(model, problem, theta, huber_delta), thetas[best])
    )


def polish(
    model: forms.Separable,
    problem: Problem,
    theta: Float[Array, " c"],
    huber_delta: laws.Scalar,
) -> Solution:
    """Minimise the Huber objective in log constants from one start."""
    optimistix = _optimistix()
    # The exact Huber loss as a sum of squares: |r| beyond the corner becomes sqrt(2|r| - 1).
    residuals = functools.partial(_residuals, model, problem, huber_delta)
    tolerance = model.tolerance if theta.dtype == jnp.float64 else 1e-6
    found = optimistix.least_squares(
        lambda theta, _: residuals(theta),
        optimistix.LevenbergMarquardt(rtol=tolerance, atol=tolerance),
        theta,
        max_steps=_MAX_STEPS,
        throw=False,
    )
    linear, shape = jnp.split(jnp.exp(found.value), [model.num_linear])
    terms = model.columns(shape, *problem.features) * linear
    predicted = terms.sum(axis=-1)
    jacobian = jax.jacfwd(residuals)(found.value)
    singular = jnp.linalg.svd(jacobian, compute_uv=False)
    return Solution(
        found.value,
        jnp.sum(residuals(found.value) ** 2) / 2 * huber_delta**2,
        jnp.log(predicted) - problem.log_losses,
        jnp.max(jnp.abs(terms) / predicted[:, None], axis=0),
        found.result == optimistix.RESULTS.successful,
        singular[0] / singular[-1],
    )


@functools.partial(jax.jit, static_argnums=0)
def law_of(model: forms.Separable, problem: Problem, found: Solution) -> Any:
    """Return the law of a solution, in the units of the curves."""
    linear, shape = jnp.split(jnp.exp(found.log_constants), [model.num_linear])
    return model.law(linear, shape, problem.features.shared)


def _residuals(
    model: forms.Separable,
    problem: Problem,
    huber_delta: laws.Scalar,
    theta: Float[Array, " c"],
) -> Float[Array, " r"]:
    """Signed roots whose squares sum to twice the Huber objective, prior included."""
    linear, shape = jnp.split(jnp.exp(theta), [model.num_linear])
    predicted = model.columns(shape, *problem.features) @ linear
    # A trial step may predict a negative loss: a huge residual makes the solver refuse it.
    log_predicted = jnp.log(jnp.maximum(predicted, 1e-6))
    scaled = (log_predicted - problem.log_losses) / huber_delta
    size = jnp.abs(scaled)
    beyond = jnp.sign(scaled) * jnp.sqrt(2 * jnp.maximum(size, 1.0) - 1)
    roots = jnp.where(size <= 1, scaled, beyond) * jnp.sqrt(problem.weights)
    law = model.law(linear, shape, problem.features.shared)
    away = (jnp.log(jnp.stack(law)) - problem.prior_centre) * problem.prior_precision
    return jnp.concatenate([roots, away])


def _project(
    model: forms.Separable, problem: Problem, shape: Float[Array, " q"]
) -> Float[Array, " p"]:
    """Solve for the linear constants by weighted least squares of the relative residuals."""
    matrix = model.columns(shape, *problem.features)
    relative = jnp.sqrt(problem.weights)[:, None] * matrix / jnp.exp(problem.log_losses)[:, None]
    norms = jnp.linalg.norm(relative, axis=0)
    orthogonal, triangular = jnp.linalg.qr(relative / norms)
    right = orthogonal.T @ jnp.sqrt(problem.weights)
    linear = jax.scipy.linalg.solve_triangular(triangular, right)
    # Log constants cannot start at 0; a constant that belongs there runs back to it.
    return jnp.where(jnp.isfinite(linear), jnp.maximum(linear, 1e-3), 1e-3) / norms


def _best(found: Solution) -> Solution:
    objective = jnp.where(jnp.isfinite(found.objective), found.objective, jnp.inf)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(objective)], found)


def _optimistix() -> Any:
    try:
        import optimistix
    except ImportError as error:
        raise ImportError("fitting a law needs optimistix: pip install 'jaxkit[fits]'") from error
    return optimistix
