"""Facility location beside apricot-select, memory without a matrix, and dynamic updates."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
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


def without_matrix(num_items: int = 50_000, num_clients: int | None = None, k: int = _K) -> Table:
    """Lazy facility location from features only: time and peak memory.

    Args:
        num_items: candidates.
        num_clients: how many of them are to be represented; all by default.
        k: items to select.
    """
    features = clustered(num_items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function = submodular.facility_location_from_features(features, features[:num_clients])
    seconds = timing.seconds(lambda: submodular.lazy_greedy(function, k, batch=128))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    clients = num_clients or num_items
    return Table(
        f"Facility location from features, k = {k}, one thread, with compilation",
        ("n", "clients", "seconds", "growth of peak memory, MB", "a matrix would take, MB"),
        [
            (
                num_items,
                clients,
                f"{seconds:.1f}",
                f"{grown / 1024:.0f}",
                f"{4 * num_items * clients / 2**20:.0f}",
            )
        ],
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


def stream(elements: int = 1_000_000, window: int = 1024, batch: int = 256, k: int = 10) -> Table:
    """Queries an update and memory of a stream whose items come in batches and leave in order.

    Args:
        elements: insertions; each is deleted once `window` younger items are in.
        window: items that are live at a time.
        batch: items that come, and leave, in one update of the maximiser.
        k: size of the solution.
    """
    rng, dim, num_clients = np.random.default_rng(0), 16, 128
    centers = rng.normal(size=(_CLUSTERS, dim)) * 2

    def draw(count: int) -> np.ndarray:
        points = centers[rng.integers(_CLUSTERS, size=count)] + rng.normal(size=(count, dim))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    # Room for the window, one batch, and items that left but still stand in a sample.
    held = draw(window + batch + 1024)
    function = submodular.facility_location_from_features(held, draw(num_clients))
    maximiser = submodular.DynamicMaximiser(function, k, jax.random.key(0))
    live, rows, done, mark = [], [], 0, 10_000
    spent = updates = 0
    begin = time.perf_counter()
    while done < elements:
        places = maximiser.free[:batch]
        held[places] = draw(places.size)
        maximiser.function = dataclasses.replace(maximiser.function, rows=jnp.array(held))
        maximiser.insert(places)
        live.append(places)
        done += places.size
        updates += places.size
        if sum(map(len, live)) > window:
            maximiser.delete(live[0])
            updates += live.pop(0).size
        if done >= min(mark, elements):
            mask = np.zeros(len(held), bool)
            mask[maximiser.live] = True
            best = submodular.lazy_greedy(maximiser.function, k, mask=mask)
            now = time.perf_counter()
            rows.append(
                (
                    f"{done:,}",
                    f"{(maximiser.num_queries - spent) / updates:.1f}",
                    f"{maximiser.solution().value / float(best.value):.3f}",
                    f"{updates / (now - begin):,.0f}",
                    len(maximiser.state.exponents),
                    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
                )
            )
            print(rows[-1], file=sys.stderr, flush=True)
            spent, updates, begin, mark = maximiser.num_queries, 0, now, 10 * mark
    return Table(
        f"A stream in batches of {batch}, window {window:,}, k = {k}, since the row before",
        (
            "insertions",
            "queries an update",
            "value / greedy",
            "updates a second",
            "guesses",
            "peak memory, MB",
        ),
        rows,
    )


def run() -> list[Table]:
    """Measure all three, on one core; the one that reads peak memory comes first."""
    return [without_matrix(), dynamic_updates(), peers()]
