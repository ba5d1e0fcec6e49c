"""What the suites of all kinds share: the public names, comparison, checkpoints, a mesh."""

import functools
import importlib
import inspect
import pkgutil

import jax
import jaxtyping
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import jaxkit

#: Float32 to rounding; bfloat16 to the last bit or two.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1.6e-2}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compile without optimisation, in the slow suite too: these programs run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def public():
    """`public(is_of_kind)`: the public names of that kind, as `"room.name"`."""
    rooms = [m.name for m in pkgutil.iter_modules(jaxkit.__path__) if m.ispkg]
    found = {
        f"{room}.{name}": getattr(module, name)
        for room in rooms
        for module in [importlib.import_module(f"jaxkit.{room}")]
        for name in getattr(module, "__all__", ())
    }
    return lambda is_of_kind: {name for name, value in found.items() if is_of_kind(value)}


@pytest.fixture(scope="session")
def returned():
    """`returned(function)`: what its annotation says it returns, None where it says nothing."""
    return _returned


def _returned(function):
    if inspect.isclass(function) or not callable(function):
        return None
    try:
        annotation = inspect.signature(function).return_annotation
    except ValueError:
        return None
    # Neither is the type of a suite: matplotlib's is imported for type checkers only, and `...` for
    # any shape cannot be evaluated.
    if isinstance(annotation, str) and annotation != "Figure" and "..." not in annotation:
        annotation = eval(annotation, inspect.unwrap(function).__globals__)
    return None if annotation is inspect.Signature.empty else annotation


@pytest.fixture(scope="session")
def assert_complete(public):
    """`assert_complete(is_of_kind, table, excluded)`: every public name of a kind is in a suite.

    Keys of the table are `"room.name"`, or `"room.name variant"`. A name that is excluded, for the
    reason given, must be of the kind and in no table.
    """

    def check(is_of_kind, table, excluded):
        wanted = public(is_of_kind)
        tested = {key.split()[0] for key in table}
        assert wanted - tested - set(excluded) == set(), "neither in the table nor excluded"
        assert set(excluded) - wanted == set(), "excluded, but not a public name of this kind"
        assert tested & set(excluded) == set(), "both in the table and excluded"
        assert tested - wanted == set(), "in the table, but not found by its kind"

    return check


def _plain(leaf):
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.fixture(scope="session")
def assert_same():
    """`assert_same(got, want)`: same tree, shapes and types; numbers to rounding.

    `rough` is a part of the names of leaves that are float32 but come of bfloat16 numbers.
    """
    return _assert_same


def _assert_same(got, want, rough=None):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    paths = jax.tree_util.tree_leaves_with_path(want)
    for a, (path, b) in zip(jax.tree.leaves(got), paths, strict=True):
        name = jax.tree_util.keystr(path)
        a, b = _plain(a), _plain(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if b.dtype == bool or np.issubdtype(b.dtype, np.integer):
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        room = TOLERANCE["bfloat16" if rough and rough in name else str(b.dtype)]
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(b)
        size = max(1.0, np.abs(b[finite]).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=room, atol=room * size, err_msg=name)


@pytest.fixture(scope="session")
def described():
    """`described(tree)`: structure, and the shape, type and weakness of each leaf.

    What a loop needs: a state whose description changes cannot be scanned, and is traced again.
    """
    return _described


def _described(tree):
    leaves, structure = jax.tree.flatten(tree)
    avals = [jax.typeof(leaf) for leaf in leaves]
    return structure, [(aval.shape, aval.dtype, aval.weak_type) for aval in avals]


@pytest.fixture(scope="session")
def assert_donatable():
    """`assert_donatable(make, *kept)`: what is made may be donated, and then another be made.

    It must share no memory with what is kept, with what is made next, or within itself.
    """

    def check(make, *kept):
        first = jax.tree.leaves(make())
        assert len({id(leaf) for leaf in first}) == len(first), "one array in two places"
        for leaf in first:
            leaf.delete()  # as donation does
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((kept, make())))

    return check


@pytest.fixture
def resaved(tmp_path):
    """`resaved(tree)`: the tree, written by orbax and read back."""

    def write_and_read(tree):
        # Orbax refuses a tree without arrays, which some states are, and fills trees with other
        # things than arrays, which annotations refuse.
        boxed = {"tree": tree, "mark": jax.numpy.ones(1)}
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            ocp.save(tmp_path / "state", boxed)
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), boxed
            )
            return ocp.load(tmp_path / "state", abstract)["tree"]
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return write_and_read


@pytest.fixture(scope="session")
def spread(devices):
    """`spread(tree, axis="data")`: leading axes of 8 over 8 devices, everything else on each."""

    @functools.cache
    def mesh(axis):
        return jax.make_mesh((8,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))

    def place(tree, axis="data"):
        def one(leaf):
            leaf = jax.numpy.asarray(leaf)
            split = leaf.ndim > 0 and leaf.shape[0] % 8 == 0 and leaf.size > 0
            spec = jax.sharding.PartitionSpec(axis if split else None)
            if leaf.ndim == 0:
                spec = jax.sharding.PartitionSpec()
            return jax.device_put(leaf, jax.sharding.NamedSharding(mesh(axis), spec))

        return jax.tree.map(one, tree)

    return place
