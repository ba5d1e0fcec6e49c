"""How examples are divided over clients, and how unequal that makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from jaxkit import validation

Partition = list[np.ndarray]


def iid_partition(num_examples: int, num_clients: int, *, seed: int = 0) -> Partition:
    """Deal shuffled examples to clients, sizes differing by one at most.

    Args:
        num_examples: N >= m.
        num_clients: m >= 1.
        seed: of the shuffle.

    Returns:
        Indices of each client, disjoint, covering all examples.

    Raises:
        ValueError: if there are fewer examples than clients.

    Example:
        >>> [len(rows) for rows in iid_partition(10, 3)]
        [4, 3, 3]
    """
    _check_counts(num_examples, num_clients)
    order = np.random.default_rng(validation.integer("seed", seed, minimum=0)).permutation(
        num_examples
    )
    return [np.sort(rows) for rows in np.array_split(order, num_clients)]


def dirichlet_partition(
    labels: Any,
    num_clients: int,
    concentration: float,
    *,
    samples_per_client: int | None = None,
    seed: int = 0,
) -> Partition:
    """The official simulator's Dirichlet split: equal clients, classes refilled when used up.

    Client i has class priors q_i ~ Dirichlet(a, ..., a) over the classes. Until all clients are
    full: a client among those not yet full, a class from its prior, the next unused example of that
    class, from the start again where all are used.

    Args:
        labels: integer classes 0..C-1 of the examples [N].
        num_clients: m >= 1.
        concentration: a in (0, 1e300]; small is unequal, large IID.
        samples_per_client: examples of a client, by default N // m, and the remainder for client 0.
        seed: of the draw.

    Returns:
        Indices of each client; one example may be at several clients and others at none.

    Raises:
        ValueError: if a number or a label is not allowed.

    Source: arXiv 2302.10429, official simulator's data set code.

    Example:
        >>> rows = dirichlet_partition([0, 1] * 50, 10, 0.3)
        >>> {len(r) for r in rows}
        {10}
    """
    _check_concentration(concentration)
    classes = _num_classes(labels)
    validation.integer("num_clients", num_clients, minimum=1)
    rng = np.random.default_rng(validation.integer("seed", seed, minimum=0))
    priors = rng.dirichlet(np.full(classes, float(concentration)), size=num_clients)
    return refilled_partition(labels, priors, samples_per_client=samples_per_client, seed=seed + 1)


def pathological_partition(
    labels: Any,
    num_clients: int,
    classes_per_client: int,
    *,
    samples_per_client: int | None = None,
    seed: int = 0,
) -> Partition:
    """The official simulator's pathological split: a few classes a client, all clients equal.

    Each client has `classes_per_client` random classes, in [1, C], with the same prior. Other
    arguments, errors, source and what is returned are those of `dirichlet_partition`.

    Example:
        >>> labels = np.arange(100) % 5
        >>> rows = pathological_partition(labels, 10, 2)
        >>> max(len(set(labels[r])) for r in rows) <= 2
        True
    """
    classes = _num_classes(labels)
    count = validation.integer("classes_per_client", classes_per_client, minimum=1)
    if count > classes:
        raise ValueError(f"classes_per_client must be in [1, {classes}], got {count}")
    validation.integer("num_clients", num_clients, minimum=1)
    rng = np.random.default_rng(validation.integer("seed", seed, minimum=0))
    priors = np.zeros((num_clients, classes))
    for prior in priors:
        prior[rng.choice(classes, size=count, replace=False)] = 1 / count
    return refilled_partition(labels, priors, samples_per_client=samples_per_client, seed=seed + 1)


def refilled_partition(
    labels: Any, priors: np.ndarray, *, samples_per_client: int | None = None, seed: int = 0
) -> Partition:
    """Fill equal clients by class priors [m, C], refilling a class whose examples are used up."""
    labels, classes = np.asarray(labels), priors.shape[1]
    num_clients = len(priors)
    sizes = np.full(num_clients, samples_per_client or len(labels) // num_clients)
    if samples_per_client is None:
        _check_counts(len(labels), num_clients)
        sizes[0] += len(labels) % num_clients
    else:
        validation.integer("samples_per_client", samples_per_client, minimum=1)

    rng = np.random.default_rng(validation.integer("seed", seed, minimum=0))
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    cumulative = priors.cumsum(axis=1)
    used = np.zeros(classes, np.int64)
    partition: list[list[int]] = [[] for _ in range(num_clients)]
    open_clients = list(range(num_clients))
    for pick, share in rng.random((sizes.sum(), 2)):
        place = int(pick * len(open_clients))
        client = open_clients[place]
        prior = cumulative[client]
        label = int(np.searchsorted(prior, share * prior[-1], side="right"))
        partition[client].append(int(pools[label][used[label] % len(pools[label])]))
        used[label] += 1
        if len(partition[client]) == sizes[client]:
            open_clients[place] = open_clients[-1]
            open_clients.pop()
    return [np.sort(np.array(rows)) for rows in partition]


def class_dirichlet_partition(
    labels: Any,
    num_clients: int,
    concentration: float,
    *,
    min_examples: int = 1,
    seed: int = 0,
) -> Partition:
    """The common Dirichlet split: each class is divided over the clients, whose sizes then differ.

    The examples of each class go to clients in proportions ~ Dirichlet(a, ..., a) over the clients,
    drawn again until every client has `min_examples`, up to 1000 times. Other arguments and errors
    are those of `dirichlet_partition`. What is returned is disjoint and covers all examples.

    Source: Hsu et al. 2019 (per-class form in common use), not the split of arXiv 2302.10429.

    Example:
        >>> rows = class_dirichlet_partition([0, 1] * 50, 5, 0.5)
        >>> sorted(np.concatenate(rows).tolist()) == list(range(100))
        True
    """
    labels = np.asarray(labels)
    classes = _num_classes(labels)
    _check_concentration(concentration)
    validation.integer("min_examples", min_examples, minimum=1)
    _check_counts(len(labels), num_clients * min_examples)
    rng = np.random.default_rng(validation.integer("seed", seed, minimum=0))
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    for _ in range(1000):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for pool in pools:
            shares = rng.dirichlet(np.full(num_clients, float(concentration)))
            cuts = np.round(np.cumsum(shares)[:-1] * len(pool)).astype(int)
            for client, rows in zip(parts, np.split(pool, cuts), strict=True):
                client.append(rows)
        partition = [np.sort(np.concatenate(client)) for client in parts]
        if min(map(len, partition)) >= min_examples:
            return partition
    raise ValueError(
        f"concentration must be larger, or min_examples smaller, for {num_clients} clients: 1000 "
        f"draws with {concentration} left a client with fewer than {min_examples} examples"
    )


def label_counts(
    labels: Any, partition: Partition, num_classes: int | None = None
) -> Int[np.ndarray, "clients classes"]:
    """How many examples of each class each client has.

    Args:
        labels: integer classes of the examples [N].
        partition: indices of each client.
        num_classes: C, by default one more than the largest label.

    Raises:
        ValueError: if a label is out of range.

    Example:
        >>> label_counts([0, 1, 1], [np.array([0, 1]), np.array([1, 2])]).tolist()
        [[1, 1], [0, 2]]
    """
    labels = np.asarray(labels)
    classes = _num_classes(labels, num_classes)
    largest = max(map(np.max, partition))
    if largest >= len(labels):
        raise ValueError(f"partition must index the {len(labels)} labels, got {largest}")
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in partition])


def _num_classes(labels: Any, num_classes: int | None = None) -> int:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [examples], got {labels.dtype} of shape {labels.shape}"
        )
    largest = int(labels.max())
    limit = largest + 1 if num_classes is None else num_classes
    if labels.min() < 0 or largest >= limit:
        raise ValueError(f"labels must be in [0, {limit}), got {labels.min()}..{largest}")
    if num_classes is None and len(np.unique(labels)) != limit:
        missing = sorted(set(range(limit)) - set(np.unique(labels).tolist()))
        raise ValueError(f"labels must use every class below {limit}, got none of {missing[:5]}")
    return limit


def _check_concentration(concentration: Any) -> None:
    if np.ndim(concentration):
        raise TypeError(f"concentration must be one number, got {concentration!r}")
    # Beyond, sums of its draws are infinite.
    validation.number("concentration", concentration, minimum=0, maximum=1e300, open_minimum=True)


def _check_counts(num_examples: int, num_clients: int) -> None:
    validation.integer("num_examples", num_examples)
    validation.integer("num_clients", num_clients, minimum=1)
    if num_examples < num_clients:
        raise ValueError(
            f"every client needs an example: at most {num_examples} clients, got {num_clients}"
        )
