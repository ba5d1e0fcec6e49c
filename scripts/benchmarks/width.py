"""Width-scaled AdamW beside optax, and top singular values beside full decompositions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse.linalg

from jaxkit import width
from jaxkit.experiments.evidence import Table


def interleave(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every call once a round, in turning order, after one round of warm-up; seconds."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            time.sleep(0.2)  # threads of the library called before spin for a while
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_row(seconds: dict[str, list[float]], name: str, reference: str) -> tuple[str, ...]:
    """Median time, and the median and quartiles over rounds of the ratio to `reference`."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(seconds[name])
    return name, f"{1e3 * median:.2f}", f"{middle:.3f}", f"[{low:.3f}, {high:.3f}]"


def decoder_shapes(d: int, layers: int = 8, vocab: int = 8192) -> dict[str, Any]:
    """Shapes of a decoder; 30 million parameters at d = 512."""
    lengths = {
        "embedding": (vocab, d),
        "norm": (layers, d),
        **{name: (layers, d, d // 64, 64) for name in ("query", "key", "value")},
        "out": (layers, d // 64, 64, d),
        "up": (layers, d, 4 * d),
        "down": (layers, 4 * d, d),
    }
    return {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in lengths.items()}


def update_table(rounds: int = 40) -> Table:
    """The jitted update, parameters and state donated as in a training step."""
    scaling = width.width_scaling(decoder_shapes(128), decoder_shapes(512))
    transforms = {
        "optax.adamw": optax.adamw(1e-3, b2=0.95, weight_decay=0.1),
        "optax.adamw(mask=matrices)": optax.adamw(
            1e-3,
            b2=0.95,
            weight_decay=0.1,
            mask=jax.tree.map(lambda role: role == "matrix", scaling.role),
        ),
        "adamw_width_scaled": width.adamw_width_scaled(1e-3, 0.1, scaling),
    }
    rng = np.random.default_rng(0)

    def draw() -> Any:
        return jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), decoder_shapes(512)
        )

    gradient = draw()
    carried: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, tx in transforms.items():
        params = draw()

        def step(carry: Any, gradient: Any, tx: Any = tx) -> Any:
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=0)
        carried[name] = (params, tx.init(params))

        def call(name: str = name, jitted: Any = jitted) -> Any:
            carried[name] = jitted(carried[name], gradient)
            return carried[name]

        calls[name] = call
    seconds = interleave(calls, rounds)
    size = sum(leaf.size for leaf in jax.tree.leaves(gradient))
    rows = []
    for name in transforms:
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(carried[name][1]))
        rows.append((*ratio_row(seconds, name, "optax.adamw"), f"{state_bytes:,}"))
    return Table(
        f"Jitted AdamW step, {size / 1e6:.0f}M parameters, {rounds} interleaved rounds",
        ("optimizer", "median ms", "ratio to optax.adamw", "quartiles", "bytes of state"),
        rows,
    )


def singular_value_table(n: int, rounds: int) -> Table:
    """The top singular value of a Gaussian matrix, and its error against float64 LAPACK."""
    matrix = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    on_device, key = jnp.asarray(matrix), jax.random.key(0)
    exact = np.linalg.norm(matrix.astype(np.float64), 2)

    @jax.jit
    def power(w: jax.Array) -> jax.Array:
        def step(_: int, v: jax.Array) -> jax.Array:
            v = (w @ v) @ w
            return v / jnp.linalg.norm(v)

        return jnp.linalg.norm(w @ jax.lax.fori_loop(0, 64, step, jnp.ones(n) / n**0.5))

    svd = jax.jit(lambda w: jnp.linalg.svd(w, compute_uv=False)[0])
    calls = {
        "top_singular_values": lambda: width.top_singular_values(on_device, key=key)[0],
        "jnp.linalg.svd": lambda: svd(on_device),
        "64 power iterations": lambda: power(on_device),
        "scipy svds(k=1)": lambda: scipy.sparse.linalg.svds(
            matrix, k=1, return_singular_vectors=False, rng=np.random.default_rng(0)
        )[0],
    }
    seconds = interleave(calls, rounds)
    return Table(
        f"Top singular value, {n} x {n} Gaussian, float32, {rounds} interleaved rounds",
        ("method", "median ms", "ratio to top_singular_values", "quartiles", "relative error"),
        [
            (
                *ratio_row(seconds, name, "top_singular_values"),
                f"{abs(float(call()) / exact - 1):.1e}",
            )
            for name, call in calls.items()
        ],
    )


def run() -> list[Table]:
    """Return the tables of the room."""
    return [update_table(), singular_value_table(512, 9), singular_value_table(2048, 5)]
