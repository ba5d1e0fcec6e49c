import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxkit import training

FEATURES = 8


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("embed", "mlp"))
        hidden = jnp.tanh(nn.Dense(16, kernel_init=init)(x))
        out = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("mlp", None))
        return nn.Dense(1, kernel_init=out)(hidden)


def loss_fn(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    return jnp.mean((Net().apply(params, batch["x"] + noise) - batch["y"]) ** 2)


def init(key):
    return Net().init(key, jnp.ones((1, FEATURES)))


def batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.normal(size=(8, FEATURES)).astype(np.float32)
        yield {"x": x, "y": x[:, :1] * x[:, 1:2]}


def run(mesh_text, count=20, **options):
    mesh = training.make_mesh(mesh_text)
    optimizer = optax.adamw(1e-2)
    key = jax.random.key(3)
    shardings = training.state_shardings(init, optimizer, key, mesh)
    state = training.init_state(init, optimizer, key, mesh)
    step = training.make_train_step(loss_fn, optimizer, shardings=shardings, **options)
    losses = []
    for batch in batches(count):
        state, metrics = step(state, training.place_batch(batch, mesh))
        losses.append(float(metrics.loss))
    return state, losses


def test_optimizer_moments_are_split_like_their_parameters():
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    state = training.init_state(init, optax.adamw(1e-2), jax.random.key(0), mesh)
    kernel = state.params["params"]["Dense_0"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert state.opt_state[0].mu["params"]["Dense_0"]["kernel"].sharding == kernel.sharding
    abstract = training.abstract_state(init, optax.adamw(1e-2), jax.random.key(0), mesh)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=2,tensor=2", "tensor=8"])
def test_the_mesh_changes_neither_the_start_nor_the_losses(mesh):
    state, losses = run("data=8")
    other, other_losses = run(mesh)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_microbatches_give_the_gradient_of_the_whole_batch():
    def quiet(params, batch, key):
        return jnp.mean((Net().apply(params, batch["x"]) - batch["y"]) ** 2)

    mesh = training.make_mesh("data=1,tensor=8")
    batch = training.place_batch(next(batches(1)), mesh)
    results = []
    for accumulation_steps in (1, 4):
        state = training.init_state(init, optax.sgd(0.1), jax.random.key(0), mesh)
        step = training.make_train_step(
            quiet, optax.sgd(0.1), accumulation_steps=accumulation_steps
        )
        results.append(step(state, batch))
    (one, first), (four, second) = results
    np.testing.assert_allclose(first, second, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("bad_input")
def test_accumulation_must_divide_the_batch():
    mesh = training.make_mesh("tensor=8")
    state = training.init_state(init, optax.sgd(0.1), jax.random.key(0), mesh)
    step = training.make_train_step(loss_fn, optax.sgd(0.1), accumulation_steps=3)
    with pytest.raises(ValueError, match="accumulation_steps must divide the batch of 8 rows"):
        step(state, next(batches(1)))
    with pytest.raises(ValueError, match="accumulation_steps must be an integer >= 1"):
        training.make_train_step(loss_fn, optax.sgd(0.1), accumulation_steps=0)


def test_the_step_is_traced_once_and_consumes_its_state(count_traces):
    counted = count_traces(loss_fn)
    mesh = training.make_mesh("data=8")
    optimizer = optax.adam(1e-2)
    key = jax.random.key(0)
    shardings = training.state_shardings(init, optimizer, key, mesh)
    state = first = training.init_state(init, optimizer, key, mesh)
    step = training.make_train_step(counted, optimizer, shardings=shardings)
    for batch in batches(5):
        state, _ = step(state, training.place_batch(batch, mesh))
    assert counted.count == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


OPTIMIZERS = {
    "masked": lambda: optax.masked(
        optax.adam(1e-2), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "partition": lambda: optax.partition(
        {True: optax.adam(1e-2), False: optax.sgd(1e-2, momentum=0.9)},
        lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
    "muon": lambda: optax.contrib.muon(1e-2),
    "sm3": lambda: optax.sm3(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "lbfgs": optax.lbfgs,
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
}


def boxed_init(key):
    """A layer of each metadata: of mesh axes, of logical axes, and none."""
    first, second = jax.random.split(key)
    return {
        "first": nn.Partitioned(jax.random.normal(first, (FEATURES, 4)), ("fsdp", "tensor")),
        "second": nn.LogicallyPartitioned(jax.random.normal(second, (4, 2)), ("embed", None)),
        "bias": jnp.zeros(2),
    }


def boxed_loss(params, batch, key):
    # Weights are gathered where they are used, as the modules of `jaxkit.models` do.
    first, second = (training.constrain(params[n], None, None) for n in ("first", "second"))
    hidden = training.constrain(jnp.tanh(batch["x"] @ first), "batch", None)
    out = hidden @ second + params["bias"]
    return jnp.mean((out - batch["y"]) ** 2)


@pytest.mark.filterwarnings("ignore:Specifying a key")
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("masked", "adafactor", "lbfgs", "reduce_on_plateau")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)  # fmt: skip
def test_any_optimizer_trains_on_any_mesh_as_on_one_device(name, count_traces):
    results = []
    for devices, text in ((1, ""), (8, "data=2,fsdp=2,tensor=2")):
        mesh = training.make_mesh(text, devices=jax.devices()[:devices])
        optimizer, key, loss = OPTIMIZERS[name](), jax.random.key(0), count_traces(boxed_loss)
        shardings = training.state_shardings(boxed_init, optimizer, key, mesh)
        state = training.init_state(boxed_init, optimizer, key, mesh)
        step = training.make_train_step(loss, optimizer, shardings=shardings)
        losses, counts = [], []
        for batch in batches(3):
            state, metrics = step(state, training.place_batch(batch, mesh))
            losses.append(float(metrics.loss))
            counts.append(loss.count)
        assert counts[0] == counts[-1]
        results.append((losses, state.params))
    (alone, params), (many, spread) = results
    np.testing.assert_allclose(many, alone, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), spread, params)


def test_what_is_shaped_like_a_parameter_is_split_like_it():
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    tree = training.state_shardings(boxed_init, optax.lbfgs(), jax.random.key(0), mesh)
    history = tree.opt_state[0]
    assert history.params["first"].spec == jax.P("fsdp", "tensor")
    assert history.diff_params_memory["first"].spec == jax.P(None, "fsdp", "tensor")
    assert history.count.is_fully_replicated
    factored = training.state_shardings(
        boxed_init, OPTIMIZERS["adafactor"](), jax.random.key(0), mesh
    )
    assert all(s.is_fully_replicated for s in jax.tree.leaves(factored.opt_state[0].v_row))


def test_modules_of_nnx_are_split_by_their_metadata():
    split = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))

    def make(key):
        with nnx.use_eager_sharding(False):
            return nnx.Linear(FEATURES, 4, kernel_init=split, rngs=nnx.Rngs(key))

    graph = nnx.graphdef(make(jax.random.key(0)))
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    optimizer, key = optax.adam(1e-2), jax.random.key(0)
    init = lambda key: nnx.state(make(key))  # noqa: E731

    def loss(params, batch, key):
        return jnp.mean((nnx.merge(graph, params)(batch["x"]) - batch["y"]) ** 2)

    shardings = training.state_shardings(init, optimizer, key, mesh)
    state = training.init_state(init, optimizer, key, mesh)
    for held in (state.params, state.opt_state[0].mu):
        assert nnx.to_pure_dict(held)["kernel"].sharding.spec == jax.P("fsdp", "tensor")
    step = training.make_train_step(loss, optimizer, shardings=shardings)
    losses = [0.0, 0.0]
    batch = training.place_batch(next(batches(1)), mesh)
    for number in range(2):
        state, metrics = step(state, batch)
        losses[number] = float(metrics.loss)
    assert losses[1] < losses[0]


def test_microbatches_of_narrow_parameters_are_summed_in_float32():
    def loss(params, batch, key):
        return jnp.sum(params * jnp.mean(batch).astype(params.dtype))

    optimizer, rows = optax.sgd(1.0), 1024
    mesh = training.make_mesh(devices=jax.devices()[:1])
    state = training.init_state(
        lambda key: jnp.zeros((), jnp.bfloat16), optimizer, jax.random.key(0), mesh
    )
    step = training.make_train_step(loss, optimizer, accumulation_steps=rows)
    state, metrics = step(state, jnp.ones(rows))
    assert (float(state.params), float(metrics.gradient_norm)) == (-1.0, 1.0)
    assert state.params.dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_mesh_with_explicit_axes_trains_alike():
    optimizer, key = optax.adam(1e-2), jax.random.key(0)
    results = []
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((2, 2, 2), training.AXES, axis_types=(kind,) * 3)
        shardings = training.state_shardings(boxed_init, optimizer, key, mesh)
        state = training.init_state(boxed_init, optimizer, key, mesh)
        step = training.make_train_step(boxed_loss, optimizer, shardings=shardings)
        for batch in batches(3):
            state, metrics = step(state, training.place_batch(batch, mesh))
        results.append((float(metrics.loss), state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *results)


def test_an_optimizer_is_told_no_loss_beside_a_gradient_of_ones_own():
    mesh = training.make_mesh()
    state = training.init_state(
        lambda key: {"w": jnp.ones(())}, optax.polyak_sgd(), jax.random.key(0), mesh
    )

    def loss(params, batch, key):
        return jnp.mean((params["w"] - batch) ** 2)

    step = training.make_train_step(loss, optax.polyak_sgd(), gradient_fn=jax.value_and_grad(loss))
    with pytest.raises(TypeError, match="value"):
        step(state, jnp.zeros(4))
