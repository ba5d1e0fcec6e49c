"""Private SpiderBoost: noisy anchors, then noisy gradient differences (Algorithm 2)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxkit import validation
from jaxkit.privacy import accounting, batches, calibration, clipping, mechanisms, noise, statement
from jaxkit.privacy.bounded_sums import BoundedSum, ClippedGradient, Mask, Neighbours
from jaxkit.privacy.randomness import NoiseSource


class SpiderBoostState(NamedTuple):
    """State of the estimator: two copies of the parameters, and no key.

    Attributes:
        step: number of estimates made, int32.
        prev_params: parameters of the last estimate.
        estimate: the last estimate, float32 or wider.
    """

    step: Int[Array, ""]
    prev_params: PyTree
    estimate: PyTree[Float[Array, " ..."]]


@dataclasses.dataclass(frozen=True, eq=False)
class SpiderBoost:
    """Private SpiderBoost as one value: gradients, batches, noise and what they cost.

    Made by `spiderboost`; `run_spiderboost` runs it whole. In a loop of one's own, feed the
    `estimate` of the state to any optax optimizer. Noise and divisors follow from the parts.

    Attributes:
        gradient: clipped gradient sums; its clip norm is C1.
        anchors: how the batches of anchors are drawn.
        variations: how those of variations are drawn.
        num_steps: T.
        phase_length: q.
        difference_clip: C2, the bound on a difference per unit of distance.
        anchor_noise_multiplier: z1, over the bound on a gradient.
        variation_noise_multiplier: z2, over the bound on a gradient difference.
        delta: of the guarantee.
        neighbours: relation claimed.
        draw_normals: source of the standard normals.
    """

    gradient: ClippedGradient
    anchors: batches.Sampling
    variations: batches.Sampling
    num_steps: int
    phase_length: int
    difference_clip: Any
    anchor_noise_multiplier: Any
    variation_noise_multiplier: Any
    delta: float
    neighbours: Neighbours | None = None
    draw_normals: noise.Draw = noise.gaussian_draw

    @functools.cached_property
    def mechanism(self) -> mechanisms.Mechanism:
        """What the whole run releases."""
        return mechanisms.spiderboost_mechanism(
            self.anchors,
            self.variations,
            self.anchor_noise_multiplier,
            self.variation_noise_multiplier,
            num_steps=self.num_steps,
            phase_length=self.phase_length,
            neighbours=self.neighbours,
        )

    def key(self, source: NoiseSource) -> Key[Array, ""]:
        """The key of a run: its batches, noise and random output derive from it."""
        what = f"{self.mechanism.description} {self.mechanism.neighbours} {self.delta}"
        return source.key("spiderboost", hashlib.sha256(what.encode()).hexdigest()[:16], 0)

    def epsilon(self) -> float:
        """Epsilon of the whole run."""
        return accounting.epsilon_spent(self.mechanism, self.delta)

    def statement(self, source: NoiseSource | None = None) -> str:
        """The guarantee in words; from a public source there is none, and the text says so."""
        return statement.of_run(self.mechanism, self.delta, self.gradient.unit, source)

    def init(self, params: PyTree) -> SpiderBoostState:
        """The state before the first anchor."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, clipping.wide(leaf.dtype)), params)
        return SpiderBoostState(jnp.zeros((), jnp.int32), params, zeros)

    def anchor(
        self,
        state: SpiderBoostState,
        params: PyTree,
        batch: PyTree,
        key: Key[Array, ""],
        mask: Mask = None,
    ) -> tuple[SpiderBoostState, BoundedSum]:
        """Start a phase from fresh gradients.

        Args:
            state: of the estimator.
            params: w_t.
            batch: of anchors' sampling, ``[B, ...]``.
            key: of the run.
            mask: as for the gradient.
        """
        sums = self.gradient(params, batch, _example_key(key, state), mask)
        z, size = self.anchor_noise_multiplier, self.anchors.expected_size
        estimate = optax.tree.scale(1 / size, self._noisy(state, sums, z, key))
        return SpiderBoostState(state.step + 1, params, estimate), sums

    def variation(
        self,
        state: SpiderBoostState,
        params: PyTree,
        batch: PyTree,
        key: Key[Array, ""],
        mask: Mask = None,
    ) -> tuple[SpiderBoostState, BoundedSum]:
        """Add the change of the gradients since the last estimate; arguments as for an anchor."""
        bound = jnp.minimum(
            self.difference_clip * _distance(params, state.prev_params),
            2 * clipping.total_clip_norm(self.gradient.clip_norm),
        )
        sums = self.gradient.difference(
            params, state.prev_params, batch, bound, _example_key(key, state), mask
        )
        z, size = self.variation_noise_multiplier, self.variations.expected_size
        change = self._noisy(state, sums, z, key)
        estimate = optax.tree.add_scale(state.estimate, 1 / size, change)
        return SpiderBoostState(state.step + 1, params, estimate), sums

    def _noisy(self, state, sums, noise_multiplier, key):
        xi = self.draw_normals(jax.random.fold_in(key, 0), state.step, sums.total)
        return optax.tree.add_scale(sums.total, noise_multiplier * sums.clip_norm, xi)


def spiderboost(
    gradient: ClippedGradient,
    anchors: batches.Sampling,
    variations: batches.Sampling,
    *,
    num_steps: int,
    phase_length: int,
    difference_clip: Any,
    delta: float,
    epsilon: float | None = None,
    noise_multipliers: tuple[Any, Any] | None = None,
    anchor_share: float = 0.5,
    neighbours: Neighbours | None = None,
    accountant: accounting.Accountant | None = None,
    draw_normals: noise.Draw = noise.gaussian_draw,
) -> SpiderBoost:
    r"""Plan Private SpiderBoost, for a budget or a given noise.

    .. math::
        \text{anchor: } \nabla_t = \frac{1}{b_1}\Big(\sum_i \mathrm{clip}_{C_1}(\nabla f(w_t;x_i)) +
        z_1 C_1 \xi\Big)

    .. math::
        \text{variation: } \nabla_t = \nabla_{t-1} + \frac{1}{b_2}\Big(\sum_i \mathrm{clip}_{B_t}
        (\nabla f(w_t;x_i) - \nabla f(w_{t-1};x_i)) + z_2 B_t \xi\Big), \quad
        B_t = \min(C_2\|w_t-w_{t-1}\|, 2C_1)

    For a budget, a total :math:`\mu` is calibrated by the accountant, of which anchors get the
    share :math:`\rho\mu^2` and variations the rest: :math:`z_1 = \sqrt{K_1/\rho}/\mu`,
    :math:`z_2 = \sqrt{K_2/(1-\rho)}/\mu` for full batches, and what amounts to the same in the
    central limit for others. One common z for both would starve the anchors.

    Args:
        gradient: clipped gradient sums; its clip norm is C1 (the paper's L0).
        anchors: how the batches of anchors are drawn; b1 is their expected size.
        variations: how those of variations are drawn.
        num_steps: T >= 1.
        phase_length: q in 1..T.
        difference_clip: C2 >= 0, the bound on a difference per unit of distance (the paper's L1).
        delta: in (0, 1); at or above 1/n it warns.
        epsilon: budget of the whole run.
        noise_multipliers: instead of `epsilon`: z1 and z2 >= 0; 0 gives no privacy.
        anchor_share: rho in (0, 1).
        neighbours: relation claimed; by default that of the samplings.
        accountant: as in `epsilon_spent`.
        draw_normals: source of the standard normals; replace it only to replay recorded noise.

    Returns:
        The plan, whose `anchor` and `variation` are the estimator.

    Raises:
        ImportError: without the `privacy` extra.
        TypeError: unless one of `epsilon` and `noise_multipliers` is given.
        ValueError: if a number is not allowed or no event is valid.

    Source: arXiv 2206.00846 Algorithm 2; the bounds replace the Lipschitz assumptions. Theorem 4.1
        gives both groups noise of the same order (rho = 1/2).

    Example:
        >>> from jaxkit.privacy import glm
        >>> gradient = glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0)
        >>> everyone = batches.full_batches(510_663)
        >>> plan = spiderboost(
        ...     gradient, everyone, everyone, num_steps=3000, phase_length=300,
        ...     difference_clip=0.25, epsilon=1.0, delta=1e-6,
        ... )
        >>> round(plan.anchor_noise_multiplier, 2), round(plan.variation_noise_multiplier, 1)
        (18.89, 326.7)
    """
    validation.number("difference_clip", difference_clip, minimum=0)
    accounting.check_delta(delta)
    mechanisms.spiderboost_counts(num_steps, phase_length)
    if (epsilon is None) == (noise_multipliers is None):
        raise TypeError("one of epsilon and noise_multipliers must be given")
    if epsilon is not None:
        accounting.warn_large_delta(delta, anchors.num_examples)
        noise_multipliers = calibration.spiderboost_noise(
            anchors,
            variations,
            num_steps=num_steps,
            phase_length=phase_length,
            epsilon=epsilon,
            delta=delta,
            anchor_share=anchor_share,
            neighbours=neighbours,
            accountant=accountant,
        )
    assert noise_multipliers is not None
    for z in noise_multipliers:
        validation.number("noise_multipliers", z, minimum=0)
    difference_clip = clipping.single_numbers("difference_clip", difference_clip)
    z1, z2 = clipping.single_numbers("noise_multipliers", tuple(noise_multipliers))
    return SpiderBoost(
        gradient,
        anchors,
        variations,
        num_steps,
        phase_length,
        difference_clip,
        z1,
        z2,
        delta,
        neighbours,
        draw_normals,
    )


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
    plan: SpiderBoost,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    *,
    counts: Int[Array, " n"] | None = None,
    regulariser_gradient: Callable[[PyTree], PyTree] | None = None,
    probe: Callable[[PyTree], Any] = lambda params: (),
) -> SpiderBoostRun:
    """Run the whole algorithm in one program: phases of one anchor and q - 1 variations.

    A pure function: `jit` it, `vmap` it over keys, noise, step sizes or clip norms.

    Args:
        plan: from `spiderboost`.
        optimizer: any optax optimizer; `optax.sgd(eta)` is the paper's.
        params: w_0.
        data: tree of arrays ``[n, ...]``.
        key: typed key of this run alone, from `plan.key(source)`; any in a simulation.
        counts: how many identical examples each row stands for, one if None.
        regulariser_gradient: gradient of a regulariser that does not depend on the data, added
            exactly, without clipping or noise.
        probe: measured on every iterate (not private if it uses the data).

    Returns:
        The outputs and the record.

    Raises:
        ValueError: if the data have not the size that the samplings were made for, or they cannot
            be drawn from rows that stand for several examples.
        TypeError: if `key` is not a typed key.

    Source: arXiv 2206.00846 Algorithm 2; T estimates give w_1..w_T.

    Example:
        >>> from jaxkit.privacy import glm
        >>> one = batches.full_batches(1)
        >>> plan = spiderboost(
        ...     glm.glm_clipped_grad_sum(glm.logistic_loss, 1.0), one, one, num_steps=5,
        ...     phase_length=2, difference_clip=0.25, noise_multipliers=(0.1, 0.1), delta=1e-5,
        ... )
        >>> data = (jnp.ones((1, 1)), jnp.ones(1))
        >>> def run(key):
        ...     return run_spiderboost(plan, optax.sgd(1.0), jnp.zeros(1), data, key)
        >>> jax.eval_shape(run, jax.random.key(0)).record.estimate_norm.shape
        (5,)
    """
    noise.check_key(key)
    _check_size(plan, data, counts)
    batch_key, estimator_key, choice_key = jax.random.split(key, 3)
    state = plan.init(params)
    num_steps, phase_length = plan.num_steps, plan.phase_length
    chosen = jax.random.randint(choice_key, (), 0, num_steps)

    def step(estimate, sampling, carry):
        state, opt_state, params, random_params, (best_norm, best_params) = carry
        draw_key = jax.random.fold_in(batch_key, state.step)
        batch, mask, overflow = _rows(data, counts, sampling, draw_key)
        index = state.step
        state, sums = estimate(state, params, batch, estimator_key, mask)
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
        return step(plan.anchor, plan.anchors, carry)

    def variation(carry, _):
        return step(plan.variation, plan.variations, carry)

    def phase(carry, length):
        carry, first = anchor(carry)
        carry, rest = jax.lax.scan(variation, carry, length=length - 1)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return carry, joined

    phases, remainder = divmod(num_steps, phase_length)
    furthest = jnp.asarray(jnp.inf, jnp.result_type(*jax.tree.leaves(state.estimate)))
    carry = (state, optimizer.init(params), params, params, (furthest, params))
    carry, record = jax.lax.scan(lambda c, _: phase(c, phase_length), carry, length=phases)
    record = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), record)
    if remainder:
        carry, last = phase(carry, remainder)
        record = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), record, last)
    _, opt_state, params, random_params, (_, best_params) = carry
    return SpiderBoostRun(params, random_params, best_params, opt_state, record)


def _check_size(plan: SpiderBoost, data, counts) -> None:
    rows = clipping.batch_size("data", data)
    if counts is not None and "fixed" in (plan.anchors.kind, plan.variations.kind):
        raise ValueError("counts must be None where batches have a fixed size")
    held = rows if counts is None else jnp.sum(counts)
    for sampling in (plan.anchors, plan.variations):
        n = sampling.num_examples
        if validation.is_traced(held) or validation.is_traced(n) or int(held) == n:
            continue
        raise ValueError(f"data must hold the {n} examples of the samplings, got {int(held)}")


def _rows(data, counts, sampling, key):
    if sampling.kind == "all":
        return data, counts, jnp.zeros((), bool)
    if counts is not None:
        # Poisson sampling of identical examples: the number that take part is binomial, at a
        # rate that is not rounded up.
        drawn = jax.random.binomial(key, counts, sampling.rate * (1 - 2.0**-23)).astype(jnp.int32)
        return data, drawn, jnp.zeros((), bool)
    drawn = sampling.draw(key)
    return jax.tree.map(lambda leaf: leaf[drawn.indices], data), drawn.mask, drawn.overflow


def _example_key(key: Key[Array, ""], state: SpiderBoostState) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(key, 1), state.step)


def _distance(params: PyTree, prev_params: PyTree) -> Float[Array, ""]:
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(clipping.wide(leaf.dtype)), tree)  # noqa: E731
    return optax.tree.norm(optax.tree.sub(wide(params), wide(prev_params)))
