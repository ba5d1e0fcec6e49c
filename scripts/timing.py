"""Times of calls beside each other, taken turn by turn: a slow moment of the machine meets all.

Beside `benchmark.py`, so that every benchmark that it runs can `import timing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def seconds(call: Callable[[], Any]) -> float:
    """Seconds until the result of a call is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU-seconds of a call, all threads of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each side, once a round in turn, after a round of warm-up: `[rounds]` by name."""
    for call in sides.values():
        jax.block_until_ready(call())
    times = [[seconds(call) for call in sides.values()] for _ in range(rounds)]
    return dict(zip(sides, np.array(times).T, strict=True))


def spread(values: np.ndarray) -> str:
    """Median and range, printable."""
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"
