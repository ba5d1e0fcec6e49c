"""Every public name says what it is for, and shows it."""

import ast
import importlib
import inspect
import itertools
import pkgutil
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


def _texts_below_assignments(source):
    """Names assigned at the top of a module and followed by a string, as pdoc shows them."""
    body = ast.parse(source).body
    return {
        target.id
        for statement, after in itertools.pairwise(body)
        if isinstance(statement, ast.Assign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
        for target in statement.targets
    }


def test_the_rooms_are_found():
    assert {"federated", "schedules", "training"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_class_and_function_has_an_example(room):
    lacking = [
        name
        for name, value in _public(room).items()
        if _is_used_by_calling(value) and ">>> " not in (value.__doc__ or "")
    ]
    assert not lacking


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_constant_has_a_text_on_the_page_of_its_room(room):
    module = importlib.import_module(f"jaxkit.{room}")
    described = _texts_below_assignments(inspect.getsource(module))
    constants = {name for name, value in _public(room).items() if not _is_used_by_calling(value)}
    assert not constants - described


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_text_and_no_name_twice(room):
    module = importlib.import_module(f"jaxkit.{room}")
    assert inspect.getdoc(module)
    assert len(set(module.__all__)) == len(module.__all__)
