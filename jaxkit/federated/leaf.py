"""LEAF's JSON files: examples that come with the user who made them."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np


class LeafPart(NamedTuple):
    """The training or the test half of a LEAF data set.

    Attributes:
        examples: `{"x": [n, ...], "y": int32 [n]}`; x is uint8 where it was pixels over 255, else
            float32.
        indices: the examples of each user.
        users: their names, in order.
    """

    examples: dict[str, np.ndarray]
    indices: list[np.ndarray]
    users: tuple[str, ...]


def read_leaf(folder: str | os.PathLike[str]) -> LeafPart:
    """Read the JSON files of one half: FEMNIST, CelebA or what else has numbers in x.

    Args:
        folder: with files `*.json`, each `{"users": [...], "num_samples": [...], "user_data":
            {USER: {"x": [...], "y": [...]}}}`, as `data/train` of LEAF.

    Returns:
        All examples once and the users' indices, for `client_data(part.examples, part.indices)`.

    Raises:
        ValueError: if there is no file, or a file, naming it and the user, is not such.

    Source: Caldas et al. 2018, LEAF.

    Example:
        >>> import tempfile
        >>> user = {"x": [[0.0, 1.0], [0.2, 0.4]], "y": [3, 1]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "0.json").write_text(
        ...         json.dumps({"users": ["a"], "num_samples": [2], "user_data": {"a": user}})
        ...     )
        ...     part = read_leaf(folder)
        >>> part.examples["x"].tolist(), part.users
        ([[0, 255], [51, 102]], ('a',))
    """
    files = sorted(pathlib.Path(folder).glob("*.json"))
    if not files:
        raise ValueError(f"folder must hold files *.json of LEAF, got none in {folder}")
    inputs, labels, users = [], [], []
    for file in files:
        try:
            found = json.loads(file.read_text("utf-8"))
            told = dict(zip(found["users"], found["num_samples"], strict=True))
            data = {user: found["user_data"][user] for user in told}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a LEAF file: {error!r}") from None
        for user, count in told.items():
            if user in users:
                raise ValueError(f"{file}: user {user!r} is there twice")
            x, y = _examples(data[user], f"{file}, user {user!r}")
            if len(y) != count:
                raise ValueError(
                    f"{file}: num_samples of user {user!r} is {count}, but it has {len(y)} examples"
                )
            if inputs and x.shape[1:] != inputs[0].shape[1:]:
                raise ValueError(
                    f"{file}: x of user {user!r} must be [n, {inputs[0].shape[1:]}] like the "
                    f"others, got {x.shape}"
                )
            inputs.append(x)
            labels.append(y)
            users.append(user)
    edges = np.cumsum([0, *map(len, labels)])
    indices = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    x = np.concatenate(inputs)
    pixels = np.rint(x * 255)
    if x.min() >= 0 and x.max() <= 1 and np.abs(pixels - x * 255).max() < 1e-3:
        x = pixels.astype(np.uint8)
    return LeafPart({"x": x, "y": np.concatenate(labels)}, indices, tuple(users))


def _examples(data: Any, place: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, y = np.asarray(data["x"], np.float32), np.asarray(data["y"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: x must be numbers of one shape: {error!r}") from None
    if not len(y) or x.shape[0] != len(y) or y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{place}: x [n, ...] and integers y [n] must be as many and at least one, got "
            f"{x.shape} and {y.dtype}{y.shape}"
        )
    return x, y.astype(np.int32)
