"""Records that are pytrees, and a `jit` that never takes one class of them for another.

JAX 0.10.2 compares two structures without their classes where those were registered by
`jax.tree_util.register_dataclass`, as `flax.struct.dataclass` does: two classes with the same
number of fields compare equal, though they hash differently. The cache of `jax.jit` looks up by a
part of the hash, then by equality, so that about one pair in a hundred meets the other's program.
Structures registered as custom nodes (`register_pytree_with_keys`, NamedTuples) do compare
their classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import flax.struct
import jax

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(flax.struct.field, dataclasses.field))
def dataclass(cls: C) -> C:
    """Make a class a frozen dataclass and a pytree whose structure names the class.

    Fields made by `flax.struct.field(pytree_node=False)` are static, the others are children.
    Unlike `flax.struct.dataclass`, two such classes never compare equal under `jax.jit`.

    Example:
        >>> @dataclass
        ... class Scaled:
        ...     weights: jax.Array
        >>> @dataclass
        ... class Shifted:
        ...     weights: jax.Array
        >>> jax.tree.structure(Scaled(1.0)) == jax.tree.structure(Shifted(1.0))
        False
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)
    children = [field.name for field in fields if field.metadata.get("pytree_node", True)]
    static = [field.name for field in fields if field.name not in children]
    keys = [jax.tree_util.GetAttrKey(name) for name in children]

    def values(node: Any, names: list[str]) -> tuple[Any, ...]:
        return tuple(getattr(node, name) for name in names)

    def with_keys(node: Any):
        return tuple(zip(keys, values(node, children), strict=True)), values(node, static)

    def rebuild(aux: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        # Not by the constructor: JAX also rebuilds trees of things that are no arrays.
        node = object.__new__(made)
        node.__dict__.update(zip(children + static, (*leaves, *aux), strict=True))
        return node

    jax.tree_util.register_pytree_with_keys(
        made, with_keys, rebuild, lambda node: (values(node, children), values(node, static))
    )
    return made


def _classes(structure: Any) -> tuple[type, ...]:
    """The class of every node of a structure, from the root on."""
    node = structure.node_data()
    if node is None:
        return ()
    return (node[0], *(kind for child in structure.children() for kind in _classes(child)))


def jit(
    function: Callable[..., Any],
    *,
    static_argnames: str | Iterable[str] = (),
    donate_argnames: str | Iterable[str] = (),
) -> Callable[..., Any]:
    """Do as `jax.jit`, with a program of its own for every class of pytree among the arguments.

    For functions of objects that a user registers: their classes become a static argument.

    Example:
        >>> jit(lambda pair: pair[0] + pair[1])((1, 2)).item()
        3
    """

    def names(given: str | Iterable[str]) -> tuple[str, ...]:
        return (given,) if isinstance(given, str) else tuple(given)

    @functools.wraps(function)
    def keyed(*args, classes, **kwargs):
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    last = inspect.Parameter("classes", inspect.Parameter.KEYWORD_ONLY)
    keyed.__signature__ = signature.replace(parameters=[*signature.parameters.values(), last])  # type: ignore[attr-defined]
    compiled = jax.jit(
        keyed,
        static_argnames=(*names(static_argnames), "classes"),
        donate_argnames=names(donate_argnames),
    )

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled(*args, classes=_classes(jax.tree.structure((args, kwargs))), **kwargs)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call
