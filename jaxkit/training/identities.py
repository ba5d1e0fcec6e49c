"""Which run, data and program this is: fingerprints, and how two descriptions differ."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from jaxkit.datasets import mapped


def fingerprint(tree: PyTree) -> str:
    """SHA-256 of the arrays of a pytree, their paths, shapes and types, in hexadecimal digits.

    Args:
        tree: of arrays, keys, numbers, and what knows its own `fingerprint`, like pictures that
            are not decoded yet.

    Example:
        >>> fingerprint({"x": np.arange(3)}) == fingerprint({"x": np.arange(3)})
        True
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            digest.update(str(leaf.dtype).encode())
            leaf = jax.random.key_data(leaf)
        if (known := getattr(leaf, "fingerprint", None)) is not None:
            digest.update(f"{jax.tree_util.keystr(path)} {known}".encode())
            continue
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        rows = array[None] if array.ndim == 0 else array
        for piece in mapped.pieces(rows):  # a mapped text may be larger than memory
            digest.update(piece.tobytes())
    return digest.hexdigest()


def program_fingerprint(function: Callable[..., Any], *arguments: Any) -> dict[str, str]:
    """What a function computes: SHA-256 of its jaxpr and the constants in it.

    Args:
        function: pure.
        arguments: arrays, or their shapes.

    Returns:
        The digest and the version of JAX that traced it, to be a `"program"` of `Run.identify`.

    Example:
        >>> double, triple = (program_fingerprint(lambda x, n=n: n * x, 1.0) for n in (2, 3))
        >>> double == triple
        False
    """
    closed = jax.make_jaxpr(function)(*arguments)
    # Functions inside (custom rules, callbacks) print their address.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed))
    digest = hashlib.sha256(text.encode() + fingerprint(_constants(closed)).encode())
    return {"jax": jax.__version__, "sha256": digest.hexdigest()}


def _constants(held: Any) -> list[Any]:
    """The constants of a jaxpr and of those inside it: `jit` keeps its own."""
    if isinstance(held, core.ClosedJaxpr | core.Jaxpr):
        inside = [c for e in held.eqns for v in e.params.values() for c in _constants(v)]
        return [*getattr(held, "consts", ()), *inside]
    return [c for one in held for c in _constants(one)] if isinstance(held, tuple | list) else []


def differences(old: Any, new: Any, name: str = "", depth: int = 3) -> dict[str, str]:
    """How two descriptions differ, by dotted field."""
    if depth and isinstance(old, dict) and isinstance(new, dict):
        return {
            field: text
            for key in {**old, **new}
            for field, text in differences(
                old.get(key), new.get(key), f"{name}.{key}".lstrip("."), depth - 1
            ).items()
        }
    return {} if old == new else {name: f"{name} was {_short(old)}, is now {_short(new)}"}


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it will be read back; NumPy's numbers are numbers."""

    def number(value: Any) -> Any:
        if getattr(value, "size", 0) != 1:
            raise TypeError(f"identity must be JSON (a fingerprint stands for data), got {value!r}")
        return value.item()

    return json.loads(json.dumps(dict(identity), default=number))


def require_same(folder: str | os.PathLike[str], differences: Mapping[str, str]) -> None:
    """Refuse another run; another version of JAX may write the same program otherwise."""
    names = differences.keys() - ({"program.sha256"} if "program.jax" in differences else set())
    found = [text for name, text in differences.items() if name in names - {"program.jax"}]
    if found:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(found)} (give the old values to go on with "
            "it, or another folder for a new one)"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
