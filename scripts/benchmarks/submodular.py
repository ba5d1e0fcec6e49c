"""Facility location beside apricot-select, memory without a matrix, and dynamic updates."""

from __future__ import annotations

import resource
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import timing

from jaxkit import datasets, submodular
from jaxkit.experiments.evidence import Table

_K, _DIM, _CLUSTERS = 100, 64, 50


def clustered(num_items: int) -> np.ndarray:
    """Points of 50 Gaussian clusters in 64 dimensions, float32 `[n, 64]`."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(_CLUSTERS, _DIM)) * 2
    points = centres[rng.integers(_CLUSTERS, size=num_items)]
    return (points + rng.normal(size=points.shape)).astype(np.float32)


def peers(sizes: tuple[int, ...] = (1000, 5000, 10000), rounds: int = 3) -> Table:
    """Lazy facility location over a given matrix, k = 100, beside apricot-select.

    Apricot compiles anew at every fit (about 2 s of its times), also after the warm-up.
    """
    try:
        import apricot
    except ImportError as error:
        raise ImportError(
            "this benchmark needs apricot-select: pip install 'jaxkit[benchmark]'"
        ) from error
    rows = []
    for n in sizes:
        similarity = np.array(submodular.similarity_matrix(clustered(n)), np.float64)
        function = submodular.facility_location(similarity)

        def theirs(similarity=similarity):
            selector = apricot.FacilityLocationSelection(_K, metric="precomputed", optimizer="lazy")
            return selector.fit(similarity).ranking

        def lazy(function=function):
            return submodular.lazy_greedy(function, _K).indices

        def stochastic(function=function):
            return submodular.stochastic_greedy(function, _K, jax.random.key(0)).indices

        calls: dict[str, Callable[[], object]] = {
            "apricot": theirs,
            "lazy": lazy,
            "stochastic": stochastic,
        }
        times = timing.interleaved(calls, rounds)
        ours, peer = np.asarray(lazy()), np.asarray(theirs())
        values = [
            float(submodular.evaluate(function, jnp.asarray(chosen, jnp.int32)))
            for chosen in (ours, peer, stochastic())
        ]
        rows.append(
            (
                n,
                timing.spread(times["apricot"]),
                timing.spread(times["lazy"]),
                timing.spread(times["apricot"] / times["lazy"]),
                timing.spread(times["stochastic"]),
                f"{values[0] / values[1]:.6f}",
                f"{values[2] / values[1]:.4f}",
            )
        )
    return Table(
        "Facility location, k = 100, matrix given, one thread, warm: seconds, median (range)",
        (
            "n",
            "apricot lazy",
            "lazy_greedy",
            "apricot / lazy_greedy",
            "stochastic_greedy",
            "value, lazy / apricot",
            "value, stochastic / apricot",
        ),
        rows,
    )


def without_matrix(num_items: int = 50_000) -> Table:
    """Lazy facility location from features only: time and peak memory."""
    features = clustered(num_items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function = submodular.facility_location_from_features(features)
    seconds = timing.seconds(lambda: submodular.lazy_greedy(function, _K, batch=128))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = submodular.lazy_greedy(function, 1)
    assert bool(result.valid.all())
    return Table(
        "Facility location from features, k = 100, one thread, with compilation",
        ("n", "seconds", "growth of peak memory, MB", "a matrix would take, MB"),
        [(num_items, f"{seconds:.1f}", f"{grown / 1024:.0f}", f"{4 * num_items**2 / 2**20:.0f}")],
    )


def dynamic_updates(num_updates: int = 1500) -> Table:
    """An update of the dynamic maximiser with read-out beside a jitted greedy recompute."""
    split = datasets.load_digits()
    images = np.concatenate([split.train_inputs, split.test_inputs])
    rows = images.reshape(len(images), -1)
    matrix = submodular.similarity_matrix(rows - rows.mean(0), kernel="shifted_cosine")
    function, k, n = submodular.facility_location(matrix), 10, len(rows)
    order = np.random.default_rng(0).permutation(n)
    operations: list[tuple[bool, int]] = []
    for step, item in enumerate(order):
        operations.append((True, int(item)))
        if step >= n // 3:
            operations.append((False, int(order[step - n // 3])))
    operations = operations[:num_updates]
    updates, recomputes = [], []
    # The first stream is the warm-up: it compiles every shape that the second meets.
    for key in jax.random.split(jax.random.key(0), 2):
        maximiser = submodular.DynamicMaximiser(function, k, key)
        updates, recomputes = [], []
        for step, (insert, item) in enumerate(operations):

            def update(maximiser=maximiser, insert=insert, item=item):
                (maximiser.insert if insert else maximiser.delete)(item)
                return maximiser.solution().value

            updates.append(timing.seconds(update))
            if step % 25 == 0:
                mask = np.zeros(n, bool)
                mask[maximiser.live] = True
                recomputes.append(
                    timing.seconds(
                        lambda mask=mask: submodular.greedy(function, k, mask=mask).value
                    )
                )
    ours, theirs = np.array(updates), np.array(recomputes)
    return Table(
        "Digits window, n = 1797, k = 10, one thread, warm: milliseconds",
        ("", "mean", "median", "95th percentile"),
        [
            (name, *(f"{1e3 * x:.2f}" for x in (v.mean(), np.median(v), np.quantile(v, 0.95))))
            for name, v in (("dynamic update and read", ours), ("greedy recompute", theirs))
        ]
        + [
            (
                "ratio",
                f"{theirs.mean() / ours.mean():.1f}",
                f"{np.median(theirs) / np.median(ours):.1f}",
                "",
            )
        ],
    )


def run() -> list[Table]:
    """Measure all three, on one core; the one that reads peak memory comes first."""
    return [without_matrix(), dynamic_updates(), peers()]
