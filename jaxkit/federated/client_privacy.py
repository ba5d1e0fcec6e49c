"""Differential privacy of whole clients: clip each message, noise their sum, account for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxkit import privacy, validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import cohorts
from jaxkit.federated.state import FederatedState

#: Samplers that accounting knows, with the neighbours that it protects.
_ACCOUNTED = ("bernoulli", "uniform", "stratified")


class ClientPrivacy(NamedTuple):
    """What an algorithm promises about any one client.

    Attributes:
        clip_norm: largest norm of a client's message: the sensitivity of their sum when a client
            is added or removed.
        noise_multiplier: standard deviation of the noise on the sum, in units of `clip_norm`.
        sampler: of the cohorts that the promise holds for.
        num_rounds: T, rounds that it covers: a later one releases NaN.
        secretly: from a key of the run's state, which anyone may read, to one that only who holds
            the source knows.
        is_secret: whether the source is.
        functions: the `report` and `aggregate` of the algorithm, whose clip and noise it rests on.
        rests_on: the fields above that those were made with.
    """

    clip_norm: Any
    noise_multiplier: Any
    sampler: cohorts.Sampler
    num_rounds: int
    secretly: Callable[[Key[Array, ""]], Key[Array, ""]]
    is_secret: bool
    functions: tuple[Callable[..., Any], Callable[..., Any]]
    rests_on: tuple[Any, ...]

    def verified(self) -> ClientPrivacy:
        """The same, or a ValueError if a field was replaced: clip and noise would not follow."""
        for name, now, made in zip(self._fields, self, self.rests_on, strict=False):
            if now is not made:
                raise ValueError(
                    f"{name} of a promise must be what its noise was made with, {made!r}, got "
                    f"{now!r}: call with_client_privacy anew"
                )
        return self

    @property
    def neighbours(self) -> str:
        """`"add or remove one client"` or `"replace one client"`, by the kind of the sampler."""
        added = self.sampler.kind == "bernoulli"
        return "add or remove one client" if added else "replace one client"

    def epsilon(self, delta: float, state: FederatedState | None = None) -> float:
        """Epsilon of the (epsilon, delta)-differential privacy of any one client in a run.

        Bernoulli cohorts: privacy loss distributions of the Poisson-sampled Gaussian, neighbours by
        adding or removing a client. Cohorts of fixed size: Renyi accounting of sampling without
        replacement, neighbours by replacing a client (sensitivity 2 C); exact where everyone takes
        part. Of strata that differ in size, for the clients of the smallest, who take part most.

        Source: the `dp-accounting` library.
        """
        self.verified()
        num_rounds = self.num_rounds if state is None else int(state.round)
        validation.number(
            "delta", delta, minimum=0, maximum=1, open_minimum=True, open_maximum=True
        )
        if num_rounds == 0:
            return 0.0
        if float(self.noise_multiplier) == 0 or not self.is_secret:
            return math.inf
        mechanism = privacy.dp_sgd_mechanism(
            _sampling(self.sampler),
            float(self.noise_multiplier),
            num_rounds,
            neighbours=None if self.sampler.kind == "bernoulli" else "replace",
        )
        try:
            return privacy.epsilon_spent(mechanism, delta)
        except ValueError as error:
            if "padded_size" not in str(error):
                raise
            size = self.sampler.cohort_size
            raise ValueError(
                f"max_size must be larger than {size}: redrawing shows ({error})"
            ) from None


def with_client_privacy(
    algorithm: algorithms.FederatedAlgorithm,
    sampler: cohorts.Sampler,
    source: privacy.NoiseSource,
    *,
    clip_norm: Any,
    noise_multiplier: Any,
    num_rounds: int,
) -> algorithms.FederatedAlgorithm:
    """Protect clients: the server sees only a noisy sum of clipped messages.

    message_i <- message_i min(1, C/||message_i||), mean = (sum + N(0, (sigma C)^2)) / E[cohort].
    The norm runs over all vectors that the algorithm sends, and a message that is not finite counts
    as 0. What a client remembers stays with it and is not clipped. Noise and cohorts derive from
    the source, which is in no state and no checkpoint, and from the key of the run's state: one
    private algorithm is for one run.

    Args:
        algorithm: any federated algorithm; what else changes it must have done so before.
        sampler: that rounds will be run with; for `bernoulli_sampler`, with `allow_empty=True`.
        source: of the noise and the cohorts, which makes one such algorithm.
        clip_norm: C > 0.
        noise_multiplier: sigma >= 0; 0 gives no privacy.
        num_rounds: T >= 1, rounds of the run.

    Raises:
        TypeError: if a part is something else.
        ValueError: if a number or the sampler is not allowed.

    Source: McMahan et al. 2018 (DP-FedAvg), applied to the messages of arXiv 2302.10429.

    Example:
        >>> from jaxkit.federated.fedavg import fedavg
        >>> sampler = cohorts.bernoulli_sampler(1000, 0.01, allow_empty=True)
        >>> private = with_client_privacy(
        ...     fedavg(), sampler, privacy.NoiseSource.from_os(), clip_norm=1.0,
        ...     noise_multiplier=1.0, num_rounds=100,
        ... )
        >>> private.privacy.neighbours
        'add or remove one client'
    """
    for name, part, kind in (
        ("algorithm", algorithm, algorithms.FederatedAlgorithm),
        ("sampler", sampler, cohorts.Sampler),
        ("source", source, privacy.NoiseSource),
    ):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {part!r}")
    validation.number("clip_norm", clip_norm, minimum=0, open_minimum=True)
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    validation.integer("num_rounds", num_rounds, minimum=1)
    validation.choice("sampler.kind", sampler.kind, _ACCOUNTED)
    if algorithm.weighting != "equal":
        raise ValueError(
            "algorithm must weigh clients equally: a weight would lift a message above clip_norm, "
            f"got weighting = {algorithm.weighting!r}"
        )
    if sampler.kind == "bernoulli" and not sampler.allow_empty:
        raise ValueError(
            "sampler must allow empty cohorts: redrawing them depends on who is there; use "
            "bernoulli_sampler(..., allow_empty=True)"
        )

    def report(shared, memory, result):
        message, memory = algorithm.report(shared, memory, result)
        # A message that is not finite becomes exactly 0. None is rounded to a narrow type again,
        # which could lift it above the clip.
        one = jax.tree.map(lambda leaf: leaf[None], message)
        clipped = privacy.clip_per_example(one, clip_norm).gradients
        return jax.tree.map(lambda leaf: leaf[0], clipped), memory

    def aggregate(total, count, key):
        none = jnp.zeros((), jnp.int32)
        bounded: Any = privacy.BoundedSum(total, clip_norm, none, count, none, none, unit="client")
        mean, _ = release.update(bounded.sealed(), release.init(total), key=key)
        size = jnp.asarray(sampler.expected_size, jnp.float32)
        return algorithms.mean_message(optax.tree.scale(size, mean), size)

    def secretly(key):
        mixed = run_key
        for number in jax.random.key_data(key).ravel():
            mixed = jax.random.fold_in(mixed, number)
        return mixed

    release = privacy.privatize_sum(noise_multiplier, sampler.expected_size)
    run = f"{algorithm.name} {sampler._replace(sample=None)}"  # type: ignore[arg-type]
    run_key = source.key("clients", run, 0)
    made = clip_norm, noise_multiplier, sampler, num_rounds, secretly, source.is_secret
    promise = ClientPrivacy(*made, (report, aggregate), made)
    return algorithm._replace(report=report, aggregate=aggregate, privacy=promise)


def _sampling(sampler: cohorts.Sampler) -> privacy.Sampling:
    """How the client that takes part most often is drawn."""
    if sampler.kind == "bernoulli":
        size = (sampler.expected_size, sampler.cohort_size, sampler.overflow)
        return privacy.Sampling("poisson", sampler.num_clients, *size)
    # Of the strata the last is the smallest, and each gives as many.
    block = math.ceil(sampler.num_clients / sampler.num_strata)
    smallest = sampler.num_clients - block * (sampler.num_strata - 1)
    share = sampler.cohort_size // sampler.num_strata
    if share == smallest:
        return privacy.full_batches(smallest)
    return privacy.fixed_sampling(smallest, share)
