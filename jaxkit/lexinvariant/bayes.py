"""What the best lexinvariant model knows: exact averages over all renamings of a small alphabet."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkit import validation

MAX_VOCABULARY = 9


class BayesPrediction(NamedTuple):
    """What the exact lexinvariant predictor says of one sequence.

    Attributes:
        log_predictive: ``log p'(v | x_<t)``, ``[T, d]``.
        decipher: ``P(pi^-1(x_t) = u | x_<=t)``, ``[T, d]``.
        log_prob: ``log p'(x)``, scalar.
        possible: ``[T]``, whether ``p'(x_<t) > 0``; where it is False, `log_predictive` is -inf
            for every symbol (there is no such distribution) and `decipher` is 0.
    """

    log_predictive: Float[Array, "T d"]
    decipher: Float[Array, "T d"]
    log_prob: Float[Array, ""]
    possible: Bool[Array, " T"]


@functools.cache
def _inverses(vocab_size: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(vocab_size))), np.int32)


def _check_log_distributions(name: str, log_probs: Array) -> None:
    if validation.is_traced(log_probs):
        return
    total = np.exp(np.asarray(log_probs, np.float64)).sum(axis=-1)
    if not np.all(np.abs(total - 1) <= 1e-6):
        raise ValueError(f"{name} must hold log-probabilities summing to 1, got sums {total}")


def bayes_lexinvariant(
    log_initial: Float[Array, " d"], log_transition: Float[Array, "d d"], tokens: Int[Array, " T"]
) -> BayesPrediction:
    r"""Predict a sequence of a known Markov language whose symbols were renamed at random.

    With :math:`w_\pi` the weight of the renaming :math:`\pi`, uniform at first,

    .. math::
        p'(v \mid x_{< t}) = \sum_\pi w_\pi\, p(\pi^{-1}(v) \mid \pi^{-1}(x_{t-1})), \qquad
        w_\pi \leftarrow w_\pi \frac{p(\pi^{-1}(x_t) \mid \pi^{-1}(x_{t-1}))}{p'(x_t \mid x_{< t})}

    in ``O(T d! d)`` time; a pure function to `vmap` over sequences or languages. It computes in
    the type of `log_transition`: within `jax.enable_x64`, in float64.

    Args:
        log_initial: log-probabilities of the first symbol, ``[d]``, ``d <= 9``.
        log_transition: ``log p(next | previous)``, ``[d, d]``; -inf is allowed.
        tokens: the renamed sequence, ``[T]``, ids in ``[0, d)``.

    Raises:
        ValueError: if ``d > 9``, shapes disagree, a distribution does not sum to 1 within 1e-6, a
            concrete token is out of range, or the concrete sequence is impossible under every
            renaming (under `jit`: `log_prob` is -inf and `possible` says from where on).

    Example:
        >>> log_transition = jnp.log(jnp.array([[0.125, 0.875], [0.5, 0.5]]))
        >>> seen = bayes_lexinvariant(jnp.log(jnp.array([1 / 3, 2 / 3])), log_transition,
        ...                           jnp.array([0, 1, 0]))
        >>> [round(float(p), 3) for p in jnp.exp(seen.log_predictive[1])]
        [0.375, 0.625]

    Source: arXiv 2305.16349 §2.2 eq. 3.
    """
    vocab_size = log_initial.shape[-1]
    if vocab_size > MAX_VOCABULARY:
        count = math.factorial(vocab_size)
        raise ValueError(
            f"vocabulary must have at most {MAX_VOCABULARY} symbols, got {vocab_size}: the state "
            f"holds {vocab_size}! = {count} weights and {4 * count * vocab_size / 2**30:.3g} GiB "
            "of permutations"
        )
    if log_initial.shape != (vocab_size,) or log_transition.shape != (vocab_size, vocab_size):
        raise ValueError(
            "log_initial and log_transition must have shapes [d] and [d, d], got "
            f"{log_initial.shape} and {log_transition.shape}"
        )
    if tokens.ndim != 1 or tokens.shape[0] == 0:
        raise ValueError(f"tokens must have shape [T] with T >= 1, got {tokens.shape}")
    _check_log_distributions("log_initial", log_initial)
    _check_log_distributions("log_transition", log_transition)
    if not validation.is_traced(tokens):
        outside = (np.asarray(tokens) < 0) | (np.asarray(tokens) >= vocab_size)
        if outside.any():
            raise ValueError(f"tokens must be in [0, {vocab_size}), got {np.asarray(tokens)}")
    inverse = jnp.asarray(_inverses(vocab_size))
    uniform = jnp.full(inverse.shape[:1], -math.lgamma(vocab_size + 1), log_transition.dtype)

    def read(log_weight: Array, token: Array, log_p: Array):
        """One step: predict, then reweigh the renamings; `log_p[k, v]` is renaming k's word."""
        log_predictive = jax.nn.logsumexp(log_weight[:, None] + log_p, axis=0)
        seen = log_predictive[token]
        log_weight = log_weight + log_p[:, token] - jnp.where(seen > -jnp.inf, seen, 0.0)
        meaning = jnp.zeros(vocab_size, log_p.dtype).at[inverse[:, token]].add(jnp.exp(log_weight))
        return log_weight, (log_predictive, meaning, seen)

    def step(carry: tuple[Array, Array], token: Array):
        log_weight, previous = carry
        log_p = log_transition[inverse[:, previous][:, None], inverse]
        log_weight, seen = read(log_weight, token, log_p)
        return (log_weight, token), seen

    log_weight, first = read(uniform, tokens[0], log_initial[inverse])
    _, rest = jax.lax.scan(step, (log_weight, tokens[0]), tokens[1:])
    log_predictive, decipher, seen = (
        jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True)
    )
    log_prob = jnp.sum(seen)
    before = jnp.concatenate([jnp.zeros(1, seen.dtype), jnp.cumsum(seen)[:-1]])
    if not validation.is_traced(log_prob) and log_prob == -jnp.inf:
        where = int(jnp.argmax(seen == -jnp.inf))
        raise ValueError(
            "tokens must be possible under at least one renaming, got probability 0 at position "
            f"{where}"
        )
    return BayesPrediction(log_predictive, decipher, log_prob, before > -jnp.inf)
