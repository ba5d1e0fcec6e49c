"""Every federated algorithm goes through one mill: rounds as pure functions of one state."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import federated as fl
from jaxkit import privacy
from jaxkit.federated import checks

CLIENTS, ROUNDS = 8, 2


class Case(NamedTuple):
    """An algorithm.

    Attributes:
        make: from a client's local step, and options by name.
        numbers: options that may be traced.
        cohort: clients in a round.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[..., fl.FederatedAlgorithm]
    numbers: tuple[str, ...] = ()
    cohort: int = 4
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def named(factory, *refused, cohort=4, **wrong):
    """An algorithm as it is by default; `wrong` are values that its options refuse."""
    numbers = tuple(name for name, value in wrong.items() if not isinstance(value, str))
    of_options = tuple(
        (functools.partial(factory, **{name: value}), f"{name} must be")
        for name, value in wrong.items()
    )
    return Case(factory, numbers, cohort, of_options + refused)


def corrected(factory, **wrong):
    """An algorithm that divides displacements by the learning rate, which must be known."""
    unknown = fl.local_optimizer(optax.adam(0.1))
    return named(factory, (lambda: factory(unknown), "divides .* by the learning rate"), **wrong)


def loss(params, batch, key):
    # The noise tells clients with the same examples apart.
    noise = 0.01 * jnp.vdot(jax.random.normal(key, (2,)), params["b"])
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2) + noise


def stateful_loss(params, model_state, batch, key):
    mean = 0.9 * model_state["mean"] + 0.1 * batch["y"].mean(0)
    return loss(params, {**batch, "y": batch["y"] - mean}, key), {"mean": mean}


def everyone():
    return fl.uniform_sampler(CLIENTS, 4)


CASES = {
    "federated.fedavg": named(fl.fedavg, weighting="exampels"),
    "federated.fedprox": named(
        fl.fedprox, prox_coef=-1, clip_mode="simulater", weighting="exampels"
    ),
    "federated.fedavgm": named(
        fl.fedavgm, momentum=1.0, server_learning_rate=-1.0, weighting="exampels"
    ),
    "federated.fedadam": named(
        fl.fedadam, b1=1.0, b2=-0.1, eps=0.0, server_learning_rate=-1.0, weighting="exampels"
    ),
    "federated.fedyogi": named(
        fl.fedyogi, b1=1.0, b2=-0.1, eps=0.0, server_learning_rate=-1.0, weighting="exampels"
    ),
    "federated.fednova": corrected(fl.fednova, weighting="exampels"),
    "federated.fedsam": named(fl.fedsam, rho=-0.1, weighting="exampels"),
    "federated.scaffold": corrected(fl.scaffold),
    "federated.fedgamma": corrected(fl.fedgamma, rho=-0.1),
    "federated.fedcm": corrected(fl.fedcm, alpha=1.1, weighting="exampels"),
    "federated.mofedsam": corrected(
        fl.mofedsam, alpha=-0.1, rho=float("nan"), weighting="exampels"
    ),
    "federated.feddyn": named(
        fl.feddyn, prox_coef=float("inf"), dual_average="al", clip_mode="simulater"
    ),
    "federated.fedspeed": named(
        fl.fedspeed, prox_coef=-1, rho=-0.1, alpha=1.1, dual_average="al", clip_mode="simulater"
    ),
    "federated.fedsmoo": named(
        fl.fedsmoo, rho=-0.1, prox_coef=-1, dual_average="al", clip_mode="simulater"
    ),
    "federated.fedpd": named(
        fl.fedpd,
        (lambda: one_round("federated.fedpd", start("federated.fedpd"), cohort=4), "every client"),
        cohort=CLIENTS,
        prox_coef=-1,
        clip_mode="simulater",
    ),
    "federated.fedadmm": named(fl.fedadmm, prox_coef=-1, form="tracking", clip_mode="simulater"),
    "federated.with_model_state": Case(
        lambda client: fl.with_model_state(fl.fedavg(client), {"mean": jnp.zeros(2)}, "shared"),
        refused=(
            (lambda: fl.with_model_state(fl.fedavg(), {}, "own"), "policy must be"),
            (lambda: fl.with_model_state(fl.fedavg(), {"n": 0 * jnp.arange(2)}, "local"), "int32"),
        ),
    ),
    "federated.with_relaxed_start": Case(
        lambda client, beta=0.2: fl.with_relaxed_start(fl.scaffold(client), beta),
        ("beta",),
        refused=((lambda: fl.with_relaxed_start(fl.fedavg(), -1), "beta must be"),),
    ),
    "federated.with_client_privacy": Case(
        lambda client, clip_norm=0.5, noise_multiplier=0.1: fl.with_client_privacy(
            fl.fedspeed(client),
            everyone(),
            privacy.NoiseSource.public(0),
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            num_rounds=20,
        ),
        ("clip_norm", "noise_multiplier"),
        refused=(
            (
                lambda: fl.with_client_privacy(
                    fl.fedavg(),
                    everyone(),
                    privacy.NoiseSource.public(0),
                    clip_norm=0.0,
                    noise_multiplier=1.0,
                    num_rounds=1,
                ),
                "clip_norm must be",
            ),
            (
                lambda: fl.with_client_privacy(
                    fl.fedavg(),
                    everyone(),
                    privacy.NoiseSource.public(0),
                    clip_norm=1.0,
                    noise_multiplier=-1.0,
                    num_rounds=1,
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

    def examples(width):
        # Every second client has the same: so do two at least of any four.
        return np.tile(rng.normal(size=(2, 4, width)).astype(np.float32), (CLIENTS // 2, 1, 1))

    data = fl.stack_clients({"x": examples(3), "y": examples(2)})
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.zeros(2)}
    return data, params


@functools.cache
def training(name):
    return fl.LocalTraining(
        stateful_loss if name == "federated.with_model_state" else loss, batch_size=2, num_epochs=1
    )


def made(name, learning_rate=0.05, **numbers):
    return CASES[name].make(fl.simulator_sgd(learning_rate), **numbers)


algorithm = functools.cache(made)


def start(name, seed=0, **options):
    _, params = problem()
    return fl.init_state(algorithm(name), params, CLIENTS, jax.random.key(seed), **options)


def one_round(name, state, data=None, client_map=None, *, method=None, cohort=None):
    whole, _ = problem()
    return fl.federated_round(
        method or algorithm(name),
        training(name),
        state,
        whole if data is None else data,
        fl.uniform_sampler(CLIENTS, cohort or CASES[name].cohort),
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


def test_every_option_of_an_algorithm_has_a_value_that_it_refuses():
    for name, factory in fl.ALGORITHMS.items():
        parameters = inspect.signature(factory).parameters.values()
        options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"normalize"}
        calls = [call for call, _ in CASES[f"federated.{name}"].refused]
        assert options == {key for call in calls for key in getattr(call, "keywords", ())}, name


@each
def test_a_round_of_traced_numbers_keeps_a_state_of_mixed_types_like_itself(name, described):
    _, params = problem()
    params = {**params, "b": params["b"].astype(jnp.bfloat16)}
    state = fl.init_state(algorithm(name), params, CLIENTS, jax.random.key(0))
    checks.check_state(algorithm(name), state)

    def round_of(state, rate, numbers):
        return one_round(name, state, method=made(name, rate, **numbers))

    after, metrics = jax.eval_shape(round_of, state, 0.1, dict.fromkeys(CASES[name].numbers, 0.1))
    assert described(after) == described(state)
    for measured in (metrics.loss, metrics.update_norm, metrics.divergence):
        assert (measured.shape, measured.dtype) == ((), jnp.float32)


@some
def test_compiled_rounds_are_traced_once_reuse_the_memory_and_move_the_model(
    name, assert_donatable
):
    step, traces, (state, metrics) = rounds(name)
    _, params = problem()
    key = jax.random.key(0)
    assert_donatable(lambda: fl.init_state(algorithm(name), params, CLIENTS, key), params, key)
    again = start(name)
    held = jax.tree.leaves(again)
    step(again)
    assert all(leaf.is_deleted() for leaf in held)
    assert len(traces) == 1
    assert int(state.round) == ROUNDS
    assert (np.asarray(metrics.update_norm) > 0).all()
    assert (np.asarray(metrics.num_participants) == CASES[name].cohort).all()
    # Each client that took part has numbers of its own, whatever its examples.
    for leaf, first in zip(
        *map(jax.tree.leaves, (state.clients, start(name).clients)), strict=True
    ):
        rows = np.asarray(leaf)[(leaf != first).any(axis=range(1, leaf.ndim))]
        assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.slow
@each
def test_an_eager_round_is_the_compiled_one(name, assert_same):
    step, _, _ = rounds(name)
    assert_same(one_round(name, start(name)), step(start(name)))


@some
def test_rounds_in_one_scan_under_vmap_over_keys_and_rates_are_those_alone(name, assert_same):
    _, _, want = rounds(name)
    data, _ = problem()
    sampler = fl.uniform_sampler(CLIENTS, CASES[name].cohort)

    def run(state, rate):
        return fl.run_rounds(
            made(name, rate), training(name), state, data, sampler, num_rounds=ROUNDS
        )

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
    data = problem()[0].placed(mesh)
    run = jax.jit(
        functools.partial(one_round, name, client_map=fl.shard_clients(mesh)), donate_argnums=0
    )
    placed = start(name, mesh=mesh)
    state, metrics = run(placed, data)
    for leaf, before in zip(*map(jax.tree.leaves, (state, placed)), strict=True):
        assert leaf.sharding.is_equivalent_to(before.sharding, leaf.ndim)
        assert before.is_deleted()
    assert_same((state, metrics), step(start(name)))


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    with pytest.raises(ValueError, match="state"):
        one_round(name, start(name)._replace(shared={"other": jnp.ones(1)}))
