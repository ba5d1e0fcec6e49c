import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import training


def compiled_cost(function, mesh, *arguments, out=None):
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in arguments
    ]
    jitted = jax.jit(function, out_shardings=out and NamedSharding(mesh, out))
    return training.program_cost(jitted.lower(*structs).compile(), mesh)


@pytest.mark.parametrize("turns", [1, 5])
def test_a_loop_counts_as_often_as_it_turns(turns):
    def powers(x):
        return jax.lax.scan(lambda y, _: (y @ x, y.sum()), x, length=turns)

    cost = compiled_cost(powers, training.make_mesh(), ((64, 64), jnp.float32, P()))
    assert cost.flops == turns * 2 * 64**3
    assert cost.unknown_loops == 0


def test_loops_in_loops_and_counters_from_elsewhere_multiply():
    def nested(x):
        inner = lambda i, y: jax.lax.fori_loop(2, 5, lambda j, z: z @ x, y)  # noqa: E731
        return jax.lax.fori_loop(-1, 3, inner, x)

    cost = compiled_cost(nested, training.make_mesh(), ((32, 32), jnp.float32, P()))
    assert cost.flops == 4 * 3 * 2 * 32**3


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    def until_small(x):
        return jax.lax.while_loop(lambda y: y.sum() > 1, lambda y: y @ x, x)

    cost = compiled_cost(until_small, training.make_mesh(), ((32, 32), jnp.float32, P()))
    assert (cost.flops, cost.unknown_loops) == (2 * 32**3, 1)


def test_both_branches_of_a_condition_count():
    def either(x, flag):
        return jax.lax.cond(flag, lambda: x @ x, lambda: x + 1)

    given = ((32, 32), jnp.float32, P()), ((), jnp.bool_, P())
    assert compiled_cost(either, training.make_mesh(), *given).flops == 2 * 32**3


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_multiplies_what_is_there_and_no_padding(padding):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2,), padding, lhs_dilation=(1,))

    given = ((2, 3, 10), jnp.float32, P()), ((5, 3, 4), jnp.float32, P())
    outputs = {"SAME": range(-1, 9, 2), "VALID": range(0, 7, 2)}[padding]
    taps = sum(0 <= start + tap < 10 for start in outputs for tap in range(4))
    cost = compiled_cost(convolve, training.make_mesh(), *given)
    assert cost.flops == 2 * 2 * 5 * 3 * taps


def moved(function, text, shape, spec):
    """What a function of a device's part receives, by kind and axes."""
    mesh = training.make_mesh(text)
    shares = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    cost = compiled_cost(shares, mesh, (shape, jnp.float32, spec))
    return {(one.kind, one.axes): one.received for one in cost.collectives}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + jax.lax.psum(x, "fsdp"), {("all-reduce", ("fsdp",)): 2 * 3 * 4 * 8}),
        (
            lambda x: x + jax.lax.psum(x, ("data", "fsdp")),
            {("all-reduce", ("data", "fsdp")): 2 * 7 * 4 * 4},
        ),
        (
            lambda x: x + jax.lax.all_gather(x, "data", tiled=True).sum(),
            {("all-gather", ("data",)): 4 * 32},
        ),
        (
            lambda x: x + jax.lax.psum_scatter(x, "fsdp", tiled=True).sum(),
            {("reduce-scatter", ("fsdp",)): 3 * 4 * 8},
        ),
        (
            lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
            {("all-to-all", ("fsdp",)): 3 * 4 * 8},
        ),
        (
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
            {("collective-permute", ("fsdp",)): 4 * 32},
        ),
    ],
)
def test_each_collective_brings_what_a_ring_brings(function, expected, devices):
    # Each device holds 32 numbers of 4 bytes.
    found = moved(function, "data=2,fsdp=4", (256,), P(("data", "fsdp")))
    assert found == expected


def test_what_stays_on_a_device_is_not_received():
    assert moved(lambda x: x + jax.lax.psum(x, "tensor"), "data=8", (8,), P("data")) == {}


def two_products(mesh, depth, dtype):
    """The gradient of a stack of two products a layer, its weights split over `fsdp`."""
    rows = NamedSharding(mesh, P(("data", "fsdp"), None, None))

    def layer(x, weights):
        up, down = (w.astype(dtype) for w in weights)
        x = jax.lax.with_sharding_constraint(x, rows)
        return x + jnp.einsum("btf,df->btd", jax.nn.relu(x @ up), down), None

    def loss(weights, x):
        y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.grad(loss)


def product_cost(mesh, depth, d_model, d_ff, rows, dtype):
    weights = jax.ShapeDtypeStruct(
        (depth, d_model, d_ff), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((*rows, d_model), dtype, sharding=sharding)
    gradient = jax.jit(two_products(mesh, depth, dtype), out_shardings=(weights.sharding,) * 2)
    return training.program_cost(gradient.lower((weights, weights), x).compile(), mesh)


def test_a_stack_of_products_moves_and_multiplies_what_the_closed_form_says(devices):
    mesh = training.make_mesh("data=2,fsdp=4")
    cost = product_cost(mesh, 3, 64, 256, (16, 32), jnp.float32)
    weights = 4 * 2 * 3 * 64 * 256
    assert cost.received(["fsdp"], "all-gather") == 2 * weights * 3 // 4
    # Two products forward, one of them again, four backward.
    assert cost.flops == 7 * 3 * 2 * 2 * 32 * 64 * 256


@pytest.mark.tpu
def test_the_tpu_compiler_moves_what_the_closed_form_says(pod):
    mesh = training.make_mesh("data=2,fsdp=8", pod)
    cost = product_cost(mesh, 12, 1024, 4096, (128, 512), jnp.bfloat16)
    weights = 2 * 2 * 12 * 1024 * 4096
    assert cost.received(["fsdp"]) == 3 * weights * 7 // 8
    assert cost.received(["data"]) == 2 * (weights // 8) * 1 // 2
    assert cost.flops == 7 * 12 * 2 * 8 * 512 * 1024 * 4096
    line = training.roofline(cost, mesh)
    # A ring through a block of 4 x 2, two links of 50 GB/s; on `data`, a link shared by two.
    assert line.exchange == pytest.approx(
        cost.received(["fsdp"]) / 1e11 + cost.received(["data"]) / 2.5e10
    )


@pytest.mark.parametrize(
    "topology", ["", "v5e", "v5e:0x4", "v5e:4x4x4x4", "h100:8", "v5e-16", "cpu:2x-1"]
)
def test_what_is_no_topology_is_refused(topology):
    with pytest.raises(ValueError, match="topology must be a TPU's such as 'v5e:16x16'"):
        training.topology_devices(topology)


def test_simulated_devices_are_those_that_are_there(devices):
    assert training.topology_devices("cpu:8") == devices
    with pytest.raises(ValueError, match="needs 16 simulated devices, got 8: set XLA_FLAGS"):
        training.topology_devices("cpu:16")


def test_every_exchange_that_a_function_writes_itself_counts(devices):
    mesh = training.make_mesh("data=2,fsdp=4")

    def sums(x):
        summed = jax.lax.psum(x, "fsdp")
        return jax.lax.psum(summed * summed, "fsdp")

    shared = jax.shard_map(sums, mesh=mesh, in_specs=P("fsdp"), out_specs=P())
    cost = compiled_cost(shared, mesh, ((64, 8), jnp.float32, P("fsdp")))
    one = 2 * 3 / 4 * (16 * 8 * 4)
    assert [moved.received for moved in cost.collectives] == [one, one]
