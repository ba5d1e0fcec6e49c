"""What options of several commands share: types, bounds, checks."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from jaxkit import validation

#: Of a file or a folder.
Path = Annotated[str | pathlib.Path, tyro.conf.arg(metavar="PATH")]

#: Bounds of options: above 0, a share above 0, a share below 1, and strictly between 0 and 1.
POSITIVE: dict[str, Any] = {"minimum": 0, "open_minimum": True}
SHARE: dict[str, Any] = {**POSITIVE, "maximum": 1}
DECAY: dict[str, Any] = {"minimum": 0, "maximum": 1, "open_maximum": True}
INSIDE: dict[str, Any] = {**POSITIVE, **DECAY}


def output_folder(out: str | os.PathLike[str]) -> pathlib.Path:
    """`out`, looked at before the work whose results it is to hold; it need not exist yet.

    Raises:
        ValueError: if it, or one that is to hold it, is a file.
        PermissionError: if it cannot be written.
    """
    folder = pathlib.Path(out)
    # A link to nothing is there too: no folder can be made in its place.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"out must be a folder, got {folder}, where {there} is none")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"out must be a folder that can be written, got {folder}")
    return folder


def at_least_one(config: Any, *fields: str) -> None:
    """Refuse fields that are given and no integers of at least 1."""
    for field in fields:
        if getattr(config, field) is not None:
            validation.integer(field, getattr(config, field), minimum=1)


def within(config: Any, bounds: Mapping[str, Any], *fields: str) -> None:
    """Refuse fields that are given and out of bounds."""
    for field in fields:
        if getattr(config, field) is not None:
            validation.number(field, getattr(config, field), **bounds)


def not_empty(config: Any, *fields: str) -> None:
    """Refuse empty fields: an empty path would be the present folder."""
    for field in fields:
        if getattr(config, field) == "":
            raise ValueError(f"{field} must not be empty, got ''")


def folder_name(name: str, value: str) -> str:
    """Return `value` if it names a folder in another, or raise."""
    if not value or value != value.strip() or "/" in value or value[0] == "." or "\0" in value:
        raise ValueError(f"{name} must be a plain folder name, got {value!r}")
    return value
