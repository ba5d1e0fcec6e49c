"""What a model costs: parameters and floating-point operations."""

from __future__ import annotations

from jaxkit.lexinvariant import decoder


def matmul_parameters(config: decoder.DecoderConfig) -> int:
    """Number of weights in the matrices of the blocks (no table, norms or biases).

    Example:
        >>> matmul_parameters(decoder.DecoderConfig(
        ...     128, d_model=1024, num_layers=12, num_heads=8, head_dim=128, d_ff=4096))
        150994944
    """
    attention = 4 * config.d_model * config.num_heads * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.d_model * config.d_ff
    return config.num_layers * (attention + mlp)


def train_flops_per_token(config: decoder.DecoderConfig, sequence_length: int) -> int:
    r"""Floating-point operations of one training step, per token, forward and backward.

    .. math:: 6 N + 12 L H K T + 6 V D

    with :math:`N` the matmul weights; the attention is counted in full, without the causal saving,
    and recomputation is not counted (the convention of PaLM's model FLOP utilisation).

    Args:
        config: the model.
        sequence_length: context length ``T``.

    Returns:
        FLOPs per token.

    Example:
        >>> paper = decoder.DecoderConfig(
        ...     128, d_model=1024, num_layers=12, num_heads=8, head_dim=128, d_ff=4096)
        >>> train_flops_per_token(paper, 512)
        982253568
    """
    attention = config.num_layers * config.num_heads * config.head_dim * sequence_length
    readout = config.vocab_size * config.d_model
    return 6 * matmul_parameters(config) + 12 * attention + 6 * readout
