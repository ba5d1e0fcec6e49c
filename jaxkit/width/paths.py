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

    Args:
        path: the key path, as `jax.tree_util.tree_flatten_with_path` gives it.

    Returns:
        The name; empty for the root.

    Example:
        >>> [(path, _)] = jax.tree_util.tree_flatten_with_path({"up": {"kernel": 1.0}})[0]
        >>> path_name(path)
        'up/kernel'
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of `tree` by path name, in tree order.

    `None`, `optax.MaskedNode` and other nodes without leaves do not appear.

    Args:
        tree: any pytree.

    Returns:
        Path name -> leaf.

    Example:
        >>> named_leaves({"up": {"kernel": 1.0}, "frozen": None})
        {'up/kernel': 1.0}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def expand_patterns(
    name: str, patterns: Mapping[str, Value] | None, paths: Iterable[str]
) -> dict[str, Value]:
    """Give each path the value of the last pattern that matches it.

    Args:
        name: name of the argument, for the message.
        patterns: shell pattern (`*` also crosses `/`) -> value; None for none.
        paths: the path names that exist.

    Returns:
        Path name -> value, for the paths that some pattern matches.

    Raises:
        ValueError: if a pattern matches no path.

    Example:
        >>> expand_patterns("overrides", {"*/bias": "vector"}, ["up/kernel", "up/bias"])
        {'up/bias': 'vector'}
    """
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
    """Return the value of `path`, or raise an error that names the closest path.

    Args:
        name: name of the argument, for the message.
        values: path name -> value.
        path: the path name wanted.

    Returns:
        The value.

    Raises:
        ValueError: if `values` does not have `path`.

    Example:
        >>> look_up("multipliers", {"up/kernel": 0.25}, "up/kernel")
        0.25
    """
    if path not in values:
        raise ValueError(f"{name}: no entry for the parameter {path!r}{_closest(path, values)}")
    return values[path]


def _closest(wanted: str, paths: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, list(paths), n=1, cutoff=0.4)
    return f": did you mean {close[0]!r}?" if close else ""
