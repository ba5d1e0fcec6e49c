"""Differential privacy of whole clients: clip each message, noise their sum, account for it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxkit import validation
from jaxkit.federated import algorithm as algorithms
from jaxkit.federated import cohorts, perturbation

#: Samplers that accounting knows, with the neighbours that it protects.
_ACCOUNTED = ("bernoulli", "uniform", "stratified")


class ClientPrivacy(NamedTuple):
    """What an algorithm promises about any one client.

    Attributes:
        clip_norm: largest norm of a client's message: the sensitivity of their sum when a client
            is added or removed.
        noise_multiplier: standard deviation of the noise on the sum, in units of `clip_norm`.
        sampler: of the cohorts that the promise holds for.

    Example:
        >>> from jaxkit.federated import averaging
        >>> method, sampler = averaging.fedavg(), cohorts.uniform_sampler(1000, 10)
        >>> private = with_client_privacy(method, sampler, clip_norm=1.0, noise_multiplier=2.0)
        >>> private.privacy.noise_multiplier, private.privacy.neighbours
        (2.0, 'replace one client')
    """

    clip_norm: Any
    noise_multiplier: Any
    sampler: cohorts.Sampler

    @property
    def neighbours(self) -> str:
        """`"add or remove one client"` or `"replace one client"`, by the kind of the sampler."""
        added = self.sampler.kind == "bernoulli"
        return "add or remove one client" if added else "replace one client"


def with_client_privacy(
    algorithm: algorithms.FederatedAlgorithm,
    sampler: cohorts.Sampler,
    *,
    clip_norm: Any,
    noise_multiplier: Any,
) -> algorithms.FederatedAlgorithm:
    """Protect clients: the server sees only a noisy sum of clipped messages.

    message_i <- message_i min(1, C/||message_i||), mean = (sum + N(0, (sigma C)^2)) / E[cohort].
    The norm runs over all vectors that the algorithm sends. What a client remembers stays with it
    and is not clipped.

    Args:
        algorithm: any federated algorithm.
        sampler: that rounds will be run with; for `bernoulli_sampler`, with `allow_empty=True`.
        clip_norm: C > 0.
        noise_multiplier: sigma >= 0; 0 gives no privacy.

    Returns:
        The algorithm, carrying its `ClientPrivacy`.

    Raises:
        ValueError: if a number or the sampler is not allowed.

    Source: McMahan et al. 2018 (DP-FedAvg), applied to the messages of arXiv 2302.10429.

    Example:
        >>> from jaxkit.federated import averaging
        >>> sampler = cohorts.bernoulli_sampler(1000, 0.01, allow_empty=True)
        >>> private = with_client_privacy(
        ...     averaging.fedavg(), sampler, clip_norm=1.0, noise_multiplier=1.0
        ... )
        >>> private.privacy.neighbours
        'add or remove one client'
    """
    validation.number("clip_norm", clip_norm, minimum=0, open_minimum=True)
    validation.number("noise_multiplier", noise_multiplier, minimum=0)
    validation.choice("sampler.kind", sampler.kind, _ACCOUNTED)
    if sampler.kind == "bernoulli" and not sampler.allow_empty:
        raise ValueError(
            "sampler must allow empty cohorts: redrawing them depends on who is there; use "
            "bernoulli_sampler(..., allow_empty=True)"
        )

    def report(shared, memory, result):
        message, memory = algorithm.report(shared, memory, result)
        scale = jnp.minimum(1, clip_norm / perturbation.global_norm(message))
        # A message of norm 0 has scale min(1, infinity).
        return jax.tree.map(lambda leaf: scale * leaf, message), memory

    def aggregate(total, count, key):
        del count
        noise = _normal_like(key, total)
        noisy = optax.tree.add_scale(total, noise_multiplier * clip_norm, noise)
        return algorithms.mean_message(noisy, jnp.asarray(sampler.expected_size, jnp.float32))

    promise = ClientPrivacy(clip_norm, noise_multiplier, sampler)
    return algorithm._replace(report=report, aggregate=aggregate, privacy=promise)


def client_epsilon(
    algorithm: algorithms.FederatedAlgorithm, num_rounds: int, delta: float
) -> float:
    """Epsilon of the (epsilon, delta)-differential privacy of any one client after some rounds.

    Bernoulli cohorts: privacy loss distributions of the Poisson-sampled Gaussian, neighbours by
    adding or removing a client. Cohorts of fixed size: Renyi accounting of sampling without
    replacement, neighbours by replacing a client (sensitivity 2 C).

    Args:
        algorithm: from `with_client_privacy`.
        num_rounds: T >= 1.
        delta: in (0, 1).

    Returns:
        epsilon; infinity without noise.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: if the algorithm is not private, a number is not allowed, or the padded size of
            a Bernoulli cohort is so small that redrawing would show.

    Source: the `dp-accounting` library.

    Example:
        >>> from jaxkit.federated import averaging
        >>> sampler = cohorts.bernoulli_sampler(1000, 0.01, max_size=60, allow_empty=True)
        >>> private = with_client_privacy(
        ...     averaging.fedavg(), sampler, clip_norm=1.0, noise_multiplier=1.0
        ... )
        >>> 0.6 < client_epsilon(private, 100, 1e-5) < 0.8
        True
    """
    promise = algorithm.privacy
    if promise is None:
        raise ValueError(f"{algorithm.name} is not private: use with_client_privacy")
    validation.integer("num_rounds", num_rounds, minimum=1)
    validation.number("delta", delta, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "accounting needs dp-accounting: pip install 'jaxkit[privacy]'"
        ) from error
    sigma, sampler = float(promise.noise_multiplier), promise.sampler
    if sigma == 0:
        return math.inf
    if sampler.kind == "bernoulli":
        rate = sampler.expected_size / sampler.num_clients
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant = dp_accounting.pld.PLDAccountant()
        epsilon = accountant.compose(event, num_rounds).get_epsilon(0.99 * delta)
        # Cohorts that do not fit are drawn again: each run is that close to one that never is.
        lost = (1 + math.exp(min(epsilon, 700.0))) * num_rounds * sampler.overflow
        if lost > 0.01 * delta:
            raise ValueError(
                f"max_size must be larger than {sampler.cohort_size}: redrawing larger cohorts "
                f"costs up to {lost:.1e} of delta = {delta:g}"
            )
        return epsilon
    strata = sampler.num_strata
    event = dp_accounting.SampledWithoutReplacementDpEvent(
        math.floor(sampler.num_clients / strata),
        sampler.cohort_size // strata,
        dp_accounting.GaussianDpEvent(sigma / 2),
    )
    accountant = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    return accountant.compose(event, num_rounds).get_epsilon(delta)


def _normal_like(key: Key[Array, ""], tree: PyTree[Float[Array, " ..."]]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.normal(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ],
    )
