"""What a compiled program costs a device, read from the program: work, memory, exchange.

The compiler's own `cost_analysis` counts the body of a loop once and says nothing of what crosses
devices; here the text of the compiled program is walked, each loop as often as it turns.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkit.training import program_text

#: What a collective operation is called in a program.
KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """One operation of a program that moves arrays between devices.

    Attributes:
        kind: what it does, one of `KINDS`.
        axes: axes of the mesh that it runs over.
        shape: what it makes on a device, as the program writes it.
        executions: how often it runs when the program runs once.
        received: bytes that one device receives in all of them, in a ring: ``(n - 1) / n`` of what
            is gathered, scattered or exchanged over ``n`` devices, twice that of what is summed.
        source: the operation of the traced function that it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    shape: str
    executions: int
    received: int
    source: str


class ProgramCost(NamedTuple):
    """What one run of a compiled program needs of each device.

    Attributes:
        argument_bytes: arrays given.
        output_bytes: arrays returned in memory that no donated argument gave.
        temporary_bytes: most memory that is in use at a time beside them.
        flops: floating-point operations of matrix products, convolutions and attention kernels.
        memory_bytes: read from and written to the device's memory, roughly: what lies between
            fusions, good to a factor of 1.5.
        collectives: what moves between devices, the largest first.
        unknown_loops: loops whose number of turns is not in the program, counted as one turn.
        unknown_kernels: kernels whose operations are not in the program, not counted.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: int
    memory_bytes: int
    collectives: tuple[Collective, ...]
    unknown_loops: int
    unknown_kernels: int = 0

    def received(self, axes: Iterable[str] | None = None, kind: str | None = None) -> int:
        """Bytes received by a device, over exactly these axes and by this kind, if given."""
        wanted = None if axes is None else set(axes)
        return sum(
            moved.received
            for moved in self.collectives
            if (wanted is None or set(moved.axes) == wanted) and kind in (None, moved.kind)
        )


def program_cost(compiled: jax.stages.Compiled, mesh: Mesh) -> ProgramCost:
    """Read what a compiled program needs of each device.

    Args:
        compiled: from `jax.jit(f).lower(...).compile()`, for any kind of device.
        mesh: the mesh of its shardings, which names what an operation runs over.

    Returns:
        Bytes and operations of one device. A conditional counts as all its branches, a loop that
        may end early as all its turns.

    Raises:
        ValueError: if the program has collective operations in a form that is not known.

    Example:
        >>> from jaxkit import training
        >>> step = jax.jit(lambda x: x * 2).lower(np.ones(3, np.float32)).compile()
        >>> program_cost(step, training.make_mesh()).collectives
        ()
    """
    memory: Any = compiled.memory_analysis()
    program = program_text.Program(compiled.as_text() or "")
    work = [(turns, _flops(program, op)) for op, turns, _ in program.executed()]
    return ProgramCost(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=sum(turns * flops for turns, flops in work if flops is not None),
        memory_bytes=sum(
            turns * _memory_bytes(program, op)
            for op, turns, fused in program.executed()
            if not fused
        ),
        collectives=_collectives(program, mesh),
        unknown_loops=program.unknown_loops,
        unknown_kernels=sum(flops is None for _, flops in work),
    )


# Work.


#: Matrix products in each of JAX's attention kernels for TPU.
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def _flops(program: program_text.Program, op: program_text.Operation) -> int | None:
    """Operations of one, or None where the program does not say."""
    if op.code == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        left = program_text.shape(program.operand(op, 0))
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * math.prod(program_text.shape(op)) * math.prod(left[axis] for axis in axes)
    if op.code == "convolution":
        return _convolution_flops(program, op)
    kernel = r'custom_call_target="(?:tpu_custom_call|__cu|__gpu|.*triton)'
    if op.code == "custom-call" and re.search(kernel, op.rest):
        return _kernel_flops(program, op)
    return 0


def _kernel_flops(program: program_text.Program, op: program_text.Operation) -> int | None:
    """Of a causal attention kernel, those of the blocks on and below the diagonal."""
    splash = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", op.name)
    if splash is None:
        return None
    given = [program.operand(op, i) for i in range(len(op.operands))]
    blocks = next(program_text.shape(one)[-1] for one in given if one.type.startswith("s8["))
    queries, keys = [program_text.shape(one) for one in given if not one.type.startswith("s8[")][:2]
    whole = math.prod(queries) * keys[-2]
    return 2 * _SPLASH_PRODUCTS[splash[1]] * whole * (blocks + 1) // (2 * blocks)


def _convolution_flops(program: program_text.Program, op: program_text.Operation) -> int:
    """Two for each product of an input that is there: padding and holes are not multiplied."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    assert labels is not None
    left, kernel = (program_text.shape(program.operand(op, i)) for i in (0, 1))
    spatial = [n for n in labels[1] if n.isdigit()]
    window = re.search(r"window=\{([^}]*)\}", op.rest)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}

    def field(name: str, default: int) -> list[int]:
        return [int(n) for n in fields[name].split("x")] if name in fields else [default] * 99

    pads = [int(p.split("_")[0]) for p in fields.get("pad", "").split("x") if p] or [0] * 99
    strides, holes, spread = field("stride", 1), field("lhs_dilate", 1), field("rhs_dilate", 1)
    products = 1
    for i, n in enumerate(spatial):
        size = left[labels[1].index(n)]
        taps = np.arange(kernel[labels[2].index(n)]) * spread[i]
        outputs = np.arange(program_text.shape(op)[labels[3].index(n)]) * strides[i] - pads[i]
        read = outputs[:, None] + taps
        inside = (read >= 0) & (read % holes[i] == 0) & (read // holes[i] < size)
        products *= int(inside.sum())
    batch = left[labels[1].index("b")]
    channels = kernel[labels[2].index("i")] * kernel[labels[2].index("o")]
    groups = re.search(r"batch_group_count=(\d+)", op.rest)
    return 2 * products * batch * channels // (int(groups[1]) if groups else 1)


# Memory.

_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional",
         "call", "after-all", "iota", "partition-id", "replica-id"}  # fmt: skip


def _memory_bytes(program: program_text.Program, op: program_text.Operation) -> int:
    """What an operation between fusions reads and writes, where it is not in fast memory."""
    if op.code in _FREE or op.code.endswith("-done"):
        return 0
    if op.code == "fusion":
        called = program.computations[op.attribute("calls") or ""]
        return _fusion_bytes(program, op, list(called.values()))
    if op.code == "dynamic-slice":
        return 2 * _outside(op.type)
    if op.code == "dynamic-update-slice":
        return 2 * _outside(program.operand(op, 1).type)
    read = sum(_outside(program.operand(op, i).type) for i in range(len(op.operands)))
    return read + (0 if op.code.endswith("-start") else _outside(op.type))


def _fusion_bytes(
    program: program_text.Program,
    fusion: program_text.Operation,
    inner: list[program_text.Operation],
) -> int:
    """As `_memory_bytes`; of a stack that is sliced or updated inside, the slices alone."""
    total = 0
    users = collections.defaultdict(list)
    for op in inner:
        for name in op.operands:
            users[name].append(op)
    updated = 0
    for op in inner:
        if op.code != "parameter":
            continue
        given = program.operand(fusion, int(op.rest.partition(")")[0]))
        uses = users[op.name]
        if uses and all(use.code == "dynamic-slice" for use in uses):
            total += (
                sum(program_text.size_in_bytes(use.type) for use in uses)
                if _outside(given.type)
                else 0
            )
        elif (
            uses
            and all(use.code == "dynamic-update-slice" for use in uses)
            and uses[0].operands[0] == op.name
        ):
            update = program_text.size_in_bytes(program.operand(uses[0], 1).type)
            total += update if _outside(given.type) else 0
            updated += program_text.size_in_bytes(given.type) if _outside(given.type) else 0
        else:
            total += _outside(given.type)
    return total + max(0, _outside(fusion.type) - updated)


def _outside(type_text: str) -> int:
    """Bytes of the arrays of a type that lie in the device's main memory."""
    parts = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", type_text)
    return sum(
        program_text.size_in_bytes(part) for part in parts if not re.search(r"S\([1-9]\d*\)", part)
    )


# Exchange.


def _collectives(program: program_text.Program, mesh: Mesh) -> tuple[Collective, ...]:
    """All of them; of the pieces into which one is cut to overlap with products, the largest."""
    pieces = collections.defaultdict(list)
    for op, turns, _ in program.executed():
        kind = op.code.removesuffix("-start")
        if kind not in KINDS:
            continue
        if kind == "all-reduce" and op.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        # All that a traced function writes itself (`jax.lax.psum`) have the same channel, 1.
        channel = re.search(r"channel_id=(?!1\b)(\d+)", op.rest)
        identity = channel[1] if channel else f"{op.computation}/{op.name}"
        pieces[kind, identity].append((op, turns))
    found = []
    for (kind, _), parts in pieces.items():
        op = max((op for op, _ in parts), key=lambda op: program_text.size_in_bytes(op.type))
        turns = min(turns for _, turns in parts)
        group = _group(op, mesh.devices.size)
        read = sum(
            program_text.size_in_bytes(program.operand(op, i).type) for i in range(len(op.operands))
        )
        made = read if kind in ("all-reduce", "reduce-scatter") else _made(op)
        share = (
            1.0 if kind in ("collective-permute", "collective-broadcast") else 1 - 1 / len(group)
        )
        source = re.search(r'op_name="([^"]*)"', op.rest)
        found.append(
            Collective(
                kind,
                _axes(group, mesh),
                re.sub(r"\{[^}]*\}|/\*.*?\*/", "", op.type),
                turns,
                round(turns * made * share * (2 if kind == "all-reduce" else 1)),
                source[1] if source else "",
            )
        )
    return tuple(
        sorted((one for one in found if one.axes), key=lambda one: one.received, reverse=True)
    )


def _made(op: program_text.Operation) -> int:
    """Bytes of a result; the `-start` of a gather or permute returns its operands first."""
    if not op.code.endswith("-start") or op.code.startswith("all-reduce"):
        return program_text.size_in_bytes(op.type)
    arrays = [size * math.prod(shape) for size, shape in program_text.arrays(op.type) if shape]
    return int(sum(arrays[len(arrays) // 2 :]))


def _group(op: program_text.Operation, num_devices: int) -> list[int]:
    """Positions in the mesh of the devices that one group of a collective joins."""
    if op.code.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", op.rest)
        found = re.findall(r"\{(\d+),(\d+)", pairs[0]) if pairs else []
        moved = [(int(a), int(b)) for a, b in found if a != b]
        # A ring of a group: follow the pairs from one of its devices.
        if not moved:
            return [0]
        target, ring = dict(moved), [moved[0][0]]
        while target.get(ring[-1], ring[0]) not in ring:
            ring.append(target[ring[-1]])
        return ring
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", op.rest):
        return [int(n) for n in listed[1].split(",")]
    if re.search(r"replica_groups=\{\}", op.rest):
        return list(range(num_devices))
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", op.rest
    ):
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _iota(named[2] or f"[{num_devices}]").reshape(tuple(sizes.values()))
        joined = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", named[3])]
        others = [axis for axis in range(ids.ndim) if axis not in joined]
        size = math.prod(ids.shape[axis] for axis in joined)
        return ids.transpose(others + joined).reshape(-1, size)[0].tolist()
    if strided := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", op.rest):
        shape = tuple(int(n) for n in strided[1].split(","))
        return _iota(strided[2]).reshape(shape)[0].tolist()
    raise ValueError(f"program joins devices in a form that is not known: {op.rest[:300]!r}")


def _iota(text: str) -> np.ndarray:
    """Read `[2,8]T(1,0)`: the numbers from 0 in that shape, transposed."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"program names devices in a form that is not known: {text!r}")
    shape = tuple(int(n) for n in found[1].split(","))
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in found[2].split(",")]) if found[2] else ids


def _axes(group: list[int], mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group differ."""
    places = np.array(np.unravel_index(group, mesh.devices.shape)).T
    varies = (places != places[0]).any(axis=0)
    return tuple(itertools.compress(mesh.axis_names, varies))
