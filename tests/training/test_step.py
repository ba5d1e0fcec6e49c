import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
