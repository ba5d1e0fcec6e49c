"""Files whose examples say which client they belong to: LEAF's JSON, CSV and JSON lines."""

from __future__ import annotations

import csv
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxkit import files


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
        ValueError: if there is no file, or it is not such, naming it and the user or line; a number
            that is not finite, a label or client that is missing.

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
        if (x.shape[1:], x.dtype.kind) != (inputs[0].shape[1:], inputs[0].dtype.kind):
            raise ValueError(
                f"{path}: x of user {user!r} must be like the others', {inputs[0].dtype} "
                f"[n, {inputs[0].shape[1:]}], got {x.dtype} {x.shape}"
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
    by_user = {}
    for file in sorted(folder.glob("*.json")):
        found = files.json_object(file.read_bytes(), str(file))
        try:
            told = dict(zip(found["users"], found["num_samples"], strict=True))
            data = {user: found["user_data"][user] for user in told}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a LEAF file: {error!r}") from None
        for user, count in told.items():
            if user in by_user:
                raise ValueError(f"{file}: user {user!r} is there twice")
            by_user[user] = _examples(data[user], f"{file}, user {user!r}")
            y = by_user[user][1]
            if y.dtype.kind == "U":
                raise ValueError(f"{file}, user {user!r}: y must be integers, got {str(y[0])!r}")
            if len(y) != count:
                raise ValueError(
                    f"{file}: num_samples of user {user!r} is {count}, but it has {len(y)} examples"
                )
    if not by_user:
        raise ValueError(f"folder must hold files *.json of LEAF with users, got none in {folder}")
    return by_user


def _table(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows: dict[str, dict[str, list[Any]]] = {}
    if not path.is_file() or path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} must be a folder of LEAF or a file .csv or .jsonl")
    for place, row in _rows(path):
        try:
            client, label = row.pop("client"), row.pop("label")
            if path.suffix == ".csv" and "file" not in row:
                row = {"x": [float(value) for value in row.values()]}
            x = row["file"] if "file" in row else row["x"]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{place}: must have client, label, and file or numbers: {error!r}"
            ) from None
        for name, value in (("client", client), ("label", label)):
            if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
                raise ValueError(f"{place}: {name} must be a name or integer, got {value!r}")
        mine = rows.setdefault(str(client), {"x": [], "y": []})
        mine["x"].append(x)
        mine["y"].append(label)
    if not rows:
        raise ValueError(f"{path} has no rows")
    try:
        for mine in rows.values():
            mine["y"] = list(map(int, mine["y"]))
    except ValueError:  # names, then, all of them
        for mine in rows.values():
            mine["y"] = list(map(str, mine["y"]))
    return {user: _examples(mine, f"{path}, client {user!r}") for user, mine in rows.items()}


def _rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        number = 0
        try:
            if path.suffix == ".jsonl":
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield f"{path}:{number}", files.json_object(line, f"{path}:{number}")
                return
            reader = csv.reader(stream)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"{path}:1: a column is there twice, got {header}")
            for row in reader:
                number = reader.line_num
                if row and len(row) != len(header):
                    raise ValueError(f"{path}:{number}: has another number of columns")
                if row:
                    yield f"{path}:{number}", dict(zip(header, row, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not UTF-8 text after line {number}: {error}") from None


def _in_bytes(x: np.ndarray) -> np.ndarray:
    """Pixels as bytes, whether they were told as such or over 255."""
    if x.dtype.kind == "U" or not (x.min() >= 0 and x.max() <= 255):
        return x
    scaled = x * 255 if x.max() <= 1 else x
    pixels = np.rint(scaled)
    return pixels.astype(np.uint8) if np.abs(pixels - scaled).max() < 1e-3 else x


def _examples(data: Any, place: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, y = np.asarray(data["x"]), np.asarray(data["y"])
        if x.dtype.kind != "U" or x.ndim != 1 or not all(pathlib.PurePath(n).suffix for n in x):
            x = x.astype(np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place}: x must be numbers of one shape or names of files: {error!r}"
        ) from None
    if not x.size or x.shape[0] != len(y) or y.ndim != 1 or y.dtype.kind not in "iuU":
        raise ValueError(
            f"{place}: x [n, ...] and integers y [n] must be as many and at least one, got "
            f"{x.shape} and {y.dtype}{y.shape}"
        )
    if y.dtype.kind in "iu" and np.abs(y).max() > np.iinfo(np.int32).max:
        raise ValueError(f"{place}: y must fit 32 bits, got {y[np.argmax(np.abs(y))]}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = np.argwhere(~np.isfinite(x))[0][0]
        raise ValueError(f"{place}: x must be finite, got NaN or infinity in its example {row}")
    return x, y
