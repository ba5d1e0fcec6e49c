"""Representation descriptors: a linear autoencoder that remembers what an adapter's input was."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxkit import validation


class Descriptor(NamedTuple):
    """Parameters of one descriptor, or of many stacked along leading axes.

    Attributes:
        encoder_kernel: `[..., d, m]`.
        encoder_bias: `[..., m]`.
        decoder_kernel: `[..., m, d]`.
        decoder_bias: `[..., d]`.
    """

    encoder_kernel: Float[Array, "*stack d m"]
    encoder_bias: Float[Array, "*stack m"]
    decoder_kernel: Float[Array, "*stack m d"]
    decoder_bias: Float[Array, "*stack d"]


def init_descriptor(key: Key[Array, ""], width: int, descriptor_dim: int = 128) -> Descriptor:
    r"""Draw a fresh descriptor: weights $U(\pm 1/\sqrt{\text{inputs}})$, biases 0.

    Args:
        key: typed key.
        width: `d`, width of the residual stream.
        descriptor_dim: `m`, width of the code.

    Returns:
        The descriptor.

    Raises:
        ValueError: if a width is not positive.

    Example:
        >>> init_descriptor(jax.random.key(0), 8, 3).decoder_kernel.shape
        (3, 8)
    """
    validation.integer("width", width, minimum=1)
    validation.integer("descriptor_dim", descriptor_dim, minimum=1)
    encoder, decoder = jax.random.split(key)
    low, high = width**-0.5, descriptor_dim**-0.5
    return Descriptor(
        jax.random.uniform(encoder, (width, descriptor_dim), minval=-low, maxval=low),
        jnp.zeros(descriptor_dim),
        jax.random.uniform(decoder, (descriptor_dim, width), minval=-high, maxval=high),
        jnp.zeros(width),
    )


def representation_error(
    descriptor: Descriptor, pooled: Float[Array, "*batch d"]
) -> Float[Array, "*batch"]:
    r"""How badly one descriptor reconstructs: $r(p) = \frac1d \|p - ((pE + e)D + c)\|^2$.

    Args:
        descriptor: parameters without leading axes.
        pooled: residual stream after attention, averaged over all tokens, `[..., d]`.

    Returns:
        The error of each sample, `[...]`, in squared units of the residual stream.

    Source: the official program; arXiv 2403.18886 eq. (2) prints a sum over the width and does not
    say that tokens are pooled.

    Example:
        >>> zero = Descriptor(jnp.zeros((2, 1)), jnp.zeros(1), jnp.zeros((1, 2)), jnp.zeros(2))
        >>> float(representation_error(zero, jnp.array([1.0, 3.0])))
        5.0
    """
    code = pooled @ descriptor.encoder_kernel + descriptor.encoder_bias
    rest = pooled - (code @ descriptor.decoder_kernel + descriptor.decoder_bias)
    return jnp.mean(rest**2, axis=-1)
