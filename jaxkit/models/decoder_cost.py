"""What a model costs: parameters, floating-point operations and memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxkit import training, validation
from jaxkit.models import decoder
from jaxkit.models.decoder_config import DecoderConfig


def _matmul_parameters(config: DecoderConfig) -> int:
    """Number of weights in the matrices of the blocks (no table, norms or biases)."""
    attention = 4 * config.d_model * config.num_heads * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.d_model * config.d_ff
    return config.num_layers * (attention + mlp)


def train_flops_per_token(config: DecoderConfig, sequence_length: int) -> int:
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
        >>> paper = DecoderConfig(
        ...     128, d_model=1024, num_layers=12, num_heads=8, head_dim=128, d_ff=4096)
        >>> train_flops_per_token(paper, 512)
        982253568
    """
    attention = config.num_layers * config.num_heads * config.head_dim * sequence_length
    readout = config.vocab_size * config.d_model
    return 6 * _matmul_parameters(config) + 12 * attention + 6 * readout


class ParameterCounts(NamedTuple):
    """Parameters of a `DecoderLM` by kind.

    Attributes:
        matmul: weights of the blocks' matrices.
        norms: scales of the norms.
        relative_bias: T5 biases.
        embedding_affine: scale and bias of the embedding.
        table: the learned token table; 0 where it is given.
        logit_scale: scales of normalised attention logits.

    Example:
        >>> counts = parameter_counts(DecoderConfig(128, d_model=64))
        >>> counts.table == 128 * 64, counts.matmul > counts.norms
        (True, True)
    """

    matmul: int
    norms: int
    relative_bias: int
    embedding_affine: int
    table: int
    logit_scale: int


def parameter_counts(config: DecoderConfig) -> ParameterCounts:
    """Count the parameters of a model by kind.

    Args:
        config: the model.

    Returns:
        The counts; their sum is the size of the parameter tree.

    Example:
        >>> sum(parameter_counts(DecoderConfig(128, embedding="given")))
        788352
    """
    layers, heads, width = config.num_layers, config.num_heads, config.d_model
    tables = 0
    if config.position == "t5":
        tables = 1 if config.share_relative_bias else layers
    return ParameterCounts(
        matmul=_matmul_parameters(config),
        norms=(2 * layers + 1) * width,
        relative_bias=tables * heads * config.num_buckets,
        embedding_affine=2 * width,
        table=config.vocab_size * width if config.embedding == "fixed" else 0,
        logit_scale=layers * heads if config.qk_norm else 0,
    )


class StepCost(NamedTuple):
    """What one training step needs of each device, if the program is compiled as it should be.

    Attributes:
        num_devices: devices of the mesh.
        parameter_bytes: the device's share of the parameters.
        optimizer_bytes: its share of the optimizer's state.
        gradient_bytes: its share of the gradients.
        table_bytes: the token tables given with the call, one a sequence; 0 with a learned one.
        logits_bytes: its float32 logits, if scored at once.
        residual_bytes: layer inputs kept for the backward pass (all that `remat` keeps).
        temporary_bytes: all that lives beside parameters and optimizer when most does: gradients,
            layer inputs, one layer's activations, logits with their gradient, and the gathered
            weights of two layers and of the table.
        data_exchange_bytes: what the device receives to sum gradients over copies of its share.
        fsdp_exchange_bytes: what it receives to gather the parameters, forward and backward, and to
            sum and scatter their gradients, in the type of the activations; of a learned table also
            to bring the rows read to their sequences.
        tensor_exchange_bytes: what it receives to sum activations over the parts of a layer, once
            more with `remat`, and over the parts of the vocabulary.
        flops: floating-point operations of the step, none counted twice.
        executed_flops: with those that `remat` repeats.
    """

    num_devices: int
    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    table_bytes: int
    logits_bytes: int
    residual_bytes: int
    temporary_bytes: int
    data_exchange_bytes: int
    fsdp_exchange_bytes: int
    tensor_exchange_bytes: int
    flops: int
    executed_flops: int

    @property
    def exchange_bytes(self) -> int:
        """What the device receives in a step."""
        return self.data_exchange_bytes + self.fsdp_exchange_bytes + self.tensor_exchange_bytes


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _axes(leaf: Any) -> set[str]:
    """The axes of the mesh that an array is split over."""
    names = leaf.names if _is_boxed(leaf) else ()
    return {training.RULES[name] for name in names if name in training.RULES}


def _all_reduce_bytes(size: int, parts: int) -> int:
    """Bytes that one of `parts` devices receives in a ring sum of an array of `size` bytes."""
    return 2 * size * (parts - 1) // parts


def _share_bytes(leaf: Any, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of one device's part of an array whose axes have logical names."""
    array = jax.tree.leaves(leaf)[0]
    names = leaf.names if _is_boxed(leaf) else (None,) * array.ndim
    size = array.dtype.itemsize
    for length, name in zip(array.shape, names, strict=True):
        parts = mesh.shape[training.RULES[name]] if name in training.RULES else 1
        if length % parts and name != "vocab":
            raise ValueError(f"mesh must divide {name} of size {length}, got {parts} parts")
        size *= length // parts if length % parts == 0 else length
    return size


def step_cost(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    batch_size: int,
    sequence_length: int,
) -> StepCost:
    """Work out what a training step needs of each device, without allocating anything.

    Args:
        config: the model.
        optimizer: any optax transformation.
        mesh: with axes `data`, `fsdp` and `tensor`; may be abstract, of any size.
        batch_size: sequences of the global batch ``B``.
        sequence_length: context length ``T``.

    Returns:
        Bytes and operations of one device.

    Raises:
        ValueError: if the mesh does not divide the batch or a named axis of a parameter.

    Example:
        >>> mesh = AbstractMesh((64, 2, 2), ("data", "fsdp", "tensor"))
        >>> cost = step_cost(DecoderConfig(128), optax.adam(1e-3), mesh, 256, 512)
        >>> cost.num_devices, cost.parameter_bytes < 4 * sum(parameter_counts(DecoderConfig(128)))
        (256, True)
    """
    validation.integer("sequence_length", sequence_length, minimum=1)
    num_devices = math.prod(mesh.shape.values())
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if validation.integer("batch_size", batch_size, minimum=1) % parts:
        raise ValueError(f"batch_size must be divisible by data x fsdp = {parts}, got {batch_size}")
    model = decoder.DecoderLM(config)
    table = (config.vocab_size, config.d_model)

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.zeros(table))

    boxed = jax.eval_shape(init, jax.random.key(0))
    shares = jax.tree.map(lambda leaf: _share_bytes(leaf, mesh), boxed, is_leaf=_is_boxed)
    # Optimizer moments follow their parameters; everything else of its state is on every device.
    optimizer_shares = optax.tree.map_params(
        optimizer,
        lambda _, share: share,
        jax.eval_shape(optimizer.init, nn.meta.unbox(boxed)),
        shares,
        transform_non_params=lambda leaf: leaf.size * leaf.dtype.itemsize,
    )
    parameters = sum(jax.tree.leaves(shares))
    rows, tensor = batch_size // parts, mesh.shape["tensor"]
    divided = config.vocab_size % tensor == 0
    vocab_share = config.vocab_size // tensor if divided else config.vocab_size
    tables = 4 * rows * vocab_share * config.d_model if config.embedding == "given" else 0
    activation = rows * sequence_length * config.d_model * jnp.dtype(config.dtype).itemsize
    logits = 4 * rows * sequence_length * vocab_share
    data, fsdp, gathered = _gradient_exchange(config, boxed, shares, mesh, activation)
    summed = (6 if config.remat else 4) * config.num_layers + (2 if divided else 0)
    scores = 12 * rows * sequence_length if divided else 0
    tokens = batch_size * sequence_length // num_devices
    flops = train_flops_per_token(config, sequence_length)
    layers = flops - 6 * config.vocab_size * config.d_model
    return StepCost(
        num_devices=num_devices,
        parameter_bytes=parameters,
        optimizer_bytes=sum(jax.tree.leaves(optimizer_shares)),
        gradient_bytes=parameters,
        table_bytes=tables,
        logits_bytes=logits,
        residual_bytes=config.num_layers * activation,
        temporary_bytes=parameters
        + config.num_layers * activation
        + _layer_bytes(config, rows, sequence_length, tensor)
        + tables
        + 2 * logits
        + gathered,
        data_exchange_bytes=data,
        fsdp_exchange_bytes=fsdp,
        tensor_exchange_bytes=summed * _all_reduce_bytes(activation, tensor)
        + scores * (tensor - 1) // tensor,
        flops=flops * tokens,
        executed_flops=flops * tokens + (layers * tokens // 3 if config.remat else 0),
    )


def _gradient_exchange(
    config: DecoderConfig,
    boxed: Any,
    shares: Any,
    mesh: Mesh | AbstractMesh,
    activation: int,
) -> tuple[int, int, int]:
    """Bytes received over `data` and `fsdp`, and those of gathered weights alive at a time."""
    copies, parts = mesh.shape["data"], mesh.shape["fsdp"]
    itemsize = jnp.dtype(config.dtype).itemsize
    data = fsdp = gathered = 0
    leaves = jax.tree.leaves(boxed, is_leaf=_is_boxed)
    for leaf, share in zip(leaves, jax.tree.leaves(shares), strict=True):
        if "fsdp" not in _axes(leaf):  # on every device, its gradient in float32
            data += _all_reduce_bytes(share, copies * parts)
            continue
        used = share * itemsize // 4
        # A ring gather brings the other shares, and so does a ring sum that leaves each its part.
        data += _all_reduce_bytes(used, copies)
        if "vocab" in leaf.names:
            # Read out as any matrix, once; the rows read come to their sequences and their
            # gradients go back, one of the two in float32, as do the sums of those.
            fsdp += (
                2 * used * (parts - 1)
                + (itemsize + 4) * activation // itemsize * (parts - 1) // parts
            )
            data += _all_reduce_bytes(share, copies)
            gathered += used * parts
        else:
            fsdp += 3 * used * (parts - 1)
            gathered += 2 * used * parts // config.num_layers
    return data, fsdp, gathered


def _layer_bytes(config: DecoderConfig, rows: int, sequence_length: int, tensor: int) -> int:
    """What one layer keeps for its backward pass, its attention logits in two types."""
    itemsize = jnp.dtype(config.dtype).itemsize
    heads = 4 * config.num_heads * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.d_ff
    activations = itemsize * sequence_length * (heads + mlp) // tensor
    attention = 8 * sequence_length**2 * config.num_heads // tensor
    return rows * (activations + attention)
