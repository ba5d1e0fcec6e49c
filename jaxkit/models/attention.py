"""Causal attention by several programs: plain contractions, JAX's, and those of long contexts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkit import training
from jaxkit.models import products

#: Logit of a key that must not be seen: its weight is exactly 0, and the gradient stays finite.
MASKED = -1e30


def attend(
    query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None, name: str
) -> Array:
    """Mix values: queries ``[B, T, H, K]``, keys and values ``[B, S, J, K]`` with `J` dividing `H`.

    Queries are scaled already. `bias` ``[B, H, T, S]`` holds the mask too. Without bias or mask
    each token sees itself and those before, and memory need not grow with the square of `T`.
    """
    if bias is None and mask is None:
        if name == "auto":
            return _attend_by_platform(query, key, value)
        if name == "splash":
            return splash(query, key, value)
        if name in ("xla", "cudnn"):
            return _dot_product(query, key, value, name, is_causal=True)
        mask = jnp.tri(query.shape[1], dtype=bool)
    if name in ("xla", "cudnn"):
        mask = None if mask is None else mask[None, None]
        return _dot_product(query, key, value, name, bias=bias, mask=mask)
    return _contractions(query, key, value, bias, mask)


def _contractions(query, key, value, bias, mask):
    if (groups := key.shape[2]) == query.shape[2]:
        logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        logits = logits if mask is None else jnp.where(mask, logits, MASKED)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bhts,bshd->bthd", weights, value)
    batch, length, heads, width = query.shape
    query = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("btghd,bsgd->bghts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.reshape(batch, groups, heads // groups, *bias.shape[2:])
    logits = logits if mask is None else jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bghts,bsgd->btghd", weights, value)
    return mixed.reshape(batch, length, heads, width)


def _dot_product(query, key, value, implementation, **options):
    attend: Any = jax.nn.dot_product_attention
    return attend(query, key, value, scale=1.0, implementation=implementation, **options)


def _plain(query: Array, key: Array, value: Array) -> Array:
    return _contractions(query, key, value, None, jnp.tri(query.shape[1], dtype=bool))


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return _dot_product(query, key, value, "cudnn", is_causal=True)


def splash_fits(query: Array) -> bool:
    """Whether `splash` takes arrays of this shape: ``[B, T, H, K]``."""
    return query.shape[1] % 128 == 0 and query.shape[3] % 128 == 0


def _cudnn_fits(query: Array) -> bool:
    narrow = query.dtype in (jnp.bfloat16, jnp.float16)
    return narrow and query.shape[1] % 2 == 0 and query.shape[3] % 8 == 0 and query.shape[3] <= 128


@functools.cache
def _has_cuda() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def _attend_by_platform(query: Array, key: Array, value: Array) -> Array:
    """The best program for the platform that is compiled for, which need not be this machine's."""
    choices: dict[str, Callable[[Array, Array, Array], Array]] = {}
    if splash_fits(query):
        choices["tpu"] = splash
    if _cudnn_fits(query) and _has_cuda():
        choices["cuda"] = _cudnn
    device: Any = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        platform = "cuda" if device.platform == "gpu" else device.platform
        return choices.get(platform, _plain)(query, key, value)
    if not choices:
        return _plain(query, key, value)

    # The platform is known only when the program is lowered. Programs keep different things for
    # their backward passes, and a choice between them would keep the things of all: so keep none.
    @jax.custom_vjp
    def chosen(*arrays: Array) -> Array:
        return jax.lax.platform_dependent(*arrays, default=_plain, **choices)

    def backward(arrays: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
        def pullback(program: Callable[..., Array]) -> Callable[..., tuple[Array, ...]]:
            return lambda g, *arrays: jax.vjp(program, *arrays)[1](g)

        programs = {platform: pullback(program) for platform, program in choices.items()}
        return jax.lax.platform_dependent(g, *arrays, default=pullback(_plain), **programs)

    chosen.defvjp(lambda *arrays: (chosen(*arrays), arrays), backward)
    return chosen(query, key, value)


def splash(query: Array, key: Array, value: Array, *, interpret: bool = False) -> Array:
    """JAX's splash attention for TPU: blocks of keys, nothing of size ``[T, T]``.

    On a mesh each device attends over its rows and heads.
    """
    if not splash_fits(query):
        raise ValueError(
            "attention='splash' needs a context and head_dim that are multiples of 128, got "
            f"{query.shape[1]} and {query.shape[3]}"
        )

    def local(query: Array, key: Array, value: Array) -> Array:
        kernel = _splash_kernel(query.shape[1], query.shape[2], interpret)
        swapped = (jnp.swapaxes(array, 1, 2) for array in (query, key, value))
        return jnp.swapaxes(jax.vmap(kernel)(*swapped), 1, 2)

    mesh = training.mesh_in_use()
    if mesh is None or not mesh.auto_axes:
        return local(query, key, value)
    whole = query.shape[0] % training.partition_count("batch", mesh)
    heads = "kv_heads" if key.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
    names = (None if whole else "batch", None, heads, None)
    return products.by_parts(local, (query, names), (key, names), (value, names), out=names)


@functools.cache
def _splash_kernel(length: int, num_heads: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    block = next(size for size in (512, 256, 128) if length % size == 0)
    mask = splash_attention_mask.CausalMask((length, length))
    # Of queries, of keys and values and of what is computed at once, forward and backward.
    names = [f.name for f in dataclasses.fields(splash_attention_kernel.BlockSizes)]
    blocks: Any = {name: block for name in names if name.startswith("block_")}
    sizes = splash_attention_kernel.BlockSizes(**blocks)
    # The tables of the mask are numbers for every program, not values of the one being traced.
    with jax.ensure_compile_time_eval():
        return splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * num_heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
