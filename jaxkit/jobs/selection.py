"""Pick exemplars or a coreset from a file of features."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from jaxkit import files, plotting, submodular, validation
from jaxkit.datasets.extras import require
from jaxkit.jobs import options


class SelectionFiles(NamedTuple):
    """What `select_rows` wrote.

    Attributes:
        indices: one row number (or id) a line, best first.
        figure: where the rows lie, and what each added.
        picked: how many of how many rows, in words.
        value: value of the set.
        queries: oracle queries spent.
        guarantee: what is proved of the value, in words.
    """

    indices: pathlib.Path
    figure: pathlib.Path
    picked: str
    value: float
    queries: int
    guarantee: str

    def show(self) -> None:
        """Print what was reached and where the files are."""
        reached = f"value {self.value:.6g} after {self.queries:,} queries"
        print(f"{self.picked}: {reached}, {self.guarantee}")
        print(self.indices, self.figure, sep="\n")


class Table(NamedTuple):
    """Features as they stand in a file.

    Attributes:
        features: numbers `[n, d]`, an array or a sparse matrix of SciPy.
        ids: what the rows are called, `[n]`, or None.
    """

    features: Any
    ids: Sequence[str] | None


def read_features(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    ids: str | None = None,
    header: bool | None = None,
) -> Table:
    """Read features from `.npy`, `.npz` (sparse, of SciPy), CSV, `.tsv`, Parquet or Arrow files."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.suffix in (".npy", ".npz"):
        if columns or ids or header is not None:
            raise ValueError(f"{path} has no named columns: columns, ids and header go with tables")
        return Table(_array(path), None)
    table = (
        _arrow(path) if path.suffix in (".parquet", ".arrow", ".feather") else _csv(path, header)
    )

    def of(name: str) -> str:
        if name not in table and name.isdecimal() and int(name) < len(table):
            return list(table)[int(name)]
        return validation.choice("column", name, table)

    named = table[of(ids)] if ids else None
    wanted = [of(name) for name in columns] if columns else list(table)
    wanted = [name for name in wanted if not ids or name != of(ids)]
    parsed = {name: _numbers(table[name]) for name in wanted}
    numbers = {name: found for name, found in parsed.items() if found is not None}
    text = [name for name in wanted if name not in numbers]
    if text:
        raise ValueError(
            f"{path} must hold numbers, columns {', '.join(map(repr, text))} do not: choose with "
            "--columns, or name the rows with --ids"
        )
    if not wanted:
        raise ValueError(f"{path} must have a column of features, got none beside {ids!r}")
    features = np.stack(list(numbers.values()), axis=1)
    return Table(features, None if named is None else [str(name) for name in named])


def _array(path: pathlib.Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        import scipy.sparse

        found: Any = scipy.sparse.load_npz(path)
        if hasattr(found, "check_format"):
            found.check_format(full_check=True)  # places outside would be read from memory outside
        return found
    except (
        Exception
    ) as error:  # NumPy, SciPy and zipfile raise nearly any for what they cannot read
        kind = "a sparse matrix of SciPy" if path.suffix == ".npz" else "a whole .npy file"
        raise ValueError(f"{path} is not {kind} ({error})") from None


def _arrow(path: pathlib.Path) -> dict[str, np.ndarray]:
    pyarrow = require("pyarrow", "parquet")
    kind = "parquet" if path.suffix == ".parquet" else "feather"
    try:
        table = require(f"pyarrow.{kind}", "parquet").read_table(path)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file ({error})") from None
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def _csv(path: pathlib.Path, header: bool | None) -> dict[str, np.ndarray]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            lines = [cells for cells in csv.reader(stream, delimiter=delimiter) if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a table of UTF-8 text, got {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty")
    if header is None:
        header = _numbers(lines[0]) is None
    names = [name.strip() for name in lines[0]] if header else list(map(str, range(len(lines[0]))))
    rows = lines[header:]
    for number, cells in enumerate(rows, 1 + header):
        if len(cells) != len(names):
            raise ValueError(
                f"{path} line {number}: {len(names)} columns expected, got {len(cells)}"
            )
    if not rows or len(set(names)) < len(names):
        raise ValueError(f"{path} must have rows, and columns of different names, got {names}")
    return {name: np.asarray([cells[i] for cells in rows]) for i, name in enumerate(names)}


def _numbers(cells: Any) -> np.ndarray | None:
    """Cells as numbers, None where one is text."""
    array = np.asarray(cells)
    if array.dtype.kind in "biuf":
        return array
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def select_rows(
    features: tyro.conf.Positional[options.Path],
    k: int,
    objective: Literal[
        "facility_location", "saturated_coverage", "graph_cut", "log_det", "feature_based"
    ] = "facility_location",
    maximiser: Literal["lazy", "greedy", "stochastic", "threshold"] = "lazy",
    kernel: Literal["cosine", "shifted_cosine", "rbf"] = "cosine",
    columns: Sequence[str] = (),
    ids: str | None = None,
    header: bool | None = None,
    out: options.Path | None = None,
) -> SelectionFiles:
    """Pick exemplars or a coreset from a table of features.

    Args:
        features: .npy, .npz (sparse), .csv, .tsv, .parquet or .arrow file, one row an item.
        k: rows to pick.
        objective: what makes a set of rows good.
        maximiser: how it is found.
        kernel: similarity of two rows.
        columns: columns to use, by name or number; all by default.
        ids: column that names the rows; it is written instead of row numbers.
        header: whether the first line names the columns; by default, unless it is all numbers.
        out: folder to write to; by default that of the file.
    """
    path = pathlib.Path(features)
    table, names = read_features(path, columns=columns, ids=ids, header=header)
    folder = path.parent if out is None else options.output_folder(out)
    try:
        chosen = submodular.select(
            table, k, objective=objective, maximiser=maximiser, kernel=kernel
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    rows = np.asarray(chosen.indices)[np.asarray(chosen.valid)]
    lines = rows if names is None else [names[row] for row in rows]
    indices = files.write_atomically(
        folder / f"{path.stem}_selected.txt", "".join(f"{line}\n" for line in lines)
    )
    figure = plotting.save(
        submodular.selection_figure(table, chosen), folder / f"{path.stem}_selected.png"
    )
    return SelectionFiles(
        indices,
        figure,
        f"{len(rows)} of {table.shape[0]} rows",
        float(chosen.value),
        int(chosen.num_queries),
        str(chosen.guarantee),
    )
