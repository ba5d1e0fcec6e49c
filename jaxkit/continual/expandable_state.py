"""What SEMA grows: adapters, descriptors and router columns in slots of a fixed capacity."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkit import models, validation
from jaxkit.continual.adapters import ROUTINGS, Adapter, Router, init_adapter
from jaxkit.continual.descriptors import (
    SHIFT_RULES,
    Descriptor,
    ErrorRecords,
    empty_records,
    init_descriptor,
)


@dataclasses.dataclass(frozen=True)
class SEMAConfig:
    """Everything that SEMA can be told; the defaults are the official program's.

    Attributes:
        model: the frozen backbone.
        num_classes: `C`, classes of the whole stream; the head has them all from the start.
        adapter_dim: `r`, width of an adapter's bottleneck.
        descriptor_dim: `m`, width of a descriptor's code.
        expand_from: first block that may grow, from 0; blocks outside the range keep the single
            adapter of the first task.
        expand_to: last block that may grow.
        capacity: `K`, adapters that fit into a block. One a task is always enough.
        buffer_size: errors that a descriptor's statistics are taken from.
        score: how a batch of z-scores becomes one (`shift_score`).
        routing: how adapters are weighed (`router_weights`).
        threshold: score above which a block grows; infinity never does. Familiar data score about
            0.8 with the default score, so thresholds below 1 grow on everything.
        train_epochs: passes of a classification phase.
        train_learning_rate: at its start; a cosine to 0, constant within a pass.
        describe_epochs: passes of a description phase.
        describe_learning_rate: at its start. Raw residual streams are large: too high a rate makes
            the errors infinite, which raises.
        momentum: of both optimizers.
        weight_decay: of both, coupled.
        batch_size: images of a training step; the last one of a pass may be smaller.
        scan_batch_size: images that are scored together.
        steps_per_call: steps in one call of a compiled program.
        activation_bytes: memory that activations may take on a device: what does not fit goes
            through the model in parts; by default 256 MiB, or 8 GiB on an accelerator. Random
            routings draw for each part, so they draw otherwise where parts differ.

    Raises:
        ValueError: if a number is out of range, or a name is unknown.

    Example:
        >>> SEMAConfig(models.VisionTransformer(), num_classes=100).num_expandable
        3
    """

    model: models.VisionTransformer
    num_classes: int
    adapter_dim: int = 16
    descriptor_dim: int = 128
    expand_from: int = 9
    expand_to: int = 11
    capacity: int = 20
    buffer_size: int = 500
    score: str = "batch_mean_abs"
    routing: str = "soft"
    threshold: float = 1.0
    train_epochs: int = 20
    train_learning_rate: float = 0.005
    describe_epochs: int = 20
    describe_learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 32
    scan_batch_size: int = 128
    steps_per_call: int = 32
    activation_bytes: int | None = None

    def __post_init__(self):
        for name in ("num_classes", "adapter_dim", "descriptor_dim", "capacity", "train_epochs",
                     "describe_epochs", "batch_size", "scan_batch_size",
                     "steps_per_call"):  # fmt: skip
            validation.integer(name, getattr(self, name), minimum=1)
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be >= 0 (infinity is allowed), got {self.threshold}")
        for name in ("train_learning_rate", "describe_learning_rate", "weight_decay"):
            validation.number(name, getattr(self, name), minimum=0)
        validation.number("momentum", self.momentum, minimum=0, maximum=1, open_maximum=True)
        empty_records(self.buffer_size)
        if self.activation_bytes is not None:
            validation.integer("activation_bytes", self.activation_bytes, minimum=1)
        depth = self.model.depth
        validation.integer("expand_from", self.expand_from, minimum=0)
        validation.integer("expand_to", self.expand_to, minimum=0)
        if not self.expand_from <= self.expand_to < depth:
            raise ValueError(
                f"expand_from <= expand_to must be blocks of the model, 0 to {depth - 1}, got "
                f"expand_from={self.expand_from} and expand_to={self.expand_to}"
            )
        validation.choice("score", self.score, SHIFT_RULES)
        validation.choice("routing", self.routing, ROUTINGS)

    @property
    def static(self) -> SEMAConfig:
        """The same with the defaults for all that no compiled program depends on."""
        free = ("threshold", "train_epochs", "train_learning_rate", "describe_epochs",
                "describe_learning_rate", "batch_size", "scan_batch_size",
                "steps_per_call")  # fmt: skip
        return dataclasses.replace(self, **{name: getattr(SEMAConfig, name) for name in free})

    @property
    def expandable(self) -> range:
        """Blocks that may grow."""
        return range(self.expand_from, self.expand_to + 1)

    @property
    def single(self) -> tuple[int, ...]:
        """Blocks with the one adapter of the first task."""
        return tuple(i for i in range(self.model.depth) if i not in self.expandable)

    @property
    def num_expandable(self) -> int:
        """`E`, how many blocks may grow."""
        return len(self.expandable)


class Head(NamedTuple):
    """The linear classifier over all classes."""

    kernel: Float[Array, "d C"]
    bias: Float[Array, " C"]


class FunctionalParams(NamedTuple):
    """What the classification phase trains parts of.

    `single` are adapters of the `P` blocks that never grow, leading axis P (one that nothing reads
    if every block may grow); `adapters` and `router` have leading axes `[E, K]` and `[E]`.
    """

    single: Adapter
    adapters: Adapter
    router: Router
    head: Head


class SEMAState(NamedTuple):
    """All that SEMA has learnt; its shapes stay the same while it grows.

    Attributes:
        params: adapters, routers and head.
        descriptors: representation descriptors, leading axes `[E, K]`.
        records: the errors each descriptor saw in training, leading axes `[E, K]`.
        num_active: adapters in use in each expandable block, int32 `[E]`. Slots beyond hold
            anything: no result depends on them.
    """

    params: FunctionalParams
    descriptors: Descriptor
    records: ErrorRecords
    num_active: Int[Array, " E"]


def init_sema(key: Key[Array, ""], config: SEMAConfig) -> SEMAState:
    """Make the state before the first task: one fresh adapter in every block.

    All is float32, whatever the backbone computes in.

    Args:
        key: typed key.
        config: shapes.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> init_sema(jax.random.key(0), config).params.adapters.down_kernel.shape
        (1, 2, 8, 2)
    """
    return _init(key, config)


# One program instead of a hundred small ones, most of which would draw random numbers.
@functools.partial(jax.jit, static_argnums=1)
def _init(key: Key[Array, ""], config: SEMAConfig) -> SEMAState:
    width, slots, blocks = config.model.width, config.capacity, config.num_expandable
    single_key, head_key, slot_key = jax.random.split(key, 3)
    # At least one, used or not: orbax refuses to save arrays without an element.
    keys = jax.random.split(single_key, max(len(config.single), 1))
    single = jax.vmap(lambda k: init_adapter(k, width, config.adapter_dim))(keys)
    bound = width**-0.5
    head = Head(
        jax.random.uniform(head_key, (width, config.num_classes), minval=-bound, maxval=bound),
        jnp.zeros(config.num_classes),
    )
    adapter, descriptor, _ = jax.eval_shape(lambda: _fresh_slot(slot_key, config))
    adapters, descriptors = jax.tree.map(
        lambda leaf: jnp.zeros((blocks, slots, *leaf.shape)), (adapter, descriptor)
    )
    router = Router(jnp.zeros((blocks, width, slots)), jnp.zeros((blocks, slots)))
    state = SEMAState(
        FunctionalParams(single, adapters, router, head),
        descriptors,
        empty_records(config.buffer_size, (blocks, slots)),
        jnp.zeros(blocks, jnp.int32),
    )
    for index, slot in enumerate(jax.random.split(slot_key, blocks)):
        state = _fill_slot(slot, config, state, index)
    return state


def add_adapter(
    key: Key[Array, ""], config: SEMAConfig, state: SEMAState, block: Int[Array, ""] | int
) -> SEMAState:
    """Add a fresh adapter, descriptor and router column to a block.

    Args:
        key: typed key.
        config: shapes.
        state: what has been learnt.
        block: the block, counted from 0 over the whole model; may be traced, is then unchecked.

    Returns:
        The state with one more slot of this block in use; nothing else is changed.

    Raises:
        ValueError: if the block cannot grow, or is full.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> state = init_sema(jax.random.key(0), config)
        >>> add_adapter(jax.random.key(1), config, state, 0).num_active.tolist()
        [2]
    """
    if not validation.is_traced(block):
        validation.integer("block", block)
        if block not in config.expandable:
            raise ValueError(
                f"block must be one that may grow, {config.expand_from} to {config.expand_to}, "
                f"got {block}"
            )
        used = state.num_active[block - config.expand_from]
        if not validation.is_traced(used) and int(used) >= config.capacity:
            raise ValueError(f"capacity {config.capacity} exhausted in block {block}")
    return _fill_slot(key, config, state, block - config.expand_from)


def _fresh_slot(key: Key[Array, ""], config: SEMAConfig) -> tuple[Adapter, Descriptor, Router]:
    width = config.model.width
    adapter_key, descriptor_key, kernel_key, bias_key = jax.random.split(key, 4)
    bound = width**-0.5
    column = Router(
        jax.random.uniform(kernel_key, (width,), minval=-bound, maxval=bound),
        jax.random.uniform(bias_key, (), minval=-bound, maxval=bound),
    )
    return (
        init_adapter(adapter_key, width, config.adapter_dim),
        init_descriptor(descriptor_key, width, config.descriptor_dim),
        column,
    )


@functools.partial(jax.jit, static_argnums=1)
def _fill_slot(
    key: Key[Array, ""], config: SEMAConfig, state: SEMAState, index: Int[Array, ""] | int
) -> SEMAState:
    adapter, descriptor, column = _fresh_slot(key, config)
    slot = state.num_active[index]

    def write(stacked: Any, fresh: Any) -> Any:
        return jax.tree.map(lambda leaf, new: leaf.at[index, slot].set(new), stacked, fresh)

    router = state.params.router
    params = state.params._replace(
        adapters=write(state.params.adapters, adapter),
        router=Router(
            router.kernel.at[index, :, slot].set(column.kernel),
            router.bias.at[index, slot].set(column.bias),
        ),
    )
    nothing = ErrorRecords(jnp.zeros(config.buffer_size), jnp.zeros((), jnp.int32))
    return SEMAState(
        params,
        write(state.descriptors, descriptor),
        write(state.records, nothing),
        state.num_active.at[index].add(1),
    )


class ParameterCounts(NamedTuple):
    """How large SEMA is.

    Attributes:
        adapters: adapters in use, over all blocks.
        inference: parameters of adapters and head, as the paper's table 5 counts.
        routers: parameters of the router columns in use, needed at inference too.
        descriptors: parameters of the descriptors in use, needed to notice shifts.
    """

    adapters: int
    inference: int
    routers: int
    descriptors: int


def parameter_counts(config: SEMAConfig, num_added: int) -> ParameterCounts:
    """Count parameters after `num_added` expansions.

    `adapters (2dr + r + d) + C (d + 1)` at inference.

    Args:
        config: shapes.
        num_added: adapters added after the first task, over all blocks.

    Source: arXiv 2403.18886 table 5.

    Example:
        >>> cifar100 = SEMAConfig(models.VisionTransformer(), num_classes=100)
        >>> parameter_counts(cifar100, 9 * 3).inference
        1065940
    """
    validation.integer("num_added", num_added, minimum=0)
    d, r, m = config.model.width, config.adapter_dim, config.descriptor_dim
    adapters = config.model.depth + num_added
    growing = config.num_expandable + num_added
    return ParameterCounts(
        adapters,
        adapters * (2 * d * r + r + d) + config.num_classes * (d + 1),
        growing * (d + 1),
        growing * (2 * d * m + m + d),
    )


def active_slots(state: SEMAState) -> Bool[Array, "E K"]:
    """Which slots are in use.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16)
        >>> config = SEMAConfig(model, 3, 2, 2, expand_from=0, expand_to=0, capacity=2)
        >>> active_slots(init_sema(jax.random.key(0), config)).tolist()
        [[True, False]]
    """
    capacity = state.params.router.bias.shape[-1]
    return jnp.arange(capacity) < state.num_active[:, None]


def without_unused(state: SEMAState) -> SEMAState:
    """Put zeros into the slots that are not in use.

    Every forward pass reads the state through this, so that neither NaN nor infinity in an unused
    slot can reach a result or a gradient.
    """
    active = active_slots(state)

    def keep(leaf: Array) -> Array:
        return jnp.where(active.reshape(*active.shape, *(1,) * (leaf.ndim - 2)), leaf, 0)

    router = state.params.router
    router = Router(jnp.where(active[:, None], router.kernel, 0), keep(router.bias))
    params = state.params._replace(
        adapters=jax.tree.map(keep, state.params.adapters), router=router
    )
    return state._replace(
        params=params,
        descriptors=jax.tree.map(keep, state.descriptors),
        records=jax.tree.map(keep, state.records),
    )
