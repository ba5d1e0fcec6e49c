"""Every public name says what it is for, and shows it."""

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import re
import typing

import pytest

import jaxkit

ROOMS = [
    module.name
    for module in pkgutil.iter_modules(jaxkit.__path__)
    if module.ispkg and module.name != "experiments"
]


def _public(room):
    module = importlib.import_module(f"jaxkit.{room}")
    return {name: getattr(module, name) for name in module.__all__}


def _is_used_by_calling(value):
    return callable(value) and typing.get_origin(value) is None


def _is_a_record(value):
    return inspect.isclass(value) and (
        dataclasses.is_dataclass(value)
        or hasattr(value, "_fields")
        or value.__dict__.get("_is_protocol")
    )


def _commented(room):
    """Names assigned below a comment `#:` in the modules of a room."""
    sources = pathlib.Path(jaxkit.__file__).parent.joinpath(room).glob("*.py")
    pattern = re.compile(r"^#: .*\n(?:#.*\n)*(\w+)\b.*=", re.MULTILINE)
    return {name for source in sources for name in pattern.findall(source.read_text("utf-8"))}


def test_the_rooms_are_found():
    assert {"federated", "schedules", "training"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_function_and_class_has_an_example_unless_it_is_a_record(room):
    lacking = [
        name
        for name, value in _public(room).items()
        if _is_used_by_calling(value)
        and not _is_a_record(value)
        and ">>> " not in (value.__doc__ or "")
    ]
    assert not lacking


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_constant_has_a_comment_where_it_is_made(room):
    constants = {name for name, value in _public(room).items() if not _is_used_by_calling(value)}
    assert not constants - _commented(room)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_text_and_no_name_twice(room):
    module = importlib.import_module(f"jaxkit.{room}")
    assert inspect.getdoc(module)
    assert len(set(module.__all__)) == len(module.__all__)
