import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxkit import training
from jaxkit.training import mesh


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", (8, 1, 1)),
        ("fsdp=8", (1, 8, 1)),
        ("data=2, tensor=2,fsdp=-1", (2, 2, 2)),
        ("tensor=2,data=-1", (4, 1, 2)),
    ],
)
def test_mesh_text_gives_the_sizes_it_names(text, sizes):
    assert tuple(mesh.parse_mesh(text, 8).values()) == sizes
    assert training.make_mesh(text).devices.shape == sizes


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=3", "must multiply to the number of devices, 8, got data=3"),
        ("data=3,fsdp=-1", "must multiply to the number of devices"),
        ("dat=8", "did you mean 'data'"),
        ("data=8,data=1", "name each axis once"),
        ("data=x", "positive integers or -1"),
        ("data=0", "positive integers or -1"),
        ("data=-1,fsdp=-1", "may leave one size"),
    ],
)
def test_a_bad_mesh_is_refused_with_its_reason(text, message):
    with pytest.raises(ValueError, match=message):
        mesh.parse_mesh(text, 8)
    with pytest.raises(TypeError, match=r"mesh must be text such as .*, got \{'data': 8\}"):
        mesh.make_mesh({"data": 8})


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_parameters_are_split_by_their_logical_axes():
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    tree = {
        "up": boxed((3, 4, 6), ("layers", "embed", "mlp")),
        "norm": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    shardings = training.parameter_shardings(tree, mesh)
    assert shardings["up"].spec == P(None, "fsdp", "tensor")
    assert shardings["norm"].is_fully_replicated


def test_an_odd_vocabulary_is_replicated_and_an_odd_number_of_heads_is_refused():
    mesh = training.make_mesh("tensor=8")
    table = training.parameter_shardings({"e": boxed((95, 8), ("vocab", "embed"))}, mesh)
    assert table["e"].spec == P(None, "fsdp")
    with pytest.raises(ValueError, match=r"heads of \['q'\] has size 4, which mesh axis tensor=8"):
        training.parameter_shardings({"q": boxed((8, 4, 2), ("embed", "heads", None))}, mesh)


@pytest.mark.usefixtures("bad_input")
def test_rows_must_divide_over_data_and_fsdp():
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    assert training.local_rows(mesh, 8) == (0, 1)
    with pytest.raises(ValueError, match="divisible by data x fsdp = 4 parts"):
        training.local_rows(mesh, 6)


def test_a_placed_batch_holds_the_rows_in_order():
    mesh = training.make_mesh("data=4,tensor=2")
    rows = np.arange(24).reshape(8, 3)
    placed = training.place_batch({"x": rows}, mesh)["x"]
    assert placed.sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(placed, rows)
