"""Pick exemplars or a coreset from a file of features."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from jaxkit import datasets, files, plotting, submodular


class SelectionFiles(NamedTuple):
    """What `select_rows` wrote.

    Attributes:
        indices: one row number a line, best first.
        figure: where the rows lie, and what each added.
        value: value of the set.
        queries: oracle queries spent.
        guarantee: what the maximiser guarantees, in words.
    """

    indices: pathlib.Path
    figure: pathlib.Path
    value: float
    queries: int
    guarantee: str


def read_features(path: str | os.PathLike[str]) -> np.ndarray:
    """Read `[n, d]` features from an `.npy` or a CSV file with a header.

    Raises:
        ValueError: if the file is missing, faulty or not a table of finite numbers.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".npy":
        try:
            features = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not a whole .npy file ({error})") from None
    else:
        features = datasets.read_csv(path)[0]
    features = np.asarray(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise ValueError(
            f"{path} must hold numbers of shape [rows, features], got {features.dtype} "
            f"{features.shape}"
        )
    if not np.isfinite(features).all():
        row = int(np.argwhere(~np.isfinite(features))[0, 0])
        raise ValueError(f"{path} must hold finite numbers, row {row} does not")
    return features.astype(np.float32)


def select_rows(
    path: str | os.PathLike[str],
    k: int,
    *,
    objective: str = "facility_location",
    maximiser: str = "lazy",
    kernel: str = "cosine",
    out: str | os.PathLike[str] | None = None,
) -> SelectionFiles:
    """Select k rows of a file; write their numbers and a picture beside it.

    Args:
        path: `.npy` or CSV of features, one row an item.
        k: rows to select.
        objective: what makes a set good (`jaxkit.submodular.select`).
        maximiser: how it is found.
        kernel: similarity of two rows.
        out: folder to write to; by default that of the file.

    Returns:
        The files and what was reached.

    Raises:
        ValueError: if the file or an option is faulty.
    """
    path = pathlib.Path(path)
    features = read_features(path)
    chosen = submodular.select(features, k, objective=objective, maximiser=maximiser, kernel=kernel)
    folder = pathlib.Path(out) if out else path.parent
    rows = np.asarray(chosen.indices)[np.asarray(chosen.valid)]
    indices = files.write_atomically(
        folder / f"{path.stem}_selected.txt", "".join(f"{row}\n" for row in rows)
    )
    figure = plotting.save(
        submodular.selection_figure(features, chosen), folder / f"{path.stem}_selected.png"
    )
    return SelectionFiles(
        indices,
        figure,
        float(chosen.value),
        int(chosen.num_queries),
        f"{float(chosen.guarantee.ratio):.3f} of the optimum, {chosen.guarantee.holds}",
    )
