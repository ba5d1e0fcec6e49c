"""The text of a compiled program as operations, and how often each of them runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Operation(NamedTuple):
    """One line of a program."""

    name: str
    type: str
    code: str
    operands: tuple[str, ...]
    rest: str
    computation: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """What an operation says of itself, `name=value`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def literal(self) -> int | None:
        """The value of an integer constant."""
        found = re.match(r"(-?\d+)\)", self.rest) if self.code == "constant" else None
        return int(found[1]) if found else None


class Program:
    """A compiled program's text as computations of operations."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Operation]] = {}
        self.entry = ""
        self.unknown_loops = 0
        name = ""
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                name = header[2]
                self.computations[name] = {}
                self.entry = name if header[1] else self.entry
            elif line.startswith("  ") and " = " in line and name:
                op = _parse(line, name)
                self.computations[name][op.name] = op
        self._turns: dict[tuple[str, str], tuple[int, bool]] = {}
        if self.entry:
            self._visit(self.entry, 1, False)

    def executed(self) -> Iterator[tuple[Operation, int, bool]]:
        """Each operation that runs, how often, and whether inside a fusion."""
        for (computation, name), (turns, fused) in self._turns.items():
            yield self.computations[computation][name], turns, fused

    def operand(self, op: Operation, index: int) -> Operation:
        """What makes one of the inputs of an operation."""
        return self.computations[op.computation][op.operands[index]]

    def root(self, computation: str) -> Operation:
        """What a computation returns."""
        return next(op for op in self.computations[computation].values() if op.root)

    def _visit(self, computation: str, turns: int, fused: bool) -> None:
        for op in self.computations[computation].values():
            before, _ = self._turns.get((computation, op.name), (0, fused))
            self._turns[computation, op.name] = (before + turns, fused)
            if op.code == "while":
                self._visit(op.attribute("body") or "", turns * self._loop_turns(op), fused)
            elif op.code == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
                names = (
                    re.findall(r"[\w.\-]+", branches[1])
                    if branches
                    else [op.attribute("true_computation"), op.attribute("false_computation")]
                )
                for branch in filter(None, names):
                    self._visit(branch, turns, fused)
            elif op.code == "fusion" or op.code.endswith("-start"):
                if called := op.attribute("calls"):
                    self._visit(called, turns, True)
            elif op.code == "call":
                self._visit(op.attribute("to_apply") or "", turns, fused)

    def _loop_turns(self, loop: Operation) -> int:
        """How often a loop turns: ``(limit - first) / step`` of the counter that its test reads."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition, body = (loop.attribute(name) or "" for name in ("condition", "body"))
        initial = self.operand(loop, 0)

        def value(op: Operation, arguments: tuple[Operation, ...] = ()) -> int | str | None:
            """A constant, or `#i` for entry i of what the loop carries."""
            if op.code == "constant":
                return op.literal()
            if op.code == "parameter" and arguments:
                return value(arguments[int(op.rest.partition(")")[0])])
            if op.code == "get-tuple-element":
                return f"#{op.attribute('index')}"
            if op.code in ("copy", "bitcast", "convert"):
                return value(self.operand(op, 0), arguments)
            return None

        def carried(entry: str) -> int | None:
            """The value of an entry before the loop, if it is a constant."""
            if initial.code != "tuple":
                return None
            found = value(self.operand(initial, int(entry[1:])))
            return found if isinstance(found, int) else None

        turns = []
        for op, arguments in self._with_fused(condition):
            if op.code != "compare":
                continue
            left, right = (value(self.operand(op, i), arguments) for i in (0, 1))
            direction = op.attribute("direction")
            if direction in ("GT", "GE"):
                left, right = right, left
            limit = carried(right) if isinstance(right, str) else right
            if limit is None or not isinstance(left, str):
                continue
            limit += direction in ("LE", "GE")
            first = carried(left) or 0
            turns.append(-(-(limit - first) // self._counter_step(body, int(left[1:]))))
        if not turns:
            self.unknown_loops += 1
            return 1
        return max(1, min(turns))

    def _with_fused(self, computation: str) -> Iterator[tuple[Operation, tuple[Operation, ...]]]:
        """The operations of a computation and of its fusions, with what those are given."""
        for op in self.computations[computation].values():
            yield op, ()
            if op.code == "fusion":
                given = tuple(self.operand(op, i) for i in range(len(op.operands)))
                for inner in self.computations[op.attribute("calls") or ""].values():
                    yield inner, given

    def _counter_step(self, body: str, entry: int) -> int:
        root = self.root(body)
        if root.code != "tuple":
            return 1
        counter = self.operand(root, entry)
        while counter.code in ("copy", "bitcast"):
            counter = self.operand(counter, 0)
        if counter.code == "fusion":
            counter = self.root(counter.attribute("calls") or "")
        if counter.code != "add":
            return 1
        steps = (self.operand(counter, i).literal() for i in (0, 1))
        return next((abs(step) for step in steps if step), 1)


def _parse(line: str, computation: str) -> Operation:
    name, _, right = line.strip().partition(" = ")
    root = name.startswith("ROOT ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    code, _, rest = right[end:].strip().partition("(")
    arguments = rest[: _closing("(" + rest, 0)]
    return Operation(
        name.removeprefix("ROOT ").lstrip("%"),
        right[:end],
        code,
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        rest,
        computation,
        root,
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"program has a bracket that does not close: {text[start : start + 80]!r}")


def arrays(type_text: str) -> list[tuple[float, tuple[int, ...]]]:
    """Bytes of an element, and the shape, of each array in a type."""
    found = []
    for element, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", type_text):
        bits = re.match(r"[a-z]+(\d+)", element)
        size = 1.0 if element == "pred" else int(bits[1]) / 8 if bits else 0.0
        found.append((size, tuple(int(n) for n in sizes.split(",") if n)))
    return found


def size_in_bytes(type_text: str) -> int:
    """Of all arrays of a type."""
    return int(sum(size * math.prod(shape) for size, shape in arrays(type_text)))


def shape(op: Operation) -> tuple[int, ...]:
    """Of what an operation makes, of the first if it makes several; `()` if of no array."""
    return next((sizes for _, sizes in arrays(op.type)), ())
