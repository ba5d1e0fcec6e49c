"""A private optimisation as one value: gradient, batches, noise, and what they cost together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxkit import validation
from jaxkit.privacy import accounting, batches, calibration, clipping, mechanisms, noise, statement
from jaxkit.privacy.batches import Batch, Sampling
from jaxkit.privacy.bounded_sums import BoundedSum, ClippedGradient, Neighbours
from jaxkit.privacy.randomness import NoiseSource


@dataclasses.dataclass(frozen=True, eq=False)
class PrivacyPlan:
    """DP-SGD or DP-FTRL and all that only post-processes their noisy sums: momentum, schedules.

    Made by `dp_sgd` and `dp_ftrl`. No part asks again for what another knows: the noise follows
    the bound that each sum carries, its divisor and the accountant's event follow the sampling.

    Attributes:
        gradient: the clipped gradient.
        sampling: how batches are drawn.
        num_steps: updates T.
        noise_multiplier: z, the standard deviation of the noise on a sum over its clip norm.
        delta: of the guarantee.
        neighbours: relation claimed, by default that of the sampling.
        count_noise_multiplier: for clip norms that adapt, the standard deviation of the noise on
            the count of gradients that fit, else None.
    """

    gradient: ClippedGradient
    sampling: Sampling
    num_steps: int
    noise_multiplier: float
    delta: float
    neighbours: Neighbours | None = None
    count_noise_multiplier: float | None = None

    def __post_init__(self):
        if self.count_noise_multiplier is not None:
            validation.number(
                "count_noise_multiplier",
                self.count_noise_multiplier,
                minimum=self.noise_multiplier / 2,
                open_minimum=True,
            )

    @functools.cached_property
    def mechanism(self) -> mechanisms.Mechanism:
        """What the whole run releases; follows from the parts, also of a plan with others."""
        return self._released(self.num_steps)

    def _released(self, steps: int) -> mechanisms.Mechanism:
        z = self.noise_multiplier
        if not self._in_order:
            return mechanisms.dp_sgd_mechanism(self.sampling, z, steps, neighbours=self.neighbours)
        trees = self.sampling.batches_per_pass
        return mechanisms.dp_ftrl_mechanism(z, trees, -(-steps // trees))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells this plan from others: draws of different plans never agree."""
        drawn = self.sampling
        if drawn.kind == "poisson":  # devices pad a batch; what is drawn is the same
            drawn = drawn._replace(padded_size=0, overflow=0.0)
        parts = (
            self.count_noise_multiplier,
            self.mechanism.description,
            self.mechanism.neighbours,
            self.delta,
            drawn,
        )
        text = repr((*parts, self.gradient.unit, str(self.gradient.clip_norm), self.gradient.mode))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def draw(self, source: NoiseSource, step: int) -> Batch:
        """The examples of a step, drawn so that nobody can tell who takes part.

        Raises:
            ValueError: if the step is none of the plan's: its cost would not be in `epsilon`.
        """
        key = source.key("batches", self.fingerprint, self._planned(step))
        return self.sampling.draw(key, step)

    def noise_key(self, source: NoiseSource, step: int) -> Key[Array, ""]:
        """The key that the update of a step needs; of DP-FTRL, that of step 0 serves all updates.

        Raises:
            ValueError: if the step is none of the plan's, or its key was given out before.
        """
        if self._in_order and step:
            raise ValueError(f"step must be 0, whose key serves all updates, got {step}")
        return source.key("noise", self.fingerprint, self._planned(step))

    @property
    def _in_order(self) -> bool:
        return self.sampling.kind == "in_order"

    def _planned(self, step: int) -> int:
        number = validation.integer("step", step, minimum=0)
        if number >= self.num_steps:
            raise ValueError(
                f"step must be below the {self.num_steps} steps of the plan, got {number}"
            )
        return number

    def optimizer(self, optimizer: optax.GradientTransformation) -> Any:
        """Any optax optimizer behind the noise: `update(total, state, params, key=noise_key)`.

        Raises:
            TypeError: at an update, if the sum is not one of this plan's gradient over a batch of
                this plan's sampling, or if anything else is given that an optimizer could learn
                from, such as a loss: only the sum has noise.
        """
        z, size = self._sum_noise, self.sampling.expected_size
        release: Any = noise.privatize_sum(z, size)
        if self._in_order:
            release = noise.privatize_tree_sum(z, size, self.sampling.batches_per_pass)

        def init(params):
            return release.init(params), optimizer.init(params)

        def update(updates, state, params=None, *, key=None, **extra):
            if extra:
                raise TypeError(
                    "only key may be given beside the sum, for nothing else has noise, got "
                    + ", ".join(sorted(extra))
                )
            known = isinstance(updates, BoundedSum)
            if known and updates.unit != self.gradient.unit:
                raise TypeError(
                    f"updates must be a sum over {self.gradient.unit}s, got one over "
                    f"{updates.unit}s"
                )
            if known and updates.rows != self.sampling.padded_size:
                raise TypeError(
                    f"updates must be a sum over the {self.sampling.padded_size} rows of a batch "
                    f"of the plan's sampling, got one over {updates.rows}"
                )
            mean, released = release.update(updates, state[0], params, key=key)
            # The key goes no further: who knows it can subtract the noise.
            updates, inner = optimizer.update(mean, state[1], params)
            return updates, (released, inner)

        return optax.GradientTransformationExtraArgs(init, update)

    @property
    def _sum_noise(self) -> float:
        """What z leaves for sums where counts are released with them: their parts add to 1/z^2."""
        if self.count_noise_multiplier is None:
            return self.noise_multiplier
        counts = (2 * self.count_noise_multiplier) ** -2
        return (self.noise_multiplier**-2 - counts) ** -0.5

    def next_clip_norm(
        self,
        total: BoundedSum,
        key: Key[Array, ""],
        *,
        quantile: float = 0.5,
        learning_rate: float = 0.2,
    ) -> Float[Array, ""]:
        r"""The clip norm of the next step, towards a quantile of the norms of gradients.

        .. math:: C \leftarrow C \exp(-\eta(\tilde b - \gamma)), \qquad \tilde b = \tfrac12 +
            \tfrac1B\Big(\sum_i (b_i - \tfrac12) + \sigma_b\xi\Big)

        with b_i whether a gradient was not clipped. Use it by
        ``dataclasses.replace(plan.gradient, clip_norm=...)``; the noise follows each sum's bound.

        Args:
            total: of the step, whose bound is C.
            key: the step's noise key, as for the update.
            quantile: gamma in (0, 1), the share of gradients not to be clipped.
            learning_rate: eta > 0.

        Raises:
            ValueError: if the plan has no `count_noise_multiplier` that pays for the counts.

        Source: Andrew et al. 2021, arXiv 1905.03871.
        """
        if self.count_noise_multiplier is None:
            raise ValueError("next_clip_norm needs a plan made with count_noise_multiplier")
        total = total.verified()
        # Beyond any number of an update, so that the sum's noise is another draw.
        xi = jax.random.normal(jax.random.fold_in(key, 2**32 - 1))
        fitting = total.count - total.clipped - total.non_finite
        surplus = fitting - total.count / 2 + self.count_noise_multiplier * xi
        share = 0.5 + surplus / self.sampling.expected_size
        return total.clip_norm * jnp.exp(-learning_rate * (share - quantile))

    def epsilon(self, step: int | None = None) -> float:
        """Epsilon spent by the first updates, by default by all."""
        if step == 0:
            return 0.0
        spent = self.mechanism
        if step is not None:
            spent = self._released(validation.integer("step", step, minimum=0))
        return accounting.epsilon_spent(spent, self.delta)

    def statement(self, source: NoiseSource | None = None, *, unit: str | None = None) -> str:
        """The guarantee in words.

        Args:
            source: of the noise; from a public one there is no guarantee, and the text says so.
            unit: what one row is, by default the gradient's.
        """
        return statement.of_run(self.mechanism, self.delta, unit or self.gradient.unit, source)


def dp_sgd(
    gradient: ClippedGradient,
    sampling: Sampling,
    num_steps: int,
    *,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    count_noise_multiplier: float | None = None,
    neighbours: Neighbours | None = None,
    accountant: accounting.Accountant | None = None,
) -> PrivacyPlan:
    """Plan DP-SGD, DP-Adam or any optimizer of noisy sums, for a budget or a given noise.

    Args:
        gradient: from `clipped_grad_sum` or `glm_clipped_grad_sum`.
        sampling: from `poisson_sampling`, `fixed_sampling` or `full_batches`.
        num_steps: updates T.
        delta: in (0, 1); at or above 1/n it warns.
        epsilon: budget of the whole run, from which the noise follows.
        noise_multiplier: instead of `epsilon`: z > 0, the noise over the clip norm.
        count_noise_multiplier: for clip norms that adapt (`PrivacyPlan.next_clip_norm`): noise of
            the counts, above z/2; a tenth of the batch is usual. Sums then get the more noise
            that keeps both within the budget.
        neighbours: relation claimed; by default that of the sampling.
        accountant: as in `epsilon_spent`.

    Returns:
        The plan.

    Raises:
        ImportError: without the `privacy` extra.
        TypeError: unless one of `epsilon` and `noise_multiplier` is given.
        ValueError: if a number is not allowed or no event is valid.

    Source: Abadi et al. 2016, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxkit.privacy import batches, clipped_gradients
        >>> loss = lambda params, batch, key: jnp.mean(params * batch)
        >>> gradient = clipped_gradients.clipped_grad_sum(loss, clip_norm=1.0)
        >>> plan = dp_sgd(gradient, batches.full_batches(4), 10, epsilon=8.0, delta=1e-3)
        >>> optimizer, params = plan.optimizer(optax.adam(0.1)), jnp.zeros(())
        >>> total = plan.gradient(params, jnp.ones(4))
        >>> key = plan.noise_key(NoiseSource.from_os(), 0)
        >>> updates, state = optimizer.update(total, optimizer.init(params), params, key=key)
        >>> round(plan.noise_multiplier, 2), round(plan.epsilon(), 3)
        (1.52, 8.0)
    """
    plan = _plan(
        gradient, sampling, num_steps, neighbours, delta, epsilon, noise_multiplier, accountant
    )
    return dataclasses.replace(plan, count_noise_multiplier=count_noise_multiplier)


def dp_ftrl(
    gradient: ClippedGradient,
    num_examples: int,
    batch_size: int,
    num_passes: int = 1,
    *,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
) -> PrivacyPlan:
    r"""Plan DP-FTRL, which needs no random batches: noise by binary trees over passes in order.

    Args:
        gradient: from `clipped_grad_sum` or `glm_clipped_grad_sum`.
        num_examples: n.
        batch_size: b in 1..n; a pass has n // b batches, and its tree as many leaves.
        num_passes: passes over the data, a tree each.
        delta: in (0, 1); at or above 1/n it warns.
        epsilon: budget of the whole run, from which the noise follows.
        noise_multiplier: instead of `epsilon`: z > 0, the noise of a node over the clip norm.

    Returns:
        The plan; one key, `plan.noise_key(source, 0)`, serves all updates.

    Raises:
        ImportError: without the `privacy` extra.
        TypeError: unless one of `epsilon` and `noise_multiplier` is given.
        ValueError: if a number is not allowed.

    Source: Kairouz et al. 2021 (DP-FTRL), arXiv 2103.00039.

    Example:
        >>> loss = lambda params, batch, key: (params * batch).mean()
        >>> from jaxkit.privacy import clipped_gradients
        >>> gradient = clipped_gradients.clipped_grad_sum(loss, clip_norm=1.0)
        >>> plan = dp_ftrl(gradient, 100, 10, 2, delta=1e-3, noise_multiplier=4.0)
        >>> plan.num_steps, plan.mechanism.neighbours
        (20, 'zero_out')
    """
    n = validation.integer("num_examples", num_examples, minimum=1)
    size = batches.fixed_sampling(n, batch_size).padded_size
    passes = validation.integer("num_passes", num_passes, minimum=1)
    sampling = Sampling("in_order", n, float(size), size)
    steps = passes * sampling.batches_per_pass
    return _plan(gradient, sampling, steps, None, delta, epsilon, noise_multiplier, None)


def _plan(gradient, sampling, num_steps, neighbours, delta, epsilon, z, accountant) -> PrivacyPlan:
    def plan(z: float) -> PrivacyPlan:
        z = clipping.single_numbers("noise_multiplier", z)
        found = PrivacyPlan(gradient, sampling, num_steps, z, delta, neighbours)
        found.mechanism  # noqa: B018  raises unless it can be accounted for
        return found

    accounting.warn_large_delta(delta, sampling.num_examples)
    if (epsilon is None) == (z is None):
        raise TypeError("one of epsilon and noise_multiplier must be given")
    if epsilon is not None:
        spent = lambda z: plan(z).mechanism  # noqa: E731
        z = calibration.calibrate(spent, epsilon, delta, accountant=accountant)
    return plan(z)
