"""Every schedule goes through one mill: a pure function of the step, whatever runs it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import lexinvariant, losscurves, schedules
from jaxkit.schedules import profiles

TOTAL = 12
STEPS = np.arange(TOTAL + 4, dtype=np.int32)  # past the end too
LAW = losscurves.law(losscurves.Annealing(0.9), floor=2.0, scale=1.0, annealing=1.0, exponent=0.5)
NORMS = np.linspace(2.0, 1.0, 7).astype(np.float32)


class Case(NamedTuple):
    """A schedule.

    Attributes:
        make: from a peak value and a horizon.
        highest: its largest value in units of the peak.
        traced: whether the peak and the horizon may be traced.
        knows_horizon: whether the schedule has its horizon as an attribute.
        refused: calls, with the message that each is refused with.
    """

    make: Callable[[Any, Any], optax.Schedule]
    highest: float = 1.0
    traced: tuple[bool, bool] = (True, True)
    knows_horizon: bool = True
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


def decay(factory, *wrong):
    """A factory with the arguments that all share; `wrong` are its own options."""
    shared = (
        (lambda: factory(-1.0, TOTAL), r"peak_value must be finite and in \[0, inf\), got -1.0"),
        (lambda: factory(float("nan"), TOTAL), "peak_value must be finite .* got nan"),
        (lambda: factory(1.0, 0), "total_steps must be an integer >= 1, got 0"),
        (lambda: factory(1.0, 2.5), "total_steps must be an integer, got 2.5"),
        (lambda: factory(1.0, TOTAL, warmup_steps=TOTAL), "warmup_steps must be < total_steps"),
        (lambda: factory(1.0, TOTAL, end_value=2.0), "end_value must be <= peak_value"),
        (lambda: factory(1.0, TOTAL, init_value=-1.0), "init_value must be finite"),
    )
    own = tuple((functools.partial(factory, 1.0, TOTAL, **o), m) for o, m in wrong)
    warmed_up = functools.partial(factory, init_value=0.001, end_value=0.001, warmup_steps=3)
    return Case(warmed_up, refused=shared + own)


WRONG = {
    "rex": (({"d": 1.0}, "d must be finite"), ({"e": 1.0}, "no option 'e'")),
    "polynomial": (({"power": 0.0}, "power must be finite"),),
    "exponential": (({"rate": float("nan")}, "rate must be finite"),),
    "step": (
        ({"factor": 2.0}, "factor must be finite"),
        ({"boundaries": (0.75, 0.5)}, "boundaries must increase strictly"),
    ),
    "delayed": (({"delay": 1.0}, "delay must be finite"),),
    "wsd": (({"cooldown": 0.0}, "cooldown must be finite"), ({"shape": "sqr"}, "'sqrt'")),
    "onecycle": (({"min_ratio": 1.5}, "min_ratio must be finite"),),
}

CASES = (
    {
        f"schedules.schedule_from_profile {name}": decay(
            functools.partial(schedules.schedule_from_profile, name), *WRONG.get(name, ())
        )
        for name in profiles.PROFILES
    }
    | {
        "schedules.onecycle_momentum_schedule": Case(
            lambda peak, total: schedules.onecycle_momentum_schedule(total, 0.0, peak),
            refused=(
                (lambda: schedules.onecycle_momentum_schedule(0), "total_steps must be"),
                (lambda: schedules.onecycle_momentum_schedule(8, 0.9, 1.0), "b_max must be finite"),
                (lambda: schedules.onecycle_momentum_schedule(8, 0.9, 0.8), "b_min"),
            ),
        ),
        "schedules.schedule_from_profile sampled": decay(
            functools.partial(schedules.schedule_from_profile, "rex", sample_points=(0.25, 0.5)),
            ({"sample_points": (0.5, 0.2)}, "sample_points must increase strictly"),
            (
                {"sample_points": None, "sample_every": 0},
                "sample_every must be an integer >= 1, got 0",
            ),
        ),
        "schedules.schedule_from_values": Case(
            lambda peak, total: schedules.schedule_from_values(NORMS, total, peak),
            highest=2,  # the largest of the table
            refused=(
                (lambda: schedules.schedule_from_values(-NORMS, TOTAL), "values must be finite"),
                (lambda: schedules.schedule_from_values(NORMS[:1], TOTAL), "at least 2"),
                (lambda: schedules.schedule_from_values(NORMS, 0), "total_steps must be"),
                (lambda: schedules.schedule_from_values(NORMS, 5, -1.0), "peak_value must be"),
            ),
        ),
        "schedules.refined_schedule": Case(
            lambda peak, total: schedules.refined_schedule(NORMS, peak, total),
            refused=(
                (lambda: schedules.refined_schedule(-NORMS, 1.0, TOTAL), "norms must be"),
                (lambda: schedules.refined_schedule(NORMS, -1.0, TOTAL), "peak_value must be"),
                (
                    lambda: schedules.refined_schedule(NORMS, 1.0, TOTAL, norm="l0"),
                    "norm must be one",
                ),
            ),
        ),
        "losscurves.chosen_schedule": Case(
            lambda peak, total: losscurves.chosen_schedule(LAW, total, peak_value=peak),
            traced=(False, False),  # a choice is made on the host
            refused=(
                (lambda: losscurves.chosen_schedule(LAW, 0, peak_value=1.0), "total_steps must be"),
                (lambda: losscurves.chosen_schedule(LAW, 5), "peak_value must be given"),
            ),
        ),
        "lexinvariant.relabelling_schedule": Case(
            lambda peak, total: lexinvariant.relabelling_schedule(total, peak),
            highest=10,  # a probability, which rises to 1
            traced=(False, False),  # both say how many steps it rises for
            knows_horizon=False,
            refused=(
                (lambda: lexinvariant.relabelling_schedule(0), "total_steps must be"),
                (lambda: lexinvariant.relabelling_schedule(5, 1.5), "fraction must be"),
            ),
        ),
    }
)

EXCLUDED = {}

#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "schedules.onecycle_momentum_schedule",
    "schedules.schedule_from_profile cosine",
    "schedules.schedule_from_profile rex",
    "schedules.schedule_from_profile sampled",
    "schedules.schedule_from_profile step",
    "schedules.schedule_from_values",
    "lexinvariant.relabelling_schedule",
)

each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


@functools.cache
def alone(name, peak=0.1):
    """Each step by itself, as Python makes it."""
    schedule = CASES[name].make(peak, TOTAL)
    return np.array([schedule(int(step)) for step in STEPS], np.float32)


def test_every_public_schedule_is_in_the_table(assert_complete, returned):
    kinds = (optax.Schedule, schedules.Schedule)
    assert_complete(lambda value: returned(value) in kinds, CASES, EXCLUDED)


@each
def test_steps_of_any_shape_and_type_give_float32_of_that_shape(name):
    schedule = CASES[name].make(0.1, TOTAL)
    steps = (3, np.int64(3), jnp.uint32(3), jnp.array(3))
    for step in (*steps, 3.0) if CASES[name].knows_horizon else steps:
        value = jnp.asarray(schedule(step))
        assert (value.shape, value.dtype) == ((), jnp.float32), step
        np.testing.assert_allclose(value, alone(name)[3], rtol=1e-6)
    table = jax.eval_shape(schedule, jax.ShapeDtypeStruct((2, 3), jnp.int32))
    assert (table.shape, table.dtype) == ((2, 3), jnp.float32)
    if CASES[name].knows_horizon:
        assert schedule.total_steps == TOTAL


@each
def test_values_are_between_zero_and_the_peak_and_hold_after_the_end(name):
    values = alone(name)
    assert (values >= 0).all()
    assert values.max() == pytest.approx(0.1 * CASES[name].highest, rel=0.1)
    assert (values[TOTAL:] == values[TOTAL]).all()


@some
def test_an_array_a_loop_vmap_and_scan_agree_on_eight_devices_too(name, spread):
    schedule = CASES[name].make(0.1, TOTAL)

    @jax.jit
    def ways(steps):
        scanned = jax.lax.scan(lambda i, _: (i + 1, schedule(i)), jnp.int32(0), length=len(STEPS))
        return schedule(steps), jax.vmap(schedule)(steps), scanned[1]

    for found in (*ways(STEPS), *ways(spread(STEPS))):
        np.testing.assert_allclose(found, alone(name), rtol=2e-6, atol=1e-8)


@some
def test_one_program_serves_every_step_peak_and_horizon(name, count_traces):
    case = CASES[name]
    peak_is_traced, total_is_traced = case.traced

    def value(step, peak, total):
        schedule = case.make(peak if peak_is_traced else 0.1, total if total_is_traced else TOTAL)
        return schedule(step)

    counted = count_traces(value)
    program = jax.jit(jax.vmap(counted, in_axes=(None, 0, None)))
    peaks = (0.1, 0.4)
    for step in (1, 7):
        found = program(step, jnp.array(peaks), TOTAL)
        want = [alone(name, peak if peak_is_traced else 0.1)[step] for peak in peaks]
        np.testing.assert_allclose(found, want, rtol=2e-6)
    if total_is_traced:
        found = program(7, jnp.array(peaks), 9)[0]
        np.testing.assert_allclose(found, case.make(0.1, 9)(7), rtol=2e-6, atol=1e-8)
    assert counted.count == 1


@some
def test_a_run_that_orbax_restored_trains_on_at_the_same_rates(
    name, resaved, assert_donatable, count_traces
):
    optimizer = optax.inject_hyperparams(optax.sgd)(CASES[name].make(0.1, TOTAL))
    assert_donatable(lambda: optimizer.init(jnp.zeros(2)))
    counted = count_traces(lambda state: optimizer.update(jnp.ones(2), state))
    step = jax.jit(counted, donate_argnums=0)
    state, rates = optimizer.init(jnp.zeros(2)), []
    for t in range(6):
        held = state.count
        updates, state = step(state)
        assert held.is_deleted()
        rates.append(-float(updates[0]))
        if t == 2:
            state = resaved(state)
    np.testing.assert_allclose(rates, alone(name)[:6], rtol=2e-6, atol=1e-8)
    assert counted.count == 1


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        schedules.schedule_from_profile("liner", 1.0, TOTAL)
