"""Recursive regularisation: convex stationary points from ever sharper problems (Algorithm 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import clipping, noise
from jaxkit.privacy.bounded_sums import ClippedGradient, widened
from jaxkit.privacy.one_pass import OnePass


class RecursiveRun(NamedTuple):
    """Result of `recursive_regularization`.

    Attributes:
        params: the output of the last round.
        round_params: outputs of all rounds.
    """

    params: PyTree
    round_params: Sequence[PyTree]


def selector_weights(num_steps: int, contraction: Any) -> Float[Array, " K"]:
    r"""Weights of iterates 1..K, proportional to :math:`(1-\eta\lambda)^{-k}`, summing to 1.

    Args:
        num_steps: K >= 1.
        contraction: eta * lambda in [0, 1).

    Source: arXiv 2206.00846 Algorithm 3.
    """
    validation.integer("num_steps", num_steps, minimum=1)
    validation.number("contraction", contraction, minimum=0, maximum=1, open_maximum=True)
    return jax.nn.softmax(-jnp.arange(1.0, num_steps + 1) * jnp.log1p(-contraction))


def noisy_gd(
    gradient: ClippedGradient,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    *,
    num_steps: int,
    learning_rate: Any,
    stddev: Any,
    radius: Any = math.inf,
    weights: Float[Array, " K"] | None = None,
    regulariser_gradient: Callable[[PyTree], PyTree] | None = None,
    first_release: int = 0,
    draw: noise.Draw = noise.gaussian_draw,
) -> PyTree:
    r"""Projected gradient descent on noisy full gradients, averaged over its iterates.

    .. math::
        w_{k+1} = \Pi_{\|w\|\le R}\big(w_k - \eta(\nabla F(w_k) + \sigma\xi_k + \nabla r(w_k))\big)

    `stddev` is sigma, of the noise on the *mean* gradient; `weights` are those of the iterates
    w_1..w_K in the output; the regulariser does not depend on the data; K - 1 gradients are
    released, the first as number `first_release`.

    Source: arXiv 2206.00846 Algorithm 7.
    """
    steps = validation.integer("num_steps", num_steps, minimum=1)
    validation.number("stddev", stddev, minimum=0)
    rows = clipping.batch_size("data", data)
    if weights is None:
        weights = jnp.full(steps, 1 / steps)
    weights = weights.astype(jnp.result_type(*jax.tree.leaves(params)))
    noise_key, example_key = jax.random.split(key)

    def step(carry, xs):
        params, average = carry
        index, weight = xs
        release = first_release + index
        total = gradient(params, data, jax.random.fold_in(example_key, release)).total
        mean = optax.tree.add_scale(
            optax.tree.scale(1 / rows, total), stddev, draw(noise_key, release, total)
        )
        if regulariser_gradient is not None:
            mean = optax.tree.add(mean, regulariser_gradient(params))
        moved = optax.tree.add_scale(params, -learning_rate, mean)
        params = optax.tree.scale(_inside(optax.tree.norm(moved), radius), moved)
        return (params, optax.tree.add_scale(average, weight, params)), None

    start = (params, optax.tree.scale(weights[0], params))
    (_, average), _ = jax.lax.scan(step, start, (jnp.arange(steps - 1), weights[1:]))
    return average


def recursive_regularization(
    plan: OnePass,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    *,
    regularisation: Any,
    steps_per_round: Sequence[int],
    radius: Any,
    draw: noise.Draw = noise.gaussian_draw,
) -> RecursiveRun:
    r"""Minimise a convex loss so that its gradient becomes small.

    Round t = 1..T runs `noisy_gd` on its own chunk of the data, on

    .. math:: f + \tfrac{\lambda}{2}\|w-w_0\|^2 + \sum_{s < t}\tfrac{2^s\lambda}{2}\|w-\bar w_s\|^2

    within radius :math:`2^{t/2}R` with step :math:`\log K_t/(2^t\lambda K_t)`, and averages its
    iterates with `selector_weights`. The paper's loop ends one round before its output: T rounds
    are run. Round t releases K_t - 1 mean gradients of its own m = n // T rows, with noise
    :math:`(C/m)\sqrt{K_t-1}\,z`, so that the whole costs one release; the paper has n in
    place of m, which is not private.

    Args:
        plan: from `one_pass`: clipped gradient sums of the loss f, and noise.
        params: w_0.
        data: tree of arrays ``[n, ...]`` in random order; each round uses n // T fresh rows.
        key: typed key of the noise and of a random loss.
        regularisation: lambda > 0.
        steps_per_round: K_t >= 2 of each round; their number is T.
        radius: R > 0, a bound on the norm of a minimiser.
        draw: source of the standard normals.

    Returns:
        The outputs of the rounds.

    Raises:
        ValueError: if a number is not allowed or there are too few rows.

    Source: arXiv 2206.00846 Algorithm 3; noise of Theorem 5.1 and Lemma D.3, repaired.

    Example:
        >>> from jaxkit import privacy
        >>> gradient = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0)
        >>> plan = privacy.one_pass(gradient, noise_multiplier=4.0, delta=1e-5)
        >>> data = (jnp.ones((2, 1)), jnp.ones(2))
        >>> settings = dict(regularisation=0.1, steps_per_round=[3, 3], radius=1.0)
        >>> def run(key):
        ...     return recursive_regularization(plan, jnp.zeros(1), data, key, **settings)
        >>> jax.eval_shape(run, jax.random.key(0)).params.shape
        (1,)
    """
    rounds = len(steps_per_round)
    validation.number("regularisation", regularisation, minimum=0, open_minimum=True)
    validation.number("radius", radius, minimum=0, open_minimum=True)
    if rounds < 1:
        raise ValueError("steps_per_round must have at least one round, got none")
    rows = clipping.batch_size("data", data)
    if rows < rounds:
        raise ValueError(f"data must have at least {rounds} rows, one a round, got {rows}")
    gradient, params, narrow = widened(plan.gradient, params)
    chunk, clip_norm = rows // rounds, clipping.total_clip_norm(gradient.clip_norm)
    centres = [(regularisation, params)]
    releases = 0
    for t, steps in enumerate(steps_per_round, 1):
        validation.integer("steps_per_round", steps, minimum=2)
        strength = 2**t * regularisation

        def pull(w, centres=tuple(centres)):
            terms = [optax.tree.scale(weight, optax.tree.sub(w, c)) for weight, c in centres]
            return jax.tree.map(lambda *leaves: sum(leaves), *terms)

        output = noisy_gd(
            gradient,
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda x, t=t: x[(t - 1) * chunk : t * chunk], data),
            key,
            num_steps=steps,
            learning_rate=math.log(steps) / (strength * steps),
            stddev=plan.noise_multiplier * clip_norm / chunk * math.sqrt(steps - 1),
            radius=2 ** (t / 2) * radius,
            weights=selector_weights(steps, math.log(steps) / steps),
            regulariser_gradient=pull,
            first_release=releases,
            draw=draw,
        )
        releases += steps - 1
        centres.append((strength, output))
    outputs = [narrow(output) for _, output in centres[1:]]
    return RecursiveRun(outputs[-1], outputs)


def _inside(norm, radius):
    return jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1))
