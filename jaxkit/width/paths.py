"""The parameters of any tree under their path, whatever boxes and containers hold them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def path_name(path: tuple[Any, ...]) -> str:
    """Write a JAX key path as `"layers/up/kernel"`, without the box around the leaf.

    Flax keeps a parameter in a box (`nn.Partitioned`, `nnx.Param`) whose content is its attribute
    `value`; leaving that step out gives a parameter the same name boxed and unboxed.
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of `tree` by path name, in tree order; `None` and masked nodes are none."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def expand_patterns(
    name: str, patterns: Mapping[str, Value] | None, paths: Iterable[str]
) -> dict[str, Value]:
    """Give each path the value of the last pattern that matches it; `*` also crosses `/`."""
    paths = list(paths)
    found: dict[str, Value] = {}
    for pattern, value in (patterns or {}).items():
        matches = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not matches:
            raise ValueError(
                f"{name}: no parameter matches the pattern {pattern!r}{_closest(pattern, paths)}"
            )
        found |= dict.fromkeys(matches, value)
    return found


def look_up(name: str, values: Mapping[str, Value], path: str) -> Value:
    """Return the value of `path`, or raise an error that names the closest path."""
    if path not in values:
        raise ValueError(f"{name}: no entry for the parameter {path!r}{_closest(path, values)}")
    return values[path]


def _closest(wanted: str, paths: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, list(paths), n=1, cutoff=0.4)
    return f": did you mean {close[0]!r}?" if close else ""
