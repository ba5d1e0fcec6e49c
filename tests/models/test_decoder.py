import contextlib
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import checkify

from jaxkit import lexinvariant as lx
from jaxkit import models, training
from jaxkit.width import roles as width_roles

SMALL = models.DecoderConfig(
    vocab_size=7, d_model=16, num_layers=2, num_heads=2, head_dim=8, d_ff=24, num_buckets=8
)
RANDOM = dataclasses.replace(SMALL, embedding="given", max_distance=12)

OPTIONS = {
    "default": {},
    "grouped queries": {"num_kv_heads": 1, "position": "rope"},
    "rope": {"position": "rope"},
    "qk norm": {"qk_norm": True},
    "shared bias": {"share_relative_bias": True},
    "plain contractions": {"attention": "einsum"},
}


def test_recency_heads_start_every_second_head_as_a_slope():
    config = dataclasses.replace(RANDOM, recency_heads=True, num_heads=4)
    model = models.DecoderLM(config)
    table = jnp.ones((7, 16))

    @jax.jit
    def start(key):
        return nn.meta.unbox(model.init(key, jnp.array([[1]]), table))["params"]["layers"][
            "relative_bias"
        ]

    bias = start(jax.random.key(0))
    slope = [-6.0, -1.5, -3.0, -4.5, -6.0, -7.5, -9.0, -10.5]
    assert bias.shape == (2, 4, 8)
    for layer in range(2):
        np.testing.assert_array_equal(bias[layer], [slope, [0.0] * 8, slope, [0.0] * 8])


@pytest.mark.parametrize(
    "name",
    ["default", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rope", "plain contractions"))],
)
def test_a_later_token_leaves_earlier_logits_bitwise_unchanged(name, seeded):
    model, variables, tokens, table = seeded(dataclasses.replace(RANDOM, **OPTIONS[name]))
    apply = jax.jit(model.apply)
    before = apply(variables, tokens, table)
    after = apply(variables, tokens.at[:, 5].add(1) % 7, table)
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "grouped queries",
        pytest.param("rope", marks=pytest.mark.slow),
        pytest.param("qk norm", marks=pytest.mark.slow),
        pytest.param("shared bias", marks=pytest.mark.slow),
    ],
)
def test_reading_token_by_token_gives_the_logits_of_one_pass(name, seeded):
    model, variables, tokens, table = seeded(dataclasses.replace(RANDOM, **OPTIONS[name]))
    full = jax.jit(model.apply)(variables, tokens, table)

    @jax.jit
    def stepwise(tokens):
        prompt, rest = tokens[:, :4], tokens[:, 4:]
        cache = models.empty_cache(model.config, 3, 11)
        logits, cache = model.apply(variables, cache, prompt, table, method="decode_step")

        def step(cache, token):
            logits, cache = model.apply(
                variables, cache, token[:, None], table, method="decode_step"
            )
            return cache, logits[:, 0]

        _, later = jax.lax.scan(step, cache, rest.T)
        return jnp.concatenate([logits, jnp.swapaxes(later, 0, 1)], axis=1)

    np.testing.assert_allclose(stepwise(tokens), full, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [4, 9])
def test_a_table_computed_where_it_is_read_gives_the_same_logits_and_gradients(length, seeded):
    """A context shorter than the vocabulary draws single rows, a longer one the whole table."""
    model, variables, tokens, table = seeded(RANDOM)
    keys = lx.sequence_keys(jax.random.key(0), jnp.arange(3))
    computed = lx.RandomTable(keys, 7, 16)

    @jax.jit
    def compare(variables, *tables):
        def total(variables, embedding):
            return jnp.sum(jnp.sin(model.apply(variables, tokens[:, :length], embedding)))

        return [jax.value_and_grad(total)(variables, embedding) for embedding in tables]

    (value, gradient), (again, regenerated) = compare(variables, table, computed)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, regenerated)


def test_bfloat16_keeps_parameters_float32_and_stays_near_the_float32_logits(seeded):
    model, variables, tokens, table = seeded(RANDOM)
    half = models.DecoderLM(dataclasses.replace(RANDOM, dtype="bfloat16"))
    logits = jax.jit(half.apply)(variables, tokens, table)
    assert logits.dtype == jnp.float32
    fresh = jax.eval_shape(half.init, jax.random.key(0), tokens, table)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(fresh))
    exact = jax.jit(model.apply)(variables, tokens, table)
    # Eight bits of mantissa over two layers.
    assert float(jnp.sqrt(jnp.mean((logits - exact) ** 2))) < 0.02 * float(jnp.std(exact))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["remat", "unroll_layers"])
def test_scanned_unrolled_and_rematerialised_layers_share_parameters_and_gradients(option, seeded):
    _, variables, tokens, table = seeded(RANDOM)
    compared = [
        models.DecoderLM(dataclasses.replace(RANDOM, **{option: used})) for used in (False, True)
    ]

    @jax.jit
    def gradients(variables):
        return [
            jax.grad(lambda v, m=model: jnp.sum(jnp.cos(m.apply(v, tokens, table))))(variables)
            for model in compared
        ]

    plain, other = gradients(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, other)


@pytest.mark.slow
def test_the_decoder_runs_as_an_nnx_module():
    tokens = jnp.array([[1, 2, 3]])
    # The parameters name logical axes; without a mesh nothing is to be sharded at once.
    with nnx.use_eager_sharding(False):
        bridged = nnx.bridge.ToNNX(models.DecoderLM(SMALL), rngs=nnx.Rngs(0)).lazy_init(tokens)
    state = nnx.state(bridged, nnx.Param)
    assert bridged(tokens).shape == (1, 3, 7)
    names = {str(path[0]) for path, _ in nnx.to_flat_state(state)}
    assert {"embedding", "layers", "final_norm"} <= names


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", np.dtype(jnp.bfloat16)])
def test_types_are_taken_in_every_form(dtype):
    config = dataclasses.replace(SMALL, dtype=dtype)
    assert config == dataclasses.replace(SMALL, dtype="bfloat16")
    assert models.empty_cache(config, 1, 2).keys.dtype == jnp.bfloat16


def test_flax_reads_the_rules_of_the_parameters():
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    boxed = jax.eval_shape(models.initializer(models.DecoderLM(MESHED)), jax.random.key(0))
    found = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, training.RULES)
    ours = training.parameter_shardings(boxed, mesh)
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(ours), nn.meta.unbox(boxed), strict=False)
    for flax, own, _ in leaves:
        assert flax.is_equivalent_to(own, len(own.spec))


@pytest.mark.slow
def test_on_a_mesh_it_runs_as_an_nnx_module():
    tokens = jnp.zeros((8, 3), jnp.int32)
    mesh = training.make_mesh("data=2,fsdp=2,tensor=2")
    with jax.set_mesh(mesh), nn.logical_axis_rules(training.RULES):
        bridged = nnx.bridge.ToNNX(models.DecoderLM(MESHED), rngs=nnx.Rngs(0)).lazy_init(tokens)
        up = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))["layers"]["up"]
        assert up.sharding.spec == jax.P(None, "fsdp", "tensor")
        logits = nnx.jit(lambda module, tokens: module(tokens))(bridged, tokens)
    params = jax.tree.map(
        jnp.asarray, jax.device_get(nnx.to_pure_dict(nnx.state(bridged, nnx.Param)))
    )
    alone = models.DecoderLM(MESHED).apply({"params": params}, tokens)
    np.testing.assert_allclose(logits, alone, atol=1e-5)


MESHED = dataclasses.replace(SMALL, vocab_size=8, num_layers=1)
AXIS_TYPES = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("data", "fsdp", "tensor"), ("replica", "x", "model")])
@pytest.mark.parametrize("kind", AXIS_TYPES)
@pytest.mark.parametrize("in_use", [True, False])
def test_any_mesh_gives_the_logits_and_gradients_of_one_device(names, kind, in_use):
    model = models.DecoderLM(MESHED)
    tokens = np.random.default_rng(0).integers(0, 8, (8, 5)).astype(np.int32)
    init = models.initializer(model)
    alone = nn.meta.unbox(init(jax.random.key(0)))

    def scored(variables, tokens):
        return model.apply(variables, tokens)

    def slope(variables, tokens):
        return jax.grad(lambda v: jnp.sum(jnp.cos(model.apply(v, tokens))))(variables)

    want = jax.jit(scored)(alone, tokens), jax.jit(slope)(alone, tokens)
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(kind,) * 3)
    boxed = jax.eval_shape(init, jax.random.key(0))
    spread = jax.device_put(alone, training.parameter_shardings(boxed, mesh))
    with jax.set_mesh(mesh) if in_use else contextlib.nullcontext():
        rows = jax.device_put(tokens, jax.NamedSharding(mesh, jax.P(names[:2])))
        found = jax.jit(scored)(spread, rows), jax.jit(slope)(spread, rows)
        again = nn.meta.unbox(jax.jit(init)(jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, want)
    # Drawn alike; compiled with the mesh in hand they may round once more.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), again, alone)


EVERY_METHOD = [
    {"method": "lexinvariant"},
    {"method": "lexinvariant", "chunk_size": 3},
    {"method": "relabel", "p": 0.5, "closed": True},
    {"method": "mixed", "p": 0.5},
]


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(devices, seeded):
    from jaxkit.training import make_mesh, parameter_shardings, place_batch

    config = dataclasses.replace(RANDOM, vocab_size=8, num_layers=1)
    model, variables, *_ = seeded(config)
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    boxed = jax.eval_shape(models.initializer(model), jax.random.key(0))
    spread = jax.device_put(variables, parameter_shardings(boxed, mesh))
    batch = {
        "tokens": np.random.default_rng(0).integers(0, 8, (8, 13)).astype(np.int32),
        "index": np.arange(40, 48),
    }
    losses = jax.jit(functools.partial(lx.token_losses, model))
    alone = losses(variables, {k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(5))
    many = losses(spread, place_batch(batch, mesh), jax.random.key(5))
    assert len(many.sharding.device_set) == 8
    np.testing.assert_allclose(alone, many, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", EVERY_METHOD)
def test_eight_devices_give_the_losses_and_gradients_of_one(options, devices):
    from jaxkit.training import batch_sharding, make_mesh, parameter_shardings, place_batch

    config = dataclasses.replace(
        RANDOM, vocab_size=8, num_heads=4, head_dim=4, d_ff=32, recency_heads=True
    )
    batch = {
        "tokens": np.random.default_rng(0).integers(0, 8, (8, 13)).astype(np.int32),
        "index": np.arange(40, 48),
    }
    key = jax.random.key(5)

    def results(mesh, **options):
        embedding = "given" if options.get("method") == "lexinvariant" else "fixed"
        model = models.DecoderLM(dataclasses.replace(config, embedding=embedding))
        table = jnp.zeros((8, 16))

        def init(key):
            return model.init(key, jnp.zeros((1, 2), jnp.int32), table)

        loss = lx.next_token_loss(model, **options)
        boxed = jax.eval_shape(init, jax.random.key(0))
        if mesh is None:
            variables = jax.jit(lambda k: nn.meta.unbox(init(k)))(jax.random.key(0))
            placed = {name: jnp.asarray(rows) for name, rows in batch.items()}
        else:
            variables = jax.jit(
                lambda k: nn.meta.unbox(init(k)), out_shardings=parameter_shardings(boxed, mesh)
            )(jax.random.key(0))
            placed = place_batch(batch, mesh)
            assert placed["tokens"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
        return jax.jit(jax.value_and_grad(loss))(variables, placed, key)

    alone = results(None, **options)
    many = results(make_mesh("data=2,fsdp=2,tensor=2"), **options)
    np.testing.assert_allclose(alone[0], many[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone[1], many[1])


def test_width_roles_of_every_kernel_are_those_of_its_equation():
    def shapes(factor):
        config = dataclasses.replace(
            SMALL,
            d_model=16 * factor,
            num_heads=2 * factor,
            num_kv_heads=factor,
            d_ff=24 * factor,
            position="rope",
            gated_mlp=True,
            tied_readout=False,
            embedding_affine=False,
        )
        init = models.initializer(models.DecoderLM(config))
        return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]

    roles = width_roles.infer_width_roles(shapes(1), shapes(4))
    found = {name: info for name, info in roles["layers"].items() if "norm" not in name}
    assert {name: info.fan_in_axes for name, info in found.items()} == {
        "query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "up": (1,), "gate": (1,),
        "down": (1,),
    }  # fmt: skip
    assert {(info.role, info.width_mult, info.fan_out_mult) for info in found.values()} == {
        ("matrix", 4.0, 4.0)
    }
    assert roles["embedding"].role == roles["unembedding"].role == "vector"


def test_nothing_is_traced_twice_in_a_loop(count_traces, seeded):
    model, variables, tokens, _ = seeded(RANDOM)
    loss = count_traces(lx.next_token_loss(model))
    score = jax.jit(loss)
    for seed in range(3):
        score(variables, {"tokens": tokens, "index": jnp.arange(3) + seed}, jax.random.key(seed))
    assert loss.count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"position": "ropes"}, "did you mean 'rope'"),
        ({"position": "rope", "head_dim": 3}, "head_dim must be even"),
        ({"num_buckets": 7}, "num_buckets must be even, got 7"),
        ({"max_distance": 4}, "max_distance must be an integer >= 5, got 4"),
        ({"max_length": 0}, "max_length must be an integer >= 1"),
        ({"embedding": "learned"}, "embedding must be one of"),
        ({"attention_scale": "sqrt"}, "attention_scale must be one of"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads=2, got 3"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"rotary_base": 0.0}, "rotary_base must be"),
        ({"embedding": "given", "tied_readout": False}, "tied_readout must be True"),
        ({"attention": "splash"}, "position must be 'rope' or 'none', got 't5'"),
        ({"dtype": "int32"}, "dtype must be a floating type of at most 32 bits, got 'int32'"),
        ({"dtype": "float64"}, "got 'float64'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change, message, bad_input):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("tokens", "table", "error", "message"),
    [
        (np.zeros((2, 3)), None, TypeError, "tokens must be integers, got dtype float"),
        ([[0, 1]], None, TypeError, "tokens must be an array, got a list"),
        (np.zeros(3, int), None, ValueError, "tokens must have shape"),
        (np.zeros((2, 0), int), None, ValueError, "T >= 1"),
        (np.full((2, 3), 7), None, ValueError, r"in \[0, 7\), got 7 at position \(0, 0\)"),
        (np.array([[0, -1]]), None, ValueError, r"got -1 at position \(0, 1\)"),
        (np.zeros((2, 10), int), None, ValueError, "max_length=9 long, got 10"),
        (np.zeros((2, 3), int), np.zeros((6, 16)), ValueError, r"\(7, 16\).*got \(6, 16\)"),
        (np.zeros((2, 3), int), np.zeros((3, 7, 16)), ValueError, r"got \(3, 7, 16\)"),
        (np.zeros((2, 3), int), lambda: jax.random.key(0), ValueError, r"\(7, 16\).*got \(\)"),
        (
            np.zeros((2, 3), int),
            lambda: lx.RandomTable(jax.random.split(jax.random.key(0), 1), 7, 16),
            ValueError,
            r"got \(1, 7, 16\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tokens, table, error, message, bad_input, seeded):
    model, variables, *_ = seeded(dataclasses.replace(SMALL, max_length=9))
    with pytest.raises(error, match=message):
        model.apply(variables, tokens, table() if callable(table) else table)


def test_a_model_that_has_no_table_and_is_given_none_is_refused(bad_input):
    model = models.DecoderLM(RANDOM)
    with pytest.raises(ValueError, match="embedding must be given"):
        model.init(jax.random.key(0), np.zeros((1, 2), int))


def test_a_cache_that_is_too_short_is_refused(seeded):
    model, variables, tokens, table = seeded(RANDOM)
    cache = models.empty_cache(RANDOM, 3, 10)._replace(position=jnp.int32(9))
    with pytest.raises(ValueError, match="cache holds 10 tokens, got 2 more after 9"):
        model.apply(variables, cache, tokens[:, :2], table, method="decode_step")


def test_traced_token_ids_are_checked_under_checkify():
    def read(tokens):
        models.validate_tokens(tokens, 7)
        return tokens.sum()

    checked = jax.jit(checkify.checkify(read))
    assert checked(jnp.array([0, 6]))[0].get() is None
    assert "tokens must be in [0, 7)" in checked(jnp.array([0, 7]))[0].get()
    assert int(jax.jit(read)(jnp.array([0, 7]))) == 7
