"""Files whose examples say which client they belong to: LEAF's JSON, CSV and JSON lines."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class ClientExamples(NamedTuple):
    """Examples with their clients.

    Attributes:
        examples: `{"x": [n, ...], "y": int32 [n]}`; x is uint8 where it was pixels, as bytes or
            over 255, else float32, or the names of files.
        indices: the examples of each client.
        users: their names, in order.
        labels: what y numbers, where labels were no integers.
    """

    examples: dict[str, np.ndarray]
    indices: list[np.ndarray]
    users: tuple[str, ...]
    labels: tuple[str, ...] = ()


def read_clients(path: str | os.PathLike[str]) -> ClientExamples:
    r"""Read examples that come with their client: FEMNIST, CelebA, or a table of one's own.

    Args:
        path: a folder of LEAF's files `*.json`, each `{"users": [...], "num_samples": [...],
            "user_data": {USER: {"x": [...], "y": [...]}}}`, as `data/train` of LEAF; or a file
            `.csv` or `.jsonl` with a row for each example: `client`, `label`, and either `file`, a
            path, or numbers: the other columns of a CSV, `x` of JSON lines.

    Returns:
        All examples once and the clients' indices, for `client_data(found.examples,
        found.indices)`.

    Raises:
        ValueError: if there is no file, or it is not such, naming it and the user or line.

    Source: Caldas et al. 2018, LEAF.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.csv")
        ...     _ = path.write_text("client,label,p0,p1\nanna,3,0,255\nbob,1,51,102\n")
        ...     found = read_clients(path)
        >>> found.examples["x"].tolist(), found.users, [rows.tolist() for rows in found.indices]
        ([[0, 255], [51, 102]], ('anna', 'bob'), [[0], [1]])
    """
    path = pathlib.Path(path)
    by_user = _leaf(path) if path.is_dir() else _table(path)
    users, inputs, labels = by_user.keys(), *zip(*by_user.values(), strict=True)
    for user, x in zip(users, inputs, strict=True):
        if x.shape[1:] != inputs[0].shape[1:]:
            raise ValueError(
                f"{path}: x of user {user!r} must be [n, {inputs[0].shape[1:]}] like the others, "
                f"got {x.shape}"
            )
    edges = np.cumsum([0, *map(len, labels)])
    indices = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    y, names = np.concatenate(labels), ()
    if y.dtype.kind == "U":
        found, y = np.unique(y, return_inverse=True)
        names = tuple(found.tolist())
    examples = {"x": _in_bytes(np.concatenate(inputs)), "y": y.astype(np.int32)}
    return ClientExamples(examples, indices, tuple(users), names)


def _leaf(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"folder must hold files *.json of LEAF, got none in {folder}")
    by_user = {}
    for file in files:
        try:
            found = json.loads(file.read_text("utf-8"))
            told = dict(zip(found["users"], found["num_samples"], strict=True))
            data = {user: found["user_data"][user] for user in told}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a LEAF file: {error!r}") from None
        for user, count in told.items():
            if user in by_user:
                raise ValueError(f"{file}: user {user!r} is there twice")
            by_user[user] = _examples(data[user], f"{file}, user {user!r}")
            if len(by_user[user][1]) != count:
                raise ValueError(
                    f"{file}: num_samples of user {user!r} is {count}, but it has "
                    f"{len(by_user[user][1])} examples"
                )
    return by_user


def _table(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows: dict[str, tuple[list[Any], list[Any]]] = {}
    if not path.is_file() or path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} must be a folder of LEAF or a file .csv or .jsonl")
    for place, row in _rows(path):
        try:
            client, label = str(row.pop("client")), row.pop("label")
            x = row.pop("file", None) or row.pop("x", None) or [float(v) for v in row.values()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{place}: must have client, label, and file or numbers: {error!r}"
            ) from None
        inputs, labels = rows.setdefault(client, ([], []))
        inputs.append(x)
        labels.append(label)
    if not rows:
        raise ValueError(f"{path} has no rows")
    written = [label for _, labels in rows.values() for label in labels]
    try:
        list(map(int, written))
        kind: Any = int
    except (TypeError, ValueError):
        kind = str
    return {
        user: _examples({"x": x, "y": list(map(kind, y))}, f"{path}, client {user!r}", files=True)
        for user, (x, y) in rows.items()
    }


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        if path.suffix == ".csv":
            reader = csv.DictReader(stream)
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{reader.line_num}: has another number of columns")
                yield f"{path}:{reader.line_num}", dict(row)
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error}") from None


def _in_bytes(x: np.ndarray) -> np.ndarray:
    """Pixels as bytes, whether they were told as such or over 255."""
    if x.dtype.kind == "U" or not (x.min() >= 0 and x.max() <= 255):
        return x
    pixels = np.rint(x * 255 if x.max() <= 1 else x)
    if np.abs(pixels - (x * 255 if x.max() <= 1 else x)).max() < 1e-3:
        return pixels.astype(np.uint8)
    return x


def _examples(data: Any, place: str, *, files: bool = False) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, y = np.asarray(data["x"]), np.asarray(data["y"])
        x = x if files and x.dtype.kind == "U" and x.ndim == 1 else x.astype(np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: x must be numbers of one shape: {error!r}") from None
    if (
        not len(y)
        or x.shape[0] != len(y)
        or y.ndim != 1
        or y.dtype.kind not in ("iuU" if files else "iu")
    ):
        raise ValueError(
            f"{place}: x [n, ...] and integers y [n] must be as many and at least one, got "
            f"{x.shape} and {y.dtype}{y.shape}"
        )
    return x, y
