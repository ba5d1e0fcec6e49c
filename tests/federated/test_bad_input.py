"""What is refused, where it enters, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl
from jaxkit.federated import checks

pytestmark = pytest.mark.usefixtures("bad_input")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fl.simulator_sgd(0.0), ValueError, r"learning_rate must be finite and in \(0"),
        (lambda: fl.simulator_sgd(learning_rate_decay=1.1), ValueError, "learning_rate_decay"),
        (lambda: fl.simulator_sgd(learning_rate_decay=0.0), ValueError, "learning_rate_decay"),
        (lambda: fl.simulator_sgd(weight_decay=-1), ValueError, "weight_decay"),
        (lambda: fl.simulator_sgd(clip_norm=0), ValueError, "clip_norm"),
        (lambda: fl.local_optimizer(0.1), TypeError, "optimizer must be an optax"),
        (lambda: fl.fedavg(0.1), TypeError, "client must be made by local_sgd"),
        (lambda: fl.fedspeed(optax.sgd(0.1)), TypeError, "client must be made by local_sgd"),
        (lambda: fl.fedadmm(None, 0.5), TypeError, "server_optimizer must be an optax"),
        (lambda: fl.LocalTraining(3), TypeError, "loss_fn must be a function"),
        (lambda: fl.LocalTraining(abs, batch_size=0), ValueError, "batch_size"),
        (lambda: fl.LocalTraining(abs, num_epochs=0), ValueError, "num_epochs"),
        (lambda: fl.LocalTraining(abs, num_epochs=1.5), TypeError, "num_epochs"),
        (lambda: fl.vmap_clients(0), ValueError, "chunk_size"),
        (lambda: fl.client_data({"x": np.ones(3)}, [[0], []]), ValueError, "none for client 1"),
        (lambda: fl.client_data({"x": np.ones(3)}, []), ValueError, "at least one client"),
        (lambda: fl.client_data({"x": np.ones(3)}, [[3]]), ValueError, r"in \[0, 3\), got 3..3"),
        (lambda: fl.client_data({"x": np.ones(3)}, [[0.5]]), TypeError, "must be integers"),
        (
            lambda: fl.client_data({"x": np.ones(3), "y": np.ones(4)}, [[0]]),
            ValueError,
            "share one leading axis",
        ),
        (
            lambda: fl.stack_clients({"x": np.ones((2, 3)), "y": np.ones((2, 4))}),
            ValueError,
            r"share their leading axes \[clients, examples\]",
        ),
        (
            lambda: fl.stack_clients(np.ones((2, 3)), [0, 3]),
            ValueError,
            "num_examples must be an integer >= 1, got 0",
        ),
        (lambda: fl.stack_clients(np.ones((2, 3)), [1, 4]), ValueError, "not exceed 3, got 4"),
        (
            lambda: fl.stack_clients((np.ones((2, 3)), np.ones((3, 3)))),
            ValueError,
            "different lengths go into a list",
        ),
        (
            lambda: fl.stack_clients([{"x": [[1.0, 2.0], [3.0, 4.0]]}]),
            ValueError,
            "client 0 must be arrays that share one leading axis",
        ),
        (lambda: fl.client_data(np.array(["a"]), [[0]]), TypeError, "must be numbers, got <U1"),
        (
            lambda: fl.init_state(fl.fedavg(), {"w": jnp.ones(2, int)}, 3, jax.random.key(0)),
            TypeError,
            r"floating point, got int32 at params\['w'\]",
        ),
        (lambda: fl.init_state(fl.fedavg(), {}, 3, jax.random.key(0)), ValueError, "at least one"),
        (
            lambda: fl.init_state(fl.fedavg(), jnp.ones(2), 3, 0),
            TypeError,
            "made by jax.random.key",
        ),
        (
            lambda: fl.init_state(fl.fedavg, jnp.ones(2), 3, jax.random.key(0)),
            TypeError,
            r"method must be a federated algorithm, fedavg\(\) say",
        ),
        (
            lambda: fl.init_state(fl.fedavg(), jnp.ones(2), 0, jax.random.key(0)),
            ValueError,
            "num_clients",
        ),
        (
            lambda: fl.shard_clients(jax.make_mesh((8,), ("data",))),
            ValueError,
            "mesh must have an axis 'clients'",
        ),
        (
            lambda: fl.shard_clients(
                jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Explicit,))
            ),
            ValueError,
            "of type Auto",
        ),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_overshooting_proximal_step_warns():
    with pytest.warns(UserWarning, match=r"learning_rate \* prox_coef should not exceed 1, got 2"):
        fl.fedspeed(fl.simulator_sgd(0.2), prox_coef=10.0)


def check(problem, **changes):
    method = changes.get("method", fl.fedspeed())
    state = changes.get("state")
    if state is None:
        state = fl.init_state(method, problem.params, 10, jax.random.key(0))
    checks.check_run(
        method,
        changes.get("training", problem.training),
        state,
        changes.get("data", problem.data),
        changes.get("sampler", fl.uniform_sampler(10, 5)),
        changes.get("client_map", fl.vmap_clients()),
    )


def test_parts_that_fit_are_accepted(problem):
    check(problem)
    check(problem, method=fl.fedpd(), sampler=fl.uniform_sampler(10, 10))


def test_parts_that_do_not_fit_are_refused(problem):
    few = fl.stack_clients({k: v[:4] for k, v in problem.examples.items()})
    ragged = fl.stack_clients(problem.examples, np.full(10, 3))
    whole = {"drop_remainder": True, "batch_size": 4}
    refusals = [
        (
            {"sampler": fl.uniform_sampler(9, 3)},
            ValueError,
            "sampler must draw from the 10 clients",
        ),
        ({"data": few}, ValueError, "data must hold the 10 clients of the sampler, got 4"),
        (
            {"data": ragged, "training": fl.LocalTraining(problem.loss, **whole)},
            ValueError,
            "smallest client when the remainder is dropped .* at most 3, got 4",
        ),
        ({"method": fl.fedpd()}, ValueError, "FedPD needs every client .* must be 10, got 5"),
        (
            {"sampler": fl.bernoulli_sampler(10, 0.1, allow_empty=True)},
            ValueError,
            "must not allow empty cohorts",
        ),
        (
            {"client_map": fl.shard_clients()},
            ValueError,
            r"must have a multiple of 8 rows for its mesh, got \[10\]: pass the mesh",
        ),
        (
            {"training": fl.LocalTraining(lambda w, b, k: w["b"])},
            TypeError,
            "loss_fn must return a scalar",
        ),
        (
            {"training": fl.LocalTraining(lambda w, b, k: (b["y"] > 0).sum())},
            TypeError,
            "loss_fn must return a scalar of floating point, got .*int32",
        ),
        (
            {"training": fl.LocalTraining(lambda w, b: 0.0)},
            TypeError,
            r"loss_fn must take \(params, batch, key\)",
        ),
        ({"data": problem.examples}, TypeError, "data must be made by client_data"),
        ({"sampler": 4}, TypeError, "sampler must be made by uniform_sampler"),
        (
            {"client_map": fl.vmap_clients},
            TypeError,
            r"client_map must be made by vmap_clients\(\)",
        ),
    ]
    for changes, error, message in refusals:
        with pytest.raises(error, match=message):
            check(problem, **changes)


def test_the_state_of_another_model_or_method_is_refused(problem):
    state = fl.init_state(fl.fedspeed(), problem.params, 10, jax.random.key(0))
    wider = {**problem.params, "b": jnp.zeros(4)}
    with pytest.raises(
        ValueError, match=r"state.shared\['dual_mean'\]\['b'\] must be float32\[4\]"
    ):
        check(problem, state=state._replace(params=wider))
    with pytest.raises(ValueError, match=r"state.shared must have the structure .* for SCAFFOLD"):
        check(problem, state=state, method=fl.scaffold())
    halved = jax.tree.map(lambda x: x.astype(jnp.float16), state.clients)
    with pytest.raises(ValueError, match=r"must be float32\[3\] for FedSpeed .* got float16\[3\]"):
        check(problem, state=state._replace(clients=halved))
    assert optax.tree.norm(state.shared) == 0
