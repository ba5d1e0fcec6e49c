"""Languages whose probabilities are known: Markov chains over a small alphabet."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxkit import validation


class MarkovLanguage(NamedTuple):
    """A first-order Markov chain.

    Attributes:
        log_initial: log-probabilities of the first symbol, ``[d]``.
        log_transition: ``log p(next | previous)``, ``[d, d]``.
    """

    log_initial: Float[Array, " d"]
    log_transition: Float[Array, "d d"]


def sample_markov(
    key: Key[Array, ""], language: MarkovLanguage, num_sequences: int, length: int
) -> Int[Array, "B T"]:
    """Draw sequences of a language.

    Args:
        key: typed key.
        language: the chain.
        num_sequences: number of sequences ``B``.
        length: symbols of each, ``T``.

    Raises:
        ValueError: if a size is not positive.

    Example:
        >>> half = jnp.log(jnp.full((2, 2), 0.5))
        >>> language = MarkovLanguage(half[0], half)
        >>> sample_markov(jax.random.key(1), language, 2, 5).shape
        (2, 5)
    """
    validation.integer("num_sequences", num_sequences, minimum=1)
    validation.integer("length", length, minimum=1)
    keys = jax.random.split(key, length)
    first = jax.random.categorical(keys[0], language.log_initial, shape=(num_sequences,))

    def step(previous: Int[Array, " B"], key: Key[Array, ""]):
        following = jax.random.categorical(key, language.log_transition[previous])
        return following, following

    _, rest = jax.lax.scan(step, first, keys[1:])
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def markov_losses(language: MarkovLanguage, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
    """Cross-entropy of the next symbol under the language itself, in nats.

    Args:
        language: the chain.
        tokens: ids ``[B, T]``.

    Example:
        >>> coin = MarkovLanguage(jnp.log(jnp.ones(2) / 2), jnp.log(jnp.ones((2, 2)) / 2))
        >>> round(float(markov_losses(coin, jnp.array([[0, 1]]))[0, 0]), 4)
        0.6931
    """
    return -language.log_transition[tokens[:, :-1], tokens[:, 1:]]
