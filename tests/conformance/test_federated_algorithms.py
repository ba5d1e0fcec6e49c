"""Every federated algorithm goes through one mill: rounds as pure functions of one state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl

CLIENTS, ROUNDS = 8, 2


class Case(NamedTuple):
    """An algorithm.

    Attributes:
        make: from a client's local step.
        cohort: clients in a round.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[[fl.ClientStep], fl.FederatedAlgorithm]
    cohort: int = 4
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def named(factory, cohort=4, **wrong):
    """An algorithm as it is by default; `wrong` are values that its arguments refuse."""
    refused = tuple(
        (functools.partial(factory, **{name: value}), f"{name} must be")
        for name, value in wrong.items()
    )
    return Case(factory, cohort, refused)


def loss(params, batch, key):
    del key
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def everyone():
    return fl.uniform_sampler(CLIENTS, 4)


CASES = {
    "federated.fedavg": named(fl.fedavg),
    "federated.fedprox": named(fl.fedprox, prox_coef=-1, clip_mode="simulater"),
    "federated.fedadam": named(fl.fedadam, b1=1.0, b2=-0.1, eps=0.0, server_learning_rate=-1.0),
    "federated.fedsam": named(fl.fedsam, rho=-0.1),
    "federated.scaffold": named(fl.scaffold),
    "federated.fedgamma": named(fl.fedgamma, rho=-0.1),
    "federated.fedcm": named(fl.fedcm, alpha=1.1),
    "federated.mofedsam": named(fl.mofedsam, alpha=-0.1, rho=float("nan")),
    "federated.feddyn": named(fl.feddyn, prox_coef=float("inf"), dual_average="al"),
    "federated.fedspeed": named(
        fl.fedspeed, prox_coef=-1, rho=-0.1, alpha=1.1, dual_average="al", clip_mode="simulater"
    ),
    "federated.fedsmoo": named(fl.fedsmoo, rho=-0.1, prox_coef=-1),
    "federated.fedpd": named(fl.fedpd, CLIENTS, prox_coef=-1, clip_mode="simulater"),
    "federated.fedadmm": named(fl.fedadmm, prox_coef=-1, form="tracking"),
    "federated.algorithm_by_name": Case(
        lambda client: fl.algorithm_by_name("fedprox", client, prox_coef=0.2),
        refused=((lambda: fl.algorithm_by_name("fedsped"), "did you mean 'fedspeed'"),),
    ),
    "federated.displacement_algorithm": Case(
        lambda client: fl.displacement_algorithm(
            "FedSign", (optax.scale_by_sign(),), client, optax.adam(0.1)
        )
    ),
    "federated.with_relaxed_start": Case(
        lambda client: fl.with_relaxed_start(fl.scaffold(client), 0.2),
        refused=((lambda: fl.with_relaxed_start(fl.fedavg(), -1), "beta must be"),),
    ),
    "federated.with_client_privacy": Case(
        lambda client: fl.with_client_privacy(
            fl.fedspeed(client), everyone(), clip_norm=0.5, noise_multiplier=0.1
        ),
        refused=(
            (
                lambda: fl.with_client_privacy(
                    fl.fedavg(), everyone(), clip_norm=0.0, noise_multiplier=1.0
                ),
                "clip_norm must be",
            ),
            (
                lambda: fl.with_client_privacy(
                    fl.fedavg(), everyone(), clip_norm=1.0, noise_multiplier=-1.0
                ),
                "noise_multiplier must be",
            ),
        ),
    ),
    "federated.fedavg momentum": Case(
        lambda client: fl.fedavg(fl.local_optimizer(optax.sgd(0.1, 0.9), keep_state=True))
    ),
}

EXCLUDED = {}

#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "federated.fedsmoo",
    "federated.with_relaxed_start",
)


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    data = fl.stack_clients(
        {
            "x": rng.normal(size=(CLIENTS, 4, 3)).astype(np.float32),
            "y": rng.normal(size=(CLIENTS, 4, 2)).astype(np.float32),
        }
    )
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.zeros(2)}
    return data, params, fl.local_training(loss, batch_size=2, num_epochs=1)


def made(name, learning_rate=0.05):
    return CASES[name].make(fl.local_sgd(learning_rate))


algorithm = functools.cache(made)


def start(name, seed=0, **options):
    _, params, _ = problem()
    return fl.init_state(algorithm(name), params, CLIENTS, jax.random.key(seed), **options)


def one_round(name, state, data=None, client_map=None):
    whole, _, training = problem()
    return fl.federated_round(
        algorithm(name),
        training,
        state,
        whole if data is None else data,
        fl.uniform_sampler(CLIENTS, CASES[name].cohort),
        client_map,
    )


@functools.cache
def rounds(name):
    """The compiled round (donated), how often it was traced, and two rounds of it."""
    traces = []

    def counted(state):
        traces.append(1)
        return one_round(name, state)

    step = jax.jit(counted, donate_argnums=0)
    state, metrics = start(name), []
    for _ in range(ROUNDS):
        state, measured = step(state)
        metrics.append(measured)
    return step, traces, (state, jax.tree.map(lambda *m: jnp.stack(m), *metrics))


each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_algorithm_is_in_the_table(assert_complete, returned):
    assert_complete(lambda value: returned(value) is fl.FederatedAlgorithm, CASES, EXCLUDED)


def test_every_algorithm_has_a_name_that_finds_it():
    made = {key.split(".")[1] for key in CASES if key.split(".")[1] in fl.ALGORITHMS}
    assert made == set(fl.ALGORITHMS)


@each
def test_a_round_keeps_the_state_like_itself(name, described):
    state = start(name)
    after, metrics = jax.eval_shape(functools.partial(one_round, name), state)
    assert described(after) == described(state)
    assert (metrics.loss.shape, metrics.loss.dtype) == ((), jnp.float32)
    fl.check_state(algorithm(name), state)


@pytest.mark.parametrize("name", CASES)
def test_an_algorithm_may_be_made_inside_a_compiled_function(name):
    jax.eval_shape(lambda rate: made(name).client_optimizer.init(jnp.ones(2)), 0.1)


@some
def test_compiled_rounds_are_traced_once_reuse_the_memory_and_move_the_model(name):
    step, traces, (state, metrics) = rounds(name)
    again = start(name)
    held = jax.tree.leaves(again)
    step(again)
    assert all(leaf.is_deleted() for leaf in held)
    assert len(traces) == 1
    assert int(state.round) == ROUNDS
    assert (np.asarray(metrics.update_norm) > 0).all()
    assert (np.asarray(metrics.num_participants) == CASES[name].cohort).all()


@pytest.mark.slow
@each
def test_an_eager_round_is_the_compiled_one(name, assert_same):
    step, _, _ = rounds(name)
    assert_same(one_round(name, start(name)), step(start(name)))


@some
def test_rounds_in_one_scan_under_vmap_over_keys_and_rates_are_those_alone(name, assert_same):
    _, _, want = rounds(name)
    data, _, training = problem()
    sampler = fl.uniform_sampler(CLIENTS, CASES[name].cohort)

    def run(state, rate):
        return fl.run_rounds(made(name, rate), training, state, data, sampler, num_rounds=ROUNDS)

    states = jax.tree.map(lambda *x: jnp.stack(x), start(name), start(name, 1))
    found = jax.jit(jax.vmap(run))(states, jnp.array([0.05, 0.1]))
    assert_same(jax.tree.map(lambda leaf: leaf[0], found), want)
    assert not np.allclose(found[0].params["w"][0], found[0].params["w"][1])


@some
def test_a_state_that_orbax_restored_goes_on_as_the_saved_one(name, resaved, assert_same):
    step, _, (want, _) = rounds(name)
    state, _ = step(start(name))
    state, _ = step(resaved(state))
    assert_same(state, want)


@some
def test_clients_on_eight_devices_give_the_round_of_one(name, devices, assert_same):
    step, _, _ = rounds(name)
    mesh = fl.clients_mesh(devices)
    data = fl.place_data(problem()[0], mesh)
    run = jax.jit(functools.partial(one_round, name, client_map=fl.shard_clients(mesh)))
    state, metrics = run(start(name, mesh=mesh), data)
    assert len(state.params["w"].sharding.device_set) == 8
    assert_same((state, metrics), step(start(name)))


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    with pytest.raises(ValueError, match="state"):
        one_round(name, start(name)._replace(shared={"other": jnp.ones(1)}))
