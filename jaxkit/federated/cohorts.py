"""Who takes part in a round: samplers of cohorts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key
from scipy import special

from jaxkit import validation

#: Identity of a padded place in a cohort: no row of any array, so that scatters drop it.
PADDING = int(np.iinfo(np.int32).max)

# Probability that a Bernoulli cohort is larger than the default padded size.
_TAIL = 1e-6


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
        clients: int32[cohort], distinct client identities; `PADDING` where there is none.
        active: bool[cohort], whether the place is taken.
    """

    clients: Int[Array, " cohort"]
    active: Bool[Array, " cohort"]


class Sampler(NamedTuple):
    """A distribution of cohorts.

    Attributes:
        sample: `(key, round) -> Cohort`, pure.
        num_clients: m.
        cohort_size: places of a cohort (static).
        expected_size: expected number of clients that take part.
        kind: `"uniform"`, `"stratified"`, `"bernoulli"` or `"fixed"`.
        num_strata: blocks of consecutive clients that each give an equal part, in order.
        overflow: bound on the probability that a round had to be redrawn to fit (Bernoulli).
        allow_empty: whether a round may have no client at all.
    """

    sample: Callable[[Key[Array, ""], Any], Cohort]
    num_clients: int
    cohort_size: int
    expected_size: float
    kind: str
    num_strata: int = 1
    overflow: float = 0.0
    allow_empty: bool = False

    @property
    def law(self) -> dict[str, Any]:
        """What decides how likely a client takes part: all but the function."""
        return {name: value for name, value in self._asdict().items() if name != "sample"}


def uniform_sampler(num_clients: int, cohort_size: int) -> Sampler:
    """Draw a fixed number of clients without replacement, all subsets alike.

    Args:
        num_clients: m >= 1.
        cohort_size: S in [1, m].

    Raises:
        ValueError: if a size is not allowed.

    Example:
        >>> uniform_sampler(10, 3).sample(jax.random.key(0), 0).clients.shape
        (3,)
    """
    _check_sizes(num_clients, cohort_size)

    def sample(key, round):
        del round
        if cohort_size == num_clients:
            clients = jnp.arange(num_clients, dtype=jnp.int32)
        else:
            clients = jax.random.permutation(key, num_clients)[:cohort_size].astype(jnp.int32)
        return Cohort(clients, jnp.ones(cohort_size, bool))

    return Sampler(sample, num_clients, cohort_size, float(cohort_size), "uniform")


def stratified_sampler(num_clients: int, cohort_size: int, num_strata: int) -> Sampler:
    """Draw the same number of clients from each block of consecutive clients.

    With one block a device, no client state crosses devices. It is another distribution than
    `uniform_sampler`: two clients of one block are drawn together less often. Places
    are in the order of the blocks.

    Args:
        num_clients: m; blocks hold ceil(m / num_strata) clients, the last one the rest.
        cohort_size: S, a multiple of `num_strata`.
        num_strata: D, number of blocks.

    Raises:
        ValueError: if a size is not allowed, or a block has fewer than S/D clients.

    Example:
        >>> cohort = stratified_sampler(8, 4, 2).sample(jax.random.key(0), 0)
        >>> (cohort.clients // 4).tolist()
        [0, 0, 1, 1]
    """
    _check_sizes(num_clients, cohort_size)
    validation.integer("num_strata", num_strata, minimum=1)
    if cohort_size % num_strata:
        raise ValueError(
            f"cohort_size must be a multiple of num_strata = {num_strata}, got {cohort_size}"
        )
    block = math.ceil(num_clients / num_strata)
    share, smallest = cohort_size // num_strata, num_clients - block * (num_strata - 1)
    if smallest < share:
        raise ValueError(
            f"each of the {num_strata} strata must hold at least {share} clients, got {smallest} "
            f"in the last of {num_clients} clients"
        )

    def sample(key, round):
        del round
        clients = jnp.arange(block * num_strata, dtype=jnp.int32).reshape(num_strata, block)
        scores = jnp.where(
            clients < num_clients, jax.random.uniform(key, (num_strata, block)), jnp.inf
        )
        drawn = jnp.argsort(scores, axis=1)[:, :share]
        return Cohort(
            jnp.take_along_axis(clients, drawn, axis=1).reshape(-1), jnp.ones(cohort_size, bool)
        )

    return Sampler(sample, num_clients, cohort_size, float(cohort_size), "stratified", num_strata)


def bernoulli_sampler(
    num_clients: int,
    active_ratio: float,
    *,
    max_size: int | None = None,
    allow_empty: bool = False,
) -> Sampler:
    """Let every client take part independently, in a cohort padded to a fixed size.

    The number of clients is Binomial(m, ratio), conditioned on fitting: a draw that is empty or
    larger than `max_size` is drawn again. The ratio is rounded down to a multiple of 2^-32, never
    up, so that nobody takes part more often than accounting says.

    Args:
        num_clients: m >= 1.
        active_ratio: probability of taking part, in [2^-32, 1].
        max_size: places of a cohort, by default the smallest number that is exceeded with
            probability at most 1e-6.
        allow_empty: whether nobody may take part, as client-level privacy needs it.

    Raises:
        ValueError: if a number is not allowed.

    Source: arXiv 2302.10429, official simulator's participation.

    Example:
        >>> sampler = bernoulli_sampler(100, 0.1)
        >>> sampler.cohort_size, int(sampler.sample(jax.random.key(0), 0).active.sum()) > 0
        (27, True)
    """
    validation.integer("num_clients", num_clients, minimum=1)
    if validation.is_traced(active_ratio):
        raise TypeError("active_ratio must be a number that is known, got a traced one")
    validation.number("active_ratio", active_ratio, minimum=2.0**-32, maximum=1)
    threshold = math.floor(float(active_ratio) * 2**32)
    # P(Binomial(m, ratio) > k) for k = 0..m.
    tails = special.bdtrc(np.arange(num_clients + 1), num_clients, float(active_ratio))
    if max_size is None:
        max_size = max(1, int(np.argmax(tails <= _TAIL)))
    _check_sizes(num_clients, max_size, name="max_size")
    smallest = 0 if allow_empty else 1

    def draw(key):
        if threshold == 2**32:
            return jnp.ones(num_clients, bool)
        return jax.random.bits(key, (num_clients,), jnp.uint32) < jnp.uint32(threshold)

    def unfit(carry):
        _, takes_part = carry
        count = takes_part.sum()
        return (count < smallest) | (count > max_size)

    def again(carry):
        key, draw_key = jax.random.split(carry[0])
        return key, draw(draw_key)

    def sample(key, round):
        del round
        _, takes_part = lax.while_loop(unfit, again, again((key, None)))
        (clients,) = jnp.nonzero(takes_part, size=max_size, fill_value=PADDING)
        return Cohort(clients.astype(jnp.int32), jnp.arange(max_size) < takes_part.sum())

    return Sampler(
        sample,
        num_clients,
        max_size,
        float(num_clients * active_ratio),
        "bernoulli",
        overflow=float(tails[max_size]),
        allow_empty=allow_empty,
    )


def fixed_sampler(cohorts: Sequence[Sequence[int]], num_clients: int) -> Sampler:
    """Replay given cohorts, one a round; they may differ in size, and are padded.

    Args:
        cohorts: distinct clients of each round; round t beyond the last repeats the last.
        num_clients: m.

    Raises:
        ValueError: if there is none, or a number in one is out of range or twice there (its update
            would count double).

    Example:
        >>> fixed_sampler([[0, 2], [1]], 3).sample(jax.random.key(0), 1).active.tolist()
        [True, False]
    """
    validation.integer("num_clients", num_clients, minimum=1)
    made = [_checked(clients, num_clients) for clients in cohorts]
    if not made:
        raise ValueError("cohorts must hold at least one round, got none")
    size = max(map(len, made))
    table = np.full((len(made), size), PADDING, np.int32)
    for row, clients in zip(table, made, strict=True):
        row[: len(clients)] = clients

    def sample(key, round):
        del key
        clients = jnp.asarray(table)[jnp.minimum(round, len(made) - 1)]
        return Cohort(clients, clients != PADDING)

    return Sampler(sample, num_clients, size, float(np.mean([len(c) for c in made])), "fixed")


def pad_cohort(cohort: Cohort, multiple: int) -> Cohort:
    """Add empty places, `PADDING` at the end, until `multiple` divides their number."""
    extra = -cohort.clients.shape[0] % multiple
    return Cohort(
        jnp.pad(cohort.clients, (0, extra), constant_values=PADDING),
        jnp.pad(cohort.active, (0, extra)),
    )


def _checked(clients: Sequence[int], num_clients: int) -> list[int]:
    if not isinstance(clients, Iterable):
        raise TypeError(f"cohorts must be the list of clients of each round, got {clients!r}")
    if any(map(validation.is_traced, clients)):
        raise TypeError("clients must be numbers that are known, got traced ones")
    chosen = [validation.integer("clients", client, minimum=0) for client in clients]
    if not chosen:
        raise ValueError("clients must name at least one client, got none")
    if len(set(chosen)) != len(chosen):
        twice = sorted({client for client in chosen if chosen.count(client) > 1})
        raise ValueError(f"clients must be distinct, got {twice} more than once")
    if max(chosen) >= num_clients:
        raise ValueError(f"clients must be below num_clients = {num_clients}, got {max(chosen)}")
    return chosen


def _check_sizes(num_clients: int, cohort_size: int, *, name: str = "cohort_size") -> None:
    validation.integer("num_clients", num_clients, minimum=1)
    validation.integer(name, cohort_size, minimum=1)
    if cohort_size > num_clients:
        raise ValueError(f"{name} must not exceed num_clients = {num_clients}, got {cohort_size}")
