"""Grid worlds: five moves with walls, and the cells that each place covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkit import validation
from jaxkit.subrl import tables

#: The moves in the order of their numbers, each (rows, columns).
MOVES = {"stay": (0, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


def checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns) as two positive ints, or raise."""
    if len(shape) != 2:
        raise ValueError(f"shape must be (rows, columns), got {tuple(shape)}")
    rows, columns = (validation.integer("shape", side, minimum=1) for side in shape)
    return rows, columns


def checked_free(free: ArrayLike | None, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of free cells `[rows, columns]`, or raise."""
    mask = np.ones(shape, bool) if free is None else np.asarray(free).astype(bool)
    if mask.shape != shape:
        raise ValueError(f"free must have the shape of the grid {shape}, got {mask.shape}")
    return mask


def grid_moves(shape: Sequence[int], free: ArrayLike | None = None) -> np.ndarray:
    """Next state by state (row * columns + column) and move, `[rows * columns, 5]`.

    A move off the grid or into a wall stays; walls lead to themselves.

    Source: the official grid worlds of arXiv 2307.13372.
    """
    rows, columns = checked_shape(shape)
    mask = checked_free(free, (rows, columns))
    row, column = np.divmod(np.arange(rows * columns), columns)
    table = np.empty((rows * columns, len(MOVES)), np.int32)
    for action, (down, right) in enumerate(MOVES.values()):
        to_row = np.clip(row + down, 0, rows - 1)
        to_column = np.clip(column + right, 0, columns - 1)
        passable = mask[to_row, to_column] & mask[row, column]
        table[:, action] = np.where(passable, to_row * columns + to_column, row * columns + column)
    return table


def grid_blocks(
    shape: Sequence[int], block: int = 2, free: ArrayLike | None = None
) -> tuple[tuple[int, ...], ...]:
    """List the cells that each place covers: a square with the place at its top left corner.

    The square is cut at the edges of the grid and at walls; it lies to the side of growing rows and
    columns, so it is not a centred disc. Its side `block` is 1 (own cell), 2 ("small" in the
    paper's program) or 3 ("large").

    Source: the official coverage maps of arXiv 2307.13372.
    """
    rows, columns = checked_shape(shape)
    validation.integer("block", block, minimum=1)
    mask = checked_free(free, (rows, columns))
    cover = []
    for state in range(rows * columns):
        row, column = divmod(state, columns)
        cells = [
            r * columns + c
            for r in range(row, min(row + block, rows))
            for c in range(column, min(column + block, columns))
            if mask[r, c]
        ]
        cover.append(tuple(cells))
    return tuple(cover)


def grid_dynamics(
    shape: Sequence[int], *, start: Any = 0, slip: Any = 0.0, free: ArrayLike | None = None
) -> tuple[tables.TableDynamics, tables.TableParams]:
    """Make the dynamics of a grid world; a policy sees (row, column), scaled to `[-1, 1]`.

    Source: the official grid worlds of arXiv 2307.13372.
    """
    rows, columns = checked_shape(shape)
    mask = checked_free(free, (rows, columns))
    row, column = np.divmod(np.arange(rows * columns), columns)
    coordinates = np.stack(
        [2 * row / max(rows - 1, 1) - 1, 2 * column / max(columns - 1, 1) - 1], axis=1
    )
    made = tables.table_dynamics(
        grid_moves(shape, mask), start=start, slip=slip, coordinates=jnp.asarray(coordinates)
    )
    if not validation.is_traced(start) and not mask.reshape(-1)[int(start)]:
        raise ValueError(
            f"start must be a free cell, got {int(start)} in the wall at row "
            f"{int(start) // columns}, column {int(start) % columns}"
        )
    return made


def two_rooms() -> np.ndarray:
    """Free cells `[7, 14]` of the two rooms: 7 x 4 each, joined by a corridor of 2 x 6; 68 in all.

    Source: the official two-rooms world of arXiv 2307.13372.
    """
    free = np.zeros((7, 14), bool)
    free[:, :4] = free[:, 10:] = free[2:4] = True
    return free
