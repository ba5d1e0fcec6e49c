"""The optimizer: exact against optax and torch, and usable wherever an optax optimizer is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from jaxkit import width
from jaxkit.width import paths


def random_like(tree, seed):
    """Normal numbers in the shapes and dtypes of `tree` (from NumPy: nothing to compile)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def shapes(d, dtype=jnp.float32):
    """A small network: embedding of 24 words, a stack of three layers."""
    lengths = {"embed": (24, d), "layers": {"up": (3, d, 2 * d), "scale": (3, d)}}
    return jax.tree.map(
        lambda length: jax.ShapeDtypeStruct(length, dtype),
        lengths,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def model(d, dtype=jnp.float32):
    return random_like(shapes(d, dtype), seed=d)


def scaling(base=8, target=16, **options):
    return width.width_scaling(shapes(base), shapes(target), delta=shapes(4 * target), **options)


def gradients(params, seed=0):
    return random_like(params, seed + 1000)


def train(tx, params, num_steps=5):
    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(num_steps):
        params, state = step(params, state, gradients(params, seed))
    return params, state


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def matrices(scaling):
    return jax.tree.map(lambda role: role == "matrix", scaling.role)


def reference_adamw(params, gradients, rates, decays, factors, b1, b2, eps):
    """AdamW of one tensor in float64, from the equations; yields the weight after each step."""
    w, m, v = np.asarray(params, np.float64), 0.0, 0.0
    for t, (g, s) in enumerate(zip(gradients, factors, strict=True), start=1):
        g = np.asarray(g, np.float64)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - s * rates * (u + decays * w)
        yield w


@pytest.mark.parametrize("index", range(4))
def test_golden_trajectory_of_torch(golden, index):
    data = golden("width_scaling")["adamw_trajectories"]
    case = data["cases"][index]
    shapes = [
        {name: jax.ShapeDtypeStruct(tuple(s), "float32") for name, s in data[kind].items()}
        for kind in ("base_shapes", "target_shapes")
    ]
    scaling = width.width_scaling(*shapes, rule=case["rule"])
    assert scaling.role == case["roles"]
    for name, initial in data["params_initial"].items():
        steps = list(
            reference_adamw(
                initial,
                [g[name] for g in data["gradients"]],
                case["learning_rate"] * scaling.learning_rate[name],
                case["weight_decay"] * scaling.weight_decay[name],
                case["schedule_factors"],
                case["b1"],
                case["b2"],
                case["eps"],
            )
        )
        for step, key in ((0, "params_after_step_1"), (-1, "params_after_last")):
            np.testing.assert_allclose(steps[step], case[key][name], rtol=1e-12, atol=1e-12)

    factors = jnp.asarray(case["schedule_factors"])
    tx = width.adamw_width_scaled(
        lambda count: case["learning_rate"] * factors[count],
        case["weight_decay"],
        scaling,
        case["b1"],
        case["b2"],
        case["eps"],
    )
    params = {name: jnp.asarray(w, jnp.float32) for name, w in data["params_initial"].items()}
    state = tx.init(params)
    for step, gradient in enumerate(data["gradients"]):
        gradient = {name: jnp.asarray(g, jnp.float32) for name, g in gradient.items()}
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        if step == 0:
            check_close(params, case["params_after_step_1"])
    check_close(params, case["params_after_last"])


def check_close(params, expected):
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("learning_rate", [0.01, optax.cosine_decay_schedule(0.01, 5)])
def test_at_the_base_width_it_is_optax_adamw_bit_for_bit(learning_rate):
    at_base = scaling(8, 8)
    mask = matrices(at_base)
    ours = width.adamw_width_scaled(learning_rate, 0.1, at_base)
    theirs = optax.adamw(learning_rate, b2=0.95, weight_decay=0.1, mask=mask)
    assert_same_bits(train(ours, model(8))[0], train(theirs, model(8))[0])


@pytest.mark.parametrize("rule", ["robust", "mup_fixed", "mup_independent", "standard"])
def test_each_parameter_trains_as_under_its_own_optax_adamw(rule):
    at_target = scaling(8, 16, rule=rule)
    found, _ = train(width.adamw_width_scaled(0.01, 0.1, at_target), model(16))
    rates = paths.named_leaves(at_target.learning_rate)
    decays = paths.named_leaves(at_target.weight_decay)
    for path in ("embed", "layers/up", "layers/scale"):
        value = paths.named_leaves(found)[path]
        own = optax.adamw(0.01 * rates[path], b2=0.95, weight_decay=0.1 * decays[path])
        expected = paths.named_leaves(train(own, model(16))[0])[path]
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("schedule", [False, True])
def test_state_has_the_tree_and_the_bytes_of_optax_adamw(schedule):
    rate = optax.linear_schedule(0.1, 0.0, 10) if schedule else 0.1
    for rule in width.RULES:
        ours = width.adamw_width_scaled(rate, 0.1, scaling(rule=rule)).init(model(16))
        theirs = optax.adamw(rate, weight_decay=0.1).init(model(16))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(ours)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(theirs)
        ]


def test_without_gradient_matrices_shrink_by_the_scheduled_decay_and_vectors_stay():
    schedule = optax.linear_schedule(0.1, 0.02, 6)
    at_target = scaling(8, 32)
    tx = width.adamw_width_scaled(schedule, 0.3, at_target)
    start = params = model(32)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(6):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    shrink = np.prod([1 - float(schedule(t)) * 0.3 * 4**-0.5 for t in range(6)])
    np.testing.assert_allclose(params["layers"]["up"], shrink * start["layers"]["up"], rtol=2e-6)
    assert_same_bits(params["embed"], start["embed"])
    assert_same_bits(params["layers"]["scale"], start["layers"]["scale"])


def test_sweeping_learning_rate_and_decay_traces_once(count_traces):
    at_target, params = scaling(), model(16)
    gradient = gradients(params)

    def one_step(learning_rate, weight_decay):
        tx = width.adamw_width_scaled(learning_rate, weight_decay, at_target)
        updates, _ = tx.update(gradient, tx.init(params), params)
        return updates

    counted = count_traces(one_step)
    step, swept = jax.jit(counted), {}
    for rate, decay in ((0.1, 0.1), (0.2, 0.0), (0.0, 0.3)):
        swept[rate, decay] = step(rate, decay)
    assert counted.count == 1
    grid = jax.jit(jax.vmap(one_step))(jnp.array([0.1, 0.2]), jnp.array([0.1, 0.0]))
    assert_close(jax.tree.map(lambda x: x[1], grid), swept[0.2, 0.0])
    assert_close(one_step(0.1, 0.1), swept[0.1, 0.1])


def assert_close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), a, b)


def test_injected_hyperparameters_change_without_a_retrace(count_traces):
    at_target, params = scaling(), model(16)
    tx = optax.inject_hyperparams(width.adamw_width_scaled)(0.1, 0.2, at_target)
    state = tx.init(params)
    assert {"learning_rate", "weight_decay"} <= set(state.hyperparams)
    assert "scaling" not in state.hyperparams
    counted = count_traces(tx.update)
    update = jax.jit(counted)
    for rate, decay in ((0.1, 0.2), (0.3, 0.0)):
        state.hyperparams.update(learning_rate=jnp.float32(rate), weight_decay=jnp.float32(decay))
        updates, _ = update(gradients(params), state, params)
        plain = width.adamw_width_scaled(rate, decay, at_target)
        assert_close(updates, plain.update(gradients(params), plain.init(params), params)[0])
    assert counted.count == 1


def test_weight_decay_may_be_a_schedule():
    def schedule(count):
        return 0.1 * (count + 1)

    at_base = scaling(8, 8)
    mask = matrices(at_base)
    found, state = train(width.adamw_width_scaled(0.1, schedule, at_base), model(8))
    theirs = optax.adamw(0.1, b2=0.95, weight_decay=schedule, mask=mask)
    assert_same_bits(found, train(theirs, model(8))[0])
    plain = optax.adamw(0.1, weight_decay=schedule).init(model(8))
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    assert int(state[1].count) == 5


def test_scan_with_donated_buffers_equals_the_loop():
    at_target = scaling()
    tx = width.adamw_width_scaled(optax.linear_schedule(0.1, 0.0, 5), 0.1, at_target)
    expected, _ = train(tx, model(16))
    gradient_by_step = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(gradients(model(16), seed) for seed in range(5))
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), gradient_by_step)[0]

    params = model(16)
    assert_close(run(params, tx.init(params))[0], expected)


@pytest.mark.parametrize("inject", [False, True])
def test_bfloat16_parameters_and_updates_keep_their_dtype(inject):
    make = (
        optax.inject_hyperparams(width.adamw_width_scaled) if inject else (width.adamw_width_scaled)
    )
    params = model(16, jnp.bfloat16)
    tx = make(0.1, 0.1, scaling())
    decay = width.add_width_scaled_decayed_weights(jnp.float32(0.1), scaling().weight_decay)
    updates, _ = decay.update(gradients(params), decay.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    params, _ = train(tx, params, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_sharded_update_equals_the_one_on_one_device_without_collectives(devices):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), devices=devices)
    tx = width.adamw_width_scaled(0.01, 0.1, scaling())
    params = model(16)
    expected, _ = tx.update(gradients(params), tx.init(params), params)

    def place(leaf):
        axes = ("data", "tensor") if leaf.ndim >= 2 and leaf.shape[-2] % 4 == 0 else (None, None)
        spec = jax.sharding.PartitionSpec(*(None,) * (leaf.ndim - 2), *axes[-leaf.ndim :])
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    sharded, gradient = jax.tree.map(place, params), jax.tree.map(place, gradients(params))
    compiled = jax.jit(tx.update).lower(gradient, tx.init(sharded), sharded).compile()
    assert "all-" not in compiled.as_text()
    assert_close(compiled(gradient, tx.init(sharded), sharded)[0], expected)


def test_checkpoint_of_plain_adamw_continues_at_any_width_rule(tmp_path):
    params = model(16)
    _, state = train(optax.adamw(0.01, weight_decay=0.1), params, 2)
    ocp.save(tmp_path / "state", state)
    tx = width.adamw_width_scaled(0.01, 0.1, scaling())
    restored = ocp.load(tmp_path / "state", tx.init(params))
    assert_same_bits(restored, state)
    tx.update(gradients(params), restored, params)


def test_frozen_parameters_pass_through():
    at_target, params = scaling(), model(16)
    tx = optax.masked(
        width.adamw_width_scaled(0.1, 0.1, at_target),
        {
            "embed": False,
            "layers": True,
        },
    )
    gradient = gradients(params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert_same_bits(updates["embed"], gradient["embed"])
    assert not np.array_equal(updates["layers"]["up"], gradient["layers"]["up"])
    with_none = {**params, "embed": None}
    tx = width.adamw_width_scaled(0.1, 0.1, at_target)
    updates, _ = tx.update({**gradient, "embed": None}, tx.init(with_none), with_none)
    assert updates["embed"] is None


def test_nnx_optimizer_takes_it():
    def make(d):
        return nnx.Linear(d, d, rngs=nnx.Rngs(0))

    base, target = (nnx.state(nnx.eval_shape(lambda d=d: make(d)), nnx.Param) for d in (4, 8))
    net = make(8)
    before = net.kernel[...]
    optimizer = nnx.Optimizer(
        net,
        width.adamw_width_scaled(0.1, 0.0, width.width_scaling(base, target)),
        wrt=nnx.Param,
    )
    gradient = nnx.grad(lambda net: jnp.sum(net(jnp.ones((1, 8)))))(net)
    optimizer.update(net, gradient)
    np.testing.assert_allclose(net.kernel[...] - before, -0.05, rtol=1e-4)


def test_inside_partition_it_scales_its_own_group():
    at_target, params = scaling(), model(16)
    tx = optax.partition(
        {"wide": width.adamw_width_scaled(0.1, 0.1, at_target), "rest": optax.sgd(1.0)},
        {"embed": "rest", "layers": "wide"},
    )
    updates, _ = tx.update(gradients(params), tx.init(params), params)
    whole = width.adamw_width_scaled(0.1, 0.1, at_target)
    expected, _ = whole.update(gradients(params), whole.init(params), params)
    assert_close(updates["layers"], expected["layers"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be finite and in"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and in"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"b1": 1.0}, "b1"),
        ({"b2": -0.1}, "b2"),
        ({"eps": -1e-8}, "eps"),
        ({"learning_rate": 1.0, "weight_decay": 1.5}, "flip the sign"),
    ],
)
def test_bad_hyperparameters_are_refused_by_name(options, message, bad_input):
    arguments = {"learning_rate": 0.1, "weight_decay": 0.1, "scaling": scaling(), **options}
    with pytest.raises(ValueError, match=message):
        width.adamw_width_scaled(**arguments)


def test_update_without_params_raises_optax_message():
    tx = width.adamw_width_scaled(0.1, 0.1, scaling())
    params = model(16)
    with pytest.raises(ValueError, match="not passing `params`"):
        tx.update(gradients(params), tx.init(params))


def test_parameters_the_scaling_does_not_know_are_named():
    tx = width.adamw_width_scaled(0.1, 0.1, scaling())
    params = {"params": model(16)}
    with pytest.raises(ValueError, match=r"params/embed.*did you mean 'embed'"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_multipliers_must_be_positive(factor, bad_input):
    with pytest.raises(ValueError, match=r"multipliers\['w'\]"):
        width.scale_by_width({"w": factor})


def test_a_factor_in_place_of_a_scaling_is_refused():
    with pytest.raises(TypeError, match="scaling must be what width_scaling returns, got int"):
        width.adamw_width_scaled(1e-3, 0.1, 4)
