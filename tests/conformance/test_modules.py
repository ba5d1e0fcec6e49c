"""Every Flax module goes through one mill: pure functions of parameters and inputs, in NNX too."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkit import lexinvariant as lx
from jaxkit import models, subrl

BATCH = 8


class Case(NamedTuple):
    """A module.

    Attributes:
        module: a small one.
        inputs: from a NumPy generator to a batch of 8.
        extra: further arguments of a call.
        output: from what a call returns to one array.
        shape: of that array.
        half: the module in bfloat16, where it has a type, and the type of its output then.
        refused: calls, with the message that each is refused with.
    """

    module: nn.Module
    inputs: Callable[[np.random.Generator], Any]
    shape: tuple[int, ...]
    extra: tuple[Any, ...] = ()
    output: Callable[[Any], Any] = lambda outputs: outputs
    half: tuple[nn.Module, Any] | None = None
    refused: tuple[tuple[Callable[[], Any], str], ...] = ()


CONFIG = models.DecoderConfig(
    vocab_size=8, d_model=8, num_layers=2, num_heads=2, head_dim=4, d_ff=16, num_buckets=4
)
HALF = dataclasses.replace(CONFIG, dtype="bfloat16")
VIT = models.VisionTransformer(
    image_size=4, patch_size=2, channels=1, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=3
)


def rows(*shape):
    return lambda rng: jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)


def shaped(module, *shape):
    """A call on an input of this shape, without running it."""
    return lambda: jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


CASES = {
    "models.DecoderLM": Case(
        models.DecoderLM(CONFIG),
        lambda rng: jnp.asarray(rng.integers(0, 8, size=(BATCH, 5)), jnp.int32),
        (BATCH, 5, 8),
        half=(models.DecoderLM(HALF), jnp.float32),
        refused=(
            (
                lambda: dataclasses.replace(CONFIG, d_model=0),
                "d_model must be an integer >= 1, got 0",
            ),
            (lambda: dataclasses.replace(CONFIG, position="t6"), "position must be one of 't5'"),
            (
                lambda: models.DecoderLM(dataclasses.replace(CONFIG, embedding="given")).init(
                    jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
                ),
                "embedding",
            ),
        ),
    ),
    "models.ResNet": Case(
        models.ResNet(3, widths=(4, 8), blocks=(1, 1), stem="cifar"), rows(8, 8, 3), (BATCH, 3)
    ),
    "models.MLP": Case(models.MLP(3, hidden=(6,)), rows(4, 4, 1), (BATCH, 3)),
    "lexinvariant.DecipherProbe": Case(lx.DecipherProbe(6, 8), rows(3, 8), (BATCH, 3, 6)),
    "models.VisionTransformer": Case(
        VIT,
        rows(4, 4, 1),
        (BATCH, 3),
        output=lambda outputs: outputs["logits"],
        half=(VIT.clone(dtype=jnp.bfloat16), jnp.float32),
        refused=(
            (shaped(VIT, 1, 6, 6, 1), r"\[B, 4, 4, 1\].*\[1, 6, 6, 1\]"),
            (lambda: VIT.clone(patch_size=3), "patch_size must divide image_size=4, got 3"),
            (lambda: VIT.clone(width=0), "width must be an integer >= 1, got 0"),
        ),
    ),
    "subrl.CategoricalPolicy": Case(subrl.CategoricalPolicy(5, hidden=(6,)), rows(3), (BATCH, 5)),
    "subrl.TabularPolicy": Case(
        subrl.TabularPolicy(5, 9, 4),
        lambda rng: jnp.asarray(rng.integers(0, 3, size=(BATCH, 2)), jnp.float32),
        (BATCH, 5),
    ),
    "subrl.GaussianPolicy": Case(
        subrl.GaussianPolicy(2, hidden=(6,)), rows(3), (BATCH, 2), output=lambda out: out.mean
    ),
    "subrl.Critic": Case(subrl.Critic((6,)), rows(3), (BATCH,)),
}

EXCLUDED = {
    "models.LeNet": "of one large size; held to published vectors in tests/models",
    "models.VGG11": "of one large size; held to published vectors in tests/models",
}


class Prepared(NamedTuple):
    """A module's parameters (two draws), inputs, its call, and one compiled form of it."""

    case: Case
    draws: tuple[Any, Any]
    inputs: Any
    apply: Callable[[Any, Any], Any]
    compiled: Any
    traces: list[int]


@functools.cache
def prepared(name):
    case = CASES[name]
    inputs, traces = case.inputs(np.random.default_rng(0)), []

    @jax.jit
    def draw(key):
        return nn.meta.unbox(case.module.init(key, inputs, *case.extra))

    def apply(variables, inputs):
        return case.output(case.module.apply(variables, inputs, *case.extra))

    def counted(variables, inputs):
        traces.append(1)
        return apply(variables, inputs)

    def nudged(seed):
        # Tables that start at zero or one say little.
        drawn, keys = draw(jax.random.key(seed)), jax.random.key(seed + 10)
        leaves, structure = jax.tree.flatten(drawn)
        noise = [
            leaf + 0.1 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, jax.random.split(keys, len(leaves)), strict=True)
        ]
        return jax.tree.unflatten(structure, noise)

    return Prepared(case, (nudged(0), nudged(1)), inputs, apply, jax.jit(counted), traces)


#: Properties that cost a program each are tried on these in the quick suite, on all in the slow.
QUICK = (
    "lexinvariant.DecipherProbe",
    "subrl.GaussianPolicy",
    "subrl.TabularPolicy",
)

each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def test_every_public_module_is_in_the_table(assert_complete):
    assert_complete(
        lambda value: inspect.isclass(value) and issubclass(value, nn.Module | nnx.Module),
        CASES,
        EXCLUDED,
    )


@each
def test_parameters_are_float32_and_outputs_have_their_shape_and_type(name, described):
    case = CASES[name]
    inputs = case.inputs(np.random.default_rng(0))
    ways = [(case.module, inputs, jnp.float32)]
    if case.half is not None:
        module, dtype = case.half
        narrow = inputs.astype(jnp.bfloat16) if inputs.dtype == jnp.float32 else inputs
        ways.append((module, narrow, dtype))
    for module, inputs, dtype in ways:
        found, variables = jax.eval_shape(
            module.init_with_output, jax.random.key(0), inputs, *case.extra
        )
        out = case.output(found)
        assert (out.shape, out.dtype) == (case.shape, dtype)
        _, leaves = described(variables)
        assert leaves
        # Weakly typed ones would be traced again after a first step.
        assert all((dtype, weak) == (jnp.float32, False) for _, dtype, weak in leaves)
        assert set(variables) == {"params"}


@some
def test_a_compiled_call_is_the_eager_one_and_other_numbers_are_not_traced(name, assert_same):
    _, (variables, other), inputs, apply, compiled, traces = prepared(name)
    found = compiled(variables, inputs)
    assert_same(found, apply(variables, inputs))
    changed = compiled(other, inputs[::-1])
    assert len(traces) == 1
    assert not np.allclose(changed, found)
    # A row has its numbers whatever its place and the other rows.
    half = BATCH // 2
    repeated = compiled(variables, jnp.concatenate([inputs[:half]] * 2))
    assert_same(repeated, jnp.concatenate([found[:half]] * 2))


@some
def test_first_parameters_may_be_donated_and_others_drawn(name, assert_donatable):
    case, _, inputs, *_ = prepared(name)
    assert_donatable(lambda: case.module.init(jax.random.key(0), inputs, *case.extra), inputs)


@some
def test_calls_under_vmap_over_parameters_and_under_scan_are_each_alone(name, assert_same):
    _, draws, inputs, apply, compiled, _ = prepared(name)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    both = jnp.stack([inputs, inputs[::-1]])

    @jax.jit
    def ways(stacked, both):
        _, scanned = jax.lax.scan(lambda c, x: (c, apply(*x)), None, (stacked, both))
        return jax.vmap(apply)(stacked, both), scanned

    for found in ways(stacked, both):
        for row in range(2):
            assert_same(found[row], compiled(draws[row], both[row]))


@some
def test_orbax_restores_the_parameters(name, resaved, assert_same):
    _, (variables, _), inputs, _, compiled, _ = prepared(name)
    restored = resaved(variables)
    assert_same(restored, variables)
    np.testing.assert_array_equal(compiled(restored, inputs), compiled(variables, inputs))


@some
def test_a_batch_on_eight_devices_gives_the_numbers_of_one(name, spread, assert_same):
    _, (variables, _), inputs, _, compiled, _ = prepared(name)
    whole = jax.tree.map(lambda leaf: leaf, variables)
    found = compiled(whole, spread(inputs))
    assert len(found.sharding.device_set) == 8
    assert_same(found, compiled(variables, inputs))


@some
def test_it_trains_in_donated_memory(name, assert_same):
    _, (variables, _), inputs, apply, *_ = prepared(name)

    def step(variables):
        loss, slope = jax.value_and_grad(lambda v: jnp.sum(apply(v, inputs) ** 2))(variables)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, variables, slope), loss

    donated = jax.jit(step, donate_argnums=0)
    current, losses = jax.tree.map(jnp.array, variables), []
    for _ in range(3):
        held = jax.tree.leaves(current)
        current, loss = donated(current)
        assert all(leaf.is_deleted() for leaf in held)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    assert jax.tree.structure(current) == jax.tree.structure(variables)


@some
def test_as_an_nnx_module_it_gives_the_same_numbers_and_gradients(name, assert_same):
    case, _, inputs, _, _, _ = prepared(name)
    # The parameters may name logical axes; without a mesh nothing is to be sharded at once.
    with nnx.use_eager_sharding(False):
        bridged = nnx.bridge.ToNNX(case.module, rngs=nnx.Rngs(0))
        nnx.bridge.lazy_init(bridged, inputs, *case.extra)

        @nnx.jit
        def in_nnx(module, inputs):
            def total(module):
                found = case.output(module(inputs, *case.extra))
                return jnp.sum(jnp.exp(0.1 * found)), found

            (_, found), slope = nnx.value_and_grad(total, has_aux=True)(module)
            return found, slope

        found, slope = in_nnx(bridged, inputs)
        params = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))

    @jax.jit
    def in_linen(params, inputs):
        def total(params):
            found = case.output(case.module.apply({"params": params}, inputs, *case.extra))
            return jnp.sum(jnp.exp(0.1 * found)), found

        (_, found), slope = jax.value_and_grad(total, has_aux=True)(params)
        return found, slope

    want = in_linen(params, inputs)
    assert_same((found, nnx.to_pure_dict(slope)), want)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want[1]))


@each
def test_bad_input_is_refused_where_it_enters(name, bad_input):
    for call, message in CASES[name].refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
