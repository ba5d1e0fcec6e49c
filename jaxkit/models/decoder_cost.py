"""What a model costs: parameters, floating-point operations and memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxkit import training, validation
from jaxkit.models import decoder
from jaxkit.models.decoder_config import DecoderConfig


def _matmul_parameters(config: DecoderConfig) -> int:
    """Number of weights in the matrices of the blocks (no table, norms or biases)."""
    attention = 2 * config.d_model * config.head_dim * (config.num_heads + config.kv_heads)
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
        table: the learned token tables; 0 where one is given.
        logit_scale: scales of normalised attention logits.
    """

    matmul: int
    norms: int
    relative_bias: int
    embedding_affine: int
    table: int
    logit_scale: int


def parameter_counts(config: DecoderConfig) -> ParameterCounts:
    """Count the parameters of a model by kind; the sum is the size of its parameter tree.

    Example:
        >>> sum(parameter_counts(DecoderConfig(128, embedding="given")))
        788352
    """
    layers, heads, width = config.num_layers, config.num_heads, config.d_model
    biases = 0
    if config.position == "t5":
        biases = 1 if config.share_relative_bias else layers
    tables = (config.embedding == "fixed") + (not config.tied_readout)
    return ParameterCounts(
        matmul=_matmul_parameters(config),
        norms=(2 * layers + 1) * width,
        relative_bias=biases * heads * config.num_buckets,
        embedding_affine=2 * width if config.embedding_affine else 0,
        table=tables * config.vocab_size * width,
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
            layer inputs, one layer's activations and logits with their gradients, and the weights
            of two layers and of the table gathered, or of all in the type of the activations.
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


def _all_reduce_bytes(size: int, parts: int) -> int:
    """Bytes that one of `parts` devices receives in a ring sum of an array of `size` bytes."""
    return 2 * size * (parts - 1) // parts


def _share_bytes(array: Any) -> int:
    """Bytes of one device's part of an array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


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
    init = decoder.initializer(decoder.DecoderLM(config))
    state = training.abstract_state(init, optimizer, jax.random.key(0), mesh)
    parameters = sum(map(_share_bytes, jax.tree.leaves(state.params)))
    rows, tensor = batch_size // parts, mesh.shape["tensor"]
    divided = config.vocab_size % tensor == 0
    vocab_share = config.vocab_size // tensor if divided else config.vocab_size
    tables = 4 * rows * vocab_share * config.d_model if config.embedding == "given" else 0
    activation = rows * sequence_length * config.d_model * jnp.dtype(config.dtype).itemsize
    logits = 4 * rows * sequence_length * vocab_share
    data, fsdp, gathered = _gradient_exchange(config, state.params, mesh, activation)
    summed = (6 if config.remat else 4) * config.num_layers + (2 if divided else 0)
    scores = 12 * rows * sequence_length if divided else 0
    tokens = batch_size * sequence_length // num_devices
    flops = train_flops_per_token(config, sequence_length)
    layers = flops - 6 * config.vocab_size * config.d_model
    return StepCost(
        num_devices=num_devices,
        parameter_bytes=parameters,
        optimizer_bytes=sum(map(_share_bytes, jax.tree.leaves(state.opt_state))),
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
    config: DecoderConfig, params: Any, mesh: Mesh | AbstractMesh, activation: int
) -> tuple[int, int, int]:
    """Bytes received over `data` and `fsdp`, and those of gathered weights alive at a time."""
    copies, parts = mesh.shape["data"], mesh.shape["fsdp"]
    itemsize = jnp.dtype(config.dtype).itemsize
    data = fsdp = gathered = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        share = _share_bytes(leaf)
        if "fsdp" not in leaf.sharding.spec:  # on every device, its gradient in float32
            data += _all_reduce_bytes(share, copies * parts)
            continue
        used = share * itemsize // 4
        # A ring gather brings the other shares, and so does a ring sum that leaves each its part.
        data += _all_reduce_bytes(used, copies)
        name = path[-1].key
        read, scored = name == "embedding", name == "unembedding" or config.tied_readout
        if name not in ("embedding", "unembedding"):
            fsdp += 3 * used * (parts - 1)
            # Two layers at a time; where each device has them whole, a narrower copy of all.
            copied = parts == 1 and itemsize < 4
            gathered += used if copied else 2 * used * parts // config.num_layers
            continue
        if scored:  # once, as any matrix
            fsdp += 2 * used * (parts - 1)
            gathered += used * parts
        if read:
            # The rows read come to their sequences and their gradients go back, one of the two in
            # float32, as do the sums of those.
            fsdp += (itemsize + 4) * activation // itemsize * (parts - 1) // parts
            data += _all_reduce_bytes(share, copies)
    return data, fsdp, gathered


def _layer_bytes(config: DecoderConfig, rows: int, sequence_length: int, tensor: int) -> int:
    """What is alive while a layer goes backward: its activations and their gradients.

    Those of the residual stream are in float32; the attention's scores, where no kernel spares
    them, in two types.
    """
    itemsize = jnp.dtype(config.dtype).itemsize
    heads = 2 * (config.num_heads + config.kv_heads) * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.d_ff
    activations = 2 * (itemsize * (heads + mlp) // tensor + 4 * config.d_model) * sequence_length
    spared = config.position in ("rope", "none") and config.attention not in ("einsum", "xla")
    scores = 0 if spared else 8 * sequence_length**2 * config.num_heads // tensor
    return rows * (activations + scores)
