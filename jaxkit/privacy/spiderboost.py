"""Private SpiderBoost: noisy anchors, then noisy gradient differences (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import batches, mechanisms, noise
from jaxkit.privacy.clipped_gradients import BoundedSum, ClippedGradient, Mask


class SpiderBoostState(NamedTuple):
    """State of the estimator: two copies of the parameters.

    Attributes:
        step: number of estimates made, int32.
        key: typed key of the run.
        prev_params: parameters of the last estimate.
        estimate: the last estimate, float32.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    prev_params: PyTree
    estimate: PyTree[Float[Array, " ..."]]


class SpiderBoost(NamedTuple):
    """The gradient estimator: feed `SpiderBoostState.estimate` to any optax optimizer.

    Attributes:
        init: `init(params, key)` gives the first state.
        anchor: `anchor(state, params, batch, mask)` starts a phase from fresh gradients.
        variation: `variation(state, params, batch, mask)` adds the change of the gradients since
            the last estimate; its noise follows the actual distance of the parameters.
    """

    init: Callable[[PyTree, Key[Array, ""]], SpiderBoostState]
    anchor: Callable[..., tuple[SpiderBoostState, BoundedSum]]
    variation: Callable[..., tuple[SpiderBoostState, BoundedSum]]


def spiderboost(
    gradient: ClippedGradient,
    *,
    difference_clip: Any,
    anchor_noise_multiplier: Any,
    variation_noise_multiplier: Any,
    anchor_size: Any,
    variation_size: Any,
    draw: noise.Draw = noise.gaussian_draw,
) -> SpiderBoost:
    r"""Make the estimator of Private SpiderBoost.

    .. math::
        \text{anchor: } \nabla_t = \frac{1}{b_1}\Big(\sum_i \mathrm{clip}_{C_1}(\nabla f(w_t;x_i)) +
        z_1 C_1 \xi\Big)

    .. math::
        \text{variation: } \nabla_t = \nabla_{t-1} + \frac{1}{b_2}\Big(\sum_i \mathrm{clip}_{B_t}
        (\nabla f(w_t;x_i) - \nabla f(w_{t-1};x_i)) + z_2 B_t \xi\Big), \quad
        B_t = \min(C_2\|w_t-w_{t-1}\|, 2C_1)

    Args:
        gradient: clipped gradient sums; its clip norm is C1 (the paper's L0).
        difference_clip: C2 >= 0, the bound on a difference per unit of distance (the paper's L1).
        anchor_noise_multiplier: z1, from `calibrate_spiderboost`.
        variation_noise_multiplier: z2.
        anchor_size: b1, the expected size of the batches of anchors: a constant.
        variation_size: b2, that of the batches of variations.
        draw: source of the standard normals; replace it only to replay recorded noise.

    Returns:
        The estimator.

    Raises:
        ValueError: if a number is not allowed.

    Source: arXiv 2206.00846 Algorithm 2; the bounds replace the Lipschitz assumptions.

    Example:
        >>> from jaxkit.privacy import glm
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> estimator = spiderboost(
        ...     gradient, difference_clip=0.25, anchor_noise_multiplier=0.0,
        ...     variation_noise_multiplier=0.0, anchor_size=1, variation_size=1,
        ... )
        >>> batch, params = (jnp.ones((1, 1)), jnp.ones(1)), jnp.zeros(1)
        >>> start = estimator.init(params, jax.random.key(0))
        >>> state, _ = jax.jit(estimator.anchor)(start, params, batch)
        >>> state.estimate.tolist()
        [-0.5]
    """
    for name, value in (
        ("difference_clip", difference_clip),
        ("anchor_noise_multiplier", anchor_noise_multiplier),
        ("variation_noise_multiplier", variation_noise_multiplier),
    ):
        validation.number(name, value, minimum=0)
    for name, value in (("anchor_size", anchor_size), ("variation_size", variation_size)):
        validation.number(name, value, minimum=0, open_minimum=True)

    def init(params, key):
        noise.check_key(key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        return SpiderBoostState(jnp.zeros((), jnp.int32), key, params, zeros)

    def released(state, total, scale):
        xi = draw(jax.random.fold_in(state.key, 0), state.step, total)
        return optax.tree.add_scale(total, scale, xi)

    def anchor(state, params, batch, mask: Mask = None):
        sums = gradient(params, batch, _example_key(state), mask)
        noisy = released(state, sums.total, anchor_noise_multiplier * sums.clip_norm)
        estimate = optax.tree.scale(1 / anchor_size, noisy)
        return SpiderBoostState(state.step + 1, state.key, params, estimate), sums

    def variation(state, params, batch, mask: Mask = None):
        distance = _distance(params, state.prev_params)
        bound = jnp.minimum(difference_clip * distance, 2 * gradient.clip_norm)
        sums = gradient.difference(
            params, state.prev_params, batch, bound, _example_key(state), mask
        )
        noisy = released(state, sums.total, variation_noise_multiplier * sums.clip_norm)
        estimate = optax.tree.add_scale(state.estimate, 1 / variation_size, noisy)
        return SpiderBoostState(state.step + 1, state.key, params, estimate), sums

    return SpiderBoost(init, anchor, variation)


class StepRecord(NamedTuple):
    """What happened in one step of `run_spiderboost`; leaves get a leading axis ``[T]``.

    Attributes:
        estimate_norm: norm of the search direction, regulariser included.
        count: examples in the batch. This and the next three are not private.
        clipped: how many of their gradients or differences were scaled down.
        non_finite: how many contributed 0.
        overflow: whether the batch was truncated.
        probe: whatever `probe(params)` returned after the step.
    """

    estimate_norm: Float[Array, " ..."]
    count: Int[Array, " ..."]
    clipped: Int[Array, " ..."]
    non_finite: Int[Array, " ..."]
    overflow: Bool[Array, " ..."]
    probe: Any


class SpiderBoostRun(NamedTuple):
    """Result of `run_spiderboost`.

    Attributes:
        params: the last iterate w_T.
        random_params: an iterate chosen uniformly from w_1..w_T: the paper's output.
        best_params: the iterate whose own direction was the shortest (free: post-processing).
        opt_state: state of the optimizer.
        record: a `StepRecord` over all steps.
    """

    params: PyTree
    random_params: PyTree
    best_params: PyTree
    opt_state: PyTree
    record: StepRecord


def run_spiderboost(
    estimator: SpiderBoost,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    *,
    num_steps: int,
    phase_length: int,
    draw_anchor: Callable[[Key[Array, ""]], batches.Batch | Array] | None = None,
    draw_variation: Callable[[Key[Array, ""]], batches.Batch | Array] | None = None,
    regulariser_gradient: Callable[[PyTree], PyTree] | None = None,
    probe: Callable[[PyTree], Any] = lambda params: (),
) -> SpiderBoostRun:
    """Run the whole algorithm in one program: phases of one anchor and q - 1 variations.

    A pure function: `jit` it, `vmap` it over keys, noise, step sizes or clip norms.

    Args:
        estimator: from `spiderboost`.
        optimizer: any optax optimizer; `optax.sgd(eta)` is the paper's.
        params: w_0.
        data: tree of arrays ``[n, ...]``.
        key: typed key: batches, noise and the random output derive from it.
        num_steps: T >= 1, static.
        phase_length: q in 1..T, static.
        draw_anchor: from a key to the batch of an anchor: `Sampling.draw`, or a function that
            returns how often each row takes part ``[n]``; all rows if None.
        draw_variation: the same for variations.
        regulariser_gradient: gradient of a regulariser that does not depend on the data, added
            exactly, without clipping or noise.
        probe: measured on every iterate (not private if it uses the data).

    Returns:
        The outputs and the record.

    Raises:
        ValueError: if `num_steps` or `phase_length` is not allowed.

    Source: arXiv 2206.00846 Algorithm 2; T estimates give w_1..w_T.

    Example:
        >>> from jaxkit.privacy import glm
        >>> estimator = spiderboost(
        ...     glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0), difference_clip=0.25,
        ...     anchor_noise_multiplier=0.1, variation_noise_multiplier=0.1, anchor_size=1,
        ...     variation_size=1,
        ... )
        >>> data = (jnp.ones((1, 1)), jnp.ones(1))
        >>> def run(key):
        ...     return run_spiderboost(
        ...         estimator, optax.sgd(1.0), jnp.zeros(1), data, key, num_steps=5, phase_length=2
        ...     )
        >>> jax.eval_shape(run, jax.random.key(0)).record.estimate_norm.shape
        (5,)
    """
    mechanisms.spiderboost_counts(num_steps, phase_length)
    batch_key, estimator_key, choice_key = jax.random.split(key, 3)
    state = estimator.init(params, estimator_key)
    chosen = jax.random.randint(choice_key, (), 0, num_steps)

    def step(estimate, draw, carry):
        state, opt_state, params, random_params, (best_norm, best_params) = carry
        batch, mask, overflow = _rows(data, draw, jax.random.fold_in(batch_key, state.step))
        index = state.step
        state, sums = estimate(state, params, batch, mask)
        direction = state.estimate
        if regulariser_gradient is not None:
            direction = optax.tree.add(direction, regulariser_gradient(params))
        norm = optax.tree.norm(direction)
        best = (
            jnp.minimum(norm, best_norm),
            optax.tree.where(norm < best_norm, params, best_params),
        )
        updates, opt_state = optimizer.update(direction, opt_state, params)
        params = optax.apply_updates(params, updates)
        random_params = optax.tree.where(index == chosen, params, random_params)
        record = StepRecord(
            norm, sums.count, sums.clipped, sums.non_finite, overflow, probe(params)
        )
        return (state, opt_state, params, random_params, best), record

    def anchor(carry):
        return step(estimator.anchor, draw_anchor, carry)

    def variation(carry, _):
        return step(estimator.variation, draw_variation, carry)

    def phase(carry, length):
        carry, first = anchor(carry)
        carry, rest = jax.lax.scan(variation, carry, length=length - 1)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return carry, joined

    phases, remainder = divmod(num_steps, phase_length)
    carry = (state, optimizer.init(params), params, params, (jnp.float32(jnp.inf), params))
    carry, record = jax.lax.scan(lambda c, _: phase(c, phase_length), carry, length=phases)
    record = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), record)
    if remainder:
        carry, last = phase(carry, remainder)
        record = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), record, last)
    _, opt_state, params, random_params, (_, best_params) = carry
    return SpiderBoostRun(params, random_params, best_params, opt_state, record)


def _rows(data, draw, key):
    if draw is None:
        return data, None, jnp.zeros((), bool)
    drawn = draw(key)
    if not isinstance(drawn, batches.Batch):
        return data, drawn, jnp.zeros((), bool)
    taken = jax.tree.map(lambda leaf: leaf[drawn.indices], data)
    return taken, drawn.mask, drawn.overflow


def _example_key(state: SpiderBoostState) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)


def _distance(params: PyTree, prev_params: PyTree) -> Float[Array, ""]:
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731
    return optax.tree.norm(optax.tree.sub(wide(params), wide(prev_params)))
