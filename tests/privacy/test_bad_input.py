"""Errors where a value enters, naming it and what is allowed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkit import privacy
from jaxkit.privacy import batches, mechanisms

pytestmark = pytest.mark.usefixtures("bad_input")
KEY = jax.random.key(0)
ROWS = np.ones((4, 2), np.float32)


def loss(params, batch, key):
    return jnp.mean(batch @ params)


def traced_sum(mask):
    return jax.jit(lambda params: GRADIENT(params, ROWS, None, mask).total)(jnp.ones(2))


GRADIENT = privacy.clipped_grad_sum(loss, 1.0)
GLM, SIGNS = privacy.glm_clipped_grad_sum(privacy.logistic_loss, 1.0), np.ones(4, np.float32)
TREE = {"depth": 1, "root_size": 2, "num_rounds": 1, "smoothness": 1.0, "beta": 1.0}
ONCE = privacy.one_pass(GRADIENT, noise_multiplier=1.0, delta=1e-3)
THEORY = {
    "num_examples": 100, "dimension": 2, "epsilon": 1.0, "delta": 1e-3, "lipschitz": 1.0,
    "smoothness": 1.0, "suboptimality": 1.0,
}  # fmt: skip
EVERYONE = privacy.full_batches(4)
SPIDER = {"num_steps": 4, "phase_length": 2, "difference_clip": 1.0, "delta": 1e-3}


def spider(**options):
    return privacy.spiderboost(GRADIENT, EVERYONE, EVERYONE, **SPIDER | options)


PEOPLE = privacy.clipped_grad_sum(loss, 1.0, unit="user")
FTRL = privacy.dp_ftrl(GRADIENT, 4, 2, delta=1e-3, noise_multiplier=1.0)
PLAN = privacy.dp_sgd(GRADIENT, EVERYONE, 1, delta=1e-3, noise_multiplier=1.0)
STATE = PLAN.optimizer(optax.sgd(1.0)).init(jnp.ones(2))


def update(total, **key):
    return PLAN.optimizer(optax.sgd(1.0)).update(total, STATE, **key)


CASES = {
    "negative clip": (lambda: privacy.clipped_grad_sum(loss, -1.0), "clip_norm .* got -1.0"),
    "nan clip": (lambda: privacy.clip_per_example(ROWS, float("nan")), "clip_norm"),
    "infinite clip": (lambda: privacy.clipped_grad_sum(loss, float("inf")), "clip_norm"),
    "zero clip": (lambda: privacy.glm_clipped_grad_sum(privacy.logistic_loss, 0), "clip_norm"),
    "mode": (lambda: privacy.clipped_grad_sum(loss, 1.0, mode="flatt"), "did you mean 'flat'"),
    "microbatch": (
        lambda: privacy.clipped_grad_sum(loss, 1.0, microbatch_size=0),
        "microbatch_size .* >= 1",
    ),
    "no batch axis": (lambda: privacy.clip_per_example(jnp.ones(()), 1.0), "leading size"),
    "empty batch": (lambda: GRADIENT(jnp.ones(2), np.ones((0, 2))), "leading size >= 1"),
    "sizes differ": (
        lambda: privacy.clip_per_example({"a": np.ones((2, 1)), "b": np.ones((3, 1))}, 1.0),
        r"\(2, 1\), \(3, 1\)",
    ),
    "mask shape": (
        lambda: GRADIENT(jnp.ones(2), ROWS, None, jnp.ones(3, bool)),
        r"mask must have shape \(4,\)",
    ),
    "mask of fewer than none": (
        lambda: GRADIENT(jnp.ones(2), ROWS, None, jnp.array([1, 1, -5, 1])),
        "mask must count examples, got -5",
    ),
    "a traced caller's mask of fewer than none": (
        lambda: traced_sum(jnp.array([1, 1, -5, 1])),
        "mask must count examples, got -5",
    ),
    "relation": (lambda: GRADIENT.sensitivity("add_or_remov"), "did you mean 'add_or_remove'"),
    "negative noise": (lambda: privacy.privatize_sum(-1.0, 1, KEY), "noise_multiplier"),
    "batch size zero": (lambda: privacy.privatize_sum(1.0, 0, KEY), "expected_batch_size"),
    "batch of a tree": (
        lambda: privacy.dp_ftrl(GRADIENT, 4, 5, delta=1e-3, noise_multiplier=1.0),
        "batch_size must be at most num_examples = 4, got 5",
    ),
    "random batches from a pass": (
        lambda: privacy.dp_sgd_mechanism(FTRL.sampling, 1.0, 1), "got batches in order",
    ),
    "q above T": (
        lambda: mechanisms.spiderboost_counts(3, 4),
        "phase_length must be at most num_steps = 3, got 4",
    ),
    "q zero": (lambda: mechanisms.spiderboost_counts(3, 0), "phase_length"),
    "T zero": (lambda: mechanisms.spiderboost_counts(0, 1), "num_steps"),
    "spiderboost noise": (
        lambda: spider(noise_multipliers=(-1, 1)),
        "noise_multipliers",
    ),
    "spiderboost rows": (
        lambda: privacy.run_spiderboost(
            spider(noise_multipliers=(1, 1)), optax.sgd(1.0), jnp.ones(2), ROWS[:3], KEY
        ),
        "must hold the 4 examples of the samplings, got 3",
    ),
    "tree size": (
        lambda: privacy.tree_examples(6, 2),
        r"root_size must be a multiple of 2\^depth = 4, got 6",
    ),
    "too few rows": (
        lambda: privacy.tree_spider(ONCE, jnp.ones(2), ROWS, KEY, **TREE | {"num_rounds": 2}),
        "= 6 examples, got 4",
    ),
    "recursive lengths": (
        lambda: privacy.recursive_regularization(
            ONCE, jnp.ones(2), ROWS, KEY, regularisation=1.0, steps_per_round=[], radius=1.0,
        ),
        "at least one round",
    ),
    "batch above n": (
        lambda: batches.fixed_batch(KEY, 3, 4),
        "batch_size must be at most num_examples = 3, got 4",
    ),
    "rate": (lambda: batches.poisson_batch(KEY, 3, 0.0, 1), "sampling_rate"),
    "epsilon": (
        lambda: privacy.dp_sgd(GRADIENT, EVERYONE, 1, epsilon=0, delta=1e-3),
        "epsilon .* got 0",
    ),
    "delta": (
        lambda: privacy.epsilon_spent(ONCE.mechanism, 1.0),
        "delta .* got 1.0",
    ),
    "accountant": (
        lambda: privacy.epsilon_spent(ONCE.mechanism, 0.1, accountant="pdl"),
        "did you mean 'pld'",
    ),
    "share": (
        lambda: spider(epsilon=1.0, anchor_share=1.0),
        "anchor_share",
    ),
    "closed form beyond 1": (
        lambda: privacy.spiderboost_theory(**THEORY | {"epsilon": 1.5}),
        "epsilon must be at most 1 .* got 1.5",
    ),
    "jl shapes": (
        lambda: privacy.jl_embed(jnp.ones((2, 3)), jnp.ones((2, 4))),
        r"\(2, 3\) and \(2, 4\)",
    ),
    "clips of rows": (
        lambda: privacy.clipped_grad_sum(loss, np.ones(4)), "clip_norm must be a single number",
    ),
    "clips of rows later": (
        lambda: dataclasses.replace(GRADIENT, clip_norm=np.ones(4))(jnp.ones(2), ROWS),
        r"clip_norm must be a single number, got an array of \(4,\)",
    ),
    "bounds of rows": (
        lambda: GRADIENT.difference(jnp.ones(2), jnp.ones(2), ROWS, np.ones(4)),
        "bound must be a single number",
    ),
    "noise of entries": (
        lambda: privacy.privatize_sum(np.ones(2), 1, KEY), "noise_multiplier must be a single",
    ),
    "noise of entries of a plan": (
        lambda: privacy.dp_sgd(GRADIENT, EVERYONE, 1, delta=1e-3, noise_multiplier=np.ones(2)),
        "noise_multiplier must be a single number",
    ),
    "noise of entries of a pass": (
        lambda: privacy.one_pass(GRADIENT, delta=1e-3, noise_multiplier=np.ones(2)),
        "noise_multiplier must be a single number",
    ),
    "noise of entries of spiderboost": (
        lambda: spider(noise_multipliers=(np.ones(2), 1)), "noise_multipliers must be a single",
    ),
    "scale of entries": (
        lambda: GRADIENT(jnp.ones(2), ROWS).scale(np.ones(2)), "factor must be a single number",
    ),
    "other parameters before": (
        lambda: GRADIENT.difference(jnp.ones(2), jnp.ones(3), ROWS, 1.0), "prev_params must be",
    ),
    "a linear model's tree": (lambda: GLM({"w": jnp.ones(2)}, (ROWS, SIGNS)), "params must be a"),
    "a linear model's rows": (lambda: GLM(jnp.ones(2), ROWS), r"batch \(x \[B, d\], y \[B\]\)"),
    "a linear model's columns": (lambda: GLM(jnp.ones(3), (ROWS, SIGNS)), "the 3 columns"),
    "nothing to audit": (lambda: privacy.audit_noise(np.ones((3, 0))), "at least one number"),
    "scale": (lambda: GRADIENT(jnp.ones(2), ROWS).scale(np.nan), "factor must be finite"),
    "audit runs": (lambda: privacy.audit_llr(np.ones(3), np.ones(3), 1.0), "at least 30"),
    "audit nan": (lambda: privacy.audit_llr(np.full(40, np.nan), np.ones(40), 1.0), "absent"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_values_are_refused_by_name(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.privatize_sum(1.0, 1, jnp.zeros(2, jnp.uint32)), "typed key"),
        (lambda: PLAN.optimizer(optax.sgd(1.0)).update(jnp.ones(2), STATE), "a BoundedSum"),
        (lambda: update(GRADIENT(jnp.ones(2), ROWS)), "key must be given either"),
        (lambda: update(GRADIENT(jnp.ones(2), ROWS[:3]), key=KEY), "sum over the 4 rows"),
        (lambda: update(PEOPLE(jnp.ones(2), ROWS), key=KEY), "sum over examples, got .* users"),
        (lambda: update(GRADIENT(jnp.ones(2), ROWS).total, key=KEY), "a BoundedSum"),
        (lambda: privacy.dp_sgd(GRADIENT, EVERYONE, 1, delta=1e-3), "one of epsilon and"),
        (spider, "one of epsilon and"),
        (lambda: privacy.one_pass(GRADIENT, delta=1e-3), "one of epsilon and"),
        (lambda: GRADIENT(jnp.ones(2), ROWS) + GRADIENT(jnp.ones(2), ROWS), "unsupported operand"),
        (lambda: GRADIENT(jnp.ones(2), ROWS, None, jnp.ones(4)), "boolean or integer"),
        (lambda: GRADIENT(jnp.ones(2), ROWS).scale("2"), "factor must be a real number"),
        (lambda: privacy.clipped_grad_sum(loss, 1 + 2j), r"clip_norm must be a real number"),
        (lambda: privacy.NoiseSource.public(0.5), "seed must be an integer, got 0.5"),
        (lambda: privacy.NoiseSource("x" * 32), "secret must be bytes, got a str"),
        (lambda: batches.padded_batch_size(10.5, 0.1, num_steps=1, delta=0.1), "num_examples"),
    ],
)
def test_wrong_types_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_missing_accounting_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"jaxkit\[privacy\]"):
        privacy.one_pass(GRADIENT, epsilon=1.0, delta=1e-3)
