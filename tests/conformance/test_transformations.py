"""Every gradient transformation goes through one mill.

It runs three steps on a float32 matrix and a bfloat16 vector, eagerly, and all other ways to run
it must agree.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import continual, federated, schedules, width

STEPS = 3


def no_extra(params):
    del params
    return {}


class Case(NamedTuple):
    """A transformation and what its `update` needs.

    Attributes:
        make: from its swept number, if it has one, to the transformation.
        numbers: two values of a number that may be traced.
        extra: from params to the extra arguments of `update`.
        widens: whether updates are float32 whatever the gradients are.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[..., optax.GradientTransformation]
    numbers: tuple[float, float] | None = None
    extra: Callable[[Any], dict[str, Any]] = no_extra
    widens: bool = False
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def scaled(params, factor):
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), params)


def gradient_at(params, step):
    del step
    return jax.tree.map(lambda leaf: leaf + leaf**2, params)


def second_gradient(params):
    del params
    return {"grad_fn": gradient_at}


def mask(params):
    del params
    return {"trainable": {"kernel": jnp.arange(8)[:, None] < 5, "bias": jnp.array(True)}}


def shapes(size):
    shape = {"kernel": (size, 4), "bias": (size,)}
    return {name: jax.ShapeDtypeStruct(s, "float32") for name, s in shape.items()}


MULTIPLIERS = {"kernel": 0.25, "bias": 0.5}

CASES = {
    "schedules.record_gradient_norms": Case(
        lambda: schedules.record_gradient_norms(STEPS),
        refused=(
            (lambda: schedules.record_gradient_norms(0), "total_steps must .* >= 1, got 0"),
            (lambda: schedules.record_gradient_norms(3, norm="l3"), "norm must .*'l2', 'l1'"),
        ),
    ),
    "width.scale_by_width": Case(
        lambda: width.scale_by_width(MULTIPLIERS),
        refused=(
            (lambda: width.scale_by_width({"kernel": 0.0}), r"multipliers\['kernel'\] must be"),
            (
                lambda: width.scale_by_width({"kernel": 2.0}).update(PARAMS, optax.EmptyState()),
                "no entry for the parameter 'bias'",
            ),
        ),
    ),
    "width.add_width_scaled_decayed_weights": Case(
        lambda decay: width.add_width_scaled_decayed_weights(decay, MULTIPLIERS),
        (0.1, 0.3),
        refused=(
            (
                lambda: width.add_width_scaled_decayed_weights(-0.1, MULTIPLIERS),
                r"weight_decay must be finite and in \[0, inf\), got -0.1",
            ),
        ),
    ),
    "width.adamw_width_scaled": Case(
        lambda rate: width.adamw_width_scaled(rate, 0.1, width.width_scaling(shapes(4), shapes(8))),
        (0.01, 0.05),
        refused=(
            (
                lambda: width.adamw_width_scaled(
                    -1.0, 0.1, width.width_scaling(shapes(4), shapes(8))
                ),
                "learning_rate must be finite",
            ),
        ),
    ),
    "federated.quasi_gradient": Case(
        lambda rho: federated.quasi_gradient(rho, 0.7),
        (0.1, 0.5),
        second_gradient,
        refused=(
            (lambda: federated.quasi_gradient(-1.0), "rho must be finite"),
            (lambda: federated.quasi_gradient(0.1, 2.0), "alpha must be finite"),
            (lambda: federated.quasi_gradient().update(PARAMS, (), PARAMS), "grad_fn"),
        ),
    ),
    "continual.where_trainable": Case(
        lambda: continual.where_trainable(optax.sgd(0.1, momentum=0.9)),
        extra=mask,
        refused=(
            (lambda: continual.where_trainable(optax.sgd(0.1)).update(PARAMS, ()), "trainable"),
        ),
    ),
}

EXCLUDED = {
    "privacy.privatize_sum": "updates are a BoundedSum; tests/privacy/test_noise.py",
}

PARAMS = {
    "kernel": jnp.linspace(-1, 1, 32).reshape(8, 4),
    "bias": jnp.linspace(-0.5, 1, 8).astype(jnp.bfloat16),
}


def gradients(case, seed):
    """Three gradients like the parameters."""
    del case
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=(STEPS, *leaf.shape)), leaf.dtype), PARAMS
    )


def make(case, number=None):
    return case.make() if case.numbers is None else case.make(number)


def step_of(case, transformation):
    def step(params, state, gradient):
        updates, state = transformation.update(gradient, state, params, **case.extra(params))
        return optax.apply_updates(params, updates), state, updates

    return step


def loop(step, params, state, grads):
    """Three steps in Python: params, state and the updates, stacked."""
    seen = []
    for t in range(STEPS):
        params, state, updates = step(params, state, jax.tree.map(lambda g: g[t], grads))  # noqa: B023
        seen.append(updates)
    return params, state, jax.tree.map(lambda *u: jnp.stack(u), *seen)


def start(transformation):
    """Parameters and a first state that may be donated."""
    return jax.tree.map(jnp.array, (PARAMS, transformation.init(PARAMS)))


def at(grads, t):
    return jax.tree.map(lambda g: g[t], grads)


class Prepared(NamedTuple):
    """A transformation, its compiled step (donated; `traces` counts) and gradients for it."""

    case: Case
    transformation: optax.GradientTransformation
    step: Any
    traces: list[int]
    grads: Any


@functools.cache
def prepared(name):
    case = CASES[name]
    transformation = make(case, case.numbers and case.numbers[0])
    step, traces, grads = step_of(case, transformation), [], gradients(case, 0)

    def counted(*args):
        traces.append(1)
        return step(*args)

    donated = jax.jit(counted, donate_argnums=(0, 1))
    return Prepared(case, transformation, donated, traces, grads)


@functools.cache
def eager(name):
    """Three steps, operation by operation."""
    case, transformation, _, _, grads = prepared(name)
    return loop(step_of(case, transformation), PARAMS, transformation.init(PARAMS), grads)


#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "schedules.record_gradient_norms",
    "width.adamw_width_scaled",
    "federated.quasi_gradient",
    "continual.where_trainable",
)

each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_transformation_is_in_the_table(assert_complete, returned):
    kinds = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    assert_complete(lambda value: returned(value) in kinds, CASES, EXCLUDED)


@each
def test_updates_are_like_gradients_and_the_state_stays_like_itself(name, described):
    case, transformation, _, _, grads = prepared(name)
    step = step_of(case, transformation)
    state = transformation.init(PARAMS)
    _, after, updates = jax.eval_shape(step, PARAMS, state, at(grads, 0))
    assert described(after) == described(state)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
    for update, like in zip(jax.tree.leaves(updates), jax.tree.leaves(PARAMS), strict=True):
        assert update.shape == like.shape
        assert update.dtype == ("float32" if case.widens else like.dtype)


@some
def test_compiled_steps_are_the_eager_ones_traced_once_in_the_same_memory(name, assert_same):
    case, transformation, step, traces, grads = prepared(name)
    params, state = start(transformation)
    held = jax.tree.leaves((params, state))
    assert_same(loop(step, params, state, grads), eager(name), rough="bias")
    assert all(leaf.is_deleted() for leaf in held)
    # Other numbers of the same shapes.
    loop(step, *start(transformation), gradients(case, 1))
    assert len(traces) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_first_state_may_be_donated_and_another_made(name, assert_donatable):
    case = CASES[name]
    transformation = make(case, case.numbers and case.numbers[0])
    assert_donatable(lambda: transformation.init(PARAMS), PARAMS)


@some
def test_a_scan_over_the_steps_is_the_loop(name, assert_same):
    case, transformation, _, _, grads = prepared(name)
    step = step_of(case, transformation)

    def one(carry, gradient):
        params, state, updates = step(*carry, gradient)
        return (params, state), updates

    @jax.jit
    def run(grads):
        (params, state), seen = jax.lax.scan(one, (PARAMS, transformation.init(PARAMS)), grads)
        return params, state, seen

    assert_same(run(grads), eager(name), rough="bias")


@some
def test_runs_with_their_own_number_and_gradients_are_each_alone_under_vmap(name, assert_same):
    case = CASES[name]

    def first(number, params, gradient):
        transformation = make(case, number)
        state = transformation.init(params)
        params, state, updates = step_of(case, transformation)(params, state, gradient)
        # A traced rate is a float32 array, which widens bfloat16 updates, in optax too.
        return params, state, optax.tree.cast(updates, jnp.float32)

    numbers = case.numbers or (0.0, 0.0)
    params = [PARAMS, scaled(PARAMS, -0.5)]
    grads = [at(gradients(case, seed), 0) for seed in (0, 1)]
    rows = [
        jnp.array(numbers),
        *(jax.tree.map(lambda *x: jnp.stack(x), *p) for p in (params, grads)),
    ]
    together = jax.jit(jax.vmap(first))(*rows)
    for row in range(2):
        alone = first(numbers[row], params[row], grads[row])
        assert_same(at(together, row), alone, rough="bias")


@some
def test_a_state_that_orbax_restored_goes_on_as_the_saved_one(name, resaved, assert_same):
    _, transformation, step, _, grads = prepared(name)
    params, state, _ = step(*start(transformation), at(grads, 0))
    params, state = resaved((params, state))
    for t in range(1, STEPS):
        params, state, _ = step(params, state, at(grads, t))
    assert_same((params, state), eager(name)[:2], rough="bias")


@some
def test_eight_devices_give_the_numbers_of_one(name, spread, assert_same):
    _, transformation, step, _, grads = prepared(name)
    params, state = spread(start(transformation))
    grads = [spread(at(grads, t)) for t in range(STEPS)]
    seen = []
    for gradient in grads:
        params, state, updates = step(params, state, gradient)
        seen.append(updates)
    assert len(updates["kernel"].sharding.device_set) == 8
    stacked = jax.tree.map(lambda *u: np.stack([np.asarray(x) for x in u]), *seen)
    assert_same((params, state, stacked), eager(name), rough="bias")


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
