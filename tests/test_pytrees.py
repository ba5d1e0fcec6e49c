"""No two classes of the toolkit, nor a user's, look alike to the cache of `jax.jit`."""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil

import flax.struct
import jax
import jax.numpy as jnp
import pytest

import jaxkit
from jaxkit import pytrees, submodular


def _classes():
    """Every class of the toolkit that is a node of pytrees."""
    for module in pkgutil.walk_packages(jaxkit.__path__, "jaxkit."):
        if module.name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name:
                yield kind


def _structure(kind):
    """Structure of an instance, whatever its fields hold; None for what is a leaf."""
    if hasattr(kind, "_fields"):
        return jax.tree.structure(kind(*(0 for _ in kind._fields)))
    try:
        node = object.__new__(kind)
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            object.__setattr__(node, field.name, 0)
        structure = jax.tree.structure(node)
    except (AttributeError, TypeError):  # a protocol, an error, a list of its own
        return None
    return None if structure == jax.tree.structure(0) else structure


def test_no_two_registered_classes_have_equal_structures():
    structures = {kind: _structure(kind) for kind in _classes()}
    structures = {kind: found for kind, found in structures.items() if found is not None}
    assert len(structures) > 100
    for (a, of_a), (b, of_b) in itertools.combinations(structures.items(), 2):
        assert of_a != of_b, (a, b)


def test_no_registered_class_equals_a_users_class_of_the_same_fields():
    for kind in _classes():
        if not dataclasses.is_dataclass(kind) or _structure(kind) is None:
            continue
        names = [f.name for f in dataclasses.fields(kind) if f.metadata.get("pytree_node", True)]
        decoy = type("Decoy", (), {"__annotations__": dict.fromkeys(names, object)})
        fields = [f.name for f in dataclasses.fields(kind) if f.name not in names]
        for name in fields:
            decoy.__annotations__[name] = object
            setattr(decoy, name, flax.struct.field(pytree_node=False, default=0))
        flax.struct.dataclass(decoy)
        assert _structure(decoy) is not None
        assert _structure(kind) != _structure(decoy), kind


def _confusable(number, register):
    made = []
    for i in range(number):
        made.append(register(type(f"User{i}", (), {"__annotations__": {"x": object}, "tag": i})))
    return made


@pytest.mark.parametrize("register", [pytrees.dataclass, flax.struct.dataclass])
def test_jit_runs_the_program_of_each_class(register):
    tag = pytrees.jit(lambda node: jnp.asarray(type(node).tag))
    kinds = _confusable(40, register)
    for kind in kinds + kinds:
        assert int(tag(kind(1.0))) == kind.tag
    assert tag.compiled._cache_size() == len(kinds)


def test_classes_that_jax_confuses_are_each_maximised_as_their_own():
    class Scaled(submodular.Restriction):
        scale = 1.0

        def gains(self, state, candidates=None):
            return self.scale * super().gains(state, candidates)

    f = submodular.modular(jnp.array([1.0, 2.0]))
    kinds = [
        flax.struct.dataclass(type(f"Times{i}", (Scaled,), {"scale": float(i)}))
        for i in range(1, 7)
    ]
    assert jax.tree.structure(kinds[0](f, jnp.arange(2))) == jax.tree.structure(
        kinds[1](f, jnp.arange(2))
    )
    for kind in kinds:
        chosen = submodular.greedy(kind(f, jnp.arange(2)), 1)
        assert chosen.gains.tolist() == [2 * kind.scale]


def test_a_record_is_rebuilt_with_its_static_fields_and_named_paths():
    @pytrees.dataclass
    class Record:
        weights: jax.Array
        name: str = flax.struct.field(pytree_node=False)

    record = Record(jnp.ones(2), "a")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, record)
    assert doubled.name == "a"
    assert doubled.weights.tolist() == [2.0, 2.0]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
    assert paths == [".weights"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "b"  # type: ignore[misc]
