"""Contractions as flat matrix products."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def project(x: Array, kernel: Array, **options: Any) -> Array:
    """Contract ``[B, T, *inputs]`` with ``[*inputs, *outputs]`` to ``[B, T, *outputs]``."""
    # As one flat matrix product: XLA's CPU backend is slower on the same contraction in 3-D.
    batch, length, *inputs = x.shape
    outputs = kernel.shape[len(inputs) :]
    size = math.prod(inputs)
    flat = jnp.matmul(x.reshape(batch * length, size), kernel.reshape(size, -1), **options)
    return flat.reshape(batch, length, *outputs)
