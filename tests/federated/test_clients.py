"""Clients of any data and any size: pools, lists, weights by size, state that is not parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import federated as fl
from jaxkit.federated import checks, local_training


def one_round(method, training, params, data, **options):
    clients = data.num_clients
    state = fl.init_state(method, params, clients, jax.random.key(0))
    sampler = fl.uniform_sampler(clients, clients)
    return jax.jit(lambda s, d: fl.federated_round(method, training, s, d, sampler, **options))(
        state, data
    )


def product(params, batch, key):
    return jnp.mean(batch["x"] * params["w"])


def test_weights_by_size_reproduce_fedjaxs_published_fedprox():
    """fedjax's test of FedProx: clients 2, 4, 6 (taken as 4, 6 | 2) and 8, 10; -3.975 if equal."""
    data = fl.stack_clients([{"x": np.array([4.0, 6, 2], "f4")}, {"x": np.array([8.0, 10], "f4")}])
    training = fl.LocalTraining(product, batch_size=2, num_epochs=1, shuffle=False)
    found = {}
    for weighting in ("equal", "examples"):
        method = fl.fedprox(fl.local_sgd(1.0), prox_coef=0.01, weighting=weighting)
        state, metrics = one_round(method, training, {"w": jnp.array(4.0)}, data, keep_local=True)
        found[weighting] = float(state.params["w"])
    np.testing.assert_allclose(4 - metrics.local.params["w"], [6.95, 9.0], rtol=1e-6)
    assert found == pytest.approx({"equal": -3.975, "examples": -3.77})


def test_fednova_divides_by_a_clients_own_steps_and_is_fedavg_for_equal_ones():
    """Gradients of a linear loss are constant: K_i steps of client i move it by K_i eta x_i."""
    sizes, slopes = (6, 2), (1.0, 5.0)
    ragged = fl.stack_clients(
        [{"x": np.full(n, x, "f4")} for n, x in zip(sizes, slopes, strict=True)]
    )
    training = fl.LocalTraining(product, batch_size=2, num_epochs=1)
    moved = {}
    for method in (fl.fednova(fl.local_sgd(0.1)), fl.fedavg(fl.local_sgd(0.1))):
        state, _ = one_round(method, training, {"w": jnp.array(0.0)}, ragged)
        moved[method.name] = float(state.params["w"])
    assert moved["FedNova"] == pytest.approx(-0.1 * np.mean([3, 1]) * np.mean(slopes))
    assert moved["FedAvg"] == pytest.approx(-0.1 * np.mean([3 * 1.0, 1 * 5.0]))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_adaptive_servers_follow_their_equations(name):
    data = fl.stack_clients({"x": np.array([[2.0], [4.0]], "f4")})
    training = fl.LocalTraining(product, batch_size=1, num_epochs=1)
    method = fl.ALGORITHMS[name](fl.local_sgd(0.1))
    state = fl.init_state(method, {"w": jnp.array(1.0)}, 2, jax.random.key(0))
    x, m, v = 1.0, 0.0, 0.0
    for _ in range(3):
        state, _ = fl.federated_round(method, training, state, data, fl.uniform_sampler(2, 2))
        moved = -0.3
        m = 0.9 * m + (1.0 if name == "fedavgm" else 0.1) * moved
        sign = -np.sign(v - moved**2) if name == "fedyogi" else 1.0
        v = (1.0 if name == "fedyogi" else 0.99) * v + 0.01 * moved**2 * sign
        x += m if name == "fedavgm" else 0.1 * m / (np.sqrt(v) + 0.01)
        assert float(state.params["w"]) == pytest.approx(x, rel=1e-5)


def test_a_pool_with_indices_is_the_arrays_by_client_to_the_bit(problem, quick_jit):
    pool = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), problem.examples)
    data = fl.client_data(pool, list(np.arange(80).reshape(10, 8)))
    assert data.examples["x"].shape == (80, 4)
    ours, _ = one_round(fl.fedspeed(), problem.training, problem.params, data)
    theirs, _ = one_round(fl.fedspeed(), problem.training, problem.params, problem.data)
    np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])


def test_a_skewed_partition_of_bytes_costs_indices_and_no_pictures():
    labels = np.arange(2000) % 10
    pictures = np.zeros((2000, 32, 32, 3), np.uint8)
    data = fl.client_data({"x": pictures}, fl.class_dirichlet_partition(labels, 100, 0.3))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
    assert pictures.nbytes < held < 1.05 * pictures.nbytes


def test_lists_of_clients_that_differ_are_refused_by_the_client():
    first = {"x": np.ones((2, 3))}
    for other, message in (
        ({"x": np.ones((2, 4))}, "client 1 must be like those of client 0"),
        ({"x": np.ones(3), "y": np.ones(2)}, "client 1 must be arrays that share one leading axis"),
        ({"x": np.float32(1)}, "client 1 must be arrays that share one leading axis"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.stack_clients([first, other])
    with pytest.raises(ValueError, match="num_examples must be None"):
        fl.stack_clients([first, first], [1, 2])


HEAD = b"client,label,p\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", HEAD + b"a,1,nan\n", "client 'a': x must be finite"),
        ("a.jsonl", b'{"client": "a", "label": 1, "x": [Infinity]}', "x must be finite"),
        ("a.csv", HEAD + b"a,,1\n", "a.csv:2: label must be a name or integer, got ''"),
        ("a.csv", HEAD + b",1,1\n", "a.csv:2: client must be a name or integer, got ''"),
        ("a.jsonl", b'{"client": 1, "label": 1.5, "x": [1]}', "jsonl:1: label must be .* got 1.5"),
        ("a.jsonl", b'{"client": 1, "label": null, "x": [1]}', "label must be .* got None"),
        ("a.csv", HEAD + b"a,99999999999,1\n", "y must fit 32 bits, got 99999999999"),
        ("a.csv", b"client,label\na,1\n", "at least one, got .1, 0."),
        ("a.csv", b"client,label,p,p\na,1,1,2\n", "a.csv:1: a column is there twice"),
        ("a.csv", HEAD + b"a,\xe9,1\n", "a.csv: not UTF-8 text"),
        ("a.csv", HEAD[:-1] + b',"', "has no rows"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: .* nested too deeply"),
        ("a.jsonl", b'{"client": 1, "client": 2}', "'client' is given twice"),
        (
            "a.jsonl",
            b'{"client": "a", "label": 1, "x": [1]}\n{"client": "b", "label": 1, "file": "u.png"}',
            "x of user 'b' must be like the others'",
        ),
    ],
)
def test_a_table_of_clients_that_is_none_is_refused_by_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        fl.read_clients(tmp_path / name)


def test_leaf_files_may_name_pictures_and_not_text(tmp_path):
    def write(**user):
        content = {"users": ["u"], "num_samples": [2], "user_data": {"u": user}}
        (tmp_path / "a.json").write_text(json.dumps(content))
        return fl.read_clients(tmp_path)

    assert write(x=["1.jpg", "2.jpg"], y=[0, 1]).examples["x"].tolist() == ["1.jpg", "2.jpg"]
    with pytest.raises(ValueError, match="x must be numbers of one shape or names of files"):
        write(x=["to be", "or not"], y=[0, 1])
    with pytest.raises(ValueError, match="user 'u': y must be integers, got 'a'"):
        write(x=["1.jpg", "2.jpg"], y=["a", "b"])


def test_augmentation_is_drawn_anew_by_round_client_and_step_and_seen_by_both_gradients():
    def augment(batch, key):
        return {"x": batch["x"] + jax.random.normal(key)}

    training = fl.LocalTraining(product, batch_size=1, num_epochs=2, augment=augment)
    data = fl.stack_clients({"x": np.zeros((3, 2), "f4")})
    method = fl.fedavg(fl.local_sgd(1.0))
    state = fl.init_state(method, {"w": jnp.zeros(())}, 3, jax.random.key(0))
    seen = []
    for _ in range(2):
        state, metrics = fl.federated_round(
            method, training, state, data, fl.uniform_sampler(3, 3), keep_local=True
        )
        seen += metrics.local.message["delta"]["w"].tolist()
    assert len(set(seen)) == 6


def normalized(params, batch, key):
    """A loss with BatchNorm: an example's part depends on the others."""
    x = (batch["x"] - batch["x"].mean(0)) / jnp.sqrt(batch["x"].var(0) + 1e-5)
    return jnp.mean((x @ params["w"] - batch["y"]) ** 2)


def with_statistics(params, stats, batch, key):
    mean = 0.9 * stats["mean"] + 0.1 * batch["x"].mean(0)
    return normalized(params, batch, key), {"mean": mean}


def clients_of(*sizes):
    rng = np.random.default_rng(0)
    return fl.stack_clients(
        [
            {"x": rng.normal(i, size=(n, 3)).astype("f4"), "y": rng.normal(size=n).astype("f4")}
            for i, n in enumerate(sizes)
        ]
    )


def test_a_loss_that_couples_examples_is_refused_where_batches_are_not_full(problem):
    params, ragged = {"w": jnp.ones(3)}, clients_of(20, 20, 19)

    def start(training, method=None):
        return fl.simulate(
            method or fl.fedavg(), training, params, ragged, fl.uniform_sampler(3, 3),
            num_rounds=1, key=jax.random.key(0),
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"couples the examples .* 20 for clients of 19 to 20"):
        start(fl.LocalTraining(normalized, batch_size=20))
    stateful = fl.with_model_state(fl.fedavg(), {"mean": jnp.zeros(3)}, "shared")
    with pytest.raises(ValueError, match="a model with state needs full mini-batches"):
        start(fl.LocalTraining(with_statistics, batch_size=20), stateful)
    with pytest.raises(ValueError, match="couples the examples"):
        one_round(fl.fedavg(), fl.LocalTraining(normalized, batch_size=20), params, ragged)
    start(fl.LocalTraining(normalized, batch_size=5, drop_remainder=True))


def test_a_loss_that_is_no_mean_is_refused_where_batches_are_not_full():
    def drawn(batch, key):
        return jnp.mean(batch["x"] ** 2, 1) * jax.random.bernoulli(key, 0.9, batch["y"].shape)

    def train(loss, data, batch_size):
        training = fl.LocalTraining(loss, batch_size=batch_size)
        checks.check_run(method, training, state, data, fl.uniform_sampler(2, 2), fl.vmap_clients())

    method = fl.fedavg()
    state = fl.init_state(method, {"w": jnp.ones(3)}, 2, jax.random.key(0))

    def halves(params, batch, key):
        return jnp.sum((batch["x"] @ params["w"] - batch["y"]) ** 2) / 2

    ragged, full = clients_of(4, 3), clients_of(4, 2)
    train(lambda p, b, key: jnp.mean(drawn(b, key)) * p["w"][0], ragged, 2)
    for sum_of in (halves, lambda p, b, key: jnp.sum(drawn(b, key)) * p["w"][0]):
        with pytest.raises(ValueError, match="loss_fn must be the mean over the examples"):
            train(sum_of, ragged, 2)
    train(halves, full, 2)


def test_two_model_states_are_refused(bad_input):
    once = fl.with_model_state(fl.fedavg(), {"mean": jnp.zeros(3)}, "local")
    with pytest.raises(ValueError, match="join the two in one pytree"):
        fl.with_model_state(once, {"var": jnp.zeros(3)}, "shared")


@pytest.mark.parametrize("policy", ["shared", "local"])
def test_statistics_are_averaged_or_stay_with_their_client(policy):
    data = clients_of(8, 8)
    method = fl.with_model_state(fl.fedavg(), {"mean": jnp.zeros(3)}, policy)
    training = fl.LocalTraining(with_statistics, batch_size=8, num_epochs=1)
    state, _ = one_round(method, training, {"w": jnp.ones(3)}, data)
    expected = 0.1 * np.asarray(data.examples["x"]).reshape(2, 8, 3).mean(1)
    if policy == "shared":
        assert state.clients["memory"] == {}
        np.testing.assert_allclose(state.shared["model_state"]["mean"], expected.mean(0), rtol=1e-5)
    else:
        assert state.shared == {}
        np.testing.assert_allclose(
            state.clients["memory"]["model_state"]["mean"], expected, rtol=1e-5
        )


def test_messages_name_what_is_wrong_with_a_module_or_a_traced_cohort(bad_input):
    with pytest.raises(TypeError, match=r"params must be arrays, got .* at params\['act'\]"):
        fl.init_state(fl.fedavg(), {"w": jnp.ones(2), "act": jax.nn.relu}, 2, jax.random.key(0))
    made = jax.jit(lambda key: fl.cohorts.fixed_sampler([[1, 0]], 2).sample(key, 0).clients)
    assert made(jax.random.key(0)).tolist() == [1, 0]
    with pytest.raises(TypeError, match="clients must be numbers that are known"):
        jax.jit(lambda c: fl.cohorts.fixed_sampler([[c]], 2).sample(None, 0).clients)(1)


def test_plain_sgd_neither_decays_nor_clips():
    step = fl.local_sgd(1.0)
    huge = {"w": jnp.array([3e3])}
    updates, _ = step.descent.update(step.clip(huge), (), {"w": jnp.array([7.0])}, round=9)
    assert float(updates["w"][0]) == -3e3


def test_a_batch_that_is_not_full_draws_a_key_for_each_example():
    def noisy(params, batch, key):
        return jnp.mean(params * jax.random.normal(key, batch.shape))

    gradient = local_training.weighted_gradient(noisy)
    each = [
        gradient(1.0, jnp.zeros(2), jnp.array(weights), jax.random.key(0))[1]
        for weights in ([1.0, 0.0], [0.0, 1.0])
    ]
    assert each[0] != each[1]
